//! The steps of the short path, and what a node that finds one of them half done owes.
//!
//! The state of an upgrade lies in two places, and each says what only it can know (docs/adr/0048-major-upgrade.md). Beside the leader's
//! data directory: which step has begun there, written before the step. In etcd: which database system is the cluster (`initialize`,
//! `tenure/store`), changed in one write that compares the leader key. So a failover before that write calls the upgrade off by itself,
//! as the cluster goes on with the data that it knows, and after it no server with the old data may lead.

use crate::lsn::Lsn;
use crate::name::SystemId;
use serde::{Deserialize, Serialize};

/// A step of the short path on the leader; each is noted before its first act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// An empty database system of the new version is made beside the data, while the server serves.
    Prepare,
    /// Writers are held, and the server is stopped cleanly.
    Hold,
    /// `pg_upgrade` carries the definitions and links the files. The old data is not written to, but its `pg_control` goes aside.
    Transfer,
    /// A server of the new version, which nobody else reaches, makes the statistics. From here on the old data of this node is spoiled.
    Statistics,
    /// etcd is told which database system the cluster is from now on: one guarded write.
    Announce,
    /// The new directory takes the place of the old one.
    Exchange,
}

impl Step {
    /// In their order.
    pub const ALL: [Step; 6] = [Step::Prepare, Step::Hold, Step::Transfer, Step::Statistics, Step::Announce, Step::Exchange];

    /// What is done, for people.
    pub fn sentence(self) -> &'static str {
        match self {
            Step::Prepare => "an empty database system of the new version is made beside the data",
            Step::Hold => "writers are held and the server is stopped",
            Step::Transfer => "pg_upgrade carries the definitions and links the files",
            Step::Statistics => "the statistics are made by a server that nobody else reaches",
            Step::Announce => "etcd is told which database system the cluster is from now on",
            Step::Exchange => "the new data takes the place of the old",
        }
    }
}

/// What a node wrote down of an upgrade that is under way on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// From this major version.
    pub from: u32,
    /// To this one.
    pub to: u32,
    /// The step that has begun.
    pub step: Step,
    /// The database system that is upgraded.
    pub old: SystemId,
    /// The one that takes its place, once it is made.
    #[serde(default)]
    pub new: Option<SystemId>,
    /// Where the new data was made by a twin that followed, from which position on the old one follows it: then the old data is whole at
    /// every step, and only the last two are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub twin: Option<Lsn>,
}

/// An upgrade that began here and did not end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HalfUpgraded {
    /// What was written down.
    pub journal: Journal,
    /// This arbiter tried the step, and it failed.
    pub failed: bool,
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

/// Which database system the cluster is, as etcd says now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// The one that is upgraded.
    Old,
    /// The one that takes its place.
    New,
    /// Neither, or none: nothing is known.
    Other,
}

/// What a node that finds a step half done owes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owed {
    /// The new directory is removed, `pg_control` put back where it went aside; the old server serves on.
    Undo,
    /// The old data can't be used any more, and the cluster has gone on without it: both directories go, and a copy is made.
    Discard,
    /// Go on from this step.
    GoOn(Step),
    /// Nothing is done before etcd says more.
    Wait,
}

/// What an interruption after `step` began means. It is called when the node's arbiter finds the note: after a crash, or after a step that
/// failed. `failed`: the step was tried by this arbiter and did not work; then it isn't tried for ever. `whole`: the old data is whole at every
/// step, as a twin made the new.
pub fn owed(step: Step, leads: Leads, identity: Identity, failed: bool, whole: bool) -> Owed {
    use Step::*;
    match (step, identity) {
        // The write may have been sent, and may yet be done as long as this node leads: it is sent again. Nobody else has the key to do so.
        (Announce, Identity::Old) if whole => match leads {
            Leads::Me => Owed::GoOn(Announce),
            Leads::Another => Owed::Undo,
            Leads::Nobody => Owed::Wait,
        },
        // A twin's change of places has no step whose old data is spoiled.
        (Statistics, Identity::Old) if whole => Owed::Undo,
        // etcd has taken the new one: there is no way but forward, whichever member leads.
        (Announce | Exchange, Identity::New) => Owed::GoOn(Exchange),
        // Before the write nobody can say so: these keys are of another making.
        (_, Identity::New | Identity::Other) => Owed::Wait,
        // The exchange is noted after the write has been confirmed. An etcd that says otherwise went back, and is not believed.
        (Exchange, Identity::Old) => Owed::Wait,
        // Nothing of the old data was touched.
        (Prepare | Hold | Transfer, Identity::Old) => Owed::Undo,
        // The old data here is spoiled. Another leader has it whole.
        (Statistics | Announce, Identity::Old) => match leads {
            Leads::Another => Owed::Discard,
            // It leads and the new data is whole. Where the step failed before, another member may still have the old data: it is
            // let lead, as this node gives the key up.
            Leads::Me if failed => Owed::Wait,
            Leads::Me => Owed::GoOn(step),
            // Another may lead in a moment, or this node again.
            Leads::Nobody => Owed::Wait,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the two directories of the node are after a step began, as far as an interruption can tell.
    #[derive(Clone, Copy, PartialEq)]
    enum OldData {
        Whole,
        Spoiled,
    }

    fn old_data(step: Step, whole: bool) -> OldData {
        if whole || step < Step::Statistics { OldData::Whole } else { OldData::Spoiled }
    }

    #[test]
    fn every_interruption_has_an_answer_that_keeps_the_rows() {
        let worlds = Step::ALL.into_iter().flat_map(|step| {
            [Leads::Me, Leads::Another, Leads::Nobody].into_iter().flat_map(move |leads| {
                [Identity::Old, Identity::New, Identity::Other]
                    .into_iter()
                    .flat_map(move |identity| [false, true].map(|failed| (step, leads, identity, failed)))
            })
        });
        for ((step, leads, identity, failed), whole) in worlds.flat_map(|world| [(world, false), (world, true)]) {
            let owed = owed(step, leads, identity, failed, whole);
            let world = format!("{step:?} {leads:?} {identity:?} failed: {failed}, whole: {whole}: {owed:?}");
            // The old server is started again only on data that no new server has written to.
            assert!(owed != Owed::Undo || old_data(step, whole) == OldData::Whole, "{world}");
            // Data is thrown away only while another member leads with the old data, and only what is of no more use.
            assert!(owed != Owed::Discard || (leads == Leads::Another && identity == Identity::Old), "{world}");
            assert!(owed != Owed::Discard || old_data(step, whole) == OldData::Spoiled, "{world}");
            // Once etcd has the new system, nothing goes back.
            assert!(identity != Identity::New || matches!(owed, Owed::GoOn(Step::Exchange) | Owed::Wait), "{world}");
            // What etcd is told is told by the leader alone.
            assert!(!matches!(owed, Owed::GoOn(Step::Announce | Step::Statistics)) || leads == Leads::Me, "{world}");
            // Never back over what is done.
            if let Owed::GoOn(next) = owed {
                assert!(next >= step, "{world}");
            }
            // Nobody waits for ever on a view that can be the truth: who leads with the old data, or the write, ends it.
            if owed == Owed::Wait {
                let passing = leads == Leads::Nobody || (leads == Leads::Me && failed && !whole);
                let impossible = identity == Identity::Other
                    || (identity == Identity::New && step < Step::Announce)
                    || (identity == Identity::Old && step == Step::Exchange);
                assert!(passing || impossible, "{world}");
            }
        }
    }

    #[test]
    fn the_table() {
        use {Identity::*, Leads::*, Owed::*, Step::*};
        for (step, leads, identity, failed, expected) in [
            (Prepare, Me, Old, false, Undo),
            (Hold, Another, Old, false, Undo),
            (Transfer, Nobody, Old, true, Undo),
            (Statistics, Me, Old, false, GoOn(Statistics)),
            (Statistics, Another, Old, false, Discard),
            (Statistics, Me, Old, true, Wait),
            (Announce, Me, Old, false, GoOn(Announce)),
            (Announce, Nobody, Old, false, Wait),
            (Announce, Nobody, New, false, GoOn(Exchange)),
            (Exchange, Another, New, false, GoOn(Exchange)),
            (Exchange, Me, Old, false, Wait),
        ] {
            assert_eq!(owed(step, leads, identity, failed, false), expected, "{step:?} {leads:?} {identity:?} {failed}");
        }
        for (leads, identity, expected) in
            [(Me, Old, GoOn(Announce)), (Another, Old, Undo), (Nobody, Old, Wait), (Another, New, GoOn(Exchange)), (Me, Other, Wait)]
        {
            assert_eq!(owed(Announce, leads, identity, true, true), expected, "by a twin: {leads:?} {identity:?}");
        }
    }
}
