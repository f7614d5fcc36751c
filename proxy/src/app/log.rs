//! The sidecar's own log: text on stderr, its level changeable while it runs.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Changes the level.
#[derive(Debug, Clone)]
pub struct LogLevel(Option<reload::Handle<EnvFilter, Registry>>);

impl LogLevel {
    /// Of a log that is not the sidecar's own: it cannot be changed from here.
    pub(super) const fn foreign() -> Self {
        Self(None)
    }

    /// Sets the filter: `debug`, or `weft_proxy::xds=debug,info`.
    ///
    /// # Errors
    /// When the text is not a filter, or the log belongs to the program around the sidecar.
    pub fn set(&self, filter: &str) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(filter).context("not a log filter")?;
        let handle = self.0.as_ref().context("the log belongs to the program that the sidecar runs in")?;
        handle.reload(filter).context("the log is gone")
    }
}

/// Sets up the log for the process.
pub(super) fn install(filter: &str) -> anyhow::Result<LogLevel> {
    let filter = EnvFilter::try_new(filter).with_context(|| {
        format!("WEFT_LOG={filter:?} is not a log filter; write info, debug, or weft_proxy::xds=debug,info")
    })?;
    let (filter, handle) = reload::Layer::new(filter);
    let text = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    tracing_subscriber::registry()
        .with(filter)
        .with(text)
        .try_init()
        .context("a log is already installed")?;
    Ok(LogLevel(Some(handle)))
}
