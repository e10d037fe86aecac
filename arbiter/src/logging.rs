//! Our own log: one line per event on standard error, as text or as JSON.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Sets the log up for the whole process. `level` is the least level written; `TENURE_LOG` (as in
/// `info,dcs=debug`) beats it. Called once; a second call changes nothing.
pub fn start(level: Option<&str>, json: bool) {
    let filter = std::env::var("TENURE_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(level.unwrap_or("info")));
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).with_span_events(FmtSpan::NONE);
    // An error means that a subscriber is set already (tests): it stays.
    let _ = if json { log.json().flatten_event(true).try_init() } else { log.with_ansi(std::io::stderr().is_terminal()).try_init() };
}
