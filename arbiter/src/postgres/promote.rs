//! Asks a standby's postmaster to promote; whether it did is for the caller to observe.

use super::postmaster::Postmaster;
use super::sync_directory;
use anyhow::{Context, Result};
use std::path::Path;

/// Writes `promote` and wakes the postmaster, as `pg_ctl promote` does, without a fork.
pub async fn promote(postmaster: &Postmaster, data_dir: &Path) -> Result<()> {
    let path = data_dir.join("promote");
    tokio::fs::write(&path, b"").await.with_context(|| format!("write {}", path.display()))?;
    if let Err(error) = postmaster.signal(rustix::process::Signal::USR1) {
        super::remove_if_there(&path).await?;
        return Err(error).context("tell the postmaster to promote");
    }
    Ok(())
}

/// Removes a promotion request that no server took up, so that a later start does not promote by itself.
pub async fn forget(data_dir: &Path) -> Result<()> {
    if super::remove_if_there(&data_dir.join("promote")).await? {
        sync_directory(data_dir).await?;
    }
    Ok(())
}
