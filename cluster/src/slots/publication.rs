//! What the leader is to say of its slots in `status`, and which slots are kept for members that are away.

use super::configured::{Kind, permanent};
use super::facts::Facts;
use super::physical;
use super::said::{LogicalSlot, Publication, SlotFacts};
use super::seen::SlotSeen;
use crate::leader::Term;
use crate::lsn::Lsn;
use crate::time::Moment;
use std::collections::BTreeMap;
use std::time::Duration;

/// What the leader says of its slots.
pub fn publication(facts: &Facts<'_>, term: Term, round: u64, limit_bytes: u64) -> Publication {
    let before = facts.view.status.as_ref().map(|status| &status.value);
    let physical = physical::wanted(facts);
    let permanent = permanent(facts.view.config());
    let seen = |name: &String| facts.slots.iter().find(|slot| slot.slot_name == *name);
    let mut slots: BTreeMap<String, Lsn> = physical.keys().filter_map(|name| Some((name.clone(), seen(name)?.restart_lsn?))).collect();
    slots.insert(facts.name.slot_name(), facts.position);
    let mut said = SlotFacts { term: term.0, ..SlotFacts::default() };
    for name in permanent.iter().filter(|(_, kind)| **kind != Kind::Physical).map(|(name, _)| name) {
        said.round = round;
        let slot = seen(name).filter(|slot| !slot.is_physical());
        // One that did not survive stays known by its last position, so that nobody makes it again by accident.
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
    said.reserved = physical::of_copies(facts.view).filter(keeps).collect();
    said.holding_back = holding_back(facts.slots, facts.position, limit_bytes);
    let may_lead =
        facts.view.members.iter().filter(|(name, entry)| *name != facts.name && entry.is_kept() && !entry.member.tags.nofailover());
    let streams =
        may_lead.filter(|(_, entry)| physical::upstream(facts.view, &entry.member).is_none_or(|from| from == facts.name.as_str()));
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
