//! The server's own history files: one that is damaged keeps a standby from starting, and can be had again.

use anyhow::{Context, Result};
use std::path::Path;

/// Renames the history files that PostgreSQL would refuse to `<name>.damaged`; gives their names. The walreceiver
/// gets a history that is missing from its upstream again, and a server starts without it.
pub async fn set_damaged_aside(data_dir: &Path) -> Result<Vec<String>> {
    let wal = data_dir.join("pg_wal");
    let mut damaged = Vec::new();
    let Ok(mut entries) = tokio::fs::read_dir(&wal).await else { return Ok(damaged) };
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(number) = name.strip_suffix(".history").filter(|stem| stem.len() == 8) else { continue };
        let Ok(timeline) = u32::from_str_radix(number, 16) else { continue };
        let bytes = tokio::fs::read(entry.path()).await.with_context(|| format!("read {}", entry.path().display()))?;
        if is_history(&bytes, timeline) {
            continue;
        }
        let aside = wal.join(format!("{name}.damaged"));
        tokio::fs::rename(entry.path(), &aside).await.with_context(|| format!("rename {}", entry.path().display()))?;
        damaged.push(name);
    }
    if !damaged.is_empty() {
        super::sync_directory(&wal).await?;
    }
    Ok(damaged)
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
}
