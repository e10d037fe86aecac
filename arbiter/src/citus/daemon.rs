//! Citus' maintenance daemon, for which a server that stops waits.
//!
//! Each node's daemon asks all others for locks and transactions in doubt. A request to end that comes while it waits for one of them is
//! noted, but not seen before that wait is over (never, where a node is frozen), and after that it may still sleep for 2 s (`maintenanced.c` of Citus 13: the waits inside use up the latch; `citus.distributed_deadlock_detection_factor` times
//! `deadlock_timeout`). Interrupting it does not help: it then waits for the frozen node to take its cancel request.

use super::session::SESSION;
use crate::node::Node;
use crate::postgres::citus_daemon::TITLE;
use crate::postgres::query::QUIET;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// How long it may take to end before a planned change. Longer than that it waits for another node.
const PATIENCE: Duration = Duration::from_secs(10);

/// Before a planned change: the daemons of this server end while clients are still served. Sessions start them again where they need them.
/// An error says that one does not end, and that the stop would therefore wait with the clients held.
pub async fn end(node: &Node) -> Result<()> {
    if node.config.citus.is_none() {
        return Ok(());
    }
    const END: &str = "SELECT coalesce(bool_and(pg_terminate_backend(pid, $1)), true) FROM pg_stat_activity WHERE backend_type LIKE $2";
    let session = node.sql.open_as(SESSION, None, &format!("{QUIET} -c statement_timeout=0")).await?;
    let patience = i64::try_from(PATIENCE.as_millis())?;
    let title = format!("{TITLE}%");
    // The server itself gives up a moment earlier.
    let row = tokio::time::timeout(PATIENCE * 2, session.query_one(END, &[&patience, &title])).await;
    let ended: bool = row.context("end Citus' maintenance daemon")??.try_get(0)?;
    ensure!(
        ended,
        "Citus' maintenance daemon waits for another node and did not end within {} s, so a stop would wait for it with clients held; \
         hint: is a node of another group frozen or out of reach? try again once it is back or its server has ended",
        PATIENCE.as_secs()
    );
    Ok(())
}
