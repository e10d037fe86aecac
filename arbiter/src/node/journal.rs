//! What this node decided, on which facts and why: one record for each decision that differs from the last one. Kept in memory, for
//! `tenure explain` and REST `/journal`.

use cluster::duty::Duty;
use cluster::incident::Forked;
pub use cluster::incident::Record;
use cluster::local::{LocalState, Postgres};
use cluster::reason::Decision;
use cluster::view::ClusterView;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// So many records are kept: some hours of a cluster in trouble, years of one that is well.
const RECORDS_MOST: usize = 200;

/// The duty of a record that tells why a switchover was given up.
pub const SWITCHOVER_FAILED: &str = "switchover failed";

/// The records, oldest first. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Journal(Arc<Mutex<VecDeque<Record>>>);

impl Journal {
    /// Notes a decision, in the word for its duty.
    pub fn note(&self, view: &ClusterView, local: &LocalState, duty: String, decision: &Decision<Duty>) {
        let record = Record {
            winds_back: matches!(decision.what, Duty::Rewind { .. } | Duty::Clone { .. }),
            forked: Forked::of(&decision.why),
            ..record(view, local, duty, decision.why.to_string())
        };
        self.write(record);
    }

    /// Notes that a switchover was given up, and why.
    pub fn gave_up_switchover(&self, view: &ClusterView, local: &LocalState, why: String) {
        self.write(record(view, local, SWITCHOVER_FAILED.to_owned(), why));
    }

    fn write(&self, record: Record) {
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() == RECORDS_MOST {
            records.pop_front();
        }
        records.push_back(record);
    }

    /// All of them.
    pub fn records(&self) -> Vec<Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

fn record(view: &ClusterView, local: &LocalState, duty: String, why: String) -> Record {
    Record {
        at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        revision: view.revision,
        leader: view.leader.as_ref().map(|leader| leader.name.to_string()),
        term: view.leader.as_ref().map(|leader| leader.term.0),
        postgres: doing(&local.postgres),
        duty,
        why,
        primary: matches!(local.postgres, Postgres::Primary { .. }),
        follows: matches!(local.postgres, Postgres::Standby { streaming: true, .. }),
        winds_back: false,
        forked: None,
    }
}

fn doing(postgres: &Postgres) -> String {
    match postgres {
        Postgres::Stopped => "stopped".to_owned(),
        Postgres::Starting { since } => format!("starting for {} s", since.as_secs()),
        Postgres::Silent => "running, gives no answer".to_owned(),
        Postgres::Primary { timeline, flushed } => format!("primary at {flushed}, timeline {timeline}"),
        Postgres::Standby { timeline, position, streaming, .. } => {
            format!("standby at {position}, timeline {timeline}, {}", if *streaming { "streaming" } else { "not streaming" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::health::tests::{primary, snapshot};
    use cluster::reason::Reason;

    #[test]
    fn the_oldest_record_goes_first() {
        let (journal, snapshot) = (Journal::default(), snapshot("n0", primary()));
        for number in 0..=RECORDS_MOST {
            journal.note(&snapshot.view, &snapshot.local, format!("rest {number}"), &Decision::new(Duty::Rest, Reason::Paused));
        }
        let records = journal.records();
        assert_eq!((records.len(), records[0].duty.as_str()), (RECORDS_MOST, "rest 1"));
        assert!(records[0].postgres.starts_with("primary at ") && !records[0].why.is_empty(), "{:?}", records[0]);
    }
}
