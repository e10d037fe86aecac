//! A requested switchover or failover: from whom, to whom, when; and whether it can be done.

use crate::name::MemberName;
use crate::view::ClusterView;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The value of `failover`. `{}` means that nothing is requested.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FailoverRequest {
    /// Who must lead now for the request to hold; set for a switchover, absent for a failover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Who shall lead; any fit member where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// When, ISO 8601 with a time zone; at once where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<String>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl FailoverRequest {
    /// Nothing is requested.
    pub fn is_empty(&self) -> bool {
        self.leader.as_deref().unwrap_or("").is_empty() && self.member.as_deref().unwrap_or("").is_empty()
    }

    /// A switchover names the leader it takes over from; a failover does not.
    pub fn is_switchover(&self) -> bool {
        self.leader.as_deref().is_some_and(|leader| !leader.is_empty())
    }

    /// The wished candidate, if one is named.
    pub fn candidate(&self) -> Option<&str> {
        self.member.as_deref().filter(|member| !member.is_empty())
    }
}

/// Why a request can't be served. The Display is the sentence for the person who asked.
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
    #[error("candidate does not exist: no member is called {0}; `tenure list` shows who there is")]
    NoSuchMember(String),
    /// The candidate can't lead now.
    #[error("candidate {name} can't take over: {why}")]
    Unfit {
        /// Who.
        name: MemberName,
        /// Why not.
        why: String,
    },
    /// Nobody could take over.
    #[error("no good candidates have been found: {0}")]
    NoCandidates(String),
    /// A failover must say to whom.
    #[error("Failover could be performed only to a specific candidate")]
    FailoverNeedsCandidate,
    /// In maintenance mode nothing is stopped, started or promoted.
    #[error(
        "the cluster is in maintenance mode, in which only a switchover to a named candidate is done, at once: name one, or resume it first"
    )]
    Paused,
}

/// Why `name` can't take over in a planned way now, if it can't. `switchover`: nothing may be lost.
pub fn unfit(view: &ClusterView, name: &MemberName, switchover: bool) -> Option<String> {
    let Some(entry) = view.members.get(name) else {
        return Some("it has no member key".to_owned());
    };
    let member = &entry.member;
    if !member.is_running() {
        return Some(format!("its Postgres is {}", member.state));
    }
    if member.tags.nofailover() {
        return Some("it is tagged nofailover".to_owned());
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
        let name = MemberName::new(named)
            .ok()
            .filter(|name| view.members.contains_key(name))
            .ok_or_else(|| Impossible::NoSuchMember(named.to_owned()))?;
        return match unfit(view, &name, request.is_switchover()) {
            Some(why) => Err(Impossible::Unfit { name, why }),
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
            None => fit.push((-entry.member.tags.failover_priority(), std::cmp::Reverse(entry.member.position()), name.clone())),
        }
    }
    fit.sort();
    if fit.is_empty() {
        let why = if reasons.is_empty() { "there is no other member".to_owned() } else { reasons.join("; ") };
        return Err(Impossible::NoCandidates(why));
    }
    Ok(fit.into_iter().map(|(_, _, name)| name).collect())
}
