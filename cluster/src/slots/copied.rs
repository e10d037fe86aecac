//! What a standby's arbiter remembers of its copies of logical slots.

use super::said::{SlotFacts, said};
use super::seen::SlotSeen;
use crate::lsn::Lsn;
use crate::name::Timeline;
use crate::view::ClusterView;
use std::collections::BTreeMap;

/// What a standby's arbiter remembers of its copy of a logical slot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Copied {
    /// Where its decoding began; None for one that was shown to be safe before a restart of the arbiter.
    pub made_at: Option<Lsn>,
    /// The last publication it was compared with.
    pub round: u64,
    /// How many publications it was compared with.
    pub rounds: u32,
    /// The timeline on which it was shown to be safe: what a later leader has done to the catalog was not looked at.
    pub trusted: Option<Timeline>,
}

impl Copied {
    /// Takes note of a publication of the present leader.
    pub fn compared(&mut self, said: &SlotFacts) {
        if said.round != 0 && said.round != self.round {
            self.round = said.round;
            self.rounds = self.rounds.saturating_add(1);
        }
    }
}

/// What is remembered of the logical slots that are here now. One that is seen for the first time (left from when this node was
/// primary; a rewind takes the snapshots away that its decoding began from) has to show that it is consistent, like a new one.
pub fn remembered(mut before: BTreeMap<String, Copied>, view: &ClusterView, slots: &[SlotSeen]) -> BTreeMap<String, Copied> {
    let said = said(view);
    let logical = slots.iter().filter(|slot| !slot.is_physical());
    let now = logical.map(|slot| {
        let mut copied = before
            .remove(&slot.slot_name)
            .unwrap_or_else(|| Copied { made_at: Some(slot.restart_lsn.unwrap_or_default()), ..Copied::default() });
        copied.compared(&said);
        (slot.slot_name.clone(), copied)
    });
    now.collect()
}
