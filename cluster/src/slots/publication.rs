//! What the leader says of its slots in `status`, and which slots are kept for members that are away.

use super::{Facts, Kind, SlotSeen, Xid, of_copies, permanent, upstream, wanted_physical};
use crate::config::HoldBack;
use crate::leader::Term;
use crate::lsn::Lsn;
use crate::time::Moment;
use crate::view::{ClusterView, Status};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

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
    /// Those in `status`, whoever wrote them.
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

/// What the leader says of its slots.
pub fn publication(facts: &Facts<'_>, term: Term, round: u64, limit_bytes: u64) -> Publication {
    let before = facts.view.status.as_ref().map(|status| &status.value);
    let physical = wanted_physical(facts);
    let permanent = permanent(facts.view.config());
    let seen = |name: &String| facts.slots.iter().find(|slot| slot.slot_name == *name);
    let mut slots: BTreeMap<String, Lsn> = physical.keys().filter_map(|name| Some((name.clone(), seen(name)?.restart_lsn?))).collect();
    slots.insert(facts.name.slot_name(), facts.position);
    let mut said = SlotFacts { term: term.0, ..SlotFacts::default() };
    for name in permanent.iter().filter(|(_, kind)| **kind != Kind::Physical).map(|(name, _)| name) {
        said.round = round;
        let slot = seen(name).filter(|slot| !slot.is_physical());
        // One that did not survive stays known by its last position, so that nobody makes it anew by accident.
        let last = before.and_then(|status| status.slots.get(name)).copied();
        if let Some(position) = slot.map_or(last, |slot| slot.confirmed_flush_lsn) {
            slots.insert(name.clone(), position);
        }
        said.logical.extend(slot.and_then(of_logical).map(|logical| (name.clone(), logical)));
    }
    let horizons = physical.keys().filter_map(|name| Some((name.clone(), seen(name)?.catalog_xmin?)));
    said.kept_for = horizons.filter(|_| !said.logical.is_empty()).collect();
    said.known = SlotFacts::of(before).known;
    // What is wanted no more and gone is forgotten: the name is free for anybody.
    said.known.retain(|name| seen(name).is_some());
    said.known.extend(physical.into_keys());
    said.known.extend(permanent.into_keys());
    let keeps = |name: &String| seen(name).is_some_and(|slot| slot.is_physical() && slot.restart_lsn.is_some() && !slot.is_lost());
    said.reserved = of_copies(facts.view).filter(keeps).collect();
    said.holding_back = holding_back(facts.slots, facts.position, limit_bytes);
    let may_lead =
        facts.view.members.iter().filter(|(name, entry)| *name != facts.name && entry.is_kept() && !entry.member.tags.nofailover());
    let streams = may_lead.filter(|(_, entry)| upstream(facts.view, &entry.member).is_none_or(|from| from == facts.name.as_str()));
    let successors = streams.map(|(name, _)| name.slot_name()).collect();
    Publication { slots, facts: said, successors, hold_back: facts.view.config().hold_back() }
}

fn of_logical(slot: &SlotSeen) -> Option<LogicalSlot> {
    Some(LogicalSlot {
        database_oid: slot.datoid?,
        plugin: slot.plugin.clone()?,
        two_phase: slot.two_phase,
        restart_lsn: slot.restart_lsn?,
        confirmed_flush_lsn: slot.confirmed_flush_lsn?,
        catalog_xmin: slot.catalog_xmin?,
    })
}

/// The slots that hold back more than so many bytes of WAL, and those that are about to lose or have lost theirs.
pub fn holding_back(slots: &[SlotSeen], position: Lsn, limit_bytes: u64) -> BTreeMap<String, u64> {
    let held = slots.iter().filter_map(|slot| {
        let bytes = slot.restart_lsn.map_or(0, |from| from.lag_bytes_behind(position));
        let at_risk = matches!(slot.wal_status.as_deref(), Some("unreserved" | "lost"));
        (bytes > limit_bytes || at_risk).then(|| (slot.slot_name.clone(), bytes))
    });
    held.collect()
}

/// How much WAL one slot may hold back before that is worth a warning: half of what is there for it, which is
/// `max_slot_wal_keep_size` where that is set, and the free space of the WAL's file system in any case.
pub fn warning_bytes(max_slot_wal_keep_bytes: Option<u64>, free_bytes: u64) -> u64 {
    max_slot_wal_keep_bytes.unwrap_or(u64::MAX).min(free_bytes) / 2
}

/// Whose slots are kept although their member is gone, and since when (`member_slots_ttl`, `status.retain_slots`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retention {
    seen: BTreeMap<String, Moment>,
}

impl Retention {
    /// The slots to be kept: of the members that are there, and of those that were there less than `ttl` ago. One that a
    /// predecessor (or this node before a restart) kept counts as seen now.
    pub fn kept(&mut self, members: impl IntoIterator<Item = String>, before: &[String], ttl: Duration, now: Moment) -> Vec<String> {
        for slot in before {
            self.seen.entry(slot.clone()).or_insert(now);
        }
        self.seen.extend(members.into_iter().map(|slot| (slot, now)));
        // Those whose time is over are not forgotten: the key may name them until it is written.
        self.seen.iter().filter(|(_, seen)| now.since(**seen) < ttl).map(|(slot, _)| slot.clone()).collect()
    }
}
