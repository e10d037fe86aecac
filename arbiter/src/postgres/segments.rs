//! The segments of WAL that are in the data directory.

use anyhow::{Context, Result};
use cluster::lsn::Lsn;
use cluster::name::Timeline;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt;

/// Where the WAL that is here ends, at a segment's end, seen from a position in it: the begin of the first segment that is not
/// here. Segments that wait for their turn under a future name (recycled) don't count: their first page is of another place.
pub async fn end_of_wal(data_dir: &Path, position: Lsn, segment_bytes: u64) -> Result<Lsn> {
    let wal = data_dir.join("pg_wal");
    let mut present: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    let mut entries = tokio::fs::read_dir(&wal).await.with_context(|| format!("list {}", wal.display()))?;
    while let Some(entry) = entries.next_entry().await? {
        if let Some(number) = entry.file_name().to_str().and_then(|name| number_of(name, segment_bytes)) {
            present.entry(number).or_default().push(entry.path());
        }
    }
    let mut number = position.0.saturating_sub(1) / segment_bytes + 1;
    while let Some(paths) = present.get(&number) {
        let mut whole = false;
        for path in paths {
            whole |= first_page(path).await? == Some(number * segment_bytes);
        }
        if !whole {
            break;
        }
        number += 1;
    }
    Ok(Lsn(number * segment_bytes))
}

/// The name of the segment that holds a position.
pub fn name(timeline: Timeline, lsn: Lsn, segment_bytes: u64) -> String {
    let (number, per_id) = (lsn.0 / segment_bytes, (1u64 << 32) / segment_bytes);
    format!("{:08X}{:08X}{:08X}", timeline.0, number / per_id, number % per_id)
}

/// The number of the segment with this name, counted from the begin of all WAL.
fn number_of(name: &str, segment_bytes: u64) -> Option<u64> {
    if name.len() != 24 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let part = |from: usize| u64::from_str_radix(&name[from..from + 8], 16).ok();
    Some(part(8)? * ((1 << 32) / segment_bytes) + part(16)?)
}

/// The position of a segment's first page, as its header has it (`xlp_pageaddr`, after magic, flags and timeline).
async fn first_page(path: &Path) -> Result<Option<u64>> {
    let mut header = [0; 16];
    let read = async { tokio::fs::File::open(path).await?.read_exact(&mut header).await };
    match read.await {
        Ok(_) => Ok(Some(u64::from_ne_bytes(header[8..].try_into().context("eight bytes")?))),
        // Removed or recycled since the listing, or not filled yet.
        Err(why) if matches!(why.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => Ok(None),
        Err(why) => Err(why).with_context(|| format!("read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_named_as_postgresql_names_them() {
        const MIB: u64 = 1 << 20;
        for (timeline, lsn, bytes, expected) in [
            (1, 0x0100_0028, 16 * MIB, "000000010000000000000001"),
            (3, 0xA_FF00_0000, 16 * MIB, "000000030000000A000000FF"),
            (2, 0x1_0010_0000, MIB, "000000020000000100000001"),
        ] {
            assert_eq!(name(Timeline(timeline), Lsn(lsn), bytes), expected);
        }
    }

    #[tokio::test]
    async fn the_log_ends_before_the_first_segment_that_is_missing_or_of_another_place() {
        const SEGMENT: u64 = 16 << 20;
        let directory = tempfile::tempdir().unwrap();
        let wal = directory.path().join("pg_wal");
        std::fs::create_dir(&wal).unwrap();
        let segment = |name: &str, page: u64| {
            let header = [&[0; 8][..], &page.to_ne_bytes()].concat();
            std::fs::write(wal.join(name), header).unwrap();
        };
        segment("000000010000000000000003", 3 * SEGMENT);
        segment("000000020000000000000004", 4 * SEGMENT);
        // Recycled: its page is that of an earlier segment.
        segment("000000020000000000000005", SEGMENT);
        std::fs::write(wal.join("00000002.history"), "x").unwrap();
        let end = async |position| end_of_wal(directory.path(), Lsn(position), SEGMENT).await.unwrap().0 / SEGMENT;
        for (position, number) in [(3 * SEGMENT + 100, 5), (4 * SEGMENT, 5), (4 * SEGMENT + 1, 5), (5 * SEGMENT, 5), (6 * SEGMENT + 1, 7)] {
            assert_eq!(end(position).await, number, "{}", Lsn(position));
        }
        assert_eq!(number_of("0000000100000001000000FF", SEGMENT), Some(511));
        assert_eq!(number_of("000000010000000100000000.partial", SEGMENT), None);
    }
}
