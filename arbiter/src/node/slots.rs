//! What a node remembers of its slots between two looks (`upkeep/slots.rs`), and what they add to the server's settings.

use crate::config::NodeConfig;
use crate::postgres::conf::{Contribution, Parameters};
use cluster::config::DynamicConfig;
use cluster::name::Timeline;
use cluster::slots::{self, Copied};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio_postgres::Client;

/// What a node remembers of its slots between two looks.
#[derive(Default)]
pub struct SlotMemory {
    inner: Mutex<Inner>,
    /// The session that owns the copies which are not yet trusted; they end with it.
    pub session: tokio::sync::Mutex<Option<Arc<Client>>>,
    /// Copies are worked on by one task at a time.
    pub at_work: Arc<tokio::sync::Mutex<()>>,
}

/// What is remembered, while it is looked at or changed.
#[derive(Default)]
pub struct Inner {
    /// Copies of logical slots, by name.
    pub copies: BTreeMap<String, Copied>,
    /// The timeline of the server when they were last looked at.
    pub timeline: Timeline,
    /// Rounds of the copying task.
    pub round: u64,
    /// What was said already, so that it is said once.
    pub told: BTreeSet<String>,
    /// When a snapshot for decoding was last asked for.
    pub logged: Option<Instant>,
    /// The file of the arbiter before this one was read.
    pub recalled: bool,
    /// What was last said of all copies together.
    pub told_of_copies: String,
}

impl SlotMemory {
    /// All of it.
    pub fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something once; again only after it was not to be said for a while.
    pub fn tell(&self, now: BTreeSet<String>) {
        let mut inner = self.inner();
        for line in now.difference(&inner.told) {
            tracing::warn!("{line}");
        }
        inner.told = now;
    }
}

/// The release of the data directory, where there is one.
pub async fn major(config: &NodeConfig) -> Option<u32> {
    let version = tokio::fs::read_to_string(config.postgres.data_dir.join("PG_VERSION")).await.unwrap_or_default();
    version.trim().parse().ok()
}

fn syncs_by_itself(major: Option<u32>) -> bool {
    major.is_some_and(|major| major * 10_000 >= slots::NATIVE_SYNC)
}

/// What slots add to the server's settings.
pub fn settings(major: Option<u32>, dynamic: &DynamicConfig) -> Contribution {
    let mut more = Contribution::default();
    if slots::keeps_logical(dynamic) {
        // Without it the primary vacuums catalog rows away that the standbys' copies need.
        more.file.insert("hot_standby_feedback", "on".to_owned());
        // A copy is trusted once the primary keeps its rows, and it learns of that with this interval (10 s by default).
        more.unless_given.insert("wal_receiver_status_interval", "2s".to_owned());
        if syncs_by_itself(major) {
            more.file.insert("sync_replication_slots", "on".to_owned());
        }
    }
    more
}

/// The server keeps logical slots on standbys by itself under these settings.
pub fn kept_by_server(major: Option<u32>, settled: &Parameters) -> bool {
    syncs_by_itself(major) && settled.file.get("sync_replication_slots").is_some_and(|value| is_on(value))
}

/// As the server reads a switch, in any beginning of the word that is no other's.
fn is_on(value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    value == "1" || value == "on" || ["true", "yes"].iter().any(|word| !value.is_empty() && word.starts_with(&value))
}
