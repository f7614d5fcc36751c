//! YAML that means the same to every parser.
//!
//! In: values. Out: text. `serde_yaml` writes and reads YAML 1.2, kubectl and Helm read 1.1, in which `yes`, `on`, `1_000` and
//! `12:30:45` are truth values and numbers: as a text such a word must stand in quotes. Invariant: what is written is read back
//! as it was, by either. Surprise: the writer cannot be told what to quote, so words are marked, written, and found again by
//! their marks. A word in quotes too many does no harm, so what only looks like a number is quoted as well.

use serde::Serialize;
use serde_yaml::{Mapping, Value};

/// One document, without the line that parts it from others.
///
/// # Errors
/// When the value has no form in YAML.
pub fn text(value: &impl Serialize) -> Result<String, serde_yaml::Error> {
    let mut value = serde_yaml::to_value(value)?;
    let plain = serde_yaml::to_string(&value)?;
    let mut words = Vec::new();
    ambiguous(&value, &mut words);
    if words.is_empty() {
        return Ok(plain);
    }
    // Characters that nobody has given a meaning. There are more of them than a text of the largest size could use in pairs.
    let unused = ('\u{e000}'..='\u{f8ff}').find(|mark| !plain.contains(*mark));
    let Some(mark) = unused else { return Ok(plain) };
    marked(&mut value, mark);
    let mut text = serde_yaml::to_string(&value)?;
    words.sort_unstable();
    words.dedup();
    for word in words {
        text = text.replace(&format!("{mark}{word}{mark}"), &format!("'{word}'"));
    }
    Ok(text)
}

/// Whether some parser takes a word without quotes for something else than a text.
#[must_use]
pub fn is_ambiguous(word: &str) -> bool {
    const WORDS: [&str; 11] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null", "~", "<<"];
    if WORDS.iter().any(|known| known.eq_ignore_ascii_case(word)) || word == "=" {
        return true;
    }
    let unsigned = word.strip_prefix(['-', '+']).unwrap_or(word);
    let special = [".inf", ".nan"].iter().any(|known| known.eq_ignore_ascii_case(unsigned));
    if special {
        return true;
    }
    // Hexadecimal, octal, binary; decimal and sexagesimal, with a fraction or an exponent; dates and times. Two dots are an
    // address or a version to every parser, whatever the specification's own expression says.
    let unsigned = unsigned.to_ascii_lowercase();
    match unsigned.get(..2) {
        Some("0x" | "0o" | "0b") => {
            unsigned.bytes().skip(2).all(|byte| byte.is_ascii_hexdigit() || byte == b'_')
        }
        _ => {
            unsigned.starts_with(|first| matches!(first, '0'..='9' | '.'))
                && unsigned.matches('.').count() < 2
                && unsigned.bytes().all(|byte| byte.is_ascii_digit() || b"_:.+-etz \t".contains(&byte))
        }
    }
}

/// Whether the writer would leave an ambiguous word without quotes. One that it quotes by itself keeps a mark inside of them.
fn needs_quotes(word: &str) -> bool {
    is_ambiguous(word) && serde_yaml::to_string(word).is_ok_and(|text| text.strip_suffix('\n') == Some(word))
}

fn ambiguous(value: &Value, words: &mut Vec<String>) {
    match value {
        Value::String(word) if needs_quotes(word) => words.push(word.clone()),
        Value::Sequence(items) => items.iter().for_each(|item| ambiguous(item, words)),
        Value::Mapping(fields) => fields.iter().for_each(|(key, value)| {
            ambiguous(key, words);
            ambiguous(value, words);
        }),
        Value::Tagged(tagged) => ambiguous(&tagged.value, words),
        _ => {}
    }
}

fn marked(value: &mut Value, mark: char) {
    match value {
        Value::String(word) if needs_quotes(word) => *word = format!("{mark}{word}{mark}"),
        Value::Sequence(items) => items.iter_mut().for_each(|item| marked(item, mark)),
        Value::Mapping(fields) => {
            let entries = std::mem::take(fields).into_iter().map(|(mut key, mut value)| {
                marked(&mut key, mark);
                marked(&mut value, mark);
                (key, value)
            });
            *fields = entries.collect::<Mapping>();
        }
        Value::Tagged(tagged) => marked(&mut tagged.value, mark),
        _ => {}
    }
}

/// What a parser of YAML 1.1 makes of a scalar without quotes, by the expressions of its types' specifications.
#[cfg(test)]
pub(crate) fn is_text_in_yaml_1_1(plain: &str) -> bool {
    const TYPES: [&str; 13] = [
        "y|Y|yes|Yes|YES|n|N|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF",
        "~|null|Null|NULL|",
        "[-+]?0b[0-1_]+",
        "[-+]?0[0-7_]+",
        "[-+]?(0|[1-9][0-9_]*)",
        "[-+]?0x[0-9a-fA-F_]+",
        "[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+",
        r"[-+]?([0-9][0-9_]*)?\.[0-9_]*([eE][-+][0-9]+)?",
        r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+\.[0-9_]*",
        r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        // As the YAML library of Kubernetes has it, and 1.2.
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|0o[0-7]+",
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}([Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}(\.[0-9]*)?(([ \t]*)(Z|[-+][0-9]{1,2}(:[0-9]{2})?))?",
        "<<|=",
    ];
    !TYPES.iter().any(|kind| regex::Regex::new(&format!("^(?:{kind})$")).expect("valid").is_match(plain))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One of each form of each type of YAML 1.1 that is no text, and of 1.2.
    const WORDS: [&str; 64] = [
        "y",
        "Y",
        "yes",
        "Yes",
        "YES",
        "n",
        "N",
        "no",
        "No",
        "NO",
        "true",
        "True",
        "TRUE",
        "false",
        "False",
        "FALSE",
        "on",
        "On",
        "ON",
        "off",
        "Off",
        "OFF",
        "~",
        "null",
        "Null",
        "NULL",
        "0b1010_0111",
        "-0b1",
        "02472256",
        "0o17",
        "0",
        "685_230",
        "1_000",
        "+1",
        "-12",
        "0x_0A_74",
        "0xff",
        "190:20:30",
        "12:30:45",
        "8080:80",
        "1:1",
        "6.8523015e+5",
        "685.230_15e+03",
        "685_230.15",
        "190:20:30.15",
        "1e3",
        "1.",
        ".5",
        "-.5",
        "+.5e1",
        ".",
        ".inf",
        "-.Inf",
        "+.INF",
        ".nan",
        ".NaN",
        ".NAN",
        "2001-12-14",
        "2001-12-14t21:59:43.10-05:00",
        "2001-12-14 21:59:43.10 -5",
        "2001-12-15 2:59:43.10Z",
        "<<",
        "=",
        "",
    ];

    /// Every scalar of a list or a map of one level that stands without quotes.
    fn plain(text: &str) -> Vec<&str> {
        let lines = text.lines().map(|line| line.trim_start_matches("- ").trim());
        let scalars = lines.flat_map(|line| match line.split_once(": ") {
            Some((key, value)) => vec![key, value],
            None => vec![line.strip_suffix(':').unwrap_or(line)],
        });
        scalars.filter(|scalar| !scalar.starts_with(['\'', '"'])).collect()
    }

    #[test]
    fn words_that_yaml_1_1_reads_otherwise_are_quoted_and_read_back_as_they_were() {
        let items: Vec<&str> = WORDS.to_vec();
        let written = text(&items).expect("YAML");
        assert_eq!(serde_yaml::from_str::<Vec<String>>(&written).expect("YAML"), items);
        assert_eq!(plain(&written), Vec::<&str>::new(), "{written}");
        let fields: std::collections::BTreeMap<&str, &str> =
            WORDS.iter().map(|word| (*word, *word)).collect();
        let written = text(&fields).expect("YAML");
        let read: std::collections::BTreeMap<String, String> = serde_yaml::from_str(&written).expect("YAML");
        assert!(read.iter().map(|(key, value)| (&**key, &**value)).eq(fields), "{written}");
        assert_eq!(plain(&written), Vec::<&str>::new(), "{written}");
    }

    #[test]
    fn what_is_no_text_has_no_quotes_and_what_nobody_mistakes_neither() {
        let value = serde_json::json!({ "a": true, "b": 17, "c": null, "d": "10.96.0.1", "e": "5xx", "f": "0.1.0", "g": "yesterday" });
        let plain = "a: true\nb: 17\nc: null\nd: 10.96.0.1\ne: 5xx\nf: 0.1.0\ng: yesterday\n";
        assert_eq!(text(&value).expect("YAML"), plain);
        // Marks that somebody uses are left to them.
        let value = serde_json::json!(["0: ", "\u{e000}yes\u{e000}", "yes"]);
        let written = text(&value).expect("YAML");
        assert_eq!(serde_yaml::from_str::<serde_json::Value>(&written).expect("YAML"), value, "{written}");
        assert!(written.ends_with("- 'yes'\n"), "{written}");
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_back_and_a_text_to_both(
            words in proptest::collection::vec("[-+.:_~<=0-9a-fxoytnesTZ ]{0,9}|[ -~\u{e000}\u{e001}]{0,9}", 1..5),
        ) {
            let written = text(&words).expect("YAML");
            prop_assert_eq!(&serde_yaml::from_str::<Vec<String>>(&written).expect("YAML"), &words);
            for scalar in written.lines().filter_map(|line| line.strip_prefix("- ")) {
                let quoted = scalar.starts_with(['\'', '"', '|']);
                prop_assert!(quoted || is_text_in_yaml_1_1(scalar), "{}", written);
            }
        }
    }
}
