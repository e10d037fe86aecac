//! Slots: which replication slots a node keeps, how far it moves them, which it drops, and when a copy of a logical slot may be offered.
//!
//! The leader publishes the positions of its slots in `status`; the others keep slots of the same names at these positions, so
//! that the member that takes over has the WAL that members and consumers still need.

mod configured;
mod copied;
mod facts;
mod logical;
mod physical;
mod publication;
mod said;
mod seen;
mod step;

pub use configured::{Kind, ignored, is_plugin, keeps_logical, permanent};
pub use copied::{Copied, remembered};
pub use facts::Facts;
pub use logical::{Doubt, doubt, doubtful};
pub use publication::{Retention, holding_back, publication, warning_bytes};
pub use said::{LogicalSlot, Publication, SlotFacts, lost, of_members, said};
pub use seen::{NATIVE_SYNC, SlotSeen, Xid};
pub use step::{SlotStep, WhyDrop};

use crate::name::MemberName;
use seen::LOGICAL_ON_STANDBY;
use std::collections::BTreeMap;

/// What is to be done with this node's slots, in this order.
pub fn decide(facts: &Facts<'_>) -> Vec<SlotStep> {
    let mut steps = Vec::new();
    let physical = physical::wanted(facts);
    let permanent = permanent(facts.view.config());
    let logical: BTreeMap<&String, (&String, &String)> = permanent
        .iter()
        .filter_map(|(name, kind)| match kind {
            Kind::Logical { database, plugin } if !physical.contains_key(name) => Some((name, (database, plugin))),
            _ => None,
        })
        .collect();
    hygiene(facts, |name| physical.contains_key(name) || logical.contains_key(&name.to_owned()), &mut steps);
    for (name, to) in &physical {
        physical::one(facts, name, *to, &mut steps);
    }
    for (name, (database, plugin)) in logical {
        let seen = facts.slots.iter().find(|slot| slot.slot_name == *name);
        if !keeps_logical(facts.view.config()) {
            continue;
        } else if facts.primary {
            logical::on_primary(facts, name, database, plugin, seen, &mut steps);
        } else if facts.server_version < NATIVE_SYNC {
            logical::on_standby(facts, name, seen, &mut steps);
        }
    }
    if facts.view.config().paused() {
        steps.retain(|step| !matches!(step, SlotStep::Drop { .. }));
    }
    steps
}

/// Slots that nobody wants. Never one in use, never an ignored one, and on a primary none that was not the cluster's own.
fn hygiene(facts: &Facts<'_>, wanted: impl Fn(&str) -> bool, steps: &mut Vec<SlotStep>) {
    let mut known = SlotFacts::of(facts.view.status.as_ref().map(|status| &status.value)).known;
    known.extend(facts.view.members.keys().map(MemberName::slot_name));
    for slot in facts.slots.iter().filter(|slot| !slot.active && !slot.temporary && !ignored(facts.view.config(), slot)) {
        let name = &slot.slot_name;
        let why = if !facts.primary && slot.failover {
            // Left from when this node was primary; it keeps the server's own synchronisation from making it again.
            (!slot.synced).then_some(WhyDrop::LeftOver)
        } else if wanted(name) {
            None
        } else if !facts.primary && !slot.is_physical() && facts.server_version < LOGICAL_ON_STANDBY {
            Some(WhyDrop::LeftOver)
        } else {
            (known.contains(name) && !slot.failover).then_some(WhyDrop::NotWanted)
        };
        if let Some(why) = why {
            steps.push(SlotStep::Drop { name: name.clone(), why });
        }
    }
}
