//! Hooks: commands of the node's file that are waited for, before a stop and before a promotion.

use crate::config::NodeConfig;
use crate::ground::program::{Run, Stragglers};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// `before_stop` may hold a stop up so long. Patroni waits without a bound; here a hook that hangs must not keep
/// a deposed primary running, nor clients waiting in a switchover.
const BEFORE_STOP_WITHIN: Duration = Duration::from_secs(10);

/// `pre_promote` may take so long: the lease worker gives a key up that led to no promotion within
/// [`cluster::race::PROMOTION_PATIENCE`] (30 s), and the promotion itself takes its time too.
const PRE_PROMOTE_WITHIN: Duration = Duration::from_secs(20);

/// Before every stop. Its result changes nothing.
pub async fn before_stop(config: &NodeConfig) {
    let Some(line) = &config.postgres.before_stop else { return };
    let began = Instant::now();
    let run = Run { what: "before_stop", environment: Vec::new(), patience: Some(BEFORE_STOP_WITHIN), stragglers: Stragglers::Leave };
    match line.run(run).await {
        Ok(()) => tracing::info!("before_stop succeeded in {} ms", began.elapsed().as_millis()),
        Err(why) => tracing::warn!("before_stop failed, the stop goes on: {why:#}"),
    }
}

/// While the leader key is held and before Postgres is told to promote. An error: the node must not be promoted.
pub async fn pre_promote(config: &NodeConfig) -> Result<()> {
    let Some(line) = &config.postgres.pre_promote else { return Ok(()) };
    let began = Instant::now();
    let run = Run { what: "pre_promote", environment: Vec::new(), patience: Some(PRE_PROMOTE_WITHIN), stragglers: Stragglers::Leave };
    line.run(run).await.context("pre_promote")?;
    tracing::info!("pre_promote succeeded in {} ms", began.elapsed().as_millis());
    Ok(())
}
