//! Clones a running server with pg_basebackup, telling how far it is.

use super::initdb::{LongOption, as_argument};
use super::marker::Incomplete;
use super::postmaster::Postmaster;
use super::{Programs, empty_directory, sync_data_directory, tail};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::process::Stdio;
use tokio::io::AsyncReadExt;

/// Options that are ours to give, or that would make something else than a data directory, as in Patroni.
pub const FORBIDDEN: [&str; 17] = [
    "pgdata",
    "format",
    "wal-method",
    "xlog-method",
    "gzip",
    "compress",
    "version",
    "dbname",
    "host",
    "port",
    "username",
    "password",
    "no-password",
    "progress",
    "target",
    "no-sync",
    "nosync",
];

/// Clones from `conninfo` (which names its passfile) into `data_dir`, emptied first. `what` goes into the mark
/// ("clone from db1"); `progress` hears each new percentage. On failure, the directory is empty again and unmarked; if this future is
/// dropped or the arbiter dies, pg_basebackup's half remains marked.
pub async fn basebackup(
    programs: &Programs,
    data_dir: &Path,
    conninfo: &str,
    options: &[LongOption],
    what: &str,
    mut progress: impl FnMut(u8),
) -> Result<()> {
    if let Some(running) = Postmaster::adopt(data_dir).await? {
        bail!("a server (process id {}) runs on {}: stop it before the directory is emptied", running.pid(), data_dir.display());
    }
    let mark = Incomplete::of(data_dir);
    mark.set(what).await?;
    empty_directory(data_dir).await?;
    let mut copied = copy(programs, data_dir, conninfo, options, &mut progress).await;
    if copied.is_ok() {
        copied = sync_data_directory(data_dir).await;
    }
    if copied.is_err() {
        empty_directory(data_dir).await.context("clean up after pg_basebackup")?;
    }
    mark.clear().await?;
    copied
}

async fn copy(programs: &Programs, data_dir: &Path, conninfo: &str, options: &[LongOption], progress: &mut impl FnMut(u8)) -> Result<()> {
    let mut command = programs.command("pg_basebackup");
    command.arg("--pgdata").arg(data_dir).args(arguments(conninfo, options)).env(crate::ground::program::WORKS_ON, data_dir);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().context("start pg_basebackup")?;
    let mut stderr = child.stderr.take().context("pg_basebackup has no stderr")?;
    let mut said = Said::default();
    let mut buffer = [0; 4096];
    loop {
        let read = stderr.read(&mut buffer).await.context("read what pg_basebackup says")?;
        if read == 0 {
            break;
        }
        said.hear(&String::from_utf8_lossy(&buffer[..read]), progress);
    }
    let status = child.wait().await.context("wait for pg_basebackup")?;
    if !status.success() {
        bail!("pg_basebackup ended with {status}: {}", tail(&said.other));
    }
    Ok(())
}

fn arguments(conninfo: &str, options: &[LongOption]) -> Vec<String> {
    let mut arguments: Vec<String> =
        ["--wal-method=stream", "--no-password", "--progress", "--no-sync"].iter().map(|argument| (*argument).to_owned()).collect();
    if !options.iter().any(|(name, _)| name == "checkpoint") {
        arguments.push("--checkpoint=fast".to_owned());
    }
    arguments.extend(options.iter().map(as_argument));
    arguments.push(format!("--dbname={conninfo}"));
    arguments
}

/// What the program said on stderr: progress lines are told apart from messages.
#[derive(Default)]
struct Said {
    unfinished: String,
    other: String,
    percent: Option<u8>,
}

impl Said {
    fn hear(&mut self, text: &str, progress: &mut impl FnMut(u8)) {
        self.unfinished.push_str(text);
        while let Some(end) = self.unfinished.find(['\r', '\n']) {
            let line: String = self.unfinished.drain(..=end).collect();
            match percent(line.trim()) {
                Some(percent) if self.percent != Some(percent) => {
                    self.percent = Some(percent);
                    progress(percent);
                }
                Some(_) => {}
                None => {
                    self.other.push_str(line.trim());
                    self.other.push('\n');
                }
            }
        }
    }
}

/// The percentage of a line like `23100/23108 kB (99%), 0/1 tablespace (/data/base/1)`.
fn percent(line: &str) -> Option<u8> {
    let (amount, rest) = line.split_once(" kB (")?;
    let (number, rest) = rest.split_once("%)")?;
    if !amount.starts_with(|c: char| c.is_ascii_digit()) || !rest.contains("tablespace") {
        return None;
    }
    number.trim().parse::<u8>().ok().map(|percent| percent.min(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_apart_from_messages_in_any_cutting() {
        let text = "waiting for checkpoint\n    0/23108 kB (0%), 0/1 tablespace\r 4096/23108 kB (17%), 0/1 tablespace (/d/base/1)\r 4096/23108 kB (17%), 0/1 tablespace\r23119/23108 kB (100%), 1/1 tablespace\npg_basebackup: error: could not (5%) do\n";
        for size in [1, 7, 4096] {
            let mut seen = Vec::new();
            let mut said = Said::default();
            for piece in text.as_bytes().chunks(size) {
                said.hear(std::str::from_utf8(piece).unwrap(), &mut |percent| seen.push(percent));
            }
            assert_eq!(seen, [0, 17, 100]);
            assert_eq!(said.other, "waiting for checkpoint\npg_basebackup: error: could not (5%) do\n");
        }
    }

    #[test]
    fn the_users_options_come_between_and_may_spread_the_checkpoint() {
        let options = [
            ("max-rate".to_owned(), Some("100M".to_owned())),
            ("checkpoint".to_owned(), Some("spread".to_owned())),
            ("verbose".to_owned(), None),
        ];
        assert_eq!(
            arguments("host=a", &options),
            [
                "--wal-method=stream",
                "--no-password",
                "--progress",
                "--no-sync",
                "--max-rate=100M",
                "--checkpoint=spread",
                "--verbose",
                "--dbname=host=a"
            ]
        );
        assert!(arguments("host=a", &[]).contains(&"--checkpoint=fast".to_owned()));
    }
}
