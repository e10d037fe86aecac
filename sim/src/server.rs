//! One simulated server: what its processes share, and what is known of them.

use crate::time::{Changes, TaskId};
use cluster::quorum::Setting;
use cluster::time::Moment;
use keeper::Tenure;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How a server is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// As primary.
    None,
    /// As standby of this node, or of nobody.
    Standby(Option<usize>),
}

pub(crate) struct Server {
    pub at: usize,
    pub started: Duration,
    /// When its postmaster was started, which outlives a crash of one of its processes.
    pub postmaster: Cell<Duration>,
    /// It recovers from such a crash, and the arbiter knows that it served as primary before.
    pub crashed: Cell<bool>,
    pub ready: Cell<bool>,
    pub in_recovery: Cell<bool>,
    pub stopping: Cell<bool>,
    pub ended_cleanly: Cell<bool>,
    pub page: Tenure,
    /// The part of the deadline that stands on promises; for the invariants.
    pub by_promises_until: Cell<Moment>,
    pub renewed: Changes,
    pub flushed: Cell<u64>,
    pub upstream: Cell<Option<usize>>,
    pub streaming: Cell<bool>,
    pub received: Cell<Option<u64>>,
    /// When the receiver last got a message.
    pub heard: Cell<Duration>,
    pub replay_from: u64,
    pub replay_until: Cell<Duration>,
    pub receiver: Cell<Option<TaskId>>,
    pub told_to_follow: Changes,
    /// What the configuration says, what commits wait for.
    pub standby_names: RefCell<Setting>,
    pub awaited: RefCell<Setting>,
    pub confirmed: RefCell<BTreeMap<usize, u64>>,
    pub senders: RefCell<BTreeSet<usize>>,
    /// The arbiter's session.
    pub attached: Cell<bool>,
    pub checkpointed_timeline: Cell<u32>,
    pub wal: Changes,
    pub confirmations: Changes,
    pub under_way: Cell<u32>,
}
