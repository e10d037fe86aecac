//! Copies of logical slots on standbys: when they are made, moved, and offered.
//!
//! A logical slot is more than a position. Three things must hold before a copy of it may be used (the rules of PostgreSQL
//! 17's own slot synchronisation, put so that they can be checked from outside): the WAL from its `restart_lsn` on is here;
//! decoding from there reaches a consistent point before the consumer's position; and no catalog row that it needs has been
//! vacuumed away. A copy is a temporary slot until all three are shown ([`Doubt`]): a promotion finds it gone rather than wrong.

use super::configured::{ignored, permanent};
use super::copied::Copied;
use super::facts::Facts;
use super::said::{SlotFacts, said};
use super::seen::{NATIVE_SYNC, SlotSeen};
use super::step::{SlotStep, WhyDrop};
use crate::name::{MemberName, Timeline};
use std::fmt;

/// Publications after its making that a copy has to see before it is trusted: one may have been on its way already.
const PUBLICATIONS_MIN: u32 = 2;

/// Why a copy of a logical slot is not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doubt {
    /// The present leader has not published the slot.
    NotPublished,
    /// The leader does not yet keep the catalog rows it needs.
    NotKept,
    /// The leader's slot had let go of catalog rows that this copy still needs.
    CatalogVacuumed,
    /// Decoding has not been consistent since it was made.
    NotConsistent,
    /// It is too new.
    TooNew,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Doubt::NotPublished => "the leader has not published its position",
            Doubt::NotKept => "the leader does not yet keep the catalog rows it needs (hot_standby_feedback)",
            Doubt::CatalogVacuumed => "the leader may have vacuumed catalog rows that it needs",
            Doubt::NotConsistent => "decoding has not reached a consistent point here: its consumer has to go on first",
            Doubt::TooNew => "it was made a moment ago",
        })
    }
}

pub(super) fn on_primary(facts: &Facts<'_>, name: &str, database: &str, plugin: &str, seen: Option<&SlotSeen>, steps: &mut Vec<SlotStep>) {
    let tell = |what: String| SlotStep::Tell { name: name.to_owned(), what };
    match seen {
        None => {
            let status = facts.view.status.as_ref();
            // Made again it would stand at the end of the WAL, and its consumer would miss what is in between without a word.
            steps.push(match status.and_then(|status| status.value.slots.get(name)) {
                Some(last) => tell(format!(
                    "the logical slot did not survive; its consumer was at {last} and would miss what came after; hint: put the consumer right, then make the slot with pg_create_logical_replication_slot('{name}', '{plugin}') in {database}"
                )),
                None => SlotStep::CreateLogical {
                    name: name.to_owned(),
                    database: database.to_owned(),
                    plugin: plugin.to_owned(),
                    failover: facts.server_version >= NATIVE_SYNC,
                },
            });
        }
        Some(slot) if slot.plugin.as_deref() != Some(plugin) || slot.database.as_deref() != Some(database) => {
            steps.push(tell(format!(
                "the slot is {} by {} in {}, the configuration says {plugin} in {database}; hint: drop it, or change the configuration",
                slot.slot_type,
                slot.plugin.as_deref().unwrap_or("no plugin"),
                slot.database.as_deref().unwrap_or("no database")
            )));
        }
        Some(slot) if slot.is_lost() => {
            steps.push(tell(
                "its WAL is gone (max_slot_wal_keep_size); hint: put its consumer right, drop the slot and make it again".to_owned(),
            ));
        }
        Some(_) => {}
    }
}

pub(super) fn on_standby(facts: &Facts<'_>, name: &str, seen: Option<&SlotSeen>, steps: &mut Vec<SlotStep>) {
    let drop = |why| SlotStep::Drop { name: name.to_owned(), why };
    if facts.tags.nofailover() || facts.tags.nostream() {
        steps.extend(seen.filter(|slot| !slot.active && !slot.temporary).map(|_| drop(WhyDrop::LeftOver)));
        return;
    }
    let said = said(facts.view);
    let Some(from) = said.logical.get(name) else { return };
    let Some(slot) = seen else {
        // A slot must not be ahead of the WAL that is here.
        if facts.use_slots && from.confirmed_flush_lsn <= facts.position {
            steps.push(SlotStep::Copy { name: name.to_owned(), from: from.clone() });
        }
        return;
    };
    let same = slot.plugin.as_deref() == Some(&from.plugin) && slot.datoid == Some(from.database_oid) && slot.two_phase == from.two_phase;
    if !same || slot.is_lost() {
        return steps.push(drop(if same { WhyDrop::Lost } else { WhyDrop::NotTheSame }));
    }
    let copied = facts.copies.get(name).cloned().unwrap_or_default();
    let mut trusted = is_trusted(&copied, facts.timeline);
    match doubt(slot, &said, &copied, facts.name) {
        None if !trusted => steps.push(SlotStep::Trust { name: name.to_owned(), temporary: slot.temporary }),
        Some(Doubt::NotKept) if trusted => {
            trusted = false;
            steps.push(SlotStep::Distrust { name: name.to_owned() });
        }
        _ => {}
    }
    let to = from.confirmed_flush_lsn.min(facts.position);
    let behind = slot.confirmed_flush_lsn < Some(to);
    // Decoding the same once more takes the slot's horizons further: what was only a candidate counts now.
    if behind || !trusted && slot.confirmed_flush_lsn == Some(to) {
        steps.push(SlotStep::Advance { name: name.to_owned(), to, logical: true });
    }
}

/// Why this copy can't be trusted yet; None where it can.
///
/// The rows that it needs are kept from the moment at which the leader keeps them for this standby (`kept_for`, which only this
/// standby's own feedback moves, and that never passes its slots). Before that moment they were kept by the leader's own slot,
/// if that had not moved further than this copy.
pub fn doubt(slot: &SlotSeen, said: &SlotFacts, copied: &Copied, name: &MemberName) -> Option<Doubt> {
    let Some((from, needs)) = said.logical.get(&slot.slot_name).zip(slot.catalog_xmin) else { return Some(Doubt::NotPublished) };
    if !said.kept_for.get(&name.slot_name()).is_some_and(|kept| kept.at_or_before(needs)) {
        return Some(Doubt::NotKept);
    }
    if let Some(made_at) = copied.made_at {
        // Its restart_lsn moves by itself only once decoding here was consistent.
        if slot.restart_lsn <= Some(made_at) {
            return Some(Doubt::NotConsistent);
        }
        if copied.rounds < PUBLICATIONS_MIN {
            return Some(Doubt::TooNew);
        }
    }
    (!from.catalog_xmin.at_or_before(needs)).then_some(Doubt::CatalogVacuumed)
}

fn is_trusted(copied: &Copied, timeline: Timeline) -> bool {
    copied.trusted.is_some_and(|trusted| timeline <= trusted)
}

/// The permanent logical slots of a standby that must not survive its promotion: nothing shows that they are safe.
pub fn doubtful(facts: &Facts<'_>) -> Vec<String> {
    if facts.server_version >= NATIVE_SYNC {
        return Vec::new();
    }
    let config = facts.view.config();
    let permanent = permanent(config);
    let safe = |name: &str| facts.copies.get(name).is_some_and(|copied| is_trusted(copied, facts.timeline));
    let copies = facts
        .slots
        .iter()
        .filter(|slot| !slot.is_physical() && !slot.temporary && permanent.contains_key(&slot.slot_name) && !ignored(config, slot));
    copies.filter(|slot| !safe(&slot.slot_name)).map(|slot| slot.slot_name.clone()).collect()
}
