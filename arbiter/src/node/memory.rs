//! What this node knows of etcd's keys, kept with its data: an arbiter and a lease worker that begin know what those before them knew.

use crate::config::NodeConfig;
use crate::postgres::{read_if_there, write_atomically};
use dcs::Etcd;
use dcs::remember::FILE;
use std::path::PathBuf;
use std::time::Duration;

/// A write that takes longer is as good as one that failed.
const PATIENCE: Duration = Duration::from_secs(5);

fn file(config: &NodeConfig) -> PathBuf {
    config.postgres.data_dir.join(FILE)
}

/// Begins with what lies with the data.
pub async fn recall(config: &NodeConfig, etcd: &Etcd) {
    let Some(remembered) = etcd.remembered() else { return };
    let path = file(config);
    let said = match read_if_there(&path).await {
        Ok(None) => return,
        Ok(Some(text)) => remembered.recall(etcd.keys().prefix(), &text).map_err(anyhow::Error::from),
        Err(why) => Err(why),
    };
    if let Err(why) = said {
        tracing::warn!("{} is not read, so an etcd that went back is noticed only from here on: {why:#}", path.display());
    }
}

/// Writes down what is new.
pub async fn keep(config: &NodeConfig, etcd: &Etcd) {
    let Some(remembered) = etcd.remembered() else { return };
    let data_dir = &config.postgres.data_dir;
    // Not into a directory that is empty or in the making: a copy would find it in its way.
    if !tokio::fs::try_exists(data_dir.join("global/pg_control")).await.unwrap_or(false) {
        return;
    }
    let Some(text) = remembered.news(etcd.keys().prefix()) else { return };
    // On a disk that hangs it would hold the loop, which is to give way to another then.
    let written = tokio::time::timeout(PATIENCE, write_atomically(&file(config), &text, 0o600)).await;
    if let Err(why) = written.unwrap_or_else(|_| Err(anyhow::anyhow!("the disk does not answer within {} s", PATIENCE.as_secs()))) {
        tracing::warn!("what is known of etcd's keys is not written down: {why:#}");
        remembered.not_written();
    }
}

/// The keys are about to be made again by this node, under this number.
pub async fn attempt(config: &NodeConfig, etcd: &Etcd, generation: u32) {
    let Some(remembered) = etcd.remembered() else { return };
    remembered.attempt(generation);
    keep(config, etcd).await;
}

/// Before the server starts: its lease worker begins with what this arbiter knows, and not with what a copy brought along from where it
/// was made, which may be another cluster's.
pub async fn before_start(config: &NodeConfig, etcd: &Etcd) -> anyhow::Result<()> {
    match etcd.remembered() {
        Some(remembered) if remembered.memory().system_id.is_some() => {
            remembered.not_written();
            keep(config, etcd).await;
            Ok(())
        }
        _ => forget(config).await,
    }
}

/// Data that was made from a backup begins without a memory: that one is of the time of the backup.
pub async fn forget(config: &NodeConfig) -> anyhow::Result<()> {
    crate::postgres::remove_if_there(&file(config)).await.map(drop)
}
