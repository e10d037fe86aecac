//! Processes found by their working directory, and what befalls them: kill, freeze, thaw.
//!
//! Postgres' children leave their parent's process group, so a group can't hold them; but each has the
//! data directory as its working directory, and that lies in the test's room.

use rustix::process::kill_process;
pub use rustix::process::{Pid, Signal};
use std::fs;
use std::path::Path;
use std::process::Command;

/// All living processes whose working directory is `dir` or below it.
pub fn below(dir: &Path) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
            cwd.starts_with(dir).then(|| Pid::from_raw(pid)).flatten()
        })
        .collect()
}

/// Sends one signal; a process that is gone already is no error.
pub fn signal(pid: Pid, signal: Signal) {
    // ESRCH is the only failure left between processes of our own, and it says what we want.
    let _ = kill_process(pid, signal);
}

/// Kills everything below `dir`, again and again until nothing is left (a postmaster may be forking).
pub fn kill_below(dir: &Path) {
    for _ in 0..1000 {
        let found = below(dir);
        if found.is_empty() {
            return;
        }
        for pid in found {
            signal(pid, Signal::KILL);
        }
    }
}

/// Freezes everything below `dir`; looks again until no process is found running.
pub fn freeze_below(dir: &Path) {
    for _ in 0..1000 {
        let running: Vec<Pid> =
            below(dir).into_iter().filter(|pid| state(*pid).is_some_and(|state| state != 'T' && state != 'Z')).collect();
        if running.is_empty() {
            return;
        }
        for pid in running {
            signal(pid, Signal::STOP);
        }
    }
}

/// Lets everything below `dir` go on.
pub fn thaw_below(dir: &Path) {
    for pid in below(dir) {
        signal(pid, Signal::CONT);
    }
}

/// The process's title as `ps` shows it.
pub fn title(pid: Pid) -> String {
    let raw = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let text: Vec<u8> = raw.into_iter().map(|byte| if byte == 0 { b' ' } else { byte }).collect();
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// The one-letter state from `/proc/<pid>/stat`; None once the process is gone.
pub fn state(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// True while the process lives (a zombie does not).
pub fn is_alive(pid: Pid) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// The System V segments that killed postmasters left on this machine: one of 56 bytes each, which a start in the same data directory
/// would have cleaned up. A machine has 4096 at most (`kernel.shmmni`), and a run of all stories leaves about a thousand.
///
/// Removes only those nobody is attached to and whose maker is gone, by which PostgreSQL itself takes one for an orphan.
pub fn remove_orphaned_segments() {
    let found = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let orphans: Vec<String> = found.lines().filter_map(orphaned_segment).flat_map(|id| ["-m".to_owned(), id]).collect();
    if !orphans.is_empty() {
        // Another test may have removed some of them meanwhile, and those of other users are not ours to remove: no error either.
        let _ = Command::new("ipcrm").args(orphans).output();
    }
}

/// The id of the segment that this line of `/proc/sysvipc/shm` describes (key, id, mode, size, maker's pid, last user's pid, attached, ...).
fn orphaned_segment(line: &str) -> Option<String> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, id, _, "56", maker, _, "0", ..] = fields[..] else { return None };
    let maker = Pid::from_raw(maker.parse().ok()?)?;
    state(maker).is_none().then(|| id.to_owned())
}
