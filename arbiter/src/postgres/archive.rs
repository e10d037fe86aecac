//! The user's commands that put a file into the archive and fetch one from there, called as PostgreSQL calls them.

use super::{read_if_there, remove_if_there};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Duration;
use tokio::process::Command;

/// One file of a few lines, or one segment.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a fetched file is called meanwhile.
const FETCHED: &str = "pg_wal/tenure.fetched";

/// From this exit code on a shell tells of itself, and PostgreSQL stops to recover.
const OF_THE_SHELL: i32 = 126;

/// Puts this file of `pg_wal` into the archive.
pub async fn put(archive_command: &str, data_dir: &Path, file: &str) -> Result<()> {
    let status = shell(&with_places(archive_command, &format!("pg_wal/{file}"), file), data_dir).await.context("archive_command")?;
    if !status.success() {
        bail!("archive_command ended with {status} for {file}");
    }
    Ok(())
}

/// The text of this name in the archive; None where it has none.
pub async fn get(restore_command: &str, data_dir: &Path, file: &str) -> Result<Option<String>> {
    let path = data_dir.join(FETCHED);
    remove_if_there(&path).await?;
    let status = shell(&with_places(restore_command, FETCHED, file), data_dir).await.context("restore_command")?;
    if status.code().is_none_or(|code| code >= OF_THE_SHELL) {
        bail!("restore_command ended with {status} for {file}");
    }
    let fetched = if status.success() { read_if_there(&path).await? } else { None };
    remove_if_there(&path).await?;
    Ok(fetched)
}

async fn shell(command: &str, data_dir: &Path) -> Result<std::process::ExitStatus> {
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command).current_dir(data_dir).kill_on_drop(true);
    tokio::time::timeout(PATIENCE, shell.status()).await.context("it takes too long")?.context("start it")
}

/// `%p`, `%f` and `%%`, as PostgreSQL puts them into these commands.
fn with_places(command: &str, path: &str, file: &str) -> String {
    let mut text = String::new();
    let mut letters = command.chars().peekable();
    while let Some(letter) = letters.next() {
        let place = (letter == '%').then(|| letters.peek().copied()).flatten();
        match place {
            Some('p') => text.push_str(path),
            Some('f') => text.push_str(file),
            Some('%') => text.push('%'),
            _ => {
                text.push(letter);
                continue;
            }
        }
        letters.next();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_say_which_file_and_where() {
        let command = with_places("test ! -f /archive/%f && cp %p /archive/%f # 100%% of %x", "pg_wal/0A", "0A");
        assert_eq!(command, "test ! -f /archive/0A && cp pg_wal/0A /archive/0A # 100% of %x");
        assert_eq!(with_places("end %", "p", "f"), "end %");
    }

    #[tokio::test]
    async fn what_is_in_the_archive_comes_back_and_what_is_not_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("data");
        std::fs::create_dir_all(data_dir.join("pg_wal")).unwrap();
        std::fs::write(data_dir.join("pg_wal/00000002.history"), "1\t0/10\tx\n").unwrap();
        put("cp %p ../%f", &data_dir, "00000002.history").await.unwrap();
        let get = async |command, file| get(command, &data_dir, file).await.map_err(|why| format!("{why:#}"));
        assert_eq!(get("cp ../%f %p", "00000002.history").await, Ok(Some("1\t0/10\tx\n".to_owned())));
        assert_eq!(get("cp ../%f %p 2>/dev/null", "00000003.history").await, Ok(None));
        assert!(get("exit 127", "00000003.history").await.unwrap_err().contains("restore_command ended with"));
        assert!(put("false", &data_dir, "00000002.history").await.is_err());
        assert!(!data_dir.join(FETCHED).exists());
    }
}
