//! The server's own history files: one that is damaged keeps a standby from starting, and can be had again; one that only occupies a
//! number does so, too.

use anyhow::{Context, Result};
use cluster::history::History;
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
    async fn what_only_occupied_a_number_goes_and_real_histories_stay() {
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path().join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        std::fs::write(wal.join("00000002.history"), History::placeholder(cluster::name::Timeline(1))).unwrap();
        std::fs::write(wal.join("00000003.history"), "1\t0/3000000\tno recovery target specified\n").unwrap();
        remove_placeholders(directory.path()).await.unwrap();
        assert!(!wal.join("00000002.history").exists() && wal.join("00000003.history").exists());
    }
}
