//! A restore of this cluster to a point in its past: what is written down of one that is under way, and what its interruption means.
//!
//! The leader's data are set aside, a backup takes their place and recovers up to the point on a server that nobody reaches. Until etcd
//! is told, nothing but files of one node has changed, so a member that leads meanwhile has called the restore off. From the write of `history` on
//! the new timeline is the cluster's, and a member that has more than its beginning may not lead. Nor is one made from a backup that has more.

use crate::history::{Ancestry, History};
use crate::lsn::Lsn;
use crate::name::{SystemId, Timeline};
use crate::view::ClusterView;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The point to restore to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Up to the last commit at or before this time, which has its zone.
    Time(String),
    /// Up to this position.
    Lsn(Lsn),
    /// Up to the point that `pg_create_restore_point` named so.
    Name(String),
}

impl Target {
    /// PostgreSQL's setting for it.
    pub fn setting(&self) -> (&'static str, String) {
        match self {
            Target::Time(time) => ("recovery_target_time", time.clone()),
            Target::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
            Target::Name(name) => ("recovery_target_name", name.clone()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Time(time) => f.write_str(time),
            Target::Lsn(lsn) => write!(f, "position {lsn}"),
            Target::Name(name) => write!(f, "the restore point {name}"),
        }
    }
}

/// A step on the leader; each is noted before its first act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The server is stopped.
    Stop,
    /// The data are set aside, and a backup takes their place.
    Fetch,
    /// It recovers up to the point, on a server that nobody reaches.
    Recover,
    /// etcd is told of the new timeline: one guarded write.
    Announce,
}

impl Step {
    /// What is done, for people.
    pub fn sentence(self) -> &'static str {
        match self {
            Step::Stop => "the server is stopped",
            Step::Fetch => "the data are set aside, and a backup takes their place",
            Step::Recover => "the backup recovers up to the point on a server that nobody reaches",
            Step::Announce => "etcd is told of the new timeline",
        }
    }
}

/// What a node wrote down of a restore that is under way on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// Where to.
    pub to: Target,
    /// The step that has begun.
    pub step: Step,
    /// The database system.
    pub system: SystemId,
    /// The timeline that is left.
    pub from: Timeline,
    /// The one that begins, once it is known.
    #[serde(default)]
    pub begins: Option<Timeline>,
    /// An operator asked for the way back.
    #[serde(default)]
    pub undo: bool,
}

/// Who leads, as etcd says now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leads {
    /// This node.
    Me,
    /// Another one.
    Another,
    /// Nobody.
    Nobody,
}

/// What a node that finds a restore half done owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed {
    /// From this step.
    GoOn(Step),
    /// The data that were set aside are put back.
    Undo,
    /// The new timeline is the cluster's: the restored data stay.
    Finish,
}

/// What is owed after an interruption. `current`: the timeline that etcd's history leads to.
pub fn owed(journal: &Journal, leads: Leads, current: Timeline) -> Owed {
    // The write of the history may have been done although its answer was lost.
    if journal.step == Step::Announce && journal.begins.is_some_and(|begins| current == begins) {
        return Owed::Finish;
    }
    match leads {
        // The leader, or the next one, goes on with the data as they were; here they are put back, and follow.
        Leads::Another | Leads::Nobody => Owed::Undo,
        Leads::Me if journal.undo => Owed::Undo,
        Leads::Me if journal.step == Step::Recover => Owed::GoOn(Step::Fetch),
        Leads::Me => Owed::GoOn(journal.step),
    }
}

/// The present timeline began at a point in the past of the one before it: this cluster was restored, and members that are ahead are made to
/// follow, as its operator wanted.
pub fn is_restored(view: &ClusterView) -> bool {
    let parent = view.history().0.iter().rev().find(|line| line.switch.is_valid());
    parent.is_some_and(|line| left_for_the_past(&line.reason))
}

/// A position that the data of a backup have been at, or have to come to before they are whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// What lies there.
    pub what: &'static str,
    /// Its timeline.
    pub timeline: Timeline,
    /// The position.
    pub lsn: Lsn,
}

/// Why a backup can't become a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOurPast {
    /// It has, or needs to be whole, what the leader does not have.
    #[error(
        "the backup is of after the point where this cluster left timeline {}: {} is at {}, and the history parts at {fork}; \
         an older backup can be used, or one that is taken now", .place.timeline, .place.what, .place.lsn
    )]
    After {
        /// Which of its positions.
        place: Place,
        /// Where the leader's history parted.
        fork: Lsn,
    },
    /// No history that is known leads from there to here.
    #[error("the backup is on timeline {}, which is not in the past of the leader's timeline {present}", .place.timeline)]
    Elsewhere {
        /// Which of its positions.
        place: Place,
        /// The leader's timeline.
        present: Timeline,
    },
}

/// May data of these positions become a standby of whoever is on the timeline that this history leads to? A server on them would recover along
/// the timelines that were left, or never come to the end of the backup.
pub fn may_become_a_member(history: &History, places: &[Place]) -> Result<(), NotOurPast> {
    let present = history.current();
    for place in places.iter().filter(|place| place.lsn.is_valid()) {
        match history.ancestry(present, place.timeline, place.lsn) {
            Ancestry::Ancestor => {}
            Ancestry::Diverged { fork } => return Err(NotOurPast::After { place: *place, fork }),
            Ancestry::Unknown => return Err(NotOurPast::Elsewhere { place: *place, present }),
        }
    }
    Ok(())
}

/// The reason in a line of a history, as PostgreSQL writes it.
fn left_for_the_past(reason: &str) -> bool {
    ["before ", "after ", "at restore point "].iter().any(|words| reason.starts_with(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interrupted_restore_goes_on_where_its_node_leads_and_is_undone_elsewhere() {
        use Step::*;
        let journal = |step, begins: Option<u32>, undo| Journal {
            to: Target::Name("wanted".to_owned()),
            step,
            system: SystemId("7".to_owned()),
            from: Timeline(1),
            begins: begins.map(Timeline),
            undo,
        };
        for (step, begins, undo, leads, current, expected) in [
            (Stop, None, false, Leads::Me, 1, Owed::GoOn(Stop)),
            (Fetch, None, false, Leads::Me, 1, Owed::GoOn(Fetch)),
            (Recover, None, false, Leads::Me, 1, Owed::GoOn(Fetch)),
            (Announce, Some(2), false, Leads::Me, 1, Owed::GoOn(Announce)),
            (Announce, Some(2), false, Leads::Me, 2, Owed::Finish),
            (Announce, Some(2), true, Leads::Me, 2, Owed::Finish),
            (Announce, Some(2), false, Leads::Nobody, 2, Owed::Finish),
            (Announce, Some(2), false, Leads::Another, 2, Owed::Finish),
            // Another was promoted instead, on the next number.
            (Announce, Some(2), false, Leads::Another, 3, Owed::Undo),
            (Announce, Some(2), false, Leads::Nobody, 1, Owed::Undo),
            (Announce, Some(2), true, Leads::Me, 1, Owed::Undo),
            (Recover, None, true, Leads::Me, 1, Owed::Undo),
            (Recover, None, false, Leads::Another, 1, Owed::Undo),
            (Fetch, None, false, Leads::Nobody, 1, Owed::Undo),
        ] {
            assert_eq!(owed(&journal(step, begins, undo), leads, Timeline(current)), expected, "{step:?} {leads:?} {current}");
        }
    }

    #[test]
    fn a_backup_that_has_or_needs_more_than_the_past_makes_no_member() {
        // Timeline 1 was left at 0/10 for 3, after 2 had begun at 0/20 and was left as well.
        let history = History::from_file("1\t0/10\tafter LSN 0/10\n").up_to(Timeline(3));
        let place = |what, timeline, lsn| Place { what, timeline: Timeline(timeline), lsn: Lsn(lsn) };
        let said = |places: &[Place]| may_become_a_member(&history, places).map_err(|why| why.to_string());
        let begin = place("its begin", 1, 0x08);
        for (places, refused) in [
            (&[][..], None),
            (&[begin, place("its end", 1, 0x10)], None),
            (&[begin, place("its end", 1, 0x11)], Some("its end is at 0/11, and the history parts at 0/10")),
            (&[place("its begin", 2, 0x21)], Some("left timeline 2: its begin is at 0/21")),
            (&[place("its begin", 3, 0x30), place("its end", 3, 0x40)], None),
            (&[place("its begin", 4, 0x30)], Some("on timeline 4, which is not in the past of the leader's timeline 3")),
            (&[begin, place("what it must replay", 0, 0)], None),
        ] {
            match (said(places), refused) {
                (Ok(()), None) => {}
                (Err(why), Some(words)) => assert!(why.contains(words), "{why}"),
                (other, expected) => panic!("{places:?}: {other:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn a_timeline_that_was_left_for_a_point_in_its_past_is_told_from_a_promotion() {
        for (reason, restored) in [
            ("no recovery target specified", false),
            ("not part of this history", false),
            ("reached consistency", false),
            ("before 2026-11-22 09:00:00.1+00", true),
            ("after LSN 0/3000000", true),
            ("at restore point \"wanted\"", true),
        ] {
            assert_eq!(left_for_the_past(reason), restored, "{reason}");
        }
    }
}
