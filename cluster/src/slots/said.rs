//! What the leader says of its slots in `status`, as the others read it.

use super::configured::{Kind, permanent};
use super::seen::Xid;
use crate::config::HoldBack;
use crate::lsn::Lsn;
use crate::view::{ClusterView, Status};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What the leader says of one logical slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogicalSlot {
    /// Its database, by number.
    pub database_oid: u32,
    /// Its output plugin.
    pub plugin: String,
    /// It decodes prepared transactions.
    #[serde(default)]
    pub two_phase: bool,
    /// The oldest WAL it needs.
    pub restart_lsn: Lsn,
    /// What its consumer has confirmed.
    pub confirmed_flush_lsn: Lsn,
    /// The oldest transaction whose catalog rows it needs.
    pub catalog_xmin: Xid,
}

/// What pg_tenure adds to `status`, under the field `tenure`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SlotFacts {
    /// The term of the leader who says this: what a predecessor said proves nothing.
    #[serde(default)]
    pub term: i64,
    /// One more with every look at the slots, while logical ones are kept.
    #[serde(default)]
    pub round: u64,
    /// The permanent logical slots.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub logical: BTreeMap<String, LogicalSlot>,
    /// By a member's slot: the oldest transaction whose catalog rows the leader keeps for that standby.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kept_for: BTreeMap<String, Xid>,
    /// Every slot that is or was the cluster's own: what may be dropped when it is wanted no more.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub known: BTreeSet<String>,
    /// Slots that hold back more WAL than is good, in bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub holding_back: BTreeMap<String, u64>,
    /// Slots that keep WAL for a member whose data are being copied.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub reserved: BTreeSet<String>,
}

impl SlotFacts {
    /// Those in `status`, by whichever member they were written.
    pub fn of(status: Option<&Status>) -> SlotFacts {
        let field = status.and_then(|status| status.other.get("tenure")).cloned();
        field.and_then(|value| serde_json::from_value(value).ok()).unwrap_or_default()
    }
}

/// What the leader's arbiter hands to its lease worker, which alone writes `status`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Publication {
    /// For `status.slots`.
    #[serde(default)]
    pub slots: BTreeMap<String, Lsn>,
    /// For `status.tenure`.
    #[serde(default)]
    pub facts: SlotFacts,
    /// The slots of the members that may take over: where logical consumers wait for members, for those of these that stream.
    #[serde(default)]
    pub successors: BTreeSet<String>,
    /// Whom logical consumers wait for.
    #[serde(default)]
    pub hold_back: HoldBack,
}

/// What the present leader says; nothing where it has said nothing yet.
pub fn said(view: &ClusterView) -> SlotFacts {
    let facts = SlotFacts::of(view.status.as_ref().map(|status| &status.value));
    let present = view.leader.as_ref().is_some_and(|leader| leader.term.0 == facts.term);
    if present { facts } else { SlotFacts::default() }
}

/// Are the positions in `status` those of the holder of the last term? What Patroni writes names no term, and its leaders write all of it again.
pub(super) fn is_of_the_last_term(view: &ClusterView) -> bool {
    let Some(status) = view.status.as_ref().map(|status| &status.value) else { return false };
    let term = view.leader.as_ref().map_or(view.last_term(), |leader| leader.term);
    !status.other.contains_key("tenure") || SlotFacts::of(Some(status)).term == term.0
}

/// The slots of the members that are there, by name: of the leader too, which needs one at the next. One that never streams has none.
pub fn of_members(view: &ClusterView) -> impl Iterator<Item = String> {
    view.members.iter().filter(|(_, entry)| entry.is_kept() && !entry.member.tags.nostream()).map(|(name, _)| name.slot_name())
}

/// The permanent logical slots that the leader does not have.
pub fn lost(view: &ClusterView) -> Vec<String> {
    let said = said(view);
    let missing = |(name, kind): &(String, Kind)| *kind != Kind::Physical && said.round != 0 && !said.logical.contains_key(name);
    permanent(view.config()).into_iter().filter(missing).map(|(name, _)| name).collect()
}
