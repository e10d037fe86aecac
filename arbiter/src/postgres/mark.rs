//! The mark in a data directory that says whose it is, for a server that somebody else starts on it.

use super::{remove_if_there, write_atomically};
use anyhow::{Context, Result};
use cluster::mark::{FILE, Identity, Mark};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Marks the directory as this member's; durable when this returns.
pub async fn write(data_dir: &Path, of: Identity) -> Result<()> {
    let found = tokio::fs::metadata(data_dir).await.with_context(|| format!("look at {}", data_dir.display()))?;
    let mark = serde_json::to_string(&Mark { of, directory: found.ino() })?;
    let path = data_dir.join(FILE);
    if super::read_if_there(&path).await?.as_deref() == Some(mark.as_str()) {
        return Ok(());
    }
    write_atomically(&path, &mark, 0o600).await.context("mark the data directory as this cluster's")
}

/// Takes the mark away.
pub async fn remove(data_dir: &Path) -> Result<()> {
    remove_if_there(&data_dir.join(FILE)).await.context("take the cluster's mark away").map(drop)
}
