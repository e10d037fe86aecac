//! Replay of a standby, by hand: up to a time, paused, or on again (`tenure replay`).

use crate::node::Node;
use crate::node::recovery;
use crate::postgres::conf::Recovery;
use anyhow::{Context, Result, bail};
use cluster::replay::{self, Ask};
use cluster::view::ClusterView;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

/// A startup process that waits in a pause looks for new settings once a second.
const SETTINGS_WITHIN: Duration = Duration::from_millis(1500);

/// Nothing tells another process how far replay is; only the operator waits for this.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// So long before the end of the last stride it must have nothing left to replay.
const IN_TIME: Duration = Duration::from_millis(300);

const SETTING: &str = "recovery_min_apply_delay";

/// The delay that an operator's wish puts in place of the configured one; 0 for none. It ends with this arbiter; a pause does not.
#[derive(Debug, Default)]
pub struct Replay {
    delay_ms: AtomicU64,
    one_at_a_time: Mutex<()>,
}

impl Replay {
    /// The recovery settings with it.
    pub fn over(&self, recovery: &Recovery) -> Recovery {
        let (mut recovery, delay) = (recovery.clone(), self.delay_ms.load(Ordering::Relaxed));
        if let Recovery::Standby { extra, .. } = &mut recovery
            && delay > 0
        {
            extra.insert(SETTING.to_owned(), format!("{delay}ms"));
        }
        recovery
    }

    fn set(&self, delay: Option<Duration>) {
        self.delay_ms.store(delay.map_or(0, |delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).max(1)), Ordering::Relaxed);
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_operators_delay_stands_in_place_of_the_configured_one() {
        let extra = BTreeMap::from([(SETTING.to_owned(), "3600s".to_owned())]);
        let configured = Recovery::Standby { primary_conninfo: None, primary_slot_name: None, extra };
        let in_force = |recovery: &Recovery| match recovery {
            Recovery::Standby { extra, .. } => extra.get(SETTING).cloned(),
            Recovery::None => None,
        };
        let replay = Replay::default();
        assert_eq!(in_force(&replay.over(&configured)).as_deref(), Some("3600s"));
        replay.set(Some(Duration::from_millis(1234)));
        assert_eq!(in_force(&replay.over(&configured)).as_deref(), Some("1234ms"));
        assert_eq!(replay.over(&Recovery::None), Recovery::None);
        replay.set(None);
        assert_eq!(replay.over(&configured), configured);
    }
}
