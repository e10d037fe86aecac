//! What the task that keeps Citus remembers from round to round.

use super::database::Database;
use super::holds::Holds;
use super::own_gate::OwnGate;
use super::session::Changes;
use crate::node::Node;
use cluster::leader::Term;
use dcs::Etcd;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Notify, watch};

/// The task of one node.
pub(super) struct Keeper {
    pub(super) node: Node,
    /// etcd, as all groups of the scope.
    pub(super) scope: Arc<Etcd>,
    pub(super) databases: Vec<Database>,
    pub(super) holds: Holds,
    /// Something changed in etcd since the round began. Each task that waits for that has one of these of its own: nobody takes a change from another.
    pub(super) changes: Changes,
    /// Of this server.
    pub(super) gate: OwnGate,
    /// The coordinator asked these groups to close theirs.
    pub(super) gated: Vec<u32>,
    pub(super) step: Step,
    /// The databases were made ready in this term.
    pub(super) ready: Option<Term>,
    /// A coordinator that Patroni runs was told of this term.
    pub(super) heard: Option<Term>,
    /// Some group is reached through poolers: a worker has to watch all groups then.
    pub(super) pooled: Arc<Notify>,
    /// When a worker looks again whether that is so.
    pub(super) poolers_due: Instant,
    /// In-doubt transactions were settled since each group's leader took its term.
    pub(super) settled: BTreeMap<u32, Term>,
    pub(super) told: String,
}

/// How long the nodes have been behind.
#[derive(Default)]
pub struct Step {
    pub(super) behind: Option<Instant>,
    pub(super) told: bool,
    pub(super) hurried: bool,
}

impl Keeper {
    /// Of this node, for these databases.
    pub(super) fn new(node: Node, databases: Vec<String>) -> Keeper {
        let scope = Arc::new(node.etcd.seen_as(node.config.scope_keys()));
        let databases = databases.into_iter().map(|name| Database::new(node.sql.clone(), name)).collect();
        Keeper {
            node,
            scope,
            databases,
            holds: Default::default(),
            changes: watch::channel(()).1,
            gate: Default::default(),
            gated: Vec::new(),
            step: Default::default(),
            ready: None,
            heard: None,
            pooled: Arc::default(),
            poolers_due: Instant::now(),
            settled: BTreeMap::new(),
            told: String::new(),
        }
    }
}
