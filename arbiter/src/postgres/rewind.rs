//! Takes a data directory back to where it forked from the new primary's history, with pg_rewind.

use super::controldata;
use super::initdb::{LongOption, as_argument};
use super::marker::Incomplete;
use super::missing_wal::Missing;
use super::{Programs, read_if_there, remove_if_there, run, sync_data_directory, tail};
use anyhow::{Context, Result, bail};
use std::path::Path;

/// Options that are ours to give, or that would make the result unusable, as in Patroni.
pub const FORBIDDEN: [&str; 11] = [
    "target-pgdata",
    "source-pgdata",
    "source-server",
    "write-recovery-conf",
    "dry-run",
    "restore-target-wal",
    "config-file",
    "no-ensure-shutdown",
    "version",
    "help",
    "progress",
];

/// How pg_rewind is called besides its source and target.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// The user's long options.
    pub user: &'a [LongOption],
    /// A `restore_command` is set: WAL that the target lacks is fetched with it.
    pub restore_target_wal: bool,
}

/// How a rewind ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewound {
    /// The data directory can follow the source now.
    Done,
    /// The disk under it failed before anything was changed. That says nothing of the data: it can be done once the disk is well.
    DiskFailed {
        /// The last lines of the program that met it.
        why: String,
    },
    /// It can't be done; only a clone helps.
    NotPossible {
        /// The last lines that pg_rewind wrote.
        why: String,
        /// True where files were changed already: the directory stays marked and must not be started.
        half_done: bool,
    },
}

/// Rewinds `data_dir` to follow the server at `conninfo` (which names its passfile and a database).
/// The server of `data_dir` must be down. Where it was not shut down cleanly, one
/// single-user recovery comes first. An unreachable source is an error (try again), not `NotPossible`.
pub async fn rewind(programs: &Programs, data_dir: &Path, config_file: &Path, conninfo: &str, options: Options<'_>) -> Result<Rewound> {
    super::refuse_root()?;
    let mark = Incomplete::of(data_dir);
    if let Some(what) = mark.read().await? {
        // Half of a clone, or a target whose log is partly the source's already: pg_rewind would compare the wrong things and succeed.
        return Ok(Rewound::NotPossible { why: format!("the data directory was left half-made ({what})"), half_done: true });
    }
    let control = controldata::read(programs, data_dir).await?;
    if !control.state.is_clean()
        && let Err(why) = recover_alone(programs, data_dir, config_file).await
    {
        let words = format!("{why:#}");
        if passes(&words) {
            return Err(why);
        }
        if is_of_the_disk(&words) {
            return Ok(Rewound::DiskFailed { why: words });
        }
        return Ok(Rewound::NotPossible { why: words, half_done: false });
    }
    mark.set("rewind").await?;
    // Each round fetches one segment that pg_rewind missed; there are not more than the source still has.
    loop {
        let output = command(programs, data_dir, config_file, conninfo, options).output().await.context("start pg_rewind")?;
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        if output.status.success() {
            sync_data_directory(data_dir).await?;
            mark.clear().await?;
            return Ok(Rewound::Done);
        }
        let half_done = said.contains(FIRST_WRITE);
        let mut why = tail(&said);
        if !half_done && let Some(missing) = Missing::named_by(&said, data_dir) {
            match missing.fetch(programs, conninfo).await {
                Ok(()) => {
                    tracing::info!("pg_rewind missed {missing}; the source had it");
                    continue;
                }
                Err(error) => why = format!("{why}; the source was asked for {missing}: {error:#}"),
            }
        }
        if !half_done {
            mark.clear().await?;
        }
        if !half_done && is_unreachable(&said) {
            bail!("pg_rewind ended with {}: {why}", output.status);
        }
        if !half_done && is_of_the_disk(&why) {
            return Ok(Rewound::DiskFailed { why });
        }
        return Ok(Rewound::NotPossible { why, half_done });
    }
}

fn command(programs: &Programs, data_dir: &Path, config_file: &Path, conninfo: &str, options: Options<'_>) -> tokio::process::Command {
    let mut command = programs.command("pg_rewind");
    command.arg("--target-pgdata").arg(data_dir).arg("--progress").arg("--no-sync").arg(format!("--source-server={conninfo}"));
    command.args(options.user.iter().map(as_argument)).env(crate::ground::program::WORKS_ON, data_dir);
    if options.restore_target_wal {
        command.arg("--restore-target-wal");
        // Only where it is not where pg_rewind looks by itself: versions before 15 don't know the option.
        if config_file.parent() != Some(data_dir) {
            let mut argument = std::ffi::OsString::from("--config-file=");
            argument.push(config_file);
            command.arg(argument);
        }
    }
    command.kill_on_drop(true);
    command
}

/// The line that pg_rewind writes (with `--progress`) just before it changes the first file.
const FIRST_WRITE: &str = "need to copy";

/// True for failures of the connection, which say nothing of the data.
fn is_unreachable(said: &str) -> bool {
    let phrases = [
        "could not connect",
        "connection to server",
        "server closed the connection",
        "the database system is",
        "no connection to the server",
    ];
    phrases.iter().any(|phrase| said.contains(phrase))
}

/// True for failures to recover that say nothing of the data: tried again.
fn passes(said: &str) -> bool {
    let phrases = ["No space left on device", "Disk quota exceeded", "lock file", "memory", "Too many open files", "Resource temporarily"];
    phrases.iter().any(|phrase| said.contains(phrase))
}

/// True where a disk did not do what it was told: here, or under the source. Whether it will is not to be told from here.
fn is_of_the_disk(said: &str) -> bool {
    ["Input/output error", "Read-only file system", "Structure needs cleaning"].iter().any(|phrase| said.contains(phrase))
}

/// Runs crash recovery in single-user mode, so that the data directory ends with a clean shutdown checkpoint.
/// The extension and everybody else's libraries stay out, and nothing is archived: this history is about to be dropped.
pub async fn recover_alone(programs: &Programs, data_dir: &Path, config_file: &Path) -> Result<()> {
    // A backup label asks for recovery from a backup, which single-user mode would take for a crash: pg_rewind decides.
    if read_if_there(&data_dir.join("backup_label")).await?.is_some() {
        return Ok(());
    }
    for signal in ["standby.signal", "recovery.signal"] {
        remove_if_there(&data_dir.join(signal)).await?;
    }
    let mut command = programs.command("postgres");
    command.arg("--single").arg("-D").arg(data_dir);
    if read_if_there(config_file).await?.is_some() {
        let mut setting = std::ffi::OsString::from("config_file=");
        setting.push(config_file);
        command.arg("-c").arg(setting);
    }
    for setting in
        ["archive_mode=on", "archive_command=false", "shared_preload_libraries=", "synchronous_standby_names=", "logging_collector=off"]
    {
        command.arg("-c").arg(setting);
    }
    command.arg("template1");
    run(command).await.context("recover in single-user mode").map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreachable_source_says_nothing_of_the_data() {
        assert!(is_unreachable("pg_rewind: error: connection to server at \"127.0.0.1\", port 1 failed: Connection refused"));
        assert!(passes("FATAL:  lock file \"postmaster.pid\" already exists"));
        assert!(!passes("PANIC:  could not locate a valid checkpoint record"));
        assert!(is_of_the_disk("PANIC:  could not fdatasync file \"000000010000000000000003\": Input/output error"));
        assert!(!is_of_the_disk("PANIC:  could not locate a valid checkpoint record"));
        assert!(!is_unreachable("pg_rewind: error: could not find common ancestor of the source and target cluster's timelines"));
    }
}
