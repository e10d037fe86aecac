//! What a node writes down of an upgrade in place before each of its steps: a file beside the data directory.

use crate::config::NodeConfig;
use crate::node::paths;
use crate::postgres::{read_if_there, remove_if_there, sync_directory, write_atomically};
use anyhow::{Context, Result};
use cluster::upgrade::step::Journal;
use std::path::PathBuf;

fn path(config: &NodeConfig) -> PathBuf {
    paths::beside(config, ".upgrade.json")
}

/// Where the new directory is made, with the sockets of its servers: beside the data, of mode 0700.
pub fn place(config: &NodeConfig) -> PathBuf {
    paths::beside(config, ".upgrade")
}

/// What is written down, where something is. What can't be read is an error: the data beside it may be neither the old nor the new.
pub async fn read(config: &NodeConfig) -> Result<Option<Journal>> {
    let path = path(config);
    let Some(text) = read_if_there(&path).await? else { return Ok(None) };
    let said = format!(
        "{} can't be read: a major upgrade is half done here; hint: make this node's data again with `tenure reinit`, and remove the file",
        path.display()
    );
    serde_json::from_str(&text).context(said).map(Some)
}

/// Durable when this returns.
pub async fn write(config: &NodeConfig, journal: &Journal) -> Result<()> {
    write_atomically(&path(config), &serde_json::to_string(journal)?, 0o600).await.context("write down the step of the upgrade")
}

/// The upgrade is over; durable when this returns.
pub async fn clear(config: &NodeConfig) -> Result<()> {
    let path = path(config);
    let removed = remove_if_there(&path).await.context("take the note of the upgrade away")?;
    match path.parent() {
        Some(parent) if removed => sync_directory(parent).await,
        _ => Ok(()),
    }
}
