//! Physical slots: which are wanted on this node, and where an unused one belongs.

use super::configured::{Kind, ignored, is_slot_name, permanent};
use super::facts::Facts;
use super::said::is_of_the_last_term;
use super::step::{SlotStep, WhyDrop};
use crate::lsn::Lsn;
use crate::member::{Member, MemberEntry, MemberState};
use crate::view::ClusterView;
use std::collections::BTreeMap;

/// Who streams from whom: the member's upstream, where it names one that exists; else the leader.
pub(super) fn upstream<'a>(view: &'a ClusterView, member: &'a Member) -> Option<&'a str> {
    let named = member.tags.replicatefrom()?;
    view.members.keys().any(|name| name.as_str() == named).then_some(named)
}

/// The slots of the members whose data are being copied: each is to have one before its copy begins, and keeps it until the copy streams.
pub(super) fn of_copies(view: &ClusterView) -> impl Iterator<Item = String> {
    let copied = |entry: &MemberEntry| entry.is_kept() && entry.member.state == MemberState::CreatingReplica;
    view.members.iter().filter(move |(_, entry)| copied(entry)).map(|(name, _)| name.slot_name())
}

/// The physical slots wanted here, with where an unused one belongs.
pub(super) fn wanted(facts: &Facts<'_>) -> BTreeMap<String, Option<Lsn>> {
    let view = facts.view;
    let status = view.status.as_ref().map(|status| &status.value);
    // Before the present leader has spoken of slots, the positions are its predecessor's, who said of itself where it wrote last. Its rewind begins
    // before that: what is here stays where it is.
    let spoken = is_of_the_last_term(view);
    let published = |slot: &str| {
        let said = status.and_then(|status| status.slots.get(slot)).copied();
        let here = || facts.slots.iter().any(|seen| seen.slot_name == slot);
        if spoken { said } else { (said.is_some() || here()).then_some(Lsn::default()) }
    };
    let mine = facts.name.slot_name();
    let may_lead = facts.primary || !facts.tags.nofailover();
    let mut wanted = BTreeMap::new();
    if facts.use_slots {
        for (name, entry) in
            view.members.iter().filter(|(name, entry)| *name != facts.name && entry.is_kept() && !entry.member.tags.nostream())
        {
            let slot = name.slot_name();
            let from = upstream(view, &entry.member);
            if from == Some(facts.name.as_str()) {
                // It streams from here: the slot is its own to move.
                wanted.insert(slot, None);
            } else if facts.primary {
                // One that streams from another member is moved along, so that it finds its WAL here if that member goes. What a former leader
                // has on a timeline of its own says nothing of what its rewind needs.
                let along = entry.member.timeline.is_none_or(|timeline| timeline == facts.timeline);
                wanted.insert(slot, from.and(entry.member.position()).filter(|_| along));
            } else if may_lead && let Some(to) = published(&slot) {
                wanted.insert(slot, Some(to));
            }
        }
        for slot in status.into_iter().flat_map(|status| &status.retain_slots).filter(|slot| may_lead && is_slot_name(slot)) {
            // Away for a moment: on the primary its slot stays where it is.
            let to = if facts.primary { Some(None) } else { published(slot).map(Some) };
            if let Some(to) = to {
                wanted.entry(slot.clone()).or_insert(to);
            }
        }
    }
    for (slot, _) in permanent(view.config()).into_iter().filter(|(_, kind)| *kind == Kind::Physical) {
        let to = if facts.primary { Some(None) } else { published(&slot).filter(|_| may_lead).map(Some) };
        if let Some(to) = to {
            wanted.entry(slot).or_insert(to);
        }
    }
    wanted.remove(&mine);
    // A leader that crashes is rewound to a checkpoint before the fork, and needs the WAL from there, not from where it wrote last. Every
    // checkpoint of its that this node knows is at or before the one that recovery would begin with here.
    let led = view.leader.as_ref().map(|leader| &leader.name).or(view.last_term.as_ref().map(|last| &last.value.holder));
    if !facts.primary
        && let Some(Some(to)) = led.and_then(|led| wanted.get_mut(&led.slot_name()))
    {
        *to = facts.redo.min(*to);
    }
    wanted
}

pub(super) fn one(facts: &Facts<'_>, name: &str, to: Option<Lsn>, steps: &mut Vec<SlotStep>) {
    let Some(slot) = facts.slots.iter().find(|slot| slot.slot_name == name) else {
        return steps.push(SlotStep::CreatePhysical { name: name.to_owned() });
    };
    if !slot.is_physical() {
        let what = "a logical slot has the name that a member's or a physical permanent slot needs: rename one of them".to_owned();
        return steps.push(SlotStep::Tell { name: name.to_owned(), what });
    }
    if slot.active || ignored(facts.view.config(), slot) {
        return;
    }
    // Where nobody is expected to connect, nobody would ever move a transaction horizon on.
    let horizon = slot.xmin.is_some() || slot.catalog_xmin.is_some();
    let why = match slot.restart_lsn {
        _ if slot.is_lost() => Some(WhyDrop::Lost),
        None => Some(WhyDrop::ReservesNothing),
        Some(_) if to.is_some() && horizon => Some(WhyDrop::HoldsRowsBack),
        Some(from) if from.lag_bytes_behind(facts.position) > facts.most_for_a_copy && of_copies(facts.view).any(|slot| slot == name) => {
            Some(WhyDrop::CopyTooLong)
        }
        Some(_) => None,
    };
    if let Some(why) = why {
        steps.push(SlotStep::Drop { name: name.to_owned(), why });
        if !facts.view.config().paused() {
            steps.push(SlotStep::CreatePhysical { name: name.to_owned() });
        }
    } else if let Some(to) = to.map(|to| to.min(facts.position)).filter(|to| Some(*to) > slot.restart_lsn) {
        steps.push(SlotStep::Advance { name: name.to_owned(), to, logical: false });
    }
}
