//! What touches one Postgres: its programs, its files, its process. Leaves compute or act once; the
//! branches that choose between them live in `duties/`.

pub mod archive;
pub mod aside;
pub mod basebackup;
pub mod citus_daemon;
pub mod conf;
pub mod controldata;
pub mod credentials;
pub mod facts;
pub mod initdb;
pub mod local;
pub mod mark;
pub mod marker;
pub mod missing_wal;
pub mod pgpass;
pub mod postmaster;
pub mod promote;
pub mod psql;
pub mod query;
pub mod reserve;
pub mod rewind;
pub mod segments;
pub mod server_log;
pub mod timelines;

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// The value of libpq's `require_auth` where the user gives none: a server that asks for the password in the open is told nothing.
pub const REQUIRE_AUTH: &str = "!password";

/// Where the programs of one PostgreSQL major version are.
///
/// Which version that is may change while they are in use: a major upgrade tells every copy of this value.
#[derive(Debug, Clone)]
pub struct Programs {
    bin_dir: Arc<RwLock<PathBuf>>,
}

impl Programs {
    /// The programs in this directory.
    pub fn new(bin_dir: impl Into<PathBuf>) -> Self {
        Programs { bin_dir: Arc::new(RwLock::new(bin_dir.into())) }
    }

    /// The full path of one program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.bin_dir().join(name)
    }

    /// Their directory.
    pub fn bin_dir(&self) -> PathBuf {
        self.bin_dir.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on those of this directory, for all that share this value.
    pub fn move_to(&self, bin_dir: PathBuf) {
        *self.bin_dir.write().unwrap_or_else(PoisonError::into_inner) = bin_dir;
    }

    /// A command for one program: messages in English (they are parsed), no password prompt, no
    /// connection settings leaking in from our own environment. A server that asks for the password in the open is told nothing: its
    /// address comes out of a member key. (libpq knows that word since PostgreSQL 16, older ones pass it over.)
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.path(name));
        command.env("LC_ALL", "C").env("PGREQUIREAUTH", REQUIRE_AUTH).stdin(Stdio::null());
        forget_whom_to_reach(&mut command);
        command
    }
}

/// By these a client of libpq finds its server. In the environment of an arbiter they are left by a shell or a container that is used for
/// clients, too, and mean nothing for the node: its programs are told whom to reach by arguments, and a server's own receiver by
/// `primary_conninfo`. The server would take `PGPORT` for its own port, and a list of ports, which a client may have, would keep it from
/// starting. How a connection is protected (`PGSSLMODE` and its kin) is left as it is: without it something might be looser than what was asked for.
const WHOM_TO_REACH: [&str; 14] = [
    "PGDATA",
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGUSER",
    "PGDATABASE",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGOPTIONS",
    "PGTARGETSESSIONATTRS",
    "PGLOADBALANCEHOSTS",
    "PGAPPNAME",
];

/// Nothing of our own environment says whom this program connects to.
pub(crate) fn forget_whom_to_reach(command: &mut Command) {
    for variable in WHOM_TO_REACH {
        command.env_remove(variable);
    }
}

/// Refuses to act as root, in one sentence that says what to do.
pub fn refuse_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        bail!(
            "running as root, which PostgreSQL refuses: start the arbiter as the user that owns the data directory (for example `runuser -u postgres -- tenure arbiter CONFIG`)"
        );
    }
    Ok(())
}

/// Runs a command to its end; its standard output, or an error that carries the last lines it wrote.
pub(crate) async fn run(mut command: Command) -> Result<Output> {
    command.kill_on_drop(true);
    let program = program_name(&command);
    let output = command.output().await.with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        bail!("{program} ended with {}: {}", output.status, tail(&String::from_utf8_lossy(&output.stderr)));
    }
    Ok(output)
}

/// The name of a command's program, for messages.
pub(crate) fn program_name(command: &Command) -> String {
    let path = Path::new(command.as_std().get_program());
    path.file_name().unwrap_or(OsStr::new("?")).to_string_lossy().into_owned()
}

/// The last lines of what a program said: enough to see why, little enough for a log line.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(6)..].join("; ")
}

/// Writes a file as a whole: temporary file beside it, fsync, rename, fsync of the directory. The
/// content is never seen half-written, and never with a wider mode than `mode`.
pub(crate) async fn write_atomically(path: &Path, content: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    let directory = path.parent().with_context(|| format!("{} has no parent directory", path.display()))?;
    let (temporary, mut file) = temporary_beside(path, mode).await?;
    let written = write_durably(&mut file, content.as_ref()).await.with_context(|| format!("write {}", temporary.display()));
    if written.is_err() {
        // A disk that is full has no room for halves.
        let _ = tokio::fs::remove_file(&temporary).await;
    }
    written?;
    tokio::fs::rename(&temporary, path).await.with_context(|| format!("rename {} to {}", temporary.display(), path.display()))?;
    sync_directory(directory).await
}

/// As [`write_atomically`], unless the file is like that already: what is written in every round of upkeep must not cost the disk, which
/// others wait for, a flush each time.
pub(crate) async fn write_where_other(path: &Path, content: &str, mode: u32) -> Result<()> {
    let as_wanted = match tokio::fs::symlink_metadata(path).await {
        Ok(there) if there.is_file() && there.mode() & 0o7777 == mode && there.uid() == rustix::process::geteuid().as_raw() => {
            tokio::fs::read(path).await.is_ok_and(|text| text == content.as_bytes())
        }
        _ => false,
    };
    if as_wanted { Ok(()) } else { write_atomically(path, content, mode).await }
}

/// A new file beside this one. Always the same name, so that what a crash left is taken away again; where somebody else holds that name (the
/// directory may be `/tmp`), one that nobody can take beforehand. What is there is never written through.
async fn temporary_beside(path: &Path, mode: u32) -> Result<(PathBuf, tokio::fs::File)> {
    let named = |tail: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(tail);
        PathBuf::from(name)
    };
    let create = async |name: &Path| tokio::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(name).await;
    let usual = named(".tenure-new");
    // A left-over of a crash may have another mode: begin with none. Whether it went shows when the file is made.
    let _ = tokio::fs::remove_file(&usual).await;
    match create(&usual).await {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => return Ok((usual.clone(), made.with_context(|| format!("create {}", usual.display()))?)),
    }
    let lot = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), std::process::id());
    let other = named(&format!(".tenure-new-{lot:016x}"));
    let file = create(&other).await.with_context(|| format!("create {}, as {} is somebody else's", other.display(), usual.display()))?;
    Ok((other, file))
}

/// Writes and syncs. `write_all` only hands the bytes to another thread, and `sync_all` waits for that thread and forgets its error: without the
/// flush between them a disk that is full left an empty file, which was then renamed over a good one.
async fn write_durably(file: &mut tokio::fs::File, content: &[u8]) -> std::io::Result<()> {
    file.write_all(content).await?;
    file.flush().await?;
    file.sync_all().await
}

/// Makes renames and removals in a directory durable.
pub(crate) async fn sync_directory(directory: &Path) -> Result<()> {
    let opened = tokio::fs::File::open(directory).await.with_context(|| format!("open {}", directory.display()))?;
    opened.sync_all().await.with_context(|| format!("fsync {}", directory.display()))
}

/// Makes a whole data directory durable: one call per file system instead of one per file, as PostgreSQL 17's
/// `--sync-method=syncfs`. On a disk where the programs' own fsync of every file takes 2 s, this takes 0.2 s.
pub(crate) async fn sync_data_directory(data_dir: &Path) -> Result<()> {
    let mut directories = linked_directories(data_dir).await?;
    directories.push(data_dir.to_owned());
    directories.extend(data_dir.parent().map(Path::to_owned));
    for directory in directories {
        let opened = tokio::fs::File::open(&directory).await.with_context(|| format!("open {}", directory.display()))?.into_std().await;
        let synced = tokio::task::spawn_blocking(move || rustix::fs::syncfs(&opened)).await?;
        synced.with_context(|| format!("sync the file system of {}", directory.display()))?;
    }
    Ok(())
}

/// A file's text, or `None` where there is no such file.
pub(crate) async fn read_if_there(path: &Path) -> Result<Option<String>> {
    match tokio::fs::read_to_string(path).await {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Removes a file; true if there was one.
pub(crate) async fn remove_if_there(path: &Path) -> Result<bool> {
    match tokio::fs::remove_file(path).await {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("remove {}", path.display())),
    }
}

/// Empties a directory and keeps it (it may be a mount point); symbolic links are removed, never followed,
/// except that tablespaces and a `pg_wal` elsewhere are emptied too, as they are part of the cluster.
pub async fn empty_directory(directory: &Path) -> Result<()> {
    let linked = linked_directories(directory).await?;
    for elsewhere in linked {
        remove_entries(&elsewhere).await?;
    }
    remove_entries(directory).await
}

/// The directories outside the data directory that belong to it: `pg_wal` and the tablespaces' own version directories.
async fn linked_directories(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut linked = Vec::new();
    if let Ok(target) = tokio::fs::read_link(directory.join("pg_wal")).await {
        linked.push(directory.join(target));
    }
    let Ok(mut tablespaces) = tokio::fs::read_dir(directory.join("pg_tblspc")).await else {
        return Ok(linked);
    };
    // Only directories that this major version made: another cluster may live in the same tablespace location.
    let version = read_if_there(&directory.join("PG_VERSION")).await?.unwrap_or_default();
    let prefix = format!("PG_{}_", version.trim());
    while let Some(entry) = tablespaces.next_entry().await? {
        let Ok(target) = tokio::fs::read_link(entry.path()).await else { continue };
        let Ok(mut inside) = tokio::fs::read_dir(&target).await else { continue };
        while let Some(child) = inside.next_entry().await? {
            if child.file_name().to_string_lossy().starts_with(&prefix) {
                linked.push(child.path());
            }
        }
    }
    Ok(linked)
}

async fn remove_entries(directory: &Path) -> Result<()> {
    let mut entries = match tokio::fs::read_dir(directory).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("read directory {}", directory.display()))?,
    };
    while let Some(entry) = entries.next_entry().await? {
        let path = entry.path();
        let removed =
            if entry.file_type().await?.is_dir() { tokio::fs::remove_dir_all(&path).await } else { tokio::fs::remove_file(&path).await };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    sync_directory(directory).await
}

/// True where the directory is missing or holds nothing.
pub async fn is_empty_directory(directory: &Path) -> Result<bool> {
    match tokio::fs::read_dir(directory).await {
        Ok(mut entries) => Ok(entries.next_entry().await?.is_none()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error).with_context(|| format!("read directory {}", directory.display())),
    }
}

#[cfg(test)]
mod live;

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_tail_keeps_the_last_lines_on_one_line() {
        assert_eq!(tail("a\n\n  b \r c\n"), "a; b; c");
        assert_eq!(tail("1\n2\n3\n4\n5\n6\n7\n8"), "3; 4; 5; 6; 7; 8");
        assert_eq!(tail(""), "");
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error_and_not_an_empty_file() {
        let mut full = tokio::fs::OpenOptions::new().write(true).open("/dev/full").await.unwrap();
        let error = write_durably(&mut full, b"max_wal_size = 1GB\n").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }

    #[tokio::test]
    async fn a_file_is_written_whole_and_with_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        for content in ["one", "two"] {
            write_atomically(&path, content, 0o600).await.unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_name_that_was_taken_beforehand_neither_stops_a_file_nor_gets_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pgpass");
        let taken = directory.path().join("pgpass.tenure-new");
        // What this user can't remove: as root a foreign file in a sticky directory would go.
        std::fs::create_dir(&taken).unwrap();
        write_atomically(&path, "secret", 0o600).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "secret");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
        // A link to somebody's own file is not followed.
        std::fs::remove_dir(&taken).unwrap();
        let theirs = directory.path().join("theirs");
        std::fs::write(&theirs, "").unwrap();
        std::os::unix::fs::symlink(&theirs, &taken).unwrap();
        write_atomically(&path, "secret", 0o600).await.unwrap();
        assert_eq!(std::fs::read_to_string(&theirs).unwrap(), "");
    }

    #[tokio::test]
    async fn emptying_a_directory_keeps_it_and_what_links_point_to() {
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("keep"), "x").unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("base/1")).unwrap();
        std::fs::write(directory.path().join("base/1/f"), "x").unwrap();
        std::os::unix::fs::symlink(outside.path(), directory.path().join("link")).unwrap();
        empty_directory(directory.path()).await.unwrap();
        assert!(is_empty_directory(directory.path()).await.unwrap());
        assert!(outside.path().join("keep").exists());
    }
}
