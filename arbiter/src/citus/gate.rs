//! The gate around a planned change of a worker's primary: distributed statements that begin on other nodes wait at the door of their
//! server (`tenure.close_gate`) until the change is over. Before a worker's primary opens its gate it moves the row in its own `pg_dist_node`. The coordinator's primary asks through etcd
//! (`tenure/gate`), each worker group's primary closes its own gate and answers (`tenure/gated`).
//!
//! Nothing depends on it but comfort: who does not answer costs errors there, not the change. Each gate opens by itself when the word goes
//! with the coordinator's lease, when the arbiter that closed it ends, and after a time that stands in the server's shared memory.

use super::Keeper;
use crate::hands::Hands;
use crate::postgres::query::demand_ours;
use anyhow::{Context, Result};
use cluster::citus::{self, COORDINATOR, Groups};
use cluster::leader::Leader;
use cluster::view::ClusterView;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// Transactions that did distributed work before the gate was closed get this long to end; later they meet what they would have met
/// without it. Most take milliseconds, and one that sits idle must not hold up a switchover.
const UNDER_WAY: Duration = Duration::from_millis(500);

/// How long the coordinator waits for the other groups: a session, what is under way there, and etcd there and back.
const ANSWERS: Duration = Duration::from_millis(1200);

/// How long a server may take to answer beyond what it was told to wait.
const STATEMENT: Duration = Duration::from_secs(2);

/// Before a change it is waited so long for what was changed last: Citus' daemon, carrying rows that change again, starts anew a second later.
const BEFORE: Duration = Duration::from_millis(500);

/// This server's gate, as far as this arbiter closed it.
#[derive(Default)]
pub struct Gate {
    closed: Option<Closed>,
    /// Its own session: the daemon's may be busy with a checkpoint. Kept for the next time.
    session: Option<Client>,
}

struct Closed {
    /// The revision of the word that asked for it; 0: the coordinator's own.
    word: i64,
    since: Instant,
}

impl Gate {
    fn is_closed_for(&self, word: i64) -> bool {
        self.closed.as_ref().is_some_and(|closed| closed.word == word)
    }

    /// Makes sure that there is a session, so that closing takes no longer than it must.
    async fn connect(&mut self, hands: &Hands) -> Result<&Client> {
        if self.session.as_ref().is_none_or(Client::is_closed) {
            let session = hands.sql.open_as(super::SESSION, None, "").await?;
            demand_ours(&session).await?;
            self.session = Some(session);
        }
        self.session.as_ref().context("no session")
    }

    /// Returns when nobody is under way any more, or had the time.
    async fn close(&mut self, hands: &Hands, word: i64, most: Duration, reads: bool) -> Result<()> {
        let since = self.closed.take().map_or_else(Instant::now, |closed| closed.since);
        let milliseconds = |duration: Duration| i32::try_from(duration.as_millis()).unwrap_or(i32::MAX);
        let closing = async {
            let session = self.connect(hands).await?;
            let close = "SELECT tenure_internal.close_gate($1, $2, $3)";
            let left: i32 = session.query_one(close, &[&milliseconds(most), &reads, &milliseconds(UNDER_WAY)]).await?.try_get(0)?;
            anyhow::Ok(left)
        };
        let closed = tokio::time::timeout(UNDER_WAY + STATEMENT, closing).await.context("the server does not answer");
        // Also where that is not known.
        self.closed = Some(Closed { word, since });
        let left = closed?.context("close the gate")?;
        if left > 0 {
            tracing::info!("Citus: {left} transactions were under way for {} ms more, and may fail", UNDER_WAY.as_millis());
        }
        Ok(())
    }

    /// Lets those that wait go on. Where that fails the gate opens by itself, or the server ends.
    pub async fn open(&mut self, hands: &Hands) {
        let Some(closed) = self.closed.take() else { return };
        let opening = async { anyhow::Ok(self.connect(hands).await?.batch_execute("SELECT tenure_internal.open_gate()").await?) };
        match tokio::time::timeout(STATEMENT, opening).await {
            Ok(Ok(())) => tracing::info!("Citus: distributed statements waited for {} ms", closed.since.elapsed().as_millis()),
            Ok(Err(why)) => tracing::info!("Citus: the gate was not opened and opens by itself: {why:#}"),
            Err(_) => tracing::warn!("Citus: the gate was not opened and opens by itself: the server does not answer"),
        }
    }
}

impl Keeper {
    /// A worker's side: does what the coordinator's word says, and answers.
    pub(super) async fn keep_gate(&mut self, view: &ClusterView, leader: &Leader) -> Result<()> {
        match citus::gate_wanted(view) {
            Some((word, gate)) if !self.gate.is_closed_for(word) => {
                // Sessions that are needed when it opens.
                for database in &mut self.databases {
                    let _ = database.backend().await;
                }
                self.gate.close(&self.hands, word, super::hold::limit(view), gate.reads).await?;
                self.hands.etcd.answer_gate(word, leader).await.context("answer the coordinator")?;
            }
            Some(_) => {}
            None if self.gate.closed.is_some() => {
                self.follow().await;
                self.gate.open(&self.hands).await;
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
        match tokio::time::timeout(STATEMENT, following).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => tracing::warn!("Citus: statements that start here may fail until Citus has brought new addresses: {why:#}"),
            Err(_) => {
                tracing::warn!(
                    "Citus: statements that start here may fail until Citus has brought new addresses: the server does not answer"
                );
                self.databases.iter_mut().for_each(super::Database::close);
            }
        }
    }

    /// The coordinator's side, before writers are held: first the other nodes, then this one, whose clients so wait for less.
    pub(super) async fn close_gates(&mut self, groups: &Groups, leader: &Leader, most: Duration) {
        self.wait_in_step(BEFORE).await;
        if let Err(why) = self.gate.connect(&self.hands).await {
            tracing::debug!("Citus: {why:#}");
        }
        let reads = self.hands.config.citus.as_ref().is_some_and(|citus| citus.hold_reads);
        let others = workers(groups);
        if !others.is_empty() {
            self.gated = others;
            match tokio::time::timeout(ANSWERS, self.ask_others(groups, reads, leader)).await {
                Ok(Ok(())) => {}
                Ok(Err(why)) => tracing::warn!("Citus: other groups were not asked to wait, statements that start there may fail: {why:#}"),
                Err(_) => self.name_silent(leader).await,
            }
            // What was waited for here may have been of interest to others.
            self.wake.notify_one();
        }
        if let Err(why) = self.gate.close(&self.hands, 0, most, reads).await {
            tracing::warn!("Citus: reads through this node may fail: {why:#}");
        }
    }

    async fn ask_others(&self, groups: &Groups, reads: bool, leader: &Leader) -> Result<()> {
        let generation = groups.get(&COORDINATOR).map_or(0, ClusterView::store_generation);
        let word = self.scope.close_gates(&self.gated, reads, leader, generation).await?;
        while !citus::not_gated(&self.scope.load_groups().await?, word).is_empty() {
            self.wake.notified().await;
        }
        Ok(())
    }

    async fn name_silent(&self, leader: &Leader) {
        let Ok(groups) = self.scope.load_groups().await else { return };
        let word = groups.values().filter_map(citus::gate_wanted).find(|(_, gate)| gate.term == leader.term.0);
        let silent = word.map(|(word, _)| citus::not_gated(&groups, word)).unwrap_or_default();
        let names: Vec<String> = silent.iter().map(u32::to_string).collect();
        tracing::warn!(
            "Citus: statements that start in groups {} may fail, they did not say within {} ms that they wait; hint: look at the arbiters of their primaries",
            names.join(", "),
            ANSWERS.as_millis()
        );
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

/// The groups whose gate there may be.
fn workers(groups: &Groups) -> Vec<u32> {
    groups.keys().copied().filter(|group| *group != COORDINATOR).collect()
}
