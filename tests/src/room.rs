//! Room: a test's one directory, the user its programs run as, and the promise that nothing outlives it.

use crate::place::Place;
use crate::process;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// Ends what a test leaves if the test itself is killed: its standard input closes then.
const JANITOR: &str = r#"
cat >/dev/null
for _ in 1 2 3; do
  for process in /proc/[0-9]*; do
    case "$(readlink "$process/cwd")" in "$1"|"$1"/*) kill -9 "${process#/proc/}" ;; esac
  done
done
"#;

/// A directory of the test's own. Dropping it kills every process with its working directory inside, and
/// removes it, unless the test failed: then it stays, and the end of each log is printed.
pub struct Room {
    path: PathBuf,
    owner: Option<(u32, u32)>,
    kept: AtomicBool,
    janitor: Child,
}

impl Room {
    /// A new empty room, owned by the user that Postgres will run as.
    pub fn new() -> Room {
        process::remove_orphaned_segments();
        let path = tempfile::Builder::new().prefix("tenure-").tempdir_in("/tmp").expect("make a directory in /tmp").keep();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("open the room");
        let owner = postgres_user();
        let janitor = Command::new("sh")
            .args(["-c", JANITOR, "janitor"])
            .arg(&path)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the janitor");
        let room = Room { path, owner, kept: AtomicBool::new(false), janitor };
        room.give(&room.path);
        room
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the directory where it is when the room ends.
    pub fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }

    /// A new directory in the room, mode 0700, owned by the user Postgres runs as.
    pub fn directory(&self, name: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(&path).expect("make a directory in the room");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("close the directory");
        self.give(&path);
        path
    }

    /// Writes a file that the user Postgres runs as can read and nobody else.
    pub fn file(&self, path: &Path, text: &str) {
        fs::write(path, text).expect("write a file in the room");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("close the file");
        self.give(path);
    }

    fn give(&self, path: &Path) {
        if let Some((uid, gid)) = self.owner {
            chown(path, Some(uid), Some(gid)).expect("give a file to the user postgres");
        }
    }

    /// Copies a program to where the user Postgres runs as can execute it (a checkout under /root can't be read).
    pub fn install(&self, program: &Path) -> PathBuf {
        let bin = self.path.join("bin");
        fs::create_dir_all(&bin).expect("make the room's bin");
        let target = bin.join(program.file_name().expect("a program has a name"));
        if !target.exists() {
            fs::copy(program, &target).unwrap_or_else(|error| panic!("copy {}: {error}", program.display()));
        }
        target
    }

    /// A command as the user Postgres runs as, in `dir`, in a process group of its own, without the
    /// caller's PG* variables.
    pub fn command(&self, program: impl AsRef<Path>, dir: &Path) -> Command {
        let mut command = self.command_of_ours(program.as_ref(), dir);
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// The same in a place: entering another network needs root, so the user changes after that.
    pub fn command_at(&self, place: &Place, program: impl AsRef<Path>, dir: &Path) -> Command {
        let (Some(namespace), Some((uid, gid))) = (&place.namespace, self.owner) else {
            return self.command(program, dir);
        };
        // Both exec what follows: the process that is started is the program in the end.
        let mut command = self.command_of_ours(Path::new("nsenter"), dir);
        command.arg(format!("--net=/run/netns/{namespace}")).args(["--", "setpriv", "--reuid"]).arg(uid.to_string());
        // As a unit or container may give it: who holds virtual addresses needs both, and hands them to nobody.
        let capabilities = ["--inh-caps=+net_admin,+net_raw", "--ambient-caps=+net_admin,+net_raw"];
        command.arg("--regid").arg(gid.to_string()).args(capabilities).args(["--clear-groups", "--"]).arg(program.as_ref());
        command
    }

    fn command_of_ours(&self, program: &Path, dir: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(dir).process_group(0).env("HOME", &self.path).stdin(Stdio::null());
        for (name, _) in std::env::vars() {
            if name.starts_with("PG") || name.starts_with("ETCD") || name.starts_with("PATRONI") {
                command.env_remove(name);
            }
        }
        command
    }

    /// A file for a program's output, appended to.
    pub fn log(&self, path: &Path) -> File {
        let log = File::options().create(true).append(true).open(path).expect("open a log");
        self.give(path);
        log
    }

    fn print_logs(&self) {
        let mut err = std::io::stderr().lock();
        let _ = writeln!(err, "\nleft for you to look at: {}", self.path.display());
        for log in logs_below(&self.path, 3) {
            let _ = writeln!(err, "--- the end of {}", log.display());
            let _ = writeln!(err, "{}", tail(&log, 6000));
        }
    }
}

impl Default for Room {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        process::kill_below(&self.path);
        process::remove_orphaned_segments();
        if std::thread::panicking() {
            self.print_logs();
        } else if std::env::var_os("TENURE_KEEP").is_none() && !self.kept.load(Ordering::Acquire) {
            let _ = fs::remove_dir_all(&self.path);
        }
        let _ = self.janitor.kill();
        let _ = self.janitor.wait();
    }
}

/// Every `*.log` below a directory, at most `depth` levels down.
fn logs_below(dir: &Path, depth: u8) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && depth > 0 {
            found.extend(logs_below(&path, depth - 1));
        } else if path.extension().is_some_and(|ext| ext == "log") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The last `bytes` of a file, from the start of a line.
pub fn tail(path: &Path, bytes: u64) -> String {
    let Ok(mut file) = File::open(path) else {
        return String::new();
    };
    let length = file.metadata().map_or(0, |meta| meta.len());
    let from = length.saturating_sub(bytes);
    let mut raw = Vec::new();
    if file.seek(SeekFrom::Start(from)).is_err() || file.read_to_end(&mut raw).is_err() {
        return String::new();
    }
    let text = String::from_utf8_lossy(&raw);
    match text.split_once('\n') {
        Some((_, rest)) if from > 0 => rest.to_owned(),
        _ => text.into_owned(),
    }
}

/// uid and gid of `postgres` where we are root (Postgres refuses root), None where we run as ourselves.
fn postgres_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
    let ids = passwd.lines().find_map(|line| {
        let mut fields = line.strip_prefix("postgres:")?.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    Some(ids.expect("the user postgres exists; hint: `make setup` installs PostgreSQL"))
}
