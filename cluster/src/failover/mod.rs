//! Whether a requested switchover or failover can be done, and who would take over.

pub mod request;

pub use request::FailoverRequest;

use crate::config::SynchronousMode;
use crate::kind::{Kind, kind};
use crate::member::postgres_is;
use crate::name::MemberName;
use crate::view::ClusterView;
use std::fmt;

/// What is asked for, in the field's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// From a leader that is named.
    Switchover,
    /// To a candidate that is named, whichever member leads.
    Failover,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Switchover => "switchover",
            Verb::Failover => "failover",
        })
    }
}

/// Why a request can't be served. The Display is the sentence for the person who asked; [`Impossible::field`] is what tools match.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// A switchover needs a leader to switch from.
    #[error("cluster has no leader, can only perform failover with a candidate")]
    NoLeader,
    /// The leader named is not the leader.
    #[error("leader name does not match: {given} was named, {actual} leads")]
    LeaderMismatch {
        /// As asked.
        given: String,
        /// As is.
        actual: MemberName,
    },
    /// Asked to switch to the one that leads already.
    #[error("Switchover target and source are the same: {0} leads already")]
    AlreadyLeader(String),
    /// No such member.
    #[error("candidate does not exists: no member is called {0}; `tenure list` shows who there is")]
    NoSuchMember(String),
    /// Nothing may be lost, and the candidate may lack acknowledged commits.
    #[error("candidate name does not match with sync_standby: {0} is not a synchronous standby")]
    NotSynchronous(String),
    /// The candidate can't lead now.
    #[error("{asked} is not possible: no good candidates have been found ({name}: {why})")]
    Unfit {
        /// What for.
        asked: Verb,
        /// Who.
        name: MemberName,
        /// Why not.
        why: String,
    },
    /// There is nobody else.
    #[error("{0} is not possible: cluster does not have members except leader")]
    Alone(Verb),
    /// Nothing may be lost, and there is no synchronous standby.
    #[error("{asked} is not possible: can not find sync_standby ({why})")]
    NoSynchronous {
        /// What for.
        asked: Verb,
        /// Why each member is none.
        why: String,
    },
    /// Nobody could take over.
    #[error("{asked} is not possible: no good candidates have been found ({why})")]
    NoCandidates {
        /// What for.
        asked: Verb,
        /// Why each member can't.
        why: String,
    },
    /// A failover must say to whom.
    #[error("Failover could be performed only to a specific candidate")]
    FailoverNeedsCandidate,
    /// In maintenance mode nothing is stopped, started or promoted.
    #[error(
        "the cluster is in maintenance mode, in which only a switchover to a named candidate is done, at once: name one, or resume it first"
    )]
    Paused,
}

impl Impossible {
    /// The Display without what was asked: for a person who asked for nothing.
    pub fn plainly(&self) -> String {
        let whole = self.to_string();
        whole.split_once(" is not possible: ").map_or(whole.clone(), |(_, why)| why.to_owned())
    }

    /// The field's own sentence, which tools compare as a whole: what the Display adds to it stands after it.
    pub fn field(&self) -> String {
        let whole = self.to_string();
        let end = match self {
            Impossible::LeaderMismatch { .. }
            | Impossible::AlreadyLeader(_)
            | Impossible::NoSuchMember(_)
            | Impossible::NotSynchronous(_) => whole.find(": "),
            Impossible::Unfit { .. } | Impossible::NoSynchronous { .. } | Impossible::NoCandidates { .. } => whole.find(" ("),
            Impossible::NoLeader => return "leader name does not match".to_owned(),
            Impossible::Alone(_) | Impossible::FailoverNeedsCandidate | Impossible::Paused => None,
        };
        end.map_or(whole.clone(), |end| whole[..end].to_owned())
    }
}

/// Why `name` can't take over in a planned way now, if it can't. `switchover`: nothing may be lost.
pub fn unfit(view: &ClusterView, name: &MemberName, switchover: bool) -> Option<String> {
    let Some(entry) = view.members.get(name) else {
        return Some("it has no member key".to_owned());
    };
    let member = &entry.member;
    if !member.is_running() {
        return Some(postgres_is(&member.state));
    }
    if member.tags.nofailover() {
        return Some("it is tagged nofailover".to_owned());
    }
    // What is handed over is read by the member that takes it.
    if let Some(why) = member.apart() {
        return Some(format!("seen from here, {why}"));
    }
    if let Some(facts) = &member.tenure
        && !facts.arbiter
    {
        return Some("no arbiter runs beside it, so nothing could promote it".to_owned());
    }
    if switchover && member.replication_state.as_deref() != Some("streaming") {
        return Some("it does not stream from the leader".to_owned());
    }
    if switchover
        && let Some(sync) = &view.sync
        && !sync.value.is_empty()
        && !sync.value.has_standby(name)
    {
        return Some("it is not a synchronous standby".to_owned());
    }
    None
}

/// Can the request be served in this view? Gives the candidates, best first: the named one, or all fit
/// ones by priority, position and name.
pub fn candidates(view: &ClusterView, request: &FailoverRequest) -> Result<Vec<MemberName>, Impossible> {
    let leader = view.leader.as_ref();
    let paused = view.config().paused();
    let named = request.candidate();
    let asked = if request.is_switchover() { Verb::Switchover } else { Verb::Failover };
    // A person who names the next leader in maintenance mode means it; nothing else is chosen, planned or raced for there.
    if paused && (named.is_none() || leader.is_none() || request.scheduled_at.is_some()) {
        return Err(Impossible::Paused);
    }
    if request.is_switchover() {
        let leader = leader.ok_or(Impossible::NoLeader)?;
        let given = request.leader.as_deref().unwrap_or("");
        if given != leader.name.as_str() {
            return Err(Impossible::LeaderMismatch { given: given.to_owned(), actual: leader.name.clone() });
        }
    } else if named.is_none() {
        return Err(Impossible::FailoverNeedsCandidate);
    }
    if let Some(named) = named {
        if leader.is_some_and(|leader| leader.name.as_str() == named) {
            return Err(Impossible::AlreadyLeader(named.to_owned()));
        }
        if asked == Verb::Switchover && needs_synchronous(view) && !sync_names(view, named) {
            return Err(Impossible::NotSynchronous(named.to_owned()));
        }
        let name = MemberName::new(named)
            .ok()
            .filter(|name| view.members.contains_key(name))
            .ok_or_else(|| Impossible::NoSuchMember(named.to_owned()))?;
        return match unfit(view, &name, request.is_switchover()) {
            Some(why) => Err(Impossible::Unfit { asked, name, why }),
            None => Ok(vec![name]),
        };
    }
    let mut reasons = Vec::new();
    let mut fit = Vec::new();
    for (name, entry) in &view.members {
        if leader.is_some_and(|leader| leader.name == *name) {
            continue;
        }
        match unfit(view, name, request.is_switchover()) {
            Some(why) => reasons.push(format!("{name}: {why}")),
            None => {
                // Of two kinds, one whose server is fenced.
                let theirs = kind(&entry.member) == Kind::Patroni;
                fit.push((theirs, -entry.member.tags.failover_priority(), std::cmp::Reverse(entry.member.position()), name.clone()));
            }
        }
    }
    fit.sort();
    if fit.is_empty() {
        let why = reasons.join("; ");
        let others = view.members.keys().filter(|name| leader.is_none_or(|leader| leader.name != **name));
        return Err(match reasons.is_empty() {
            true => Impossible::Alone(asked),
            false if needs_synchronous(view) && !others.into_iter().any(|name| sync_names(view, name.as_str())) => {
                Impossible::NoSynchronous { asked, why }
            }
            false => Impossible::NoCandidates { asked, why },
        });
    }
    Ok(fit.into_iter().map(|(.., name)| name).collect())
}

/// In `synchronous_mode: on` the key alone says who may take over in a planned way.
fn needs_synchronous(view: &ClusterView) -> bool {
    view.config().synchronous_mode() == SynchronousMode::On && view.sync.as_ref().is_some_and(|sync| !sync.value.is_empty())
}

fn sync_names(view: &ClusterView, name: &str) -> bool {
    view.sync.as_ref().is_some_and(|sync| sync.value.standbys().any(|standby| standby.eq_ignore_ascii_case(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tools_compare_is_the_fields_sentence_and_nothing_else() {
        let asked = Verb::Switchover;
        let name = MemberName::new("n2").unwrap();
        let why = || "n2: its Postgres is stopped".to_owned();
        for (impossible, field) in [
            (Impossible::LeaderMismatch { given: "x".to_owned(), actual: name.clone() }, "leader name does not match"),
            (Impossible::NoLeader, "leader name does not match"),
            (Impossible::NoSuchMember("x".to_owned()), "candidate does not exists"),
            (Impossible::NotSynchronous("n2".to_owned()), "candidate name does not match with sync_standby"),
            (Impossible::Alone(asked), "switchover is not possible: cluster does not have members except leader"),
            (Impossible::NoSynchronous { asked, why: why() }, "switchover is not possible: can not find sync_standby"),
            (Impossible::NoCandidates { asked, why: why() }, "switchover is not possible: no good candidates have been found"),
            (Impossible::Unfit { asked: Verb::Failover, name, why: why() }, "failover is not possible: no good candidates have been found"),
        ] {
            assert_eq!(impossible.field(), field);
            assert!(impossible == Impossible::NoLeader || impossible.to_string().starts_with(field), "{impossible}");
        }
    }
}
