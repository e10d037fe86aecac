//! The groups whose writers wait on this coordinator, and how long clients are asked to wait.

use cluster::citus::{self, Groups, Release, Row};
use cluster::view::ClusterView;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The groups whose writers wait.
#[derive(Default)]
pub struct Holds {
    pub(super) held: BTreeMap<u32, Hold>,
    /// Requests that could not be served, and when: what is written to etcd meanwhile wakes us, and must not make us hurry.
    pub(super) failed: BTreeMap<i64, Instant>,
}

/// The writers of one group.
pub(super) struct Hold {
    pub(super) request: i64,
    /// The leader's term when it asked.
    pub(super) term: i64,
    pub(super) since: Instant,
    /// The row of its primary as it was, by database.
    pub(super) rows: Vec<Option<Row>>,
    /// Somebody serves, and its name does not lead there yet.
    pub(super) awaits_name: bool,
    /// Its rows are right again; what is missing is the commit.
    pub(super) released: Option<Release>,
}

impl Holds {
    /// Are this group's writers held?
    pub fn holds(&self, group: u32) -> bool {
        self.held.contains_key(&group)
    }

    /// Are nobody's?
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// How long clients are asked to wait, and what for.
pub(super) struct Closing {
    /// Statements under way get this long to end.
    pub grace: Duration,
    /// Transactions that use the group get this long once it is held.
    pub cooldown: Duration,
    /// The change itself takes no longer than this.
    pub limit: Duration,
}

/// How long clients are held at most, by the configuration of the group that holds them: twice the time in which a worker whose node died
/// has another leader.
pub fn limit(own: &ClusterView) -> Duration {
    (own.config().timing().ttl * 2).max(Duration::from_secs(10))
}

pub(super) fn limit_of(groups: &Groups) -> Duration {
    groups.get(&citus::COORDINATOR).map(limit).unwrap_or_default()
}
