//! What this server's walsenders have heard, and which of them were left over by their standby (`upkeep/senders.rs` ends those).

use crate::postgres::facts::Sender;
use cluster::member::MemberRole;
use cluster::view::ClusterView;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// PostgreSQL's default for `wal_receiver_status_interval`: a standby may have another than this server.
const STATUS_AT_LEAST: Duration = Duration::from_secs(10);

/// A receiver may be late with its word.
const SLACK: Duration = Duration::from_secs(2);

/// What was heard from the standbys, by walsender.
#[derive(Debug, Default)]
pub struct Heard(Mutex<BTreeMap<i32, Last>>);

/// The last word of a standby, by its own clock, and when it was first seen here.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Last {
    word: Option<String>,
    at: Instant,
    /// That it is ended was told.
    told: bool,
}

/// One to be ended.
#[derive(Debug, PartialEq, Eq)]
pub struct LeftOver {
    /// Its process.
    pub pid: i32,
    /// Its standby.
    pub standby: String,
    /// The last word of that one, by its own clock.
    pub word: Option<String>,
    /// For how long nothing has come since.
    pub silent: Duration,
    /// It was not left over at the last look.
    pub is_news: bool,
}

impl Heard {
    /// Notes what was heard, and gives those that are left over.
    pub fn look(&self, now: Instant, view: &ClusterView, senders: &[Sender], status_every: Duration) -> Vec<LeftOver> {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.retain(|pid, _| senders.iter().any(|sender| sender.pid == *pid));
        let mut found = Vec::new();
        for sender in senders {
            let last = heard.entry(sender.pid).or_insert_with(|| Last { word: sender.reply_time.clone(), at: now, told: false });
            if last.word != sender.reply_time {
                *last = Last { word: sender.reply_time.clone(), at: now, told: false };
            }
            let silent = now.saturating_duration_since(last.at);
            // Without it a receiver speaks when it is asked only.
            let is_silent = !status_every.is_zero() && silent >= status_every.max(STATUS_AT_LEAST) + SLACK;
            let streams = matches!(sender.state.as_deref(), Some("streaming" | "catchup"));
            if streams && is_silent && streams_from_nobody(view, &sender.application_name) {
                let is_news = !std::mem::replace(&mut last.told, true);
                found.push(LeftOver {
                    pid: sender.pid,
                    standby: sender.application_name.clone(),
                    word: last.word.clone(),
                    silent,
                    is_news,
                });
            }
        }
        found
    }
}

/// The member of this name says so itself.
fn streams_from_nobody(view: &ClusterView, name: &str) -> bool {
    view.members.iter().any(|(member, entry)| {
        let said = &entry.member;
        let streams = said.replication_state.as_deref() == Some("streaming");
        member.as_str() == name && said.tenure.is_some() && said.is_running() && said.role == MemberRole::Replica && !streams
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::present::tests::member;

    const STATUS: Duration = Duration::from_secs(10);
    const NONE: [(i32, bool); 0] = [];

    fn sender(pid: i32, word: &str) -> Sender {
        let text = format!(r#"{{"application_name":"n2","pid":{pid},"reply_time":"{word}","state":"streaming"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    fn view(replication: &str, ours: &str) -> ClusterView {
        let mut view = ClusterView::default();
        let text = format!(
            r#"{{"conn_url":"postgres://h:1/postgres","api_url":"http://h:2/patroni","state":"running","role":"replica","replication_state":"{replication}"{ours}}}"#
        );
        member(&mut view, "n2", &text);
        view
    }

    #[test]
    fn a_walsender_is_left_over_where_it_hears_nothing_and_its_standby_streams_from_nobody() {
        const OURS: &str = r#","tenure":{"version":"1"}"#;
        let apart = || view("in archive recovery", OURS);
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let left = |heard: &Heard, seconds, view: &ClusterView, word: &str| {
            heard.look(after(seconds), view, &[sender(7, word)], STATUS).iter().map(|one| (one.pid, one.is_news)).collect::<Vec<_>>()
        };
        let heard = Heard::default();
        assert_eq!(left(&heard, 0, &apart(), "a"), NONE);
        assert_eq!(left(&heard, 11, &apart(), "a"), NONE, "a receiver may be silent for so long");
        assert_eq!(left(&heard, 12, &view("streaming", OURS), "a"), NONE, "it streams, and has nothing to say");
        assert_eq!(left(&heard, 12, &view("in archive recovery", ""), "a"), NONE, "a member of another program");
        assert_eq!(left(&heard, 12, &ClusterView::default(), "a"), NONE, "no member of ours");
        assert_eq!(left(&heard, 12, &apart(), "a"), [(7, true)]);
        assert_eq!(left(&heard, 13, &apart(), "a"), [(7, false)], "said once, and tried again");
        assert_eq!(left(&heard, 14, &apart(), "b"), NONE, "it has spoken");
        assert_eq!(left(&heard, 25, &apart(), "b"), NONE);
        assert_eq!(left(&heard, 26, &apart(), "b"), [(7, true)]);
        // Another process is another walsender.
        assert!(heard.look(after(27), &apart(), &[sender(8, "b")], STATUS).is_empty());
        assert!(
            heard.look(after(90), &apart(), &[sender(8, "b")], Duration::ZERO).is_empty(),
            "a receiver that speaks when it is asked only"
        );
        assert!(heard.look(after(90), &apart(), &[sender(8, "b")], Duration::from_secs(70)).is_empty(), "one that speaks seldom");
    }
}
