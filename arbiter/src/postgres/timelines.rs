//! The server's own history files: one that is damaged keeps a standby from starting, and can be had again; one that only occupies a
//! number does so, too, where none comes after it; and where one is missing in between, a search for the newest timeline ends there.

use anyhow::{Context, Result};
use cluster::history::History;
use cluster::name::Timeline;
use std::path::{Path, PathBuf};

/// Renames the history files that PostgreSQL would refuse to `<name>.damaged`; gives their names. The walreceiver
/// gets a history that is missing from its upstream again, and a server starts without it.
pub async fn set_damaged_aside(data_dir: &Path) -> Result<Vec<String>> {
    let damaged = histories(data_dir, |bytes, timeline| !is_history(bytes, timeline)).await?;
    for path in &damaged {
        let mut aside = path.clone().into_os_string();
        aside.push(".damaged");
        tokio::fs::rename(path, aside).await.with_context(|| format!("rename {}", path.display()))?;
    }
    sync_parent(&damaged).await?;
    Ok(damaged.iter().filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
}

/// Removes what a promotion wrote to pass over a number ([`History::placeholder`]). A server that is started takes the highest number
/// for the timeline to follow, and would refuse to: where the promotion was never finished, nothing higher is there.
pub async fn remove_placeholders(data_dir: &Path) -> Result<()> {
    let found = histories(data_dir, |bytes, _| std::str::from_utf8(bytes).is_ok_and(History::is_placeholder)).await?;
    for path in &found {
        tokio::fs::remove_file(path).await.with_context(|| format!("remove {}", path.display()))?;
    }
    sync_parent(&found).await
}

/// Writes the histories that are not here, so that no number up to the present timeline's is without one ([`History::files`]).
pub async fn complete(data_dir: &Path, files: &[(Timeline, String)]) -> Result<()> {
    let mut written = Vec::new();
    for (timeline, text) in files {
        let path = data_dir.join("pg_wal").join(file_name(*timeline));
        if super::read_if_there(&path).await?.is_none() {
            super::write_atomically(&path, text, 0o600).await?;
            written.push(timeline.to_string());
        }
    }
    if !written.is_empty() {
        tracing::info!("history files that were missing here were written as etcd has them, of the timelines {}", written.join(", "));
    }
    Ok(())
}

/// `00000002.history`.
pub fn file_name(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

/// The history files with such a content.
async fn histories(data_dir: &Path, wanted: impl Fn(&[u8], u32) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(data_dir.join("pg_wal")).await else { return Ok(found) };
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(number) = name.strip_suffix(".history").filter(|stem| stem.len() == 8) else { continue };
        let Ok(timeline) = u32::from_str_radix(number, 16) else { continue };
        let bytes = tokio::fs::read(entry.path()).await.with_context(|| format!("read {}", entry.path().display()))?;
        if wanted(&bytes, timeline) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

async fn sync_parent(changed: &[PathBuf]) -> Result<()> {
    match changed.first().and_then(|path| path.parent()) {
        Some(directory) => super::sync_directory(directory).await,
        None => Ok(()),
    }
}

/// As PostgreSQL reads it: lines of a timeline lower than this one and rising, and a position; comments and empty lines pass.
fn is_history(bytes: &[u8], timeline: u32) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let mut last = 0;
    for line in text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        let parent = words.next().and_then(|word| word.parse::<u32>().ok());
        let switch = words.next().and_then(|word| word.parse::<cluster::lsn::Lsn>().ok());
        match (parent, switch) {
            (Some(parent), Some(_)) if parent > last && parent < timeline => last = parent,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_postgres_refuses_is_put_aside_and_the_rest_stays() {
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path().join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        for (name, content) in [
            ("00000002.history", &b"1\t0/3000000\tno recovery target specified\n"[..]),
            ("00000003.history", b"garbage\n"),
            ("00000004.history", b"1\t0/3000000\tx\n\n3\t0/4000000\ty\n# end\n"),
            ("00000005.history", b"\xff\xfe\x00"),
            ("00000006.history", b"7\t0/3000000\tchild before parent\n"),
            ("000000010000000000000001", b"garbage"),
        ] {
            std::fs::write(wal.join(name), content).unwrap();
        }
        let mut damaged = set_damaged_aside(directory.path()).await.unwrap();
        damaged.sort();
        assert_eq!(damaged, ["00000003.history", "00000005.history", "00000006.history"]);
        assert!(wal.join("00000003.history.damaged").exists() && wal.join("00000002.history").exists());
    }

    #[tokio::test]
    async fn what_is_missing_is_written_and_what_is_there_stays() {
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path().join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        std::fs::write(wal.join("00000002.history"), "1\t0/20\tof that server\n").unwrap();
        let history = History::from_file("1\t0/10\tafter LSN 0/10\n").up_to(Timeline(4));
        complete(directory.path(), &history.files().unwrap()).await.unwrap();
        let text = |name| std::fs::read_to_string(wal.join(name)).unwrap();
        assert_eq!(text("00000002.history"), "1\t0/20\tof that server\n");
        assert!(History::is_placeholder(&text("00000003.history")));
        assert_eq!(text("00000004.history"), "1\t0/10\tafter LSN 0/10\n");
    }

    #[tokio::test]
    async fn what_only_occupied_a_number_goes_and_real_histories_stay() {
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path().join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        std::fs::write(wal.join("00000002.history"), History::placeholder(Timeline(1))).unwrap();
        std::fs::write(wal.join("00000003.history"), "1\t0/3000000\tno recovery target specified\n").unwrap();
        remove_placeholders(directory.path()).await.unwrap();
        assert!(!wal.join("00000002.history").exists() && wal.join("00000003.history").exists());
    }
}
