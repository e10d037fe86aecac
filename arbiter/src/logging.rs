//! Our own log: one line per event, to the journal where systemd reads standard error, else to standard error as text or as JSON;
//! and our word to systemd of when we are ready.

mod lines;

use lines::Lines;
use sd_notify::NotifyState;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// At its end the process waits this long for whoever reads its log.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What standard error is written through, once the log is set up.
static LINES: OnceLock<Lines> = OnceLock::new();

/// Sets the log up for the whole process. `level` is the least level written; `TENURE_LOG` (as in
/// `info,dcs=debug`) beats it. Called once; a second call changes nothing.
pub fn start(level: Option<&str>, json: bool) {
    let filter = std::env::var("TENURE_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(filter_of(level.unwrap_or("info"))));
    // The journal keeps level and fields apart. Where it can't be reached, standard error leads there too.
    if !json
        && standard_error_is_the_journal()
        && let Ok(journal) = tracing_journald::layer()
    {
        let journal = journal.with_syslog_identifier("tenure".to_owned());
        let _ = tracing_subscriber::registry().with(filter).with(journal).try_init();
        return;
    }
    // Without a thread there would be no log at all, and the process could not do its work either.
    let Some(lines) = Lines::to(std::io::stderr()) else { return };
    let _ = LINES.set(lines.clone());
    // An event that could not be written is nobody's to hear of: the subscriber would panic where standard error is closed.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(lines)
        .with_target(false)
        .with_span_events(FmtSpan::NONE)
        .log_internal_errors(false);
    // An error means that a subscriber is set already (tests): it stays.
    let _ = if json { log.json().flatten_event(true).try_init() } else { log.with_ansi(std::io::stderr().is_terminal()).try_init() };
}

/// A level below INFO is about us: what the libraries would say there, every frame to etcd, tells nobody anything. `TENURE_LOG` still has it.
fn filter_of(level: &str) -> String {
    match level {
        "debug" | "trace" => format!("info,tenure={level},dcs={level},cluster={level}"),
        level => level.to_owned(),
    }
}

/// Before the process ends: what was logged gets out, if anybody reads it.
pub fn finish() {
    if let Some(lines) = LINES.get() {
        lines.flush(LAST_WORDS);
    }
}

/// systemd names the stream that it reads: `JOURNAL_STREAM=DEVICE:INODE` (systemd.exec(5)). Whoever inherits the variable but has
/// standard error sent elsewhere is told apart by it.
fn standard_error_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/dev/stderr").is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
}

/// Tells systemd, where it asked to be told (`Type=notify`, `Type=notify-reload`).
pub fn tell_systemd(states: &[NotifyState<'_>]) {
    if let Err(why) = sd_notify::notify(states) {
        tracing::warn!("could not notify systemd: {why}");
    }
}

/// A reload begins.
pub fn reloading() -> Vec<NotifyState<'static>> {
    let mut states = vec![NotifyState::Reloading];
    states.extend(NotifyState::monotonic_usec_now());
    states
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_is_ours() {
        for (level, filter) in [("warn", "warn"), ("info", "info"), ("debug", "info,tenure=debug,dcs=debug,cluster=debug")] {
            assert_eq!(filter_of(level), filter);
            assert!(EnvFilter::try_new(filter).is_ok(), "{filter}");
        }
    }
}
