//! Our own log: one line per event, to the journal where systemd reads standard error, else to standard error as text or as JSON.

mod lines;

use cluster::leader::Term;
use lines::Lines;
use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, layer::Layered, reload};

/// At its end the process waits this long for the reader of its log.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What standard error is written through, once the log is set up.
static LINES: OnceLock<Lines> = OnceLock::new();

/// The journal, where the log goes there.
static JOURNAL: OnceLock<Journal> = OnceLock::new();

/// What every entry of the journal says besides its text, for `journalctl MEMBER=n1 TERM=41`.
struct Journal {
    scope: String,
    member: String,
    term: Mutex<Option<Term>>,
    layer: reload::Handle<tracing_journald::Layer, Layered<EnvFilter, Registry>>,
}

/// Whose log it is.
pub struct Whose<'a> {
    /// The cluster.
    pub scope: &'a str,
    /// This member of it.
    pub member: &'a str,
}

/// Sets the log up for the whole process. `level` is the least level written; `TENURE_LOG` (as in
/// `info,dcs=debug`) beats it. Called once; a second call changes nothing.
pub fn start(level: Option<&str>, json: bool, whose: Option<Whose<'_>>) {
    let filter = std::env::var("TENURE_LOG")
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .unwrap_or_else(|| EnvFilter::new(filter_of(level.unwrap_or("info"))));
    let (scope, member) = whose.map(|whose| (whose.scope.to_owned(), whose.member.to_owned())).unwrap_or_default();
    // The journal keeps level and fields apart. Where it can't be reached, standard error leads there too.
    if !json
        && standard_error_is_the_journal()
        && let Ok(layer) = journal_layer(&scope, &member, None)
    {
        let (layer, handle) = reload::Layer::new(layer);
        let _ = JOURNAL.set(Journal { scope, member, term: Mutex::default(), layer: handle });
        let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
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

/// A way to the journal by which each entry has these fields. What is empty is not said.
fn journal_layer(scope: &str, member: &str, term: Option<Term>) -> std::io::Result<tracing_journald::Layer> {
    let term = term.map(|term| term.to_string()).unwrap_or_default();
    let fields = [("SCOPE", scope), ("MEMBER", member), ("TERM", &term)];
    // As syslog has these words: what tells the story is informational, and a debug line is one.
    let priorities = PriorityMappings { info: Priority::Informational, debug: Priority::Debug, ..PriorityMappings::new() };
    Ok(tracing_journald::layer()?
        .with_syslog_identifier("tenure".to_owned())
        .with_priority_mappings(priorities)
        .with_custom_fields(fields.into_iter().filter(|(_, value)| !value.is_empty())))
}

/// From now on the journal's entries are of this term: the last that was seen.
pub fn note_term(term: Option<Term>) {
    let Some(journal) = JOURNAL.get() else { return };
    let mut noted = journal.term.lock().unwrap_or_else(PoisonError::into_inner);
    if term.is_none() || *noted == term {
        return;
    }
    *noted = term;
    if let Ok(layer) = journal_layer(&journal.scope, &journal.member, term) {
        // An error means that nobody logs any more.
        let _ = journal.layer.reload(layer);
    }
}

/// A line to standard error, which may be the journal: the level goes before it in the form that sd-daemon(3) gives.
pub fn error_prefix() -> &'static str {
    if standard_error_is_the_journal() { "<3>" } else { "" }
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

/// systemd names the stream that it reads: `JOURNAL_STREAM=DEVICE:INODE` (systemd.exec(5)). A process that inherits the variable but has
/// standard error sent elsewhere is told apart by it.
fn standard_error_is_the_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/dev/stderr").is_ok_and(|file| stream == format!("{}:{}", file.dev(), file.ino()))
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
