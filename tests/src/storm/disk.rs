//! A disk of a node's own, which can be full: an ext4 file system in a file, mounted through a loop device.

use crate::room::Room;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Room for the data of a long storm; the file is sparse.
const BYTES: u64 = 4 << 30;

/// A mounted file system. Dropping it unmounts it; the file stays in the room.
pub struct Disk {
    mounted: PathBuf,
}

impl Disk {
    /// Makes and mounts it in a node's directory; an error where this user or kernel can't.
    pub fn new(room: &Room, name: &str) -> Result<Disk> {
        unmount_those_left_behind();
        let image = room.path().join(format!("{name}.disk"));
        fs::File::create(&image).and_then(|file| file.set_len(BYTES)).with_context(|| format!("create {}", image.display()))?;
        // Nothing is reserved for root, so that full is full.
        run("mkfs.ext4", &["-q", "-F", "-m", "0"], &image)?;
        let within = format!("{name}/disk.{}", std::process::id());
        let disk = Disk { mounted: room.directory(&within) };
        run("mount", &["-o", "loop", &image.display().to_string()], &disk.mounted)?;
        room.directory(&within);
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mounted
    }

    /// Takes all but so many bytes.
    pub fn fill(&self, spare: u64) -> Result<()> {
        let filler = fs::File::create(self.filler()).context("create the file that fills a disk")?;
        let mut length = 0;
        // Ever smaller pieces, until not even a page is left.
        let mut piece: u64 = 256 << 20;
        while piece >= 4096 {
            match rustix::fs::fallocate(&filler, rustix::fs::FallocateFlags::empty(), length, piece) {
                Ok(()) => length += piece,
                Err(_) => piece /= 2,
            }
        }
        filler.set_len(length.saturating_sub(spare)).context("leave a little")
    }

    /// From now on every process that writes to it waits, in the kernel, and no signal wakes it.
    pub fn freeze(&self) -> Result<()> {
        run("fsfreeze", &["-f"], &self.mounted)
    }

    /// Those that wait go on.
    pub fn thaw(&self) -> Result<()> {
        run("fsfreeze", &["-u"], &self.mounted)
    }

    /// Gives it back.
    pub fn free(&self) {
        let _ = fs::remove_file(self.filler());
    }

    fn filler(&self) -> PathBuf {
        self.mounted.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // An error where it is not frozen.
        let _ = self.thaw();
        // A server that stays would be found by nobody after this: its directory has no name any more.
        crate::process::kill_below(&self.mounted);
        let _ = run("umount", &["-l"], &self.mounted);
    }
}

/// Disks of storms that were killed: the number in the name is their process.
fn unmount_those_left_behind() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for mounted in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        let of =
            mounted.strip_prefix("/tmp/tenure-").and_then(|rest| rest.rsplit_once("/disk.")).map(|(_, id)| Path::new("/proc").join(id));
        if of.is_some_and(|process| !process.exists()) {
            let _ = run("umount", &["-l"], Path::new(mounted));
        }
    }
}

fn run(program: &str, words: &[&str], path: &Path) -> Result<()> {
    let output = Command::new(program).args(words).arg(path).stdin(Stdio::null()).output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_takes_nothing_until_it_is_freed() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let room = Room::new();
        let disk = Disk::new(&room, "n1").expect("make a disk");
        let file = disk.path().join("file");
        let write = || fs::write(&file, vec![7; 64 << 10]).map_err(|error| error.kind());
        write().expect("write to an empty disk");
        fs::remove_file(&file).expect("remove it");
        disk.fill(0).expect("fill the disk");
        assert_eq!(write(), Err(std::io::ErrorKind::StorageFull));
        disk.free();
        write().expect("write to a disk that was freed");
    }
}
