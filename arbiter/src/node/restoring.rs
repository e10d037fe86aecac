//! What a node writes down of a restore to a point in the past, before each of its steps: a file beside the data directory; and where the
//! data of before it are.

use crate::config::NodeConfig;
use crate::node::paths;
use crate::postgres::{read_if_there, remove_if_there, sync_directory, write_atomically};
use anyhow::{Context, Result};
use cluster::restore::Journal;
use std::path::PathBuf;

fn path(config: &NodeConfig) -> PathBuf {
    paths::beside(config, ".restore.json")
}

/// Where the data of before the restore are. Nobody but an operator removes them.
pub fn before(config: &NodeConfig) -> PathBuf {
    paths::beside(config, ".before-restore")
}

/// What is written down, where something is. What can't be read is an error: the data beside it may be half restored.
pub async fn read(config: &NodeConfig) -> Result<Option<Journal>> {
    let path = path(config);
    let Some(text) = read_if_there(&path).await? else { return Ok(None) };
    let said = format!(
        "{} can't be read: a restore is half done here, and the data of before it are in {}; hint: see which of the two directories is to be used, and remove the file",
        path.display(),
        before(config).display()
    );
    serde_json::from_str(&text).context(said).map(Some)
}

/// Durable when this returns.
pub async fn write(config: &NodeConfig, journal: &Journal) -> Result<()> {
    write_atomically(&path(config), &serde_json::to_string(journal)?, 0o600).await.context("write down the step of the restore")
}

/// The restore is over; durable when this returns.
pub async fn clear(config: &NodeConfig) -> Result<()> {
    let path = path(config);
    let removed = remove_if_there(&path).await.context("take the note of the restore away")?;
    match path.parent() {
        Some(parent) if removed => sync_directory(parent).await,
        _ => Ok(()),
    }
}
