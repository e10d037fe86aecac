//! What a member remembers of etcd's keys, and which making of the keys that was (`store.rs` judges by it).

use crate::config::DynamicConfig;
use crate::leader::Term;
use crate::name::{MemberName, SystemId, Timeline};
use crate::sync::SyncState;
use crate::versioned::Versioned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// `tenure/store`: which making of the cluster's keys this is. Written when the cluster is founded and when its keys are made again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Making {
    /// One more each time the keys are made again. 0: made by a version, or a program, that does not write this key.
    pub generation: u32,
    /// Tells two makings of one generation apart, as where an empty node founds a cluster of its own.
    #[serde(default)]
    pub by: String,
    /// The cluster has gone to a new major version of PostgreSQL with this making, or with one before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upgraded: Option<Upgraded>,
}

/// Which database system took the place of which: data of the old one is of no more use, and is replaced by a copy of the new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// The database system of before.
    pub old: SystemId,
    /// Its major version.
    pub from: u32,
    /// The major version since.
    pub to: u32,
}

/// What a member knows of the keys by itself. It lies with its data, and its processes keep it while they run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The cluster's identity; nothing is remembered before it has one.
    pub system_id: Option<SystemId>,
    /// Which making of the keys.
    pub making: Making,
    /// etcd's own identity (its cluster id); 0 where it did not say.
    pub etcd: u64,
    /// The greatest revision that was seen.
    pub revision: i64,
    /// The last term.
    pub term: Term,
    /// Who took it.
    pub holder: Option<MemberName>,
    /// The greatest timeline that was used or claimed.
    pub timeline: Timeline,
    /// `sync`, with its revision.
    pub sync: Option<Versioned<SyncState>>,
    /// `config`, with its revision.
    pub config: Option<Versioned<DynamicConfig>>,
    /// Every member with data that was seen in this making of the keys.
    pub members: BTreeSet<MemberName>,
    /// The greatest making that this node began itself, whatever came of it: its number is not used again.
    #[serde(skip_serializing_if = "is_zero")]
    pub attempted: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde wants")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Memory {
    /// The number of the next making, as far as this node knows.
    pub fn next_generation(&self) -> u32 {
        self.making.generation.max(self.attempted).saturating_add(1)
    }
}
