//! Replay of a standby, by hand: up to a time, paused, or on again (`tenure replay`).

use crate::node::Node;
use crate::node::recovery;
use anyhow::{Context, Result, bail};
use cluster::replay::{self, Ask};
use cluster::view::ClusterView;
use std::time::Duration;

/// A startup process that waits in a pause looks for new settings once a second.
const SETTINGS_WITHIN: Duration = Duration::from_millis(1500);

/// Nothing tells another process how far replay is; only the operator waits for this.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// So long before the end of the last stride it must have nothing left to replay.
const IN_TIME: Duration = Duration::from_millis(300);

/// Does it; the sentence says where replay is then.
pub async fn perform(node: &Node, view: &ClusterView, ask: Ask) -> Result<String> {
    let Ok(_mine) = node.replay.one_at_a_time.try_lock() else { bail!("another `tenure replay` is under way here") };
    if !node.sql.ask("SELECT pg_is_in_recovery()").await? {
        bail!("this member is the primary: there is nothing to replay");
    }
    match ask {
        Ask::Pause => pause(node).await?,
        Ask::Resume => {
            settle(node, view, None).await?;
            node.sql.execute("SELECT pg_wal_replay_resume()").await?;
            return Ok("replay goes on".to_owned());
        }
        Ask::Until(until) => {
            // Before anything is touched.
            replay::reachable(until, replayed_ms(node).await?)?;
            replay::delay(until, jiff::Timestamp::now().as_millisecond(), Duration::ZERO)?;
            let done = replay_until(node, view, until).await;
            if done.is_err() {
                // As far as it came it stays: what is not asked for is not replayed.
                pause(node).await?;
            }
            done?;
        }
    }
    let at = node.sql.text("SELECT coalesce(pg_last_xact_replay_timestamp()::text, 'no commit yet')").await?;
    Ok(format!("replay is paused, the last commit replayed is of {at}; `tenure replay --resume` goes on"))
}

async fn replay_until(node: &Node, view: &ClusterView, until_ms: i64) -> Result<()> {
    let now_ms = || jiff::Timestamp::now().as_millisecond();
    let mut stride = replay::LONG;
    loop {
        pause(node).await?;
        replay::reachable(until_ms, replayed_ms(node).await?)?;
        let delay = replay::delay(until_ms, now_ms(), SETTINGS_WITHIN + stride)?;
        let end_ms = now_ms() + i64::try_from((SETTINGS_WITHIN + stride - replay::BEFORE).as_millis())?;
        let left = || Duration::from_millis(u64::try_from(end_ms - now_ms()).unwrap_or(0));
        settle(node, view, Some(delay)).await?;
        tokio::time::sleep(SETTINGS_WITHIN).await;
        if left() < replay::SHORT / 2 {
            // The machine was too slow: this delay is about to be too short.
            continue;
        }
        node.sql.execute("SELECT pg_wal_replay_resume()").await?;
        let last = stride == replay::SHORT;
        while left() > IN_TIME && (last || !has_nothing_to_do(node).await?) {
            tokio::time::sleep(LOOK_EVERY.min(left().saturating_sub(IN_TIME))).await;
        }
        let idle = has_nothing_to_do(node).await?;
        if last && idle {
            tokio::time::sleep(left()).await;
            pause(node).await?;
            return Ok(replay::reachable(until_ms, replayed_ms(node).await?)?);
        }
        stride = if idle { replay::SHORT } else { replay::LONG };
    }
}

/// Takes effect before the next commit is replayed.
async fn pause(node: &Node) -> Result<()> {
    node.sql.execute("SELECT pg_wal_replay_pause()").await.context("pause replay")
}

/// When the last replayed commit was made.
async fn replayed_ms(node: &Node) -> Result<Option<i64>> {
    let text = node.sql.text("SELECT coalesce((extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000)::bigint::text, '')").await?;
    Ok(text.parse().ok())
}

/// Everything that is old enough is replayed: it waits for the next commit to become so, or for WAL to come.
async fn has_nothing_to_do(node: &Node) -> Result<bool> {
    let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'startup'
        AND wait_event IN ('RecoveryApplyDelay', 'RecoveryWalStream', 'RecoveryRetrieveRetryInterval'))";
    node.sql.ask(waits).await
}

/// Puts a delay in place of the configured one, or that back.
async fn settle(node: &Node, view: &ClusterView, delay: Option<Duration>) -> Result<()> {
    node.replay.set(delay);
    let facts = node.sql.facts().await?;
    let recovery = recovery::as_it_is(&node.config, &node.dynamic(view), &facts);
    node.write_configuration(view, &recovery).await?;
    node.reload_and_see().await
}
