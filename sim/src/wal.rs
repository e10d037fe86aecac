//! Write-ahead log and data directory of a simulated server: records with positions, timelines as Postgres numbers them.

use cluster::failsafe::Spoken;
use cluster::history::{History, Line};
use cluster::local::Ended;
use cluster::lsn::Lsn;
use cluster::name::Timeline;
use cluster::quorum::Setting;
use cluster::standing::Bond;
use std::collections::{BTreeSet, HashSet};

/// One record: where it ends, on which timeline, which commit it is (0: none).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub end: u64,
    pub timeline: u32,
    /// The promotion that began this timeline: tells apart two timelines of one number.
    pub branch: u64,
    pub commit: u64,
}

/// A log: its timeline, the ends of those before it, the records.
#[derive(Debug, Clone)]
pub(crate) struct Wal {
    pub timeline: u32,
    pub branch: u64,
    pub lines: Vec<(u32, u64)>,
    pub records: Vec<Record>,
}

impl Wal {
    pub fn new() -> Wal {
        Wal { timeline: 1, branch: 0, lines: Vec::new(), records: Vec::new() }
    }

    pub fn end(&self) -> u64 {
        self.records.last().map_or(1 << 20, |record| record.end)
    }

    pub fn write(&mut self, bytes: u64, commit: u64) -> u64 {
        let end = self.end() + bytes;
        self.records.push(Record { end, timeline: self.timeline, branch: self.branch, commit });
        end
    }

    /// Records before this index end at or before the position.
    pub fn upto(&self, lsn: u64) -> usize {
        self.records.partition_point(|record| record.end <= lsn)
    }

    pub fn truncate(&mut self, lsn: u64) {
        let keep = self.upto(lsn);
        self.records.truncate(keep);
    }

    pub fn commits(&self) -> HashSet<u64> {
        self.records.iter().map(|record| record.commit).filter(|commit| *commit != 0).collect()
    }

    /// As this server's own history file has it.
    pub fn history(&self) -> History {
        let line = |&(timeline, switch): &(u32, u64)| Line {
            timeline: Timeline(timeline),
            switch: Lsn(switch),
            reason: "no recovery target specified".to_owned(),
            timestamp: None,
            new_leader: None,
        };
        History(self.lines.iter().map(line).collect())
    }

    /// Where `timeline` ended in this log's past; its own end for the present one.
    pub fn end_of(&self, timeline: u32) -> Option<u64> {
        if timeline == self.timeline {
            return Some(self.end());
        }
        self.lines.iter().find(|(line, _)| *line == timeline).map(|(_, end)| *end)
    }

    /// Where two logs part, by content.
    pub fn common(&self, other: &Wal) -> usize {
        self.records.iter().zip(&other.records).take_while(|(mine, theirs)| mine == theirs).count()
    }
}

/// A data directory with a database in it.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    pub wal: Wal,
    pub ended: Ended,
    /// Start of the last checkpoint record, and its timeline.
    pub checkpoint: (u64, u32),
    /// Timelines whose history files lie here: their numbers are not used again.
    pub known: BTreeSet<u32>,
    /// `synchronous_standby_names` in postgresql.conf.
    pub standby_names: Setting,
    /// What a deposition binds this server to.
    pub bond: Option<Bond>,
    /// In which vacancy this server has said a word that counts.
    pub spoken: Option<Spoken>,
    /// Marked as half-made: the cluster that is founded with it does not exist yet.
    pub founding: bool,
}

/// What is in a data directory.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    Empty,
    Incomplete(String),
    Present(Disk),
}

impl Data {
    pub fn disk(&self) -> Option<&Disk> {
        match self {
            Data::Present(disk) => Some(disk),
            Data::Empty | Data::Incomplete(_) => None,
        }
    }

    pub fn disk_mut(&mut self) -> Option<&mut Disk> {
        match self {
            Data::Present(disk) => Some(disk),
            Data::Empty | Data::Incomplete(_) => None,
        }
    }
}
