//! Processes found by their working directory, and what befalls them: kill, freeze, thaw.
//!
//! Postgres' children leave their parent's process group, so a group can't hold them; but each has the
//! data directory as its working directory, and that lies in the test's room.

use rustix::process::kill_process;
pub use rustix::process::{Pid, Signal};
use std::fs;
use std::path::Path;

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
