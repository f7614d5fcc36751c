//! Aligned columns under an upper-case header, and numbers as people read them.
//!
//! In: cells, possibly coloured. Out: lines without trailing blanks. Invariant: a number that is not known
//! is `-`, never 0.

use console::{Alignment, Style, measure_text_width, pad_str, style};

use crate::api::{Edge, Retries, Signals, TlsCalls};

/// Blanks between columns.
const GAP: &str = "   ";
/// Below this share of successes an edge is in trouble.
const BAD: f64 = 0.95;
/// Below this share of successes it deserves a look.
const DOUBTFUL: f64 = 0.99;

/// Above this many attempts per request retries deserve a look.
const AMPLIFIED: f64 = 1.05;

/// Rows of equal length under a header. A header that begins with `>` makes its column right-aligned.
pub(crate) fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let names: Vec<&str> = header.iter().map(|name| name.trim_start_matches('>')).collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            let cells = rows.iter().map(|row| measure_text_width(&row[column]));
            cells.chain([measure_text_width(names[column])]).max().unwrap_or_default()
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .enumerate()
            .map(|(column, cell)| {
                let right = header[column].starts_with('>');
                let alignment = if right { Alignment::Right } else { Alignment::Left };
                pad_str(cell, widths[column], alignment, None).into_owned()
            })
            .collect();
        format!("{}\n", padded.join(GAP).trim_end())
    };
    let mut text = style(line(&mut names.iter().copied()).trim_end()).dim().to_string();
    text.push('\n');
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// `97.50%`, coloured by how bad it is.
pub(crate) fn success(rate: Option<f64>) -> String {
    let Some(rate) = rate else { return "-".into() };
    let colour = match rate {
        rate if rate < BAD => Style::new().red().bold(),
        rate if rate < DOUBTFUL => Style::new().yellow(),
        _ => Style::new(),
    };
    // Rounding must not hide the one failure in a hundred thousand.
    let text =
        if rate < 1.0 && rate > 0.9999 { "99.99%".to_owned() } else { format!("{:.2}%", rate * 100.0) };
    colour.apply_to(text).to_string()
}

/// `12.3rps`.
pub(crate) fn rate(signals: &Signals) -> String {
    match signals.requests_per_second {
        Some(rate) if rate > 0.0 => format!("{rate:.1}rps"),
        _ => "-".into(),
    }
}

/// `840us`, `12ms`, `1.25s`.
pub(crate) fn latency(milliseconds: Option<f64>) -> String {
    match milliseconds {
        None => "-".into(),
        Some(ms) if ms < 1.0 => format!("{:.0}us", ms * 1000.0),
        Some(ms) if ms < 10.0 => format!("{ms:.1}ms"),
        Some(ms) if ms < 10_000.0 => format!("{ms:.0}ms"),
        Some(ms) => format!("{:.1}s", ms / 1000.0),
    }
}

/// `51.25%` of calls, coloured by how bad it is; `-` when there were none.
pub(crate) fn errors(errors: u64, calls: u64) -> String {
    if calls == 0 {
        return "-".into();
    }
    let share = errors as f64 / calls as f64;
    let colour = match share {
        share if share > 1.0 - BAD => Style::new().red().bold(),
        share if share > 1.0 - DOUBTFUL => Style::new().yellow(),
        _ => Style::new(),
    };
    colour.apply_to(format!("{:.2}%", share * 100.0)).to_string()
}

/// `x1.24` attempts per request; `-` where nothing can be sent again.
pub(crate) fn attempts(retries: Option<Retries>) -> String {
    match retries {
        None => "-".into(),
        Some(Retries { amplification }) if amplification > AMPLIFIED => {
            style(format!("x{amplification:.2}")).yellow().to_string()
        }
        Some(Retries { amplification }) => format!("x{amplification:.2}"),
    }
}

/// `mutual`, or `62% mutual` where it was not all; `-` where nothing is known to have been on the wire.
pub(crate) fn protection(edge: &Edge) -> String {
    let TlsCalls { mutual, simple, none } = edge.tls_calls;
    match edge.tls.as_deref() {
        Some("mutual") => style("mutual").green().to_string(),
        Some("mixed") if mutual > 0 => {
            // Never 100: somebody is looking for exactly that one call.
            let share =
                mutual.saturating_mul(100) / mutual.saturating_add(simple).saturating_add(none).max(1);
            style(format!("{share}% mutual")).yellow().to_string()
        }
        Some(word) => word.to_owned(),
        None => "-".into(),
    }
}

/// `45s`, `12m`, `3h`.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        _ => format!("{}h", seconds / 3600),
    }
}

/// `1.2kB/s`.
pub(crate) fn bytes_per_second(rate: Option<f64>) -> String {
    match rate {
        None => "-".into(),
        Some(rate) if rate < 1000.0 => format!("{rate:.0}B/s"),
        Some(rate) if rate < 1_000_000.0 => format!("{:.1}kB/s", rate / 1000.0),
        Some(rate) => format!("{:.1}MB/s", rate / 1_000_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows =
            vec![vec!["web".to_owned(), "1.0rps".to_owned()], vec!["catalog".to_owned(), "-".to_owned()]];
        let text = console::strip_ansi_codes(&render(&["NAME", ">RPS"], &rows)).into_owned();
        assert_eq!(text, "NAME         RPS\nweb       1.0rps\ncatalog        -\n");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(latency(Some(0.84)), "840us");
        assert_eq!(latency(Some(7.25)), "7.2ms");
        assert_eq!(latency(Some(250.4)), "250ms");
        assert_eq!(latency(Some(12_500.0)), "12.5s");
        assert_eq!(latency(None), "-");
        assert_eq!(bytes_per_second(Some(1234.0)), "1.2kB/s");
        assert_eq!([age(45), age(200), age(9000)], ["45s", "3m", "2h"]);
        console::set_colors_enabled(false);
        assert_eq!([errors(1, 3), errors(0, 3), errors(0, 0)], ["33.33%", "0.00%", "-"]);
        assert_eq!(success(Some(0.999_999)), "99.99%");
        assert_eq!(success(Some(1.0)), "100.00%");
        assert_eq!(success(None), "-");
    }
}
