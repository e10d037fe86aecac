//! What groups write for each other under `tenure/`.

use crate::name::MemberName;
use serde::{Deserialize, Serialize};

/// `tenure/hold` of a worker's group: its leader is about to stop and asks the coordinator to keep writers waiting meanwhile.
/// Hangs on the leader's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRequest {
    /// Who asks.
    pub leader: MemberName,
    /// In which term: a request of another one says nothing.
    pub term: i64,
    /// The change is to be called off where statements are in its way.
    #[serde(default)]
    pub prefers_statements: bool,
}

/// `tenure/held` of a worker's group: the coordinator keeps writers waiting. Hangs on the coordinator's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldWord {
    /// The revision of the request that this answers.
    pub request: i64,
    /// Which coordinator holds.
    pub coordinator: MemberName,
    /// In which term.
    pub term: i64,
    /// Why writers are not held and the change is to be called off; None: they wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// `tenure/coordinator` of a worker's group: who was promoted as coordinator last. Written before that promotion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorWord {
    /// Who.
    pub leader: MemberName,
    /// In which term, as [`order`] has it. A coordinator that only moves its key onto another lease gets a new one and does not say so: its sessions go on.
    pub term: i64,
}

/// How many bits of an [`order`] are the term's.
const TERM_BITS: u32 = 47;

/// The term in an [`order`].
pub fn term_of(order: i64) -> i64 {
    order & ((1 << TERM_BITS) - 1)
}

/// A coordinator's term as sessions and words between groups carry it: after etcd's keys were made again terms begin again from small numbers, so the
/// generation of the keys counts before the term. One number, so that it is compared and stored in one step.
pub fn order(generation: u32, term: i64) -> i64 {
    let generation = i64::from(generation.min(0xFFFF));
    generation << TERM_BITS | term.clamp(0, (1 << TERM_BITS) - 1)
}

/// `tenure/gate` of a worker's group: another group is about to change its primary, so distributed statements that begin here are to
/// wait. Hangs on the coordinator's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateWord {
    /// Which coordinator asks.
    pub coordinator: MemberName,
    /// In which term, as [`order`] has it.
    pub term: i64,
    /// Reads wait too.
    pub reads: bool,
    /// How long statements under way get to end.
    #[serde(default = "half_a_second")]
    pub grace_ms: u64,
    /// How long the gate may have to stay closed beside the time of the change itself.
    #[serde(default)]
    pub beside_ms: u64,
}

/// What a coordinator of a version that does not say it waits for.
fn half_a_second() -> u64 {
    500
}

/// `tenure/gated` of a worker's group: its primary keeps statements waiting. Hangs on that one's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatedWord {
    /// The revision of the word that this answers.
    pub gate: i64,
    /// Who answers.
    pub leader: MemberName,
    /// In which term.
    pub term: i64,
    /// Statements wait here; before that it was only heard, and statements under way are waited for.
    #[serde(default = "yes")]
    pub closed: bool,
    /// So many transactions were still under way at the end of the grace.
    #[serde(default)]
    pub left: u32,
}

fn yes() -> bool {
    true
}
