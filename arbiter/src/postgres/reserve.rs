//! Space on the server's disks that is kept for its last clean stop: without a free byte its checkpoint ends it by a PANIC, and nobody can take over in good order.

use anyhow::{Context, Result};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// PostgreSQL takes what begins like this for a temporary file: no base backup and no rewind has it.
const FILE: &str = "pgsql_tmp.tenure_reserve";

pub const MB: u64 = 1 << 20;

/// A disk that hangs is not waited for: the stop goes on without.
const PATIENCE: Duration = Duration::from_secs(2);

/// A disk of the server's allocates nothing in advance: it is not tried again.
static UNSUPPORTED: AtomicBool = AtomicBool::new(false);

/// How much is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// While the server still takes writes, which eat it up: the rest is for the stop.
    Half,
    /// Nothing begins any more.
    All,
}

/// One directory on each file system that the server's checkpoint writes to. `base`, as a rewind knows a temporary file by its name below a directory.
fn directories(data_dir: &Path) -> Result<Vec<PathBuf>> {
    let wal = fs::canonicalize(data_dir.join("pg_wal")).context("find pg_wal")?;
    let apart = fs::metadata(&wal)?.dev() != fs::metadata(data_dir)?.dev();
    Ok(if apart { vec![wal, data_dir.join("base")] } else { vec![wal] })
}

/// What is free on a directory's file system for users other than root, in MB.
pub fn free_mb(directory: &Path) -> Result<u64> {
    let space = rustix::fs::statvfs(directory).with_context(|| format!("ask {} for its space", directory.display()))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize) / MB)
}

/// Keeps so many MB on each of the server's disks, where more than twice that would be free besides `least_free_mb`; 0 keeps none. Blocks, for as long as
/// the disk does. Nothing is put where no server runs: a copy may be about to fill that directory.
pub fn keep(data_dir: &Path, wanted_mb: u64, least_free_mb: u64) -> Result<()> {
    if !data_dir.join("postmaster.pid").exists() {
        return Ok(());
    }
    for directory in directories(data_dir)? {
        keep_in(&directory, free_mb(&directory)?, wanted_mb, least_free_mb)?;
    }
    Ok(())
}

fn keep_in(directory: &Path, free_mb: u64, wanted_mb: u64, least_free_mb: u64) -> Result<()> {
    let path = directory.join(FILE);
    let (wanted, there) = (wanted_mb * MB, fs::metadata(&path).map_or(0, |file| file.len()));
    if wanted == 0 && path.exists() {
        return fs::remove_file(&path).with_context(|| format!("remove {}", path.display()));
    }
    if there > wanted {
        let file = File::options().write(true).open(&path).with_context(|| format!("open {}", path.display()))?;
        return file.set_len(wanted).context("give space back");
    }
    if there < wanted && !UNSUPPORTED.load(Relaxed) && free_mb > least_free_mb + 2 * wanted_mb {
        let file = File::options().write(true).create(true).truncate(false).open(&path);
        let file = file.with_context(|| format!("make {}", path.display()))?;
        if let Err(why) = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, wanted) {
            let _ = fs::remove_file(&path);
            // A file system that copies on write has nothing to promise.
            if why == Errno::OPNOTSUPP && !UNSUPPORTED.swap(true, Relaxed) {
                tracing::info!("no space is kept for a clean stop: the file system of {} allocates none in advance", directory.display());
            }
            return Err(why).context("keep space for a clean stop");
        }
    }
    Ok(())
}

/// Gives back what is kept on each disk that has less than that free; it is kept again once there is room ([`keep`]).
pub async fn give(data_dir: &Path, part: Part) {
    let data_dir = data_dir.to_owned();
    let given = tokio::task::spawn_blocking(move || directories(&data_dir)?.iter().try_for_each(|directory| give_in(directory, part)));
    match tokio::time::timeout(PATIENCE, given).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(why))) => tracing::warn!("the space that is kept for a clean stop is not given back: {why:#}"),
        Ok(Err(why)) => tracing::warn!("the space that is kept for a clean stop is not given back: {why}"),
        Err(_) => tracing::warn!("the disk does not answer: the space that is kept for a clean stop is not given back"),
    }
}

fn give_in(directory: &Path, part: Part) -> Result<()> {
    let path = directory.join(FILE);
    let Ok(there) = fs::metadata(&path).map(|file| file.len()) else { return Ok(()) };
    let free = free_mb(directory)?;
    if free >= there / MB {
        return Ok(());
    }
    let given = match part {
        Part::Half => File::options().write(true).open(&path).and_then(|file| file.set_len(there / 2)).map(|()| there - there / 2),
        Part::All => fs::remove_file(&path).map(|()| there),
    };
    let given = given.with_context(|| format!("free {}", path.display()))?;
    // ext4 gives freed blocks away once its journal says so.
    File::open(directory).and_then(|directory| directory.sync_all()).with_context(|| format!("sync {}", directory.display()))?;
    tracing::warn!(
        "the disk of {} has {free} MB left: {} MB that were kept for a clean stop are given back",
        directory.display(),
        given / MB
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_while_there_is_room_and_comes_back() {
        let room = tempfile::tempdir().unwrap();
        let size = || fs::metadata(room.path().join(FILE)).map_or(0, |file| file.len() / MB);
        // (free, wanted, least free, then kept)
        let table = [
            (8, 4, 0, 0),
            (9, 4, 1, 0),
            (10, 4, 1, 4),
            // A full disk takes it from nobody: it is given when a checkpoint needs it.
            (0, 4, 1, 4),
            (0, 2, 1, 2),
            (0, 4, 1, 2),
            (1000, 4, 1, 4),
            (1000, 0, 1, 0),
            (1000, 0, 1, 0),
        ];
        for (free, wanted, least, kept) in table {
            keep_in(room.path(), free, wanted, least).unwrap();
            assert_eq!(size(), kept, "{wanted} MB wanted, {free} MB free");
        }
    }

    #[test]
    fn nothing_is_given_where_there_is_room() {
        let room = tempfile::tempdir().unwrap();
        keep_in(room.path(), 1000, 1, 0).unwrap();
        for part in [Part::Half, Part::All] {
            give_in(room.path(), part).unwrap();
            assert_eq!(fs::metadata(room.path().join(FILE)).unwrap().len(), MB, "this disk is not full");
        }
        fs::remove_file(room.path().join(FILE)).unwrap();
        give_in(room.path(), Part::All).unwrap();
    }
}
