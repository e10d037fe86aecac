//! The gate around a planned change of a worker's primary: distributed statements that begin on other nodes wait at the door of their
//! server (`tenure.close_gate`) until the change is over. Before a worker's primary opens its gate it moves the row in its own `pg_dist_node`. The coordinator's primary asks through etcd
//! (`tenure/gate`), each worker group's primary closes its own gate and answers (`tenure/gated`).
//!
//! Nothing depends on it but comfort: who does not answer costs errors there, not the change. Each gate opens by itself when the word goes
//! with the coordinator's lease, when the arbiter that closed it ends, and after a time that stands in the server's shared memory.

use super::database::Database;
use super::holds::{Closing, limit};
use super::keeper::Keeper;
use super::request::{as_long_as, asked_no_more, gate_gone};
use super::session::Changes;
use anyhow::{Context, Result};
use cluster::citus::{self, COORDINATOR, GateWord, GatedWord, Groups};
use cluster::leader::Leader;
use cluster::view::ClusterView;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// How long the coordinator waits until the other groups have heard: etcd there and back, and a session. A group that has heard is waited for
/// while statements that are under way there may end.
const ANSWERS: Duration = Duration::from_millis(1200);

/// A worker's rows may be locked by Citus' daemon, which is just bringing them.
const FOLLOW: Duration = Duration::from_secs(5);

/// Before a change it is waited so long for what was changed last: Citus' daemon, carrying rows that change again, starts again a second later.
const BEFORE: Duration = Duration::from_millis(500);

impl Keeper {
    /// A worker's side: does what the coordinator's word says, and answers.
    pub(super) async fn keep_gate(&mut self, view: &ClusterView, leader: &Leader) -> Result<()> {
        match citus::gate_wanted(view) {
            Some((word, gate)) if !self.gate.is_closed_for(word) => {
                // Sessions that are needed when it opens.
                for database in &mut self.databases {
                    let _ = database.backend().await;
                }
                let (grace, beside) = (Duration::from_millis(gate.grace_ms), Duration::from_millis(gate.beside_ms));
                let mut answer = GatedWord { gate: word, leader: leader.name.clone(), term: leader.term.0, closed: false, left: 0 };
                self.node.etcd.answer_gate(&answer, leader).await.context("answer the coordinator")?;
                if let Err(why) = self.gate.connect(&self.node).await {
                    tracing::debug!("Citus: {why:#}");
                }
                let (sql, backend) = (self.node.sql.clone(), self.gate.backend);
                let gone = || gate_gone(&self.node.etcd, self.changes.clone(), word);
                let waited = as_long_as(&sql, &[backend], gone(), self.gate.await_earlier(&self.node, grace, gate.reads)).await;
                // A statement that waits here goes on with the next round, which is about to begin.
                let Some(()) = waited else { return Ok(()) };
                let most = limit(view) + beside;
                let closed = as_long_as(&sql, &[backend], gone(), self.gate.close(&self.node, word, most, gate.reads, grace)).await;
                let Some(left) = closed else { return Ok(()) };
                answer.left = left?;
                answer.closed = true;
                self.node.etcd.answer_gate(&answer, leader).await.context("answer the coordinator")?;
            }
            Some(_) => {}
            None if self.gate.closed.is_some() => {
                self.follow().await;
                self.gate.open(&self.node).await;
            }
            None => {}
        }
        Ok(())
    }

    /// A worker's side: statements that start here find the primaries where they are now, before Citus has carried that here. Where it fails
    /// they find it later.
    pub(super) async fn follow(&mut self) {
        let following = async {
            let wanted = citus::all_wanted(&self.scope.load_groups().await?);
            for database in &mut self.databases {
                database.follow(&wanted).await.with_context(|| format!("move primaries in {}", database.name))?;
            }
            anyhow::Ok(())
        };
        match tokio::time::timeout(FOLLOW, following).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::warn!("Citus: statements that start here may fail until Citus has brought new addresses: {why:#}"),
            Err(_) => {
                tracing::warn!(
                    "Citus: statements that start here may fail until Citus has brought new addresses: the server does not answer"
                );
                self.databases.iter_mut().for_each(Database::close);
            }
        }
    }

    /// The coordinator's side, before writers are held: first the other nodes, then this one, whose clients so wait for less. Gives how many
    /// transactions are still under way; None where none of the requests is to be served any more.
    pub(super) async fn close_gates(
        &mut self,
        groups: &Groups,
        requests: &[(u32, i64)],
        leader: &Leader,
        closing: &Closing,
    ) -> Option<u32> {
        self.wait_in_step(BEFORE).await;
        if let Err(why) = self.gate.connect(&self.node).await {
            tracing::debug!("Citus: {why:#}");
        }
        let reads = self.node.config.citus.as_ref().is_some_and(|citus| citus.hold_reads);
        self.gated = workers(groups);
        let mut gate = std::mem::take(&mut self.gate);
        let (sql, backend) = (self.node.sql.clone(), gate.backend);
        let over = || asked_no_more(&self.scope, self.changes.clone(), requests);
        let most = closing.limit + closing.grace + closing.cooldown;
        let closed = async {
            let earlier = gate.await_earlier(&self.node, closing.grace, reads);
            // On the heap: a round of the keeper is a small future.
            let both = Box::pin(async { tokio::join!(self.ask_others(groups, requests, reads, leader, closing), earlier) });
            let (there, ()) = Box::pin(as_long_as(&sql, &[backend], over(), both)).await?;
            let there = there.unwrap_or_else(|why| {
                tracing::warn!("Citus: other groups were not asked to wait, statements that start there may fail: {why:#}");
                0
            });
            let closing = gate.close(&self.node, 0, most, reads, closing.grace);
            let here = Box::pin(as_long_as(&sql, &[backend], over(), closing)).await?;
            let here = here.unwrap_or_else(|why| {
                tracing::warn!("Citus: reads through this node may fail: {why:#}");
                0
            });
            Some(there + here)
        };
        let left = closed.await;
        self.gate = gate;
        left
    }

    /// Returns when every group that has heard has closed its gate, or had the time for it, or when nobody asks for that any more.
    async fn ask_others(&self, groups: &Groups, requests: &[(u32, i64)], reads: bool, leader: &Leader, closing: &Closing) -> Result<u32> {
        if self.gated.is_empty() {
            return Ok(0);
        }
        let generation = groups.get(&COORDINATOR).map_or(0, ClusterView::store_generation);
        let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let word = GateWord {
            coordinator: leader.name.clone(),
            term: citus::order(generation, leader.term.0),
            reads,
            grace_ms: milliseconds(closing.grace),
            beside_ms: milliseconds(closing.grace * 2 + closing.cooldown),
        };
        let asked = Instant::now();
        let mut changes: Changes = self.changes.clone();
        let word = self.scope.close_gates(&self.gated, &word, leader).await?;
        loop {
            let groups = self.scope.load_groups().await?;
            let answers = citus::gated(&groups, word);
            let missing = citus::not_gated(&groups, word);
            let busy = missing.iter().any(|group| answers.get(group).is_some_and(Option::is_some));
            // They wait twice: before they close their gates, and after that.
            let patience = if busy { ANSWERS + closing.grace * 2 } else { ANSWERS };
            let rest = patience.saturating_sub(asked.elapsed());
            if !citus::are_wanted(&groups, requests) {
                return Ok(0);
            }
            if missing.is_empty() || rest.is_zero() {
                tell_missing(&missing, patience);
                return Ok(answers.values().flatten().map(|word| word.left).sum());
            }
            // A node that has heard may fall silent, and one that was silent may have been so for as long as it is given.
            let _ = tokio::time::timeout(rest, changes.changed()).await;
        }
    }

    /// The change is over, and who waits elsewhere goes on.
    pub(super) async fn open_gates(&mut self, leader: &Leader) -> Result<()> {
        if self.gated.is_empty() {
            return Ok(());
        }
        self.scope.open_gates(&self.gated, leader).await.context("open the gates of other groups")?;
        self.gated.clear();
        Ok(())
    }

    /// Words of an arbiter before this one, or that could not be taken back.
    pub(super) fn find_forgotten(&mut self, groups: &Groups) {
        if self.gated.is_empty() && groups.iter().any(|(group, view)| *group != COORDINATOR && view.gate.is_some()) {
            self.gated = workers(groups);
        }
    }
}

fn tell_missing(missing: &BTreeSet<u32>, patience: Duration) {
    if missing.is_empty() {
        return;
    }
    let names: Vec<String> = missing.iter().map(u32::to_string).collect();
    tracing::warn!(
        "Citus: statements that start in groups {} may fail, they did not say within {} ms that they wait; hint: look at the arbiters of their primaries",
        names.join(", "),
        patience.as_millis()
    );
}

/// The groups whose gate there may be.
fn workers(groups: &Groups) -> Vec<u32> {
    groups.keys().copied().filter(|group| *group != COORDINATOR).collect()
}
