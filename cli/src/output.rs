//! How `weft` speaks: lines on standard output, a spinner while something takes time, complaints on
//! standard error.
//!
//! Invariants: colour never carries meaning alone; without a terminal, or with `NO_COLOR`, the same text
//! comes plain and without spinners. A reader that goes away (`| head`) is not an error.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use console::{Term, style};
use indicatif::{ProgressBar, ProgressStyle};

/// How often a spinner turns.
const SPIN: Duration = Duration::from_millis(90);

/// Writes a line for the reader.
pub(crate) fn line(text: impl Display) {
    // Nobody is left to tell when standard output is closed.
    writeln!(io::stdout().lock(), "{text}").ok();
}

/// Writes text as it is.
pub(crate) fn text(text: &str) {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).ok();
}

/// Writes a text, and its successor every `period`, until Ctrl-C: in place on a terminal if `redraw`, one after
/// the other elsewhere. An answer that fails later is shown and asked for again, because whoever watches does
/// not want to start anew; the first one must succeed.
pub(crate) async fn again(
    period: Duration,
    redraw: bool,
    mut next: impl AsyncFnMut() -> anyhow::Result<String>,
) -> anyhow::Result<ExitCode> {
    let terminal = Term::stdout();
    let in_place = redraw && terminal.is_term();
    let mut current = Ok(next().await?);
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        if in_place {
            // A terminal that cannot be cleared shows one text after the other.
            terminal.clear_screen().ok();
        }
        match &current {
            Ok(words) => text(words),
            Err(cause) => error(cause),
        }
        if redraw && !in_place {
            line("");
        }
        ticks.tick().await;
        current = next().await;
    }
}

/// Writes a remark that must not mix with a program's own output.
pub(crate) fn note(text: impl Display) {
    writeln!(io::stderr().lock(), "{} {text}", style("weft:").dim().for_stderr()).ok();
}

/// Writes an error: what happened, because of what, and (as part of the message) what to do.
pub(crate) fn error(error: &anyhow::Error) {
    let mut stderr = io::stderr().lock();
    writeln!(stderr, "{} {error}", style("error:").red().bold().for_stderr()).ok();
    for cause in error.chain().skip(1) {
        writeln!(stderr, "  because: {cause}").ok();
    }
}

/// Something that takes a moment.
#[must_use = "a step that is never finished stays on the screen"]
pub(crate) struct Step(ProgressBar);

/// Shows that something has begun.
pub(crate) fn step(what: impl Into<std::borrow::Cow<'static, str>>) -> Step {
    let bar = ProgressBar::new_spinner();
    if let Ok(spinner) = ProgressStyle::with_template("  {spinner:.cyan} {msg}") {
        bar.set_style(spinner);
    }
    bar.set_message(what);
    bar.enable_steady_tick(SPIN);
    Step(bar)
}

impl Step {
    /// Replaces the spinner by a tick.
    pub(crate) fn done(self, what: impl Display) {
        self.0.finish_and_clear();
        line(format_args!("  {} {what}", style("✓").green()));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
