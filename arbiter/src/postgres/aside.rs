//! The data that a new copy takes the place of: set aside as `<data_dir>.aside` while the copy is made, put back or removed after it.
//!
//! Only a whole directory is ever there: it comes and goes by a rename.

use super::marker::Incomplete;
use super::{empty_directory, is_empty_directory, linked_directories, sync_directory};
use anyhow::{Context, Result, bail};
use cluster::replaced::Room;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// Beside the old data and the new there must be so much more: WAL that comes in meanwhile.
const SPARE_BYTES: u64 = 64 << 20;

fn beside(data_dir: &Path, tail: &str) -> PathBuf {
    let mut path = data_dir.components().as_path().as_os_str().to_owned();
    path.push(tail);
    PathBuf::from(path)
}

/// Where old data are set aside.
pub fn place(data_dir: &Path) -> PathBuf {
    beside(data_dir, ".aside")
}

/// What is no more needed, while it is removed.
fn on_its_way_out(data_dir: &Path) -> PathBuf {
    beside(data_dir, ".aside-removed")
}

/// Is there data that was set aside?
pub async fn is_there(data_dir: &Path) -> bool {
    tokio::fs::try_exists(place(data_dir)).await.unwrap_or(false)
}

/// Is there such data, or the rest of some?
pub async fn is_any_there(data_dir: &Path) -> bool {
    is_there(data_dir).await || tokio::fs::try_exists(on_its_way_out(data_dir)).await.unwrap_or(false)
}

/// Can these data be set aside, with room for a copy as large as they are?
pub async fn room(data_dir: &Path) -> Result<Room> {
    let none = |why: &str| Ok(Room::None(why.to_owned()));
    if !linked_directories(data_dir).await?.is_empty() {
        return none("it has tablespaces, or a pg_wal elsewhere, which stay at their place");
    }
    let of = data_dir.to_owned();
    let (size, free, same_device) = tokio::task::spawn_blocking(move || {
        let above = of.parent().map(Path::to_owned).unwrap_or_default();
        let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
        let stat = rustix::fs::statvfs(&above)?;
        anyhow::Ok((size_of(&of), stat.f_bavail.saturating_mul(stat.f_frsize), device(&of) == device(&above)))
    })
    .await?
    .with_context(|| format!("see how much room there is beside {}", data_dir.display()))?;
    if !same_device {
        return none("the data directory is a mount point");
    }
    if rustix::fs::access(data_dir.parent().unwrap_or(data_dir), rustix::fs::Access::WRITE_OK).is_err() {
        return none("the directory above may not be written to");
    }
    let needed = size + size / 20 + SPARE_BYTES;
    if free < needed {
        return Ok(Room::None(format!("{needed} bytes are needed beside them, {free} are free")));
    }
    Ok(Room::Enough)
}

/// Bytes on the disk; links are not followed, and what goes meanwhile does not count.
fn size_of(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => size_of(&entry.path()),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

/// One at a time: what removes data that served their time must never find those that were set aside since at the same place.
static ALONE: LazyLock<Arc<Mutex<()>>> = LazyLock::new(Arc::default);

/// The right to change what is set aside, for as long as it is held.
pub type Alone = OwnedMutexGuard<()>;

/// Waits for that right.
async fn alone() -> Alone {
    ALONE.clone().lock_owned().await
}

/// That right, unless somebody has it: what was to be removed may be another's by the time it is free.
pub fn alone_now() -> Option<Alone> {
    ALONE.clone().try_lock_owned().ok()
}

/// Sets the data aside; an empty directory is left in their place. What was set aside before is older, and goes.
pub async fn set(data_dir: &Path) -> Result<()> {
    let alone = alone().await;
    remove(data_dir, &alone).await?;
    move_to(data_dir, &place(data_dir)).await
}

/// Moves the data to this place beside it; an empty directory is left in theirs.
pub async fn move_to(data_dir: &Path, to: &Path) -> Result<()> {
    tokio::fs::rename(data_dir, to).await.with_context(|| format!("set the data directory aside as {}", to.display()))?;
    make_empty(data_dir)?;
    sync_above(data_dir).await
}

fn make_empty(data_dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(data_dir).with_context(|| format!("create {}", data_dir.display()))
}

/// Copies what was set aside into the empty data directory, for a method that works on what is there.
pub async fn copy_back(data_dir: &Path) -> Result<()> {
    let mut command = tokio::process::Command::new("cp");
    command.args(["--archive", "--reflink=auto"]).arg(place(data_dir).join(".")).arg(data_dir);
    command.env(crate::ground::program::WORKS_ON, data_dir);
    super::run(command).await.context("copy the data that were set aside, for a method that keeps them").map(|_| ())
}

/// Puts the data back, over what an interrupted copy left. May be run again after it was cut short anywhere.
pub async fn put_back(data_dir: &Path) -> Result<()> {
    let _alone = alone().await;
    put_back_from(&place(data_dir), data_dir).await
}

/// Puts the data back from this place beside it. May be run again after it was cut short anywhere.
pub async fn put_back_from(from: &Path, data_dir: &Path) -> Result<()> {
    if !tokio::fs::try_exists(from).await? {
        bail!("nothing is set aside in {}", from.display());
    }
    if !is_empty_directory(data_dir).await? {
        empty_directory(data_dir).await?;
    }
    // Before the directory is whole again: a mark that stayed would say that it is not.
    Incomplete::of(data_dir).clear().await?;
    if tokio::fs::try_exists(data_dir).await.unwrap_or(true) {
        tokio::fs::remove_dir(data_dir).await.with_context(|| format!("make way for {}", from.display()))?;
    }
    renameat_with(CWD, from, CWD, data_dir, RenameFlags::NOREPLACE).context("put the data back that were set aside")?;
    sync_above(data_dir).await
}

/// Removes what was set aside, and what an earlier removal left; true if there was something.
pub async fn remove(data_dir: &Path, _alone: &Alone) -> Result<bool> {
    let (from, out) = (place(data_dir), on_its_way_out(data_dir));
    let exists = async |path: &Path| tokio::fs::try_exists(path).await.unwrap_or(false);
    let gone = async || tokio::fs::remove_dir_all(&out).await.with_context(|| format!("remove {}", out.display()));
    // The rest of an earlier one first; then out of the way by one rename, so that half of it is never taken for data.
    let rest = exists(&out).await;
    if rest {
        gone().await?;
    }
    if !exists(&from).await {
        return Ok(rest);
    }
    tokio::fs::rename(&from, &out).await.with_context(|| format!("rename {}", from.display()))?;
    sync_above(data_dir).await?;
    gone().await?;
    Ok(true)
}

async fn sync_above(data_dir: &Path) -> Result<()> {
    match data_dir.parent() {
        Some(above) => sync_directory(above).await,
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn data_come_back_whole_over_half_a_copy_and_go_whole() {
        let above = tempfile::tempdir().unwrap();
        let data = above.path().join("data");
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        assert_eq!(room(&data).await.unwrap(), Room::Enough);
        set(&data).await.unwrap();
        assert!(is_empty_directory(&data).await.unwrap() && is_there(&data).await);
        Incomplete::of(&data).set("clone from n1").await.unwrap();
        std::fs::write(data.join("half"), "x").unwrap();
        put_back(&data).await.unwrap();
        assert!(data.join("PG_VERSION").exists() && !data.join("half").exists() && !is_there(&data).await);
        assert_eq!(Incomplete::of(&data).read().await.unwrap(), None);
        assert!(put_back(&data).await.is_err(), "nothing is aside any more");
        assert!(data.join("PG_VERSION").exists(), "and what is there stays");

        set(&data).await.unwrap();
        std::fs::create_dir(on_its_way_out(&data)).unwrap();
        assert!(remove(&data, &alone().await).await.unwrap());
        assert!(!is_there(&data).await && !on_its_way_out(&data).exists());
        assert!(!remove(&data, &alone().await).await.unwrap());
    }

    #[tokio::test]
    async fn data_that_are_set_aside_while_older_ones_are_removed_stay() {
        for round in 0..10 {
            let above = tempfile::tempdir().unwrap();
            let data = above.path().join("data");
            std::fs::create_dir_all(place(&data)).unwrap();
            for number in 0..400 {
                std::fs::write(place(&data).join(number.to_string()), "older").unwrap();
            }
            std::fs::create_dir(&data).unwrap();
            std::fs::write(data.join("PG_VERSION"), "15\n").unwrap();
            let removal = tokio::spawn({
                let (data, alone) = (data.clone(), alone().await);
                async move { remove(&data, &alone).await }
            });
            // Sooner and later in the middle of it.
            for _ in 0..round {
                tokio::task::yield_now().await;
                tokio::time::sleep(std::time::Duration::from_micros(300)).await;
            }
            set(&data).await.unwrap();
            removal.await.unwrap().unwrap();
            assert!(place(&data).join("PG_VERSION").exists(), "round {round}: the only whole copy is gone");
            assert!(!on_its_way_out(&data).exists(), "round {round}");
        }
    }

    #[tokio::test]
    async fn what_lies_elsewhere_can_t_be_set_aside() {
        let above = tempfile::tempdir().unwrap();
        let data = above.path().join("data");
        std::fs::create_dir_all(above.path().join("wal")).unwrap();
        std::fs::create_dir(&data).unwrap();
        std::os::unix::fs::symlink(above.path().join("wal"), data.join("pg_wal")).unwrap();
        assert!(matches!(room(&data).await.unwrap(), Room::None(why) if why.contains("pg_wal")));
    }
}
