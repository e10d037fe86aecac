//! Where the server's standard error goes (all that it logs, where no collector is configured), bounded in size.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A file that has grown past this makes room: it becomes the one before. As much as one of the field's own log files.
const BYTES_MOST: u64 = 25_000_000;

/// For a process that begins; `None` (then the arbiter's own is inherited) where the file can't be written.
pub async fn open(path: &Path) -> Option<(Stdio, Stdio)> {
    if let Some(directory) = path.parent() {
        tokio::fs::create_dir_all(directory).await.ok()?;
    }
    let file = tokio::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path).await.ok()?;
    let err = file.into_std().await;
    let out = err.try_clone().ok()?;
    Some((out.into(), err.into()))
}

/// The one before, of which there is at most one.
fn before(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// Makes room where the file is too large. The server has it open for appending and keeps it open, so the file is copied and emptied:
/// what is written between the two is lost, a few lines of some 25 MB. A person who can't have that uses the server's own collector.
pub async fn rotate(path: &Path) -> Result<()> {
    rotate_beyond(path, BYTES_MOST).await
}

async fn rotate_beyond(path: &Path, most: u64) -> Result<()> {
    match tokio::fs::metadata(path).await {
        Ok(file) if file.len() > most => {}
        _ => return Ok(()),
    }
    tokio::fs::copy(path, before(path)).await.with_context(|| format!("copy {} to make room", path.display()))?;
    let file = tokio::fs::OpenOptions::new().write(true).open(path).await.with_context(|| format!("open {}", path.display()))?;
    file.set_len(0).await.with_context(|| format!("empty {}", path.display()))
}

/// Removes what a copy brought of its source's own log: the collector's files, where they are by default.
pub async fn forget_copied(data_dir: &Path) -> Result<()> {
    let directory = data_dir.join("log");
    let Ok(mut files) = tokio::fs::read_dir(&directory).await else { return Ok(()) };
    while let Some(file) = files.next_entry().await.with_context(|| format!("read {}", directory.display()))? {
        if file.file_type().await.is_ok_and(|kind| kind.is_file()) {
            super::remove_if_there(&file.path()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[tokio::test]
    async fn a_file_that_is_too_large_becomes_the_one_before_and_its_writer_goes_on() {
        let room = tempfile::tempdir().unwrap();
        let path = room.path().join("deeper").join("main.log");
        assert!(open(&path).await.is_some());
        let mut writer = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        writer.write_all(b"old and long\n").unwrap();
        rotate_beyond(&path, 100).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old and long\n");
        rotate_beyond(&path, 5).await.unwrap();
        writer.write_all(b"new\n").unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!((read(&path), read(&before(&path))), ("new\n".to_owned(), "old and long\n".to_owned()));
    }
}
