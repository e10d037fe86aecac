//! The mark that a data directory is half-made: a file next to it, there from before the first change
//! until the last one is durable. A marked directory is never started.

use super::{read_if_there, remove_if_there, sync_directory, write_atomically};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// The mark of one data directory: `<data_dir>.tenure-incomplete`. It stands beside the directory, so
/// that a program which empties or replaces the directory does not take the mark with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    path: PathBuf,
}

impl Incomplete {
    /// The mark of this data directory, set or not.
    pub fn of(data_dir: &Path) -> Self {
        // Through components, as "/data/" names the same directory as "/data".
        let mut path = data_dir.components().as_path().as_os_str().to_owned();
        path.push(".tenure-incomplete");
        Incomplete { path: PathBuf::from(path) }
    }
    /// Marks: `what` says what is under way ("clone from db1"). Durable when this returns.
    pub async fn set(&self, what: &str) -> Result<()> {
        if let Some(parent) = self.path.parent() {
            tokio::fs::create_dir_all(parent).await.with_context(|| format!("create directory {}", parent.display()))?;
        }
        write_atomically(&self.path, &format!("{what}\n"), 0o600).await.context("mark the data directory as incomplete")
    }

    /// Takes the mark away; durable when this returns.
    pub async fn clear(&self) -> Result<()> {
        let removed = remove_if_there(&self.path).await.context("take the incomplete mark away")?;
        match (removed, self.path.parent()) {
            (true, Some(parent)) => sync_directory(parent).await,
            _ => Ok(()),
        }
    }

    /// What was under way, if the directory is marked.
    pub async fn read(&self) -> Result<Option<String>> {
        let text = read_if_there(&self.path).await.context("read the incomplete mark")?;
        Ok(text.map(|text| text.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mark_stays_until_it_is_cleared() {
        let directory = tempfile::tempdir().unwrap();
        let mark = Incomplete::of(&directory.path().join("data/"));
        assert_eq!(mark.path, directory.path().join("data.tenure-incomplete"));
        assert_eq!(mark.read().await.unwrap(), None);
        mark.set("clone from db1").await.unwrap();
        mark.set("clone from db2").await.unwrap();
        assert_eq!(mark.read().await.unwrap().as_deref(), Some("clone from db2"));
        mark.clear().await.unwrap();
        mark.clear().await.unwrap();
        assert_eq!(mark.read().await.unwrap(), None);
    }
}
