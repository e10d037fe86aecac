//! This server's gate, as far as this arbiter closed it: closed, waited for and opened by a session of its own.

use super::session::SESSION;
use crate::node::Node;
use crate::postgres::query::demand_ours;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// How long a server may take to answer beyond what it was told to wait.
const STATEMENT: Duration = Duration::from_secs(2);

/// This server's gate, as far as this arbiter closed it.
#[derive(Default)]
pub struct OwnGate {
    pub(super) closed: Option<Closed>,
    /// Its own session: the daemon's may be busy with a checkpoint. Kept for the next time.
    pub(super) session: Option<Client>,
    /// The process of that session.
    pub(super) backend: i32,
}

/// Since when, and for which word.
pub(super) struct Closed {
    /// The revision of the word that asked for it; 0: the coordinator's own.
    pub(super) word: i64,
    pub(super) since: Instant,
}

impl OwnGate {
    pub(super) fn is_closed_for(&self, word: i64) -> bool {
        self.closed.as_ref().is_some_and(|closed| closed.word == word)
    }

    /// Makes sure that there is a session, so that closing takes no longer than it must.
    pub(super) async fn connect(&mut self, node: &Node) -> Result<&Client> {
        if self.session.as_ref().is_none_or(Client::is_closed) {
            // It waits for statements for as long as the grace says, and each call has a bound of its own.
            let session = node.sql.open_as(SESSION, None, "-c statement_timeout=0").await?;
            demand_ours(&session).await?;
            self.backend = session.query_one("SELECT pg_backend_pid()", &[]).await?.try_get(0)?;
            self.session = Some(session);
        }
        self.session.as_ref().context("no session")
    }

    /// Waits for transactions that are under way, while others begin: one that takes long is in nobody's way yet. No longer than the grace.
    pub(super) async fn await_earlier(&mut self, node: &Node, grace: Duration, reads: bool) {
        let waiting = async {
            let session = self.connect(node).await?;
            let left: i32 =
                session.query_one("SELECT tenure_internal.await_gate($1, $2)", &[&reads, &milliseconds(grace)]).await?.try_get(0)?;
            anyhow::Ok(left)
        };
        match tokio::time::timeout(grace + STATEMENT, waiting).await {
            Ok(Ok(0)) => {}
            Ok(Ok(left)) => tracing::info!("Citus: {left} transactions go on for longer than the grace of {} s", grace.as_secs()),
            // The next wait decides.
            Ok(Err(why)) => tracing::debug!("Citus: wait for transactions under way: {why:#}"),
            Err(_) => self.session = None,
        }
    }

    /// Returns when nobody is under way any more, or had the grace; gives how many still are.
    pub(super) async fn close(&mut self, node: &Node, word: i64, most: Duration, reads: bool, grace: Duration) -> Result<u32> {
        let since = self.closed.take().map_or_else(Instant::now, |closed| closed.since);
        let closing = async {
            let session = self.connect(node).await?;
            let close = "SELECT tenure_internal.close_gate($1, $2, $3)";
            let left: i32 = session.query_one(close, &[&milliseconds(most), &reads, &milliseconds(grace)]).await?.try_get(0)?;
            anyhow::Ok(u32::try_from(left).unwrap_or(0))
        };
        let closed = tokio::time::timeout(grace + STATEMENT, closing).await.context("the server does not answer");
        // Also where that is not known.
        self.closed = Some(Closed { word, since });
        let left = closed?.context("close the gate")?;
        if left > 0 {
            tracing::info!("Citus: {left} transactions were under way for {} ms more, and may fail", grace.as_millis());
        }
        Ok(left)
    }

    /// Lets those that wait go on. Where that fails the gate opens by itself, or the server ends.
    pub async fn open(&mut self, node: &Node) {
        let Some(closed) = self.closed.take() else { return };
        let opening = async { anyhow::Ok(self.connect(node).await?.batch_execute("SELECT tenure_internal.open_gate()").await?) };
        match tokio::time::timeout(STATEMENT, opening).await {
            Ok(Ok(())) => tracing::info!("Citus: distributed statements waited for {} ms", closed.since.elapsed().as_millis()),
            Ok(Err(why)) => tracing::info!("Citus: the gate was not opened and opens by itself: {why:#}"),
            Err(_) => tracing::warn!("Citus: the gate was not opened and opens by itself: the server does not answer"),
        }
    }
}

fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}
