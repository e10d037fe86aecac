//! The twin: a server of the other major version beside the leader's, which follows it by logical replication until the two change places.
//!
//! It is no member and has no lease: it listens on a socket that only this user reaches. What is known of it lies beside the leader's data
//! (docs/adr/0055-twin.md), and that only the node which leads has one is what calls it off when another comes to lead.

use crate::lsn::Lsn;
use crate::name::SystemId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One database of the cluster, and the slot by which its twin follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// Its name.
    pub database: String,
    /// The slot on the leader's server.
    pub slot: String,
}

/// How far a twin is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// It is being made: an arbiter that finds it so makes it again.
    Making,
    /// It follows from this position on, and its subscriptions may not be there yet.
    Joining {
        /// Every transaction whose commit begins here or later comes by its slot; every earlier one it has.
        from: Lsn,
    },
    /// It follows.
    Following,
    /// It is wanted no more: what was made for it goes.
    Ending,
}

/// What a node writes down of its twin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Twin {
    /// The major version that the cluster ran when the twin was asked for.
    pub from: u32,
    /// The one that was asked for.
    pub to: u32,
    /// How far it is.
    pub stage: Stage,
    /// The database system that the cluster is.
    pub main: SystemId,
    /// The twin's own, once it is made.
    #[serde(default)]
    pub twin: Option<SystemId>,
    /// The two have changed places: the cluster runs `to`, and the twin is what it was before.
    #[serde(default)]
    pub switched: bool,
    /// The databases with their slots.
    #[serde(default)]
    pub databases: Vec<Followed>,
}

impl Twin {
    /// The major version that the cluster runs.
    pub fn serves(&self) -> u32 {
        if self.switched { self.to } else { self.from }
    }

    /// The twin's own.
    pub fn waits(&self) -> u32 {
        if self.switched { self.from } else { self.to }
    }

    /// What is noted when etcd knows the twin as the cluster; the same again where that was noted before.
    pub fn changed_places(&self, now: &SystemId, from: Lsn) -> Twin {
        if self.main == *now {
            return self.clone();
        }
        let switched = !self.switched;
        let follows = if switched { self.from } else { self.to };
        let slots = |(number, one): (usize, &Followed)| Followed { slot: slot(follows, number), ..one.clone() };
        let databases = self.databases.iter().enumerate().map(slots).collect();
        Twin { main: now.clone(), twin: Some(self.main.clone()), switched, stage: Stage::Joining { from }, databases, ..self.clone() }
    }
}

/// The slot on the leader's server by which a twin of this version follows the database of this number. Each direction has its own names: one
/// that is left from the other must never be taken for it.
pub fn slot(of: u32, number: usize) -> String {
    format!("tenure_upgrade_{of}_{number}")
}

/// Who leads, as this node knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leads {
    /// This node, as primary.
    Me,
    /// Another one.
    Another,
    /// Nobody, or it is not known.
    Nobody,
}

/// What a node with a twin owes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Care {
    /// It is made from the beginning.
    Make,
    /// Its server is kept running, and the rest of what it needs to follow is done.
    Join,
    /// Its server is kept running.
    Keep,
    /// Everything that was made for it goes, on the leader's server too.
    End,
    /// Another node leads: the twin follows nobody any more, and goes. The leader's server is the other node's to clean.
    Drop,
    /// Nothing now.
    Wait,
}

/// What is owed to the twin. `main`: the database system that etcd says the cluster is, where it is known.
pub fn owed(twin: &Twin, leads: Leads, main: Option<&SystemId>) -> Care {
    match (leads, main) {
        (Leads::Nobody, _) | (_, None) => Care::Wait,
        (Leads::Another, _) => Care::Drop,
        // Between the write to etcd and the note the step of the switch says what to do, not this.
        (Leads::Me, Some(main)) if *main != twin.main => Care::Wait,
        (Leads::Me, Some(_)) => match twin.stage {
            Stage::Making => Care::Make,
            Stage::Joining { .. } => Care::Join,
            Stage::Following => Care::Keep,
            Stage::Ending => Care::End,
        },
    }
}

/// So many bytes of WAL may be missing when the two are to change places: writers wait until the twin has them.
pub const LAG_MOST: u64 = 16 << 20;

/// What keeps the two from changing places now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotYet {
    /// The twin is being made or joined.
    NotFollowing,
    /// It is behind by so many bytes, or by an unknown number.
    Behind(Option<u64>),
    /// Its data was not compared since it follows.
    NotCompared,
    /// So many tables, definitions or roles differ.
    Differs(usize),
}

impl fmt::Display for NotYet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotYet::NotFollowing => f.write_str("the new version does not follow yet"),
            NotYet::Behind(Some(bytes)) => {
                write!(f, "the new version is {} MiB behind, and {} may be missing", bytes >> 20, LAG_MOST >> 20)
            }
            NotYet::Behind(None) => f.write_str("how far the new version is behind is not known"),
            NotYet::NotCompared => f.write_str("the data was not compared since the new version follows"),
            NotYet::Differs(1) => f.write_str("1 thing differs between the two versions"),
            NotYet::Differs(count) => write!(f, "{count} things differ between the two versions"),
        }
    }
}

/// Everything that keeps the two from changing places. `differences`: of the last comparison, where there was one.
pub fn not_yet(stage: Stage, lag: Option<u64>, differences: Option<usize>) -> Vec<NotYet> {
    let mut found = Vec::new();
    if stage != Stage::Following {
        return vec![NotYet::NotFollowing];
    }
    if lag.is_none_or(|lag| lag > LAG_MOST) {
        found.push(NotYet::Behind(lag));
    }
    match differences {
        None => found.push(NotYet::NotCompared),
        Some(0) => {}
        Some(count) => found.push(NotYet::Differs(count)),
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(number: u32) -> SystemId {
        SystemId(format!("70000000000000000{number}"))
    }

    fn twin(stage: Stage) -> Twin {
        let databases = vec![Followed { database: "app".to_owned(), slot: slot(17, 0) }];
        Twin { from: 15, to: 17, stage, main: system(15), twin: Some(system(17)), switched: false, databases }
    }

    const STAGES: [Stage; 4] = [Stage::Making, Stage::Joining { from: Lsn(7) }, Stage::Following, Stage::Ending];

    #[test]
    fn only_the_node_that_leads_has_a_twin_and_nothing_is_done_while_nobody_is_known_to_lead() {
        for stage in STAGES {
            for leads in [Leads::Me, Leads::Another, Leads::Nobody] {
                for main in [None, Some(system(15)), Some(system(17)), Some(system(1))] {
                    let care = owed(&twin(stage), leads, main.as_ref());
                    let world = format!("{stage:?} {leads:?} {main:?}: {care:?}");
                    // The leader's server is touched by the leader alone, and only while the note is of this cluster.
                    let touches = matches!(care, Care::Make | Care::Join | Care::End);
                    assert!(!touches || (leads == Leads::Me && main == Some(system(15))), "{world}");
                    // A twin goes only where another leads or somebody asked for it.
                    assert!(care != Care::Drop || leads == Leads::Another, "{world}");
                    assert!(care != Care::End || stage == Stage::Ending, "{world}");
                    // While it is not known who leads, or as what, everything stays.
                    assert!(main.is_some() && leads != Leads::Nobody || care == Care::Wait, "{world}");
                }
            }
        }
        let here = system(15);
        for (stage, expected) in STAGES.into_iter().zip([Care::Make, Care::Join, Care::Keep, Care::End]) {
            assert_eq!(owed(&twin(stage), Leads::Me, Some(&here)), expected, "{stage:?}");
        }
    }

    #[test]
    fn changing_places_is_noted_once_and_undone_by_the_next_change() {
        let before = twin(Stage::Following);
        assert_eq!((before.serves(), before.waits()), (15, 17));
        let after = before.changed_places(&system(17), Lsn(9));
        assert_eq!((after.serves(), after.waits(), after.switched), (17, 15, true));
        assert_eq!((&after.main, after.twin.as_ref()), (&system(17), Some(&system(15))));
        assert_eq!(after.stage, Stage::Joining { from: Lsn(9) });
        assert_eq!(after.databases[0].slot, slot(15, 0), "the twin is of 15 now");
        assert_eq!(after.changed_places(&system(17), Lsn(99)), after, "interrupted and noted again");
        let back = after.changed_places(&system(15), Lsn(10));
        assert_eq!(Twin { stage: Stage::Following, ..back }, before);
    }

    #[test]
    fn what_is_not_equal_or_far_behind_does_not_change_places() {
        use NotYet::*;
        for (stage, lag, differences, expected) in [
            (Stage::Following, Some(0), Some(0), vec![]),
            (Stage::Following, Some(LAG_MOST), Some(0), vec![]),
            (Stage::Following, Some(LAG_MOST + 1), Some(0), vec![Behind(Some(LAG_MOST + 1))]),
            (Stage::Following, None, None, vec![Behind(None), NotCompared]),
            (Stage::Following, Some(1), Some(2), vec![Differs(2)]),
            (Stage::Making, Some(0), Some(0), vec![NotFollowing]),
            (Stage::Joining { from: Lsn(1) }, Some(0), Some(0), vec![NotFollowing]),
            (Stage::Ending, Some(0), Some(0), vec![NotFollowing]),
        ] {
            assert_eq!(not_yet(stage, lag, differences), expected, "{stage:?} {lag:?} {differences:?}");
        }
        assert_eq!(Differs(1).to_string(), "1 thing differs between the two versions");
    }

    #[test]
    fn the_two_directions_share_no_slot() {
        assert_eq!(slot(17, 0), "tenure_upgrade_17_0");
        assert_ne!(slot(17, 1), slot(15, 1));
    }
}
