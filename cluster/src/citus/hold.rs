//! Holds and gates around a planned change of a worker's primary: what is asked for, what was answered, when it ends.

use crate::citus::groups::{COORDINATOR, Groups};
use crate::citus::keys::{GateWord, GatedWord, HeldWord, HoldRequest};
use crate::citus::nodes::wanted;
use crate::given::seconds;
use crate::view::ClusterView;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// The request of a group that is to be served: its present leader's, in its present term.
pub fn hold_wanted(view: &ClusterView) -> Option<(i64, &HoldRequest)> {
    let leader = view.leader.as_ref()?;
    let hold = view.hold.as_ref().filter(|hold| hold.value.term == leader.term.0 && hold.value.leader == leader.name)?;
    Some((hold.revision, &hold.value))
}

/// Is any of these requests, each of its group, still to be served? The worker that asked may have died, or taken it back.
pub fn are_wanted(groups: &Groups, requests: &[(u32, i64)]) -> bool {
    let wanted = |group: &u32| groups.get(group).and_then(hold_wanted).map(|(request, _)| request);
    requests.iter().any(|(group, request)| wanted(group) == Some(*request))
}

/// The answer to this request; None while there is none.
pub fn answer(view: &ClusterView, request: i64) -> Option<&HeldWord> {
    view.held.as_ref().map(|held| &held.value).filter(|held| held.request == request)
}

/// What comes first where statements are in the way of a planned change (`citus.prefer`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefer {
    /// The change, and statements that take too long end with an error.
    #[default]
    Change,
    /// The statements, and the change is called off.
    Statements,
}

impl Prefer {
    /// The word of a configuration; None where it is another.
    pub fn of(word: &str) -> Option<Prefer> {
        match word {
            "change" => Some(Prefer::Change),
            "statements" => Some(Prefer::Statements),
            _ => None,
        }
    }
}

/// What a planned change of this group prefers: by its own dynamic configuration, else by the coordinator's, else by the node's file.
pub fn prefer(groups: &Groups, group: u32, file: Option<Prefer>) -> Prefer {
    let said = |of: u32| groups.get(&of)?.config().get("citus")?.get("prefer")?.as_str().and_then(Prefer::of);
    said(group).or_else(|| said(COORDINATOR)).or(file).unwrap_or_default()
}

/// How long statements that are under way get to end before a planned change, where nothing else is said: more than nearly all that serve
/// somebody who waits take, and no longer than such a one waits.
pub const GRACE: Duration = Duration::from_secs(5);

/// The same (`citus.grace`): by the coordinator's dynamic configuration, else by its node's file.
pub fn grace(groups: &Groups, file_s: Option<u64>) -> Duration {
    let said = || groups.get(&COORDINATOR)?.config().get("citus")?.get("grace").and_then(seconds);
    said().or(file_s).map_or(GRACE, Duration::from_secs)
}

/// The gate that this group's leader is to keep closed: its revision, and what it says. A word of a coordinator that was deposed counts
/// no more; its lease may still run.
pub fn gate_wanted(view: &ClusterView) -> Option<(i64, &GateWord)> {
    let newest = view.coordinator.as_ref().map_or(0, |word| word.value.term);
    let gate = view.gate.as_ref().filter(|gate| gate.value.term >= newest)?;
    view.leader.as_ref()?;
    Some((gate.revision, &gate.value))
}

/// What the groups say to this gate so far; None for those that have not even heard. Nobody waits for one that has no primary, or that asked
/// for a hold itself and is about to stop.
pub fn gated(groups: &Groups, gate: i64) -> BTreeMap<u32, Option<&GatedWord>> {
    let answer = |view: &'_ ClusterView| {
        let term = view.leader.as_ref().map(|leader| leader.term.0);
        view.gated.as_ref().is_some_and(|gated| gated.value.gate == gate && Some(gated.value.term) == term)
    };
    let asked = groups.iter().filter(|(group, view)| **group != COORDINATOR && wanted(view).is_some() && view.hold.is_none());
    asked.map(|(group, view)| (*group, view.gated.as_ref().filter(|_| answer(view)).map(|gated| &gated.value))).collect()
}

/// Those of them that are still missing.
pub fn not_gated(groups: &Groups, gate: i64) -> BTreeSet<u32> {
    let closed = |word: &Option<&GatedWord>| word.is_some_and(|word| word.closed);
    gated(groups, gate).into_iter().filter(|(_, word)| !closed(word)).map(|(group, _)| group).collect()
}

/// Why a hold ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// A new leader serves.
    Served,
    /// The old leader took its request back and serves on.
    CalledOff,
    /// It took too long.
    TimedOut,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Release::Served => "the new primary serves",
            Release::CalledOff => "the old primary serves on",
            Release::TimedOut => "it took too long",
        })
    }
}

/// Does the hold for this request, asked for in this term, end now? Writers wait on while nobody could serve them, but not for ever.
pub fn release(view: &ClusterView, request: i64, term: i64, waited: Duration, limit: Duration) -> Option<Release> {
    let served_in = wanted(view).and(view.leader.as_ref()).map(|leader| leader.term.0);
    let asks = view.hold.as_ref().is_some_and(|hold| hold.revision == request);
    match served_in {
        Some(now) if now != term => Some(Release::Served),
        Some(_) if !asks => Some(Release::CalledOff),
        _ if waited >= limit => Some(Release::TimedOut),
        _ => None,
    }
}
