//! One postmaster as a process: start it so that it outlives us, adopt it, wait for it, signal it, and clear up after it.

use super::refuse_root;
use crate::ground::process::{watchable, when_readable};
use anyhow::{Context, Result, bail};
use rustix::fs::inotify;
use rustix::process::{Pid, Signal, pidfd_send_signal};
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;
use tokio::sync::watch;

/// A running (or just ended) postmaster. Cheap to clone; dropping it leaves the server alone.
#[derive(Debug, Clone)]
pub struct Postmaster {
    pid: Pid,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    data_dir: PathBuf,
    /// The exit status, where the server is our own child and we reap it.
    reaped: Option<watch::Receiver<Option<ExitStatus>>>,
}

/// How to stop a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopMode {
    /// Roll clients back, write a checkpoint.
    Fast,
    /// As after a crash.
    Immediate,
}

impl StopMode {
    fn signal(self) -> Signal {
        match self {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        }
    }
}

/// How far a start came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It accepts connections.
    Ready,
    /// It replays, and accepts no connections (`hot_standby` off).
    Standby,
    /// It ended before it was ready: the reason is in its log.
    Ended,
}

/// What `postmaster.pid` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PidFile {
    /// The postmaster's process; 0 is never seen (a negative number belongs to single-user mode).
    pub pid: i32,
    /// As the server was given it.
    pub data_dir: PathBuf,
    /// Seconds since 1970.
    pub start_time_s: i64,
    /// The port it listens on.
    pub port: Option<u16>,
    /// The first socket directory, if it has one.
    pub socket_dir: Option<String>,
    /// `starting`, `stopping`, `ready`, `standby`; absent early in a start.
    pub status: Option<String>,
}

impl PidFile {
    /// Parses the file; `None` while it is not complete enough to name a process.
    pub fn parse(text: &str) -> Option<PidFile> {
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse().ok()?;
        let data_dir = PathBuf::from(lines.next()?.trim());
        let start_time_s = lines.next()?.trim().parse().ok()?;
        let mut text_line = || lines.next().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned);
        let port = text_line().and_then(|port| port.parse().ok());
        let socket_dir = text_line();
        let (_listen_address, _shared_memory) = (text_line(), text_line());
        let status = text_line();
        Some(PidFile { pid, data_dir, start_time_s, port, socket_dir, status })
    }

    /// Reads the file of a data directory; `None` where there is none (or not yet a whole one).
    pub async fn read(data_dir: &Path) -> Result<Option<PidFile>> {
        Ok(super::read_if_there(&data_dir.join("postmaster.pid")).await?.as_deref().and_then(PidFile::parse))
    }
}

impl Postmaster {
    /// Starts `postgres` on a data directory. The server is in a process group of its own, so that a signal for
    /// our terminal or our death does not reach it; what it says goes to `log`, unless it has a collector of its own.
    /// Returns as soon as the process runs: [`Postmaster::ready`] waits for more.
    pub async fn start(
        programs: &super::Programs,
        data_dir: &Path,
        config_file: &Path,
        arguments: &[String],
        log: &Path,
    ) -> Result<Postmaster> {
        refuse_root()?;
        if let Some(running) = Postmaster::adopt(data_dir).await? {
            bail!("a server with process id {} already runs on {}", running.pid(), data_dir.display());
        }
        forget_the_dead(data_dir).await?;
        let mut setting = std::ffi::OsString::from("--config-file=");
        setting.push(config_file);
        let mut command = Command::new(programs.path("postgres"));
        command.arg("-D").arg(data_dir).arg(setting).args(arguments).stdin(Stdio::null()).process_group(0).kill_on_drop(false);
        super::forget_whom_to_reach(&mut command);
        // What the node is told by its environment, passwords too, is no business of a server that runs users' code.
        for (variable, _) in std::env::vars_os() {
            let configures = ["PATRONI_", "TENURE_"].iter().any(|prefix| variable.as_encoded_bytes().starts_with(prefix.as_bytes()));
            if configures || crate::ground::systemd::OURS.iter().any(|ours| variable == *ours) {
                command.env_remove(variable);
            }
        }
        if let Some((out, err)) = super::server_log::open(log).await {
            command.stdout(out).stderr(err);
        }
        let mut child = command.spawn().with_context(|| format!("start {}", programs.path("postgres").display()))?;
        let id = child.id().context("the server ended before it was seen")?;
        let pid = Pid::from_raw(i32::try_from(id)?).context("a process has no id")?;
        // The child is not reaped before the task below runs, so the id still is its own.
        let pidfd = watchable(pid).context("watch the server's process")?;
        let (sender, reaped) = watch::channel(None);
        tokio::spawn(async move {
            if let Ok(status) = child.wait().await {
                // Nobody may be interested any more.
                let _ = sender.send(Some(status));
            }
        });
        Ok(Postmaster { pid, pidfd: Arc::new(pidfd), data_dir: data_dir.to_owned(), reaped: Some(reaped) })
    }

    /// Takes up the server that runs on this data directory, if one does. A stale `postmaster.pid`, also one whose process id
    /// belongs to somebody else by now, is no server.
    pub async fn adopt(data_dir: &Path) -> Result<Option<Postmaster>> {
        let Some(file) = PidFile::read(data_dir).await? else { return Ok(None) };
        let Some(pid) = Pid::from_raw(file.pid.abs()) else { return Ok(None) };
        // The descriptor first, then the look at /proc: what was judged is what is held.
        let pidfd = match watchable(pid) {
            Ok(pidfd) => pidfd,
            Err(_) => return Ok(None),
        };
        let wanted = data_dir.to_owned();
        let is_server = tokio::task::spawn_blocking(move || is_postgres_of(pid, &wanted)).await?;
        if !is_server {
            return Ok(None);
        }
        if file.pid < 0 {
            bail!("a single-user postgres (process id {}) runs on {}", pid.as_raw_nonzero(), data_dir.display());
        }
        Ok(Some(Postmaster { pid, pidfd: Arc::new(pidfd), data_dir: data_dir.to_owned(), reaped: None }))
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// It was found running: not a child of this arbiter.
    pub fn is_adopted(&self) -> bool {
        self.reaped.is_none()
    }

    /// Is this library among what the process has loaded? None where that can't be seen.
    pub async fn has_loaded(&self, library: &str) -> Option<bool> {
        let maps = tokio::fs::read_to_string(format!("/proc/{}/maps", self.pid())).await.ok()?;
        self.is_alive().then(|| maps.contains(library))
    }

    /// The process was stopped by a signal (or a debugger) and does nothing: nobody can connect.
    pub async fn is_stopped_by_signal(&self) -> bool {
        let stat = tokio::fs::read_to_string(format!("/proc/{}/stat", self.pid())).await.unwrap_or_default();
        // The name stands in parentheses and may hold anything; the state follows.
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['T', 't']))
    }

    /// Waits until the process has ended; at once if it has. Any number of tasks may wait.
    pub async fn exited(&self) {
        // A pidfd becomes readable when the process ends and stays so. An error means that the runtime goes away.
        let _ = self.pidfd.readable().await;
    }

    /// How it ended, where it was our own child and has ended.
    pub async fn exit_status(&self) -> Option<ExitStatus> {
        self.exited().await;
        let mut reaped = self.reaped.clone()?;
        let status = reaped.wait_for(Option::is_some).await.ok()?;
        *status
    }

    /// True while the process has not ended.
    pub fn is_alive(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut descriptors = [PollFd::new(self.pidfd.get_ref(), PollFlags::IN)];
        matches!(poll(&mut descriptors, Some(&Timespec::default())), Ok(0))
    }

    /// Sends a signal to the postmaster alone; never to another process that got its id.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        pidfd_send_signal(self.pidfd.get_ref(), signal).with_context(|| format!("signal the postmaster (process id {})", self.pid()))
    }

    /// Asks it to stop; [`Postmaster::exited`] tells when it has. A server that has ended is fine.
    pub fn stop(&self, mode: StopMode) -> Result<()> {
        match pidfd_send_signal(self.pidfd.get_ref(), mode.signal()) {
            Ok(()) => {
                // One that a signal stopped hears of the other when it goes on; its first act is then to end.
                if mode == StopMode::Immediate {
                    let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::CONT);
                }
                Ok(())
            }
            Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("stop the postmaster (process id {})", self.pid())),
        }
    }

    /// Sends a signal to those of the server's processes whose title has this in it.
    pub async fn signal_processes(&self, title: &str, signal: Signal) {
        let (directory, title) = (self.data_dir.clone(), title.to_owned());
        let found = tokio::task::spawn_blocking(move || processes_of(&directory, |pid| has_title(pid, &title))).await;
        for process in found.into_iter().flatten() {
            // It may have ended meanwhile.
            let _ = pidfd_send_signal(process.get_ref(), signal);
        }
    }

    /// Waits until the server accepts connections, or has ended. Woken by the kernel when `postmaster.pid` changes.
    pub async fn ready(&self) -> Result<Readiness> {
        let changes = Changes::of(&self.data_dir).context("watch postmaster.pid")?;
        loop {
            // The watch is in place before the look, so no change falls between.
            if let Some(file) = PidFile::read(&self.data_dir).await?.filter(|file| file.pid == self.pid()) {
                match file.status.as_deref() {
                    Some("ready") => return Ok(Readiness::Ready),
                    Some("standby") => return Ok(Readiness::Standby),
                    _ => {}
                }
            }
            tokio::select! {
                () = self.exited() => return Ok(Readiness::Ended),
                changed = changes.next() => changed.context("watch postmaster.pid")?,
            }
        }
    }
}

/// Why a server ended that was just started: the last complaints in its first log, or where to look.
pub async fn last_words(path: &Path) -> String {
    let text = super::read_if_there(path).await.ok().flatten().unwrap_or_default();
    // Of one start only; older ones are above.
    // What is wrong with a configuration file is said at the level LOG, and only then that something is.
    let words =
        ["FATAL:", "PANIC:", "ERROR:", "HINT:", "could not", "unrecognized configuration", "invalid value for parameter", "syntax error"];
    let telling = |line: &&str| words.iter().any(|word| line.contains(word));
    let lines: Vec<&str> = text.lines().rev().take(12).filter(telling).collect();
    if lines.is_empty() {
        return format!("see {} and the server's own log", path.display());
    }
    lines.into_iter().rev().map(str::trim).collect::<Vec<_>>().join("; ")
}

/// Changes of the files directly in one directory.
struct Changes {
    inotify: AsyncFd<OwnedFd>,
}

impl Changes {
    fn of(directory: &Path) -> Result<Changes> {
        let descriptor = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::MODIFY | inotify::WatchFlags::DELETE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&descriptor, directory, flags)?;
        Ok(Changes { inotify: when_readable(descriptor)? })
    }

    /// Waits for something to change and takes everything that has been noted so far.
    async fn next(&self) -> Result<()> {
        let mut guard = self.inotify.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        while let Ok((noted, _)) = rustix::io::read(self.inotify.get_ref(), &mut buffer) {
            if noted.is_empty() {
                break;
            }
        }
        guard.clear_ready();
        Ok(())
    }
}

/// True for a process named postgres (or postmaster) that works in this data directory, as every process of a server does.
pub(super) fn is_postgres_of(pid: Pid, data_dir: &Path) -> bool {
    let process = PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()));
    let Ok(directory) = fs::canonicalize(data_dir) else { return false };
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    if !matches!(name.trim(), "postgres" | "postmaster") {
        return false;
    }
    match fs::read_link(process.join("cwd")) {
        Ok(cwd) if cwd == directory => true,
        // Early in a start the server has not changed its directory yet: then its command line tells.
        Ok(_) => fs::read(process.join("cmdline")).is_ok_and(|line| names_directory(&line, data_dir)),
        Err(_) => false,
    }
}

fn names_directory(command_line: &[u8], data_dir: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let words: Vec<&[u8]> = command_line.split(|byte| *byte == 0).collect();
    words.windows(2).any(|pair| pair[0] == b"-D" && pair[1] == data_dir.as_os_str().as_bytes())
}

/// For so long a process that may be a server that begins is waited for, until it is one or not. It writes `postmaster.pid` with its first steps.
const BEGINS: Duration = Duration::from_secs(2);
/// How soon it is looked at again where the directory does not change: what a postmaster forked just before it died has a title of its own a moment later.
const TITLED: Duration = Duration::from_millis(100);

/// After the postmaster's death: kills every process of its server that is left (they hold shared memory and may still write), and
/// waits until they are gone. Returns how many there were. Refuses while a postmaster lives, also one that somebody starts by hand meanwhile.
pub async fn kill_orphans(data_dir: &Path) -> Result<usize> {
    let until = tokio::time::Instant::now() + BEGINS;
    let mut killed = 0;
    // A backend may fork between the look and the kill: look again until nothing is found.
    loop {
        // The watch is in place before the look.
        let changes = Changes::of(data_dir).ok();
        if let Some(running) = Postmaster::adopt(data_dir).await? {
            bail!("the postmaster (process id {}) of {} is alive: its processes are no orphans", running.pid(), data_dir.display());
        }
        let directory = data_dir.to_owned();
        let look = move || processes_with_ids_of(&directory, |_| true).into_iter().partition(|(pid, _)| may_begin(*pid));
        let (begin, mut orphans): (Vec<_>, Vec<_>) = tokio::task::spawn_blocking(look).await?;
        if begin.is_empty() && orphans.is_empty() {
            forget_the_dead(data_dir).await?;
            return Ok(killed);
        }
        if tokio::time::Instant::now() >= until {
            orphans.extend(begin);
        } else if let (true, Some(changes)) = (orphans.is_empty(), &changes) {
            let _ = tokio::time::timeout(TITLED, changes.next()).await;
        }
        for (_, orphan) in orphans {
            if pidfd_send_signal(orphan.get_ref(), Signal::KILL).is_ok() {
                killed += 1;
            }
            // Uninterruptible sleep on a broken disk can hold a killed process: say so instead of waiting for ever.
            let gone = tokio::time::timeout(Duration::from_secs(10), orphan.readable()).await;
            let _ = gone.context("a killed server process did not go away within 10 s")??;
        }
    }
}

/// It has a postmaster's command line: a server that begins and has not written its `postmaster.pid` yet, or what a postmaster forked a moment ago.
fn may_begin(pid: Pid) -> bool {
    fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).is_ok_and(|line| !line.is_empty() && !line.starts_with(b"postgres: "))
}

/// Kills every process of the data directory's server, the postmaster too, and waits until none of them can run any more. Gives how many
/// are still there, held in the kernel: doomed, and not gone.
pub async fn kill_all(data_dir: &Path) -> Result<usize> {
    let until = std::time::Instant::now() + Duration::from_secs(5);
    loop {
        let directory = data_dir.to_owned();
        let look = move || {
            // Judged before they are signalled: one that the postmaster forked between this look and its death is found by the next
            // one, and only a look that begins with nobody who is able to run has the last word.
            let found: Vec<(Pid, AsyncFd<OwnedFd>)> =
                processes_with_ids_of(&directory, |_| true).into_iter().filter(|(_, process)| is_running(process)).collect();
            let able = found.iter().filter(|(pid, _)| !is_doomed(*pid)).count();
            for (_, process) in &found {
                let _ = pidfd_send_signal(process.get_ref(), Signal::KILL);
            }
            (found.len(), able)
        };
        let (left, able) = tokio::task::spawn_blocking(look).await?;
        if able == 0 {
            return Ok(left);
        }
        if std::time::Instant::now() > until {
            bail!("{able} processes of the server of {} were killed and live on", data_dir.display());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn is_running(process: &AsyncFd<OwnedFd>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut descriptors = [PollFd::new(process.get_ref(), PollFlags::IN)];
    matches!(poll(&mut descriptors, Some(&Timespec::default())), Ok(0))
}

/// Killed, and held by the kernel on the way out: each of its threads has ended, or is about to (`PF_EXITING`), or sleeps where no signal wakes
/// it, with SIGKILL waiting for it. None of them returns to the program.
fn is_doomed(pid: Pid) -> bool {
    const EXITING: u64 = 0x4;
    const KILL_WAITS: u64 = 1 << 8;
    let Ok(threads) = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())) else { return true };
    threads.flatten().all(|thread| {
        let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
        let (stat, status) = (read("stat"), read("status"));
        let Some((_, rest)) = stat.rsplit_once(") ") else { return true };
        let fields: Vec<&str> = rest.split(' ').collect();
        let exiting = fields.get(6).and_then(|flags| flags.parse::<u64>().ok()).is_some_and(|flags| flags & EXITING != 0);
        let pending =
            status.lines().find_map(|line| line.strip_prefix("SigPnd:")).and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        let killed = pending.is_some_and(|mask| mask & KILL_WAITS != 0);
        exiting || matches!(fields.first(), Some(&("Z" | "X"))) || killed && fields.first() == Some(&"D")
    })
}

/// Removes a `postmaster.pid` whose process has ended and was never reaped, as in a container whose first process reaps nobody. Such a
/// zombie runs nothing and holds nothing, but it answers kill(2): PostgreSQL would take it for a server that lives, for ever. While the
/// file stands no other server can begin here, so what is removed is what was judged.
async fn forget_the_dead(data_dir: &Path) -> Result<()> {
    let Some(file) = PidFile::read(data_dir).await? else { return Ok(()) };
    let pid = file.pid.unsigned_abs();
    if !is_zombie(pid) {
        return Ok(());
    }
    let path = data_dir.join("postmaster.pid");
    tracing::warn!(
        "process {pid}, which {} names, has ended and nobody has reaped it: the file is removed, as PostgreSQL would not start beside it; hint: in a container, let an init be the first process",
        path.display()
    );
    // The socket has a lock of its own, by which PostgreSQL judges in the same way.
    if let (Some(directory), Some(port)) = (&file.socket_dir, file.port) {
        let lock = Path::new(directory).join(format!(".s.PGSQL.{port}.lock"));
        let named = super::read_if_there(&lock).await?.and_then(|text| text.lines().next()?.trim().parse::<u32>().ok());
        if named == Some(pid) {
            super::remove_if_there(&lock).await.context("remove the lock of a dead server's socket")?;
        }
    }
    super::remove_if_there(&path).await.context("remove the postmaster.pid of a server that has ended").map(drop)
}

/// The process has ended, all of its threads too, and is still in the table of processes.
fn is_zombie(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let ended = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
    // A first thread that ended before the others looks the same.
    ended && fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|threads| threads.count() <= 1)
}

/// Is any process of a server of this data directory left?
pub async fn is_anybody_left(data_dir: &Path) -> Result<bool> {
    let directory = data_dir.to_owned();
    Ok(tokio::task::spawn_blocking(move || !processes_of(&directory, |_| true).is_empty()).await?)
}

fn has_title(pid: Pid, title: &str) -> bool {
    fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).is_ok_and(|line| String::from_utf8_lossy(&line).contains(title))
}

/// The server's processes that are `wanted`.
fn processes_of(data_dir: &Path, wanted: impl Fn(Pid) -> bool) -> Vec<AsyncFd<OwnedFd>> {
    processes_with_ids_of(data_dir, wanted).into_iter().map(|(_, process)| process).collect()
}

fn processes_with_ids_of(data_dir: &Path, wanted: impl Fn(Pid) -> bool) -> Vec<(Pid, AsyncFd<OwnedFd>)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()).filter_map(Pid::from_raw);
    // The descriptor first, then the look: a process id taken over by somebody else is not killed.
    ids.filter_map(|pid| {
        let is_ours = || is_postgres_of(pid, data_dir) && wanted(pid);
        if !is_ours() {
            return None;
        }
        let pidfd = watchable(pid).ok()?;
        is_ours().then_some((pid, pidfd))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: &str = "4242\n/data/main\n1700000000\n5433\n/tmp\n127.0.0.1\n  8395778         3\nready   \n";

    #[test]
    fn the_pid_file_reads_at_every_stage_of_a_start() {
        let file = PidFile::parse(RUNNING).unwrap();
        assert_eq!((file.pid, file.port, file.status.as_deref()), (4242, Some(5433), Some("ready")));
        assert_eq!(
            (file.data_dir.to_str(), file.socket_dir.as_deref(), file.start_time_s),
            (Some("/data/main"), Some("/tmp"), 1_700_000_000)
        );
        let early = PidFile::parse("4242\n/data/main\n1700000000\n5433\n\n").unwrap();
        assert_eq!((early.socket_dir, early.status), (None, None));
        // No socket directory and no address: the lines are there, and empty.
        let bare = PidFile::parse("4242\n/data/main\n1700000000\n5433\n\n\n  1 2\nstandby \n").unwrap();
        assert_eq!((bare.socket_dir, bare.status.as_deref()), (None, Some("standby")));
        for text in ["", "x\n", "4242\n/data"] {
            assert_eq!(PidFile::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_command_line_names_its_directory_exactly() {
        assert!(names_directory(b"postgres\0-D\0/data/main\0", Path::new("/data/main")));
        assert!(!names_directory(b"postgres\0-D\0/data/main2\0", Path::new("/data/main")));
    }

    #[tokio::test]
    async fn a_pid_file_of_a_zombie_is_removed_and_one_of_the_living_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("postmaster.pid");
        let alive = RUNNING.replace("4242", &std::process::id().to_string());
        std::fs::write(&path, &alive).unwrap();
        kill_orphans(directory.path()).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), alive);
        // Ended, and not waited for.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let ended = watchable(Pid::from_child(&child)).unwrap();
        drop(ended.readable().await.unwrap());
        std::fs::write(&path, RUNNING.replace("4242", &child.id().to_string())).unwrap();
        kill_orphans(directory.path()).await.unwrap();
        assert!(!path.exists());
        child.wait().unwrap();
        assert!(!is_zombie(child.id()));
    }

    #[tokio::test]
    async fn a_pid_file_whose_process_is_somebody_else_is_no_server() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Postmaster::adopt(directory.path()).await.unwrap().is_none());
        let text = RUNNING.replace("4242", &std::process::id().to_string());
        std::fs::write(directory.path().join("postmaster.pid"), text).unwrap();
        assert!(Postmaster::adopt(directory.path()).await.unwrap().is_none());
        assert_eq!(kill_orphans(directory.path()).await.unwrap(), 0);
    }

    /// A program by the name of `postgres` with a postmaster's command line, which does this.
    fn begins(directory: &Path, does: &str) -> std::process::Child {
        use std::os::unix::fs::PermissionsExt;
        let program = directory.join("postgres");
        std::fs::write(&program, format!("#!/bin/sh\n{does}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::process::Command::new(program).arg("-D").arg(directory).current_dir(directory).spawn().unwrap()
    }

    #[tokio::test]
    async fn a_server_that_somebody_starts_by_hand_is_no_orphan() {
        let directory = tempfile::tempdir().unwrap();
        let file = RUNNING.replace("4242", "$$").replace('\n', "\\n");
        let mut child =
            begins(directory.path(), &format!("sleep 0.3; printf '%b' \"{file}\" >postmaster.pid; while sleep 0.1; do :; done"));
        let refused = kill_orphans(directory.path()).await.unwrap_err();
        assert!(refused.to_string().contains("its processes are no orphans"), "{refused}");
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn what_never_becomes_a_server_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = begins(directory.path(), "while sleep 0.1; do :; done");
        assert_eq!(kill_orphans(directory.path()).await.unwrap(), 1);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
    }
}
