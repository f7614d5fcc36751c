//! How `weft` speaks: lines on standard output, a spinner while something takes time, complaints on
//! standard error.
//!
//! Invariants: colour never carries meaning alone; without a terminal, or with `NO_COLOR`, the same text
//! comes plain and without spinners. A reader that goes away (`| head`) is not an error.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::time::Duration;

use console::style;
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
