//! Everything that a node's slots are judged by.

use super::copied::Copied;
use super::seen::SlotSeen;
use crate::lsn::Lsn;
use crate::member::Tags;
use crate::name::{MemberName, Timeline};
use crate::view::ClusterView;
use std::collections::BTreeMap;

/// Everything that a node's slots are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The cluster.
    pub view: &'a ClusterView,
    /// This node.
    pub name: &'a MemberName,
    /// Its tags.
    pub tags: &'a Tags,
    /// It leads: as primary, or as the leader of a standby cluster.
    pub primary: bool,
    /// What a primary has flushed, what a standby has replayed.
    pub position: Lsn,
    /// Where recovery would begin here: the WAL from there on is kept anyway.
    pub redo: Lsn,
    /// The newest timeline of the WAL that is here.
    pub timeline: Timeline,
    /// As in `server_version_num`.
    pub server_version: u32,
    /// `postgresql.use_slots`.
    pub use_slots: bool,
    /// Its slots.
    pub slots: &'a [SlotSeen],
    /// The copies of logical slots here, as far as this arbiter knows them.
    pub copies: &'a BTreeMap<String, Copied>,
    /// So much WAL may be kept for a member whose data are being copied.
    pub most_for_a_copy: u64,
}
