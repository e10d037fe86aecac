//! Why a server lets nobody write, in a sentence for the client that was refused.

use crate::fence::{Mode, Page};
use crate::leader::LeaseId;
use crate::name::MemberName;
use crate::time::Moment;
use crate::view::ClusterView;
use std::fmt;
use std::time::Duration;

/// A renewal is late by less than this at a time where all is well.
const LATE: Duration = Duration::from_secs(1);

/// All that bears on it. Its Display is the sentence.
#[derive(Debug, Clone, Copy)]
pub struct Closed<'a> {
    /// The page as it was judged.
    pub page: Page,
    /// The moment it was judged at.
    pub now: Moment,
    /// This server has led since it was started.
    pub has_led: bool,
    /// It leads a standby cluster.
    pub holds_for_another: bool,
    /// It is about to be stopped for good, as another server goes on from its last commit.
    pub sealed: bool,
    /// Its lease worker runs.
    pub worker: bool,
    /// How long ago etcd last answered the lease worker; None where it has not since the server was started.
    pub etcd_age: Option<Duration>,
    /// What the lease worker noted last ([`note`]); empty where there is nothing to say.
    pub note: &'a str,
}

impl fmt::Display for Closed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let because = if self.note.is_empty() { String::new() } else { format!(": {}", self.note) };
        match self.page.mode {
            Mode::Unmanaged => f.write_str("The server is unmanaged."),
            Mode::Open | Mode::Draining if self.now >= self.page.deadline => {
                write!(f, "Its leader lease ran out {} ago", Span(self.now.since(self.page.deadline)))?;
                match self.etcd_age {
                    _ if !self.worker => f.write_str(", and its lease worker does not run."),
                    Some(age) if age >= LATE => {
                        write!(f, ", as its lease worker has had no answer from etcd for {}{because}.", Span(age))
                    }
                    _ => f.write_str(" and was not renewed in time."),
                }
            }
            Mode::Draining => write!(f, "A planned change of leader is under way{because}."),
            Mode::Open => f.write_str("The leader lease was renewed only just now."),
            Mode::Closed if self.sealed => f.write_str(
                "This server is about to stop, as another version goes on in its place: it takes no more writes until it is started again.",
            ),
            Mode::Closed if self.holds_for_another => {
                f.write_str("This server leads a standby cluster, which takes its changes from another cluster only.")
            }
            Mode::Closed if !self.worker => f.write_str("This server holds no leader lease, and its lease worker does not run."),
            Mode::Closed if !self.note.is_empty() => write!(f, "This server holds no leader lease{because}."),
            Mode::Closed if self.etcd_age.is_none() => {
                f.write_str("This server was started and holds no leader lease yet: etcd has not answered its lease worker since.")
            }
            Mode::Closed if !self.has_led => f.write_str("This server was started and holds no leader lease yet."),
            Mode::Closed => f.write_str("This server holds no leader lease."),
        }
    }
}

/// So many milliseconds, or seconds where nobody counts them any more.
struct Span(Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < Duration::from_secs(10) { write!(f, "{} ms", self.0.as_millis()) } else { write!(f, "{} s", self.0.as_secs()) }
    }
}

/// What a view says of it, for a member and its lease. Any client may be told this, so it names members and nothing else. Of a vacancy
/// the race knows more than the view.
pub fn note(view: &ClusterView, name: &MemberName, lease: LeaseId) -> String {
    match &view.leader {
        None => "nobody leads".to_owned(),
        Some(leader) if leader.name != *name => format!("{} leads (term {})", leader.name, leader.term),
        Some(leader) if leader.lease != lease => "the leader key in its name hangs on another lease".to_owned(),
        Some(_) if view.is_standby_cluster() => "standby_cluster is set, so this cluster is to follow another one".to_owned(),
        Some(_) if view.sync.as_ref().is_some_and(|sync| sync.value.waits_for_promotion(name)) => {
            "until it is promoted, the member that led before may go on in its place".to_owned()
        }
        Some(_) => match view.request().and_then(|request| request.value.member.as_deref()) {
            Some(candidate) => format!("a switchover to {candidate} was asked for"),
            None => String::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::FailoverRequest;
    use crate::leader::{Leader, Term};
    use crate::view::Versioned;

    fn at(millis: u64) -> Moment {
        Moment(Duration::from_millis(millis))
    }

    #[test]
    fn the_sentence_names_the_cause() {
        let page = |mode| Page { mode, deadline: at(10_000), draining_since: at(5_000), draining_until: at(9_000) };
        let base = Closed {
            page: page(Mode::Closed),
            now: at(8_000),
            has_led: true,
            holds_for_another: false,
            sealed: false,
            worker: true,
            etcd_age: Some(Duration::from_millis(300)),
            note: "",
        };
        let (open, draining) = (page(Mode::Open), page(Mode::Draining));
        let age = |seconds| Some(Duration::from_secs(seconds));
        for (closed, expected) in [
            (Closed { page: page(Mode::Unmanaged), ..base }, "The server is unmanaged."),
            (Closed { page: open, ..base }, "The leader lease was renewed only just now."),
            (Closed { page: open, now: at(10_250), ..base }, "Its leader lease ran out 250 ms ago and was not renewed in time."),
            (
                Closed { page: open, now: at(31_000), etcd_age: age(31), note: "etcd does not answer", ..base },
                "Its leader lease ran out 21 s ago, as its lease worker has had no answer from etcd for 31 s: etcd does not answer.",
            ),
            (
                Closed { page: draining, now: at(12_000), etcd_age: age(9), ..base },
                "Its leader lease ran out 2000 ms ago, as its lease worker has had no answer from etcd for 9000 ms.",
            ),
            (
                Closed { page: open, now: at(12_000), worker: false, ..base },
                "Its leader lease ran out 2000 ms ago, and its lease worker does not run.",
            ),
            (
                Closed { page: draining, note: "a switchover to n2 was asked for", ..base },
                "A planned change of leader is under way: a switchover to n2 was asked for.",
            ),
            (Closed { page: draining, ..base }, "A planned change of leader is under way."),
            (Closed { note: "n2 leads (term 41)", ..base }, "This server holds no leader lease: n2 leads (term 41)."),
            (Closed { worker: false, note: "x", ..base }, "This server holds no leader lease, and its lease worker does not run."),
            (
                Closed { has_led: false, etcd_age: None, ..base },
                "This server was started and holds no leader lease yet: etcd has not answered its lease worker since.",
            ),
            (Closed { has_led: false, ..base }, "This server was started and holds no leader lease yet."),
            (Closed { ..base }, "This server holds no leader lease."),
            (
                Closed { sealed: true, holds_for_another: true, note: "x", ..base },
                "This server is about to stop, as another version goes on in its place: it takes no more writes until it is started again.",
            ),
            (
                Closed { holds_for_another: true, ..base },
                "This server leads a standby cluster, which takes its changes from another cluster only.",
            ),
        ] {
            assert_eq!(closed.to_string(), expected);
        }
    }

    #[test]
    fn the_note_is_what_the_view_says() {
        let (mine, theirs) = (MemberName::new("n1").unwrap(), MemberName::new("n2").unwrap());
        let leads = |name: &MemberName, lease| Some(Leader { name: name.clone(), lease: LeaseId(lease), term: Term(41) });
        let mut view = ClusterView::default();
        let said = |view: &ClusterView| note(view, &mine, LeaseId(7));
        assert_eq!(said(&view), "nobody leads");
        view.leader = leads(&theirs, 9);
        assert_eq!(said(&view), "n2 leads (term 41)");
        view.leader = leads(&mine, 9);
        assert_eq!(said(&view), "the leader key in its name hangs on another lease");
        view.leader = leads(&mine, 7);
        assert_eq!(said(&view), "");
        let request = FailoverRequest { leader: Some("n1".into()), member: Some("n2".into()), ..Default::default() };
        view.failover = Some(Versioned { value: request, revision: 3 });
        assert_eq!(said(&view), "a switchover to n2 was asked for");
    }
}
