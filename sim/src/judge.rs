//! What was observed in a run, for the invariants to judge by, and the first of them that broke.

use cluster::reached::End;
use cluster::standing::Bond;
use cluster::store::Memory;
use cluster::sync::SyncState;
use cluster::time::Moment;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

/// What was observed in a run, and the first invariant that broke.
#[derive(Default)]
pub(crate) struct Judge {
    pub violation: Option<(&'static str, String)>,
    pub acknowledged: HashSet<u64>,
    pub last_acknowledged: Option<Duration>,
    pub refused: u64,
    pub unknown: u64,
    /// The highest term for which any page was opened, by whom.
    pub opened: Option<(i64, usize)>,
    /// What somebody would remember who sees every change of etcd's keys.
    pub memory: Memory,
    pub promotions: BTreeMap<i64, usize>,
    pub timelines: BTreeMap<u32, usize>,
    /// Until when each node has promised not to take the leader key, by its own clock, whatever became of its server.
    pub promises: BTreeMap<usize, Moment>,
    /// How often a leader went on by promises.
    pub goes_on_by_promises: u64,
    /// A standby that stood received and confirmed more: the receiver came back.
    pub confirmed_after_standing: u64,
    /// How often a leader was deposed.
    pub deposed: u64,
    /// By which bond each node said its last word that deposes.
    pub spoke_bound: BTreeMap<usize, Bond>,
    /// The leader by the key, in the newest term.
    pub leads: Option<usize>,
    pub term: i64,
    pub sync: Option<SyncState>,
    pub leaders: u64,
    /// etcd's keys are behind what they were once.
    pub went_back: bool,
    /// Who first believed such keys, and when: nobody who knew better had said so in them (docs/failure-modes.md).
    pub unwarned: Option<(Duration, usize)>,
    /// The end of the furthest data that went by the name of which there is a copy: what was confirmed or acknowledged under it.
    pub had: End,
    /// Since when data with less go by it, and nobody can tell: or the only data of a timeline were thrown away with a copy that led.
    pub replaced: Option<Duration>,
    /// What came of that.
    pub limit: Option<String>,
}

impl Judge {
    /// What decisions rest on: of the configuration only its last good copy is needed, and the revision alone is not written down.
    pub fn memory_of_decisions(&self) -> Memory {
        Memory { revision: 0, config: None, ..self.memory.clone() }
    }
}
