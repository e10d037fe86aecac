//! A wall clock of each node's own, which steps; its monotonic and boot clocks are the kernel's.

use crate::room::Room;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is preloaded.
const SOURCE: &str = include_str!("clock.c");

/// The offset of one node's wall clock from the machine's.
pub struct Clock {
    library: PathBuf,
    offset: PathBuf,
}

impl Clock {
    /// Makes it, in step with the machine; an error where there is no C compiler.
    pub fn new(room: &Room, name: &str) -> Result<Clock> {
        let clock = Clock { library: room.path().join("clock.so"), offset: room.path().join(format!("{name}.clock")) };
        if !clock.library.exists() {
            build(&clock.library)?;
        }
        fs::write(&clock.offset, 0_i64.to_ne_bytes()).context("write a clock's offset")?;
        Ok(clock)
    }

    /// For the environment of a program that shall live by it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![("LD_PRELOAD".to_owned(), text(&self.library)), ("STORM_CLOCK".to_owned(), text(&self.offset))]
    }

    /// Steps to so many seconds from the machine's time: eight bytes in one write, so nobody reads a half of them.
    pub fn set(&self, seconds: i64) -> Result<()> {
        let file = File::options().write(true).open(&self.offset).context("open a clock's offset")?;
        file.write_all_at(&(seconds * 1_000_000_000).to_ne_bytes(), 0).context("step a clock")
    }
}

fn build(library: &Path) -> Result<()> {
    let source = library.with_extension("c");
    fs::write(&source, SOURCE).with_context(|| format!("write {}", source.display()))?;
    let output =
        Command::new("cc").args(["-O2", "-Wall", "-shared", "-fPIC", "-o"]).arg(library).arg(&source).output().context("run cc")?;
    if !output.status.success() {
        bail!("cc: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Prints every clock that Postgres and we read, by the calls they read it with.
    const PROBE: &str = "#include <stdio.h>\n#include <sys/time.h>\n#include <time.h>\n\
        static double at(clockid_t clock) { struct timespec now; clock_gettime(clock, &now); return now.tv_sec + now.tv_nsec / 1e9; }\n\
        int main(void) { struct timeval now; gettimeofday(&now, 0);\n\
        printf(\"%f %f %f %f %f\\n\", at(CLOCK_REALTIME), (double)now.tv_sec, (double)time(0), at(CLOCK_MONOTONIC), at(CLOCK_BOOTTIME)); }\n";

    #[test]
    fn the_wall_clock_steps_and_no_other() {
        let room = Room::new();
        let clock = Clock::new(&room, "n1").expect("make a clock");
        let (source, probe) = (room.path().join("probe.c"), room.path().join("probe"));
        fs::write(&source, PROBE).expect("write the probe");
        assert!(Command::new("cc").arg("-o").arg(&probe).arg(&source).status().expect("run cc").success());
        let read = |environment: Vec<(String, String)>| -> Vec<f64> {
            let output = Command::new(&probe).envs(environment).output().expect("run the probe");
            String::from_utf8_lossy(&output.stdout).split_whitespace().map(|word| word.parse().expect("a number")).collect()
        };
        for step in [0, 7200, -86_400, 3] {
            clock.set(step).expect("step");
            let (before, stepped, after) = (read(Vec::new()), read(clock.environment()), read(Vec::new()));
            for wall in 0..3 {
                let at = stepped[wall] - step as f64;
                // time() and the seconds of gettimeofday are whole.
                assert!(
                    at >= before[wall] - 0.001 && at <= after[wall] + 0.001,
                    "clock {wall} after a step of {step}: {stepped:?}, {before:?}"
                );
            }
            for steady in 3..5 {
                assert!(
                    stepped[steady] >= before[steady] && stepped[steady] <= after[steady],
                    "clock {steady} moved: {stepped:?}, {before:?}"
                );
            }
        }
    }
}
