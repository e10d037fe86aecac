//! The data that a new copy takes the place of: whether they are set aside until the copy streams, when they may go before that, and when
//! they must stay.

use crate::history::Ancestry;
use crate::local::{Control, DataDir, Ended};
use crate::member::{MemberEntry, MemberRole};
use crate::name::MemberName;
use crate::upstream::Upstream;
use crate::view::ClusterView;
use std::fmt;

/// Is there room for the old data beside the new?
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// For both.
    Enough,
    /// The old data can't be set aside, for this reason.
    None(String),
}

/// What is judged.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The cluster.
    pub view: &'a ClusterView,
    /// This node.
    pub name: &'a MemberName,
    /// What it has.
    pub data: &'a DataDir,
    /// Whose data are copied.
    pub from: &'a Upstream,
    /// For both.
    pub room: &'a Room,
    /// The copy is made out of what is there: a tool compares and fetches only the difference.
    pub reuses: bool,
    /// An operator said that this copy may go although it is the only one beside the source, or has what nobody else has.
    pub overwrite: bool,
    /// The configuration says that data which left the cluster's history may go.
    pub forked_may_go: bool,
}

/// Why old data may go before the new are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MayGo {
    /// They are no data that a server could use.
    Unusable,
    /// They are of another database system, which the cluster has left behind.
    Left,
    /// The source has every acknowledged row, and so has this standby, should the source be lost meanwhile.
    AnotherHasAll(MemberName),
    /// The other cluster has everything.
    RemoteHasAll,
    /// An operator said so.
    Said,
}

impl fmt::Display for MayGo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MayGo::Unusable => f.write_str("no server could use them"),
            MayGo::Left => f.write_str("they are of a database system that the cluster has left behind"),
            MayGo::AnotherHasAll(name) => write!(f, "{name} has every acknowledged row, beside the source"),
            MayGo::RemoteHasAll => f.write_str("the cluster that is followed has everything"),
            MayGo::Said => f.write_str("an operator said so (--overwrite)"),
        }
    }
}

/// Why old data must stay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MustStay {
    /// Nobody that runs is known to have every acknowledged row.
    #[error("no other member is known to have every acknowledged row: nothing here is replaced")]
    NobodyElse,
    /// Only the source has what is here.
    #[error(
        "this is the only copy of the data beside {0}'s, and it can't be set aside while the new one is made ({1}); make room, or give it up with `tenure reinit --overwrite`"
    )]
    OnlyOther(Upstream, String),
    /// These data may have rows that were acknowledged and that nobody else has.
    #[error(
        "the data here left the cluster's history and may have acknowledged rows that nobody else has, and they can't be set aside while the new ones are made ({0}); make room, or give them up with `tenure reinit --overwrite`"
    )]
    Newest(String),
}

/// What is done with the old data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Old {
    /// There are none that are worth anything.
    Nothing,
    /// They are set aside, whole, until the new copy streams.
    Aside,
    /// They are wiped, or worked upon, at once.
    Replace(MayGo),
}

/// Says what is done with the data that are here, or why they must stay.
///
/// # Errors
///
/// Where nobody else is known to have every acknowledged row, or only the source has and there is no room for both.
pub fn old(facts: &Facts<'_>) -> Result<Old, MustStay> {
    let unusable = match facts.data {
        DataDir::Empty | DataDir::Incomplete { .. } => return Ok(Old::Nothing),
        DataDir::Present(control) if facts.view.system_id().is_some_and(|expected| control.system_id != *expected) => {
            return Ok(Old::Replace(MayGo::Left));
        }
        DataDir::Present(_) => false,
        DataDir::Damaged { .. } => true,
    };
    let may_go = if unusable { Ok(MayGo::Unusable) } else { may_go(facts) };
    match (may_go, facts.room) {
        // The leader may be lost with its disk, however much room there is: then nobody has what is wiped here.
        (Err(why @ MustStay::NobodyElse), _) => Err(why),
        // What is fetched is the difference: a copy of what is there costs as much reading and writing as a new one.
        (Ok(why), _) if facts.reuses => Ok(Old::Replace(why)),
        (_, Room::Enough) => Ok(Old::Aside),
        (Ok(why), Room::None(_)) => Ok(Old::Replace(why)),
        (Err(why), Room::None(_)) => Err(why),
    }
}

fn may_go(facts: &Facts<'_>) -> Result<MayGo, MustStay> {
    let view = facts.view;
    if *facts.from == Upstream::Remote {
        return Ok(MayGo::RemoteHasAll);
    }
    let leader = view.leader.as_ref().filter(|leader| leader.name != *facts.name);
    let serves = |entry: &&MemberEntry| {
        let role = &entry.member.role;
        entry.member.is_running() && (*role == MemberRole::Primary || *role == MemberRole::StandbyLeader && view.is_standby_cluster())
    };
    let Some(leads) = leader.and_then(|leader| view.members.get(&leader.name)).filter(serves) else {
        return Err(MustStay::NobodyElse);
    };
    let theirs = leads.member.timeline;
    let trusted = view.sync.as_ref().map(|sync| &sync.value).filter(|sync| !sync.is_empty());
    let has_all = |name: &MemberName, entry: &MemberEntry| {
        let member = &entry.member;
        let near = match trusted {
            Some(sync) => sync.has_standby(name),
            None => member
                .position()
                .zip(view.leader_position())
                .is_some_and(|(mine, ahead)| mine.lag_bytes_behind(ahead) <= view.config().maximum_lag_on_failover()),
        };
        let streams = member.replication_state.as_deref() == Some("streaming");
        member.is_running() && streams && near && theirs.is_some() && member.timeline == theirs && !member.tags.nofailover()
    };
    let others = view.members.iter().filter(|(name, _)| *name != facts.name && leader.is_none_or(|leader| leader.name != **name));
    if facts.overwrite {
        return Ok(MayGo::Said);
    }
    // In the synchronous modes the leader has everything that was acknowledged.
    if trusted.is_none() && !facts.forked_may_go && matches!(facts.data, DataDir::Present(control) if has_more(view, control)) {
        return Err(MustStay::Newest(room_words(facts.room)));
    }
    match others.filter(|(name, entry)| has_all(name, entry)).map(|(name, _)| name).next() {
        Some(name) => Ok(MayGo::AnotherHasAll(name.clone())),
        None => Err(MustStay::OnlyOther(facts.from.clone(), room_words(facts.room))),
    }
}

/// What was written here may be more than what the leader has: it forked away, or was never sent.
fn has_more(view: &ClusterView, control: &Control) -> bool {
    let current = view.history().current();
    if control.timeline == current {
        // A standby has what it was sent.
        return control.ended != Ended::Standby && view.leader_position().is_none_or(|theirs| control.checkpoint > theirs);
    }
    // Where the WAL of a crashed primary ends is not in pg_control.
    let past = view.history().ancestry(current, control.timeline, control.checkpoint) == Ancestry::Ancestor;
    control.ended == Ended::CrashedPrimary || !past
}

fn room_words(room: &Room) -> String {
    match room {
        Room::Enough => "there is room for it".to_owned(),
        Room::None(why) => why.clone(),
    }
}

/// Nobody leads, and nothing usable is in the data directory: what was set aside for a copy that came to no end is put back, so that its
/// server can stand. It was whole: only that is ever set aside.
pub fn put_back<'a>(view: &ClusterView, data: &DataDir, aside: Option<&'a Control>) -> Option<&'a Control> {
    let half = matches!(data, DataDir::Empty | DataDir::Incomplete { .. });
    aside.filter(|control| half && view.leader.is_none() && view.system_id() == Some(&control.system_id))
}
