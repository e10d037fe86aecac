//! A segment that this data directory lacks, fetched from the server that it is to follow: one that pg_rewind needs and that was removed here, or
//! the first of a timeline.
//!
//! pg_rewind begins at the last checkpoint before the fork. A primary removes WAL by its newest checkpoint and by the slots of
//! its standbys, which hold what they have not confirmed: where it went on alone for long, its own checkpoints remove the segments
//! between the two. Everything before the fork is the same on both sides, and a standby keeps it since its last restart point.

use super::{Programs, psql, segments, write_atomically};
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use cluster::history::Begin;
use cluster::lsn::Lsn;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Bytes of a segment that one question asks for: its answer stays far below what a value may have (1 GB).
const CHUNK_BYTES: usize = 16 << 20;

/// A segment that is missing here, whole before the fork.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    path: PathBuf,
    name: String,
    fork: Lsn,
}

impl Missing {
    /// The segment of `data_dir` that pg_rewind could not open, as it says; None for any other failure.
    pub fn named_by(said: &str, data_dir: &Path) -> Option<Missing> {
        let fork = after(said, "servers diverged at WAL location ")?.split_whitespace().next()?.parse().ok()?;
        let (path, rest) = after(said, "could not open file \"")?.split_once('"')?;
        let path = PathBuf::from(path);
        let name = path.file_name()?.to_str()?.to_owned();
        let is_segment = name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
        let is_here = path.parent() == Some(&data_dir.join("pg_wal")) && rest.starts_with(": No such file");
        (is_segment && is_here).then_some(Missing { path, name, fork })
    }

    /// Asks the server at `conninfo` for it, and writes it where pg_rewind looks.
    ///
    /// # Errors
    ///
    /// Where the source can't be asked, does not have it, or has something else under its name.
    pub async fn fetch(&self, programs: &Programs, conninfo: &str) -> Result<()> {
        let segment = of_source(programs, conninfo, &self.name).await?;
        ensure!(!segment.is_empty(), "it has removed it too");
        self.judge(&segment)?;
        write_atomically(&self.path, &segment, 0o600).await
    }

    /// Whether these bytes are the segment of this name, and all of it lies before the fork.
    fn judge(&self, segment: &[u8]) -> Result<()> {
        let begin = begin(&self.name, segment)?;
        let bytes = segment.len() as u64;
        // From the fork on, two histories have the same name for different contents.
        ensure!(begin + bytes <= self.fork.0, "the histories part in it, at {}", self.fork);
        Ok(())
    }
}

/// The first segment of a timeline, which the server at `conninfo` is on or was on, for a data directory that is to recover along it: without it
/// recovery would go on with the file of the same place that the archive has of the timeline before, past the end of that. False where the source
/// has removed it, as only what is in the archive is removed. What is written of it meanwhile comes by streaming.
///
/// What lies in it before the timeline begins is the end of the one before. It is put into that one's own file, too, and first: PostgreSQL replays it out of
/// the new file, and reads a transaction that was prepared there once more by the timeline on which it was written. Without it the startup process
/// ends at each start ("could not read two-phase state from WAL").
pub async fn first_of(begin_of: Begin, segment_bytes: u64, data_dir: &Path, programs: &Programs, conninfo: &str) -> Result<bool> {
    let of = |timeline| segments::name(timeline, begin_of.at, segment_bytes);
    let name = of(begin_of.timeline);
    let path = data_dir.join("pg_wal").join(&name);
    if tokio::fs::try_exists(&path).await? {
        return Ok(true);
    }
    let segment = of_source(programs, conninfo, &name).await.with_context(|| format!("ask the leader for {name}"))?;
    if segment.is_empty() {
        return Ok(false);
    }
    begin(&name, &segment).with_context(|| format!("ask the leader for {name}"))?;
    let before = data_dir.join("pg_wal").join(of(begin_of.parent));
    let here = match tokio::fs::read(&before).await {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        read => Some(read.with_context(|| format!("read {}", before.display()))?),
    };
    if let Some(end) = end_before(&segment, begin_of.at, here.as_deref()) {
        write_atomically(&before, &end, 0o600).await?;
    }
    write_atomically(&path, &segment, 0o600).await?;
    Ok(true)
}

/// What the last segment of the timeline before is to be: its end out of the next one's first segment, up to where that begins, and nothing after that.
/// None where that is `here` already; what follows it here then stays, whatever it is.
fn end_before(segment: &[u8], begins: Lsn, here: Option<&[u8]>) -> Option<Vec<u8>> {
    let bytes = segment.len();
    let end = usize::try_from(begins.0 % bytes as u64).ok().filter(|end| *end > 0)?;
    if here.is_some_and(|here| here.len() == bytes && here[..end] == segment[..end]) {
        return None;
    }
    let mut whole = vec![0; bytes];
    whole[..end].copy_from_slice(&segment[..end]);
    Some(whole)
}

/// What the server at `conninfo` has under this name; empty where it has no such file.
async fn of_source(programs: &Programs, conninfo: &str, name: &str) -> Result<Vec<u8>> {
    let mut segment = Vec::new();
    loop {
        // The four arguments that pg_rewind's own role may call.
        let question = format!(
            "SELECT pg_catalog.encode(pg_catalog.pg_read_binary_file('pg_wal/{name}', {}, {CHUNK_BYTES}, true), 'base64')",
            segment.len()
        );
        let answer = psql::ask(programs, conninfo, &question).await?;
        let text = answer.split_whitespace().collect::<String>();
        let chunk = base64::engine::general_purpose::STANDARD.decode(text).context("understand the answer")?;
        segment.extend_from_slice(&chunk);
        if chunk.len() < CHUNK_BYTES {
            return Ok(segment);
        }
    }
}

/// Where these bytes begin, if they are the segment of this name.
fn begin(name: &str, segment: &[u8]) -> Result<u64> {
    let bytes = segment.len() as u64;
    ensure!(bytes.is_power_of_two() && bytes >= 1 << 20, "it has {bytes} bytes under that name, which is no segment");
    let part = |from: usize| u64::from_str_radix(&name[from..from + 8], 16).unwrap_or_default();
    let begin = part(8) << 32 | (part(16) * bytes);
    let header = |from: usize| segment[from..].first_chunk().map(|field| u64::from_ne_bytes(*field));
    // `xlp_pageaddr` of the first page, after magic, flags and timeline: a recycled file still carries the place that it had.
    if header(8) != Some(begin) {
        bail!("what it has under that name is of another place");
    }
    Ok(begin)
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the WAL segment {}", self.name)
    }
}

fn after<'a>(text: &'a str, words: &str) -> Option<&'a str> {
    text.split_once(words).map(|(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "pg_rewind: connected to server\npg_rewind: servers diverged at WAL location 1/B6E4F758 on timeline 57\n\
                        pg_rewind: error: could not open file \"/data/pg_wal/0000003900000001000000B5\": No such file or directory";

    fn missing(said: &str) -> Option<Missing> {
        Missing::named_by(said, Path::new("/data"))
    }

    #[test]
    fn the_end_of_the_timeline_before_is_in_its_own_file_too() {
        const BYTES: usize = 1 << 20;
        let segment: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8 + 1).collect();
        let begins = Lsn((7 << 20) + 1000);
        let whole = |file: &[u8]| file.len() == BYTES && file[..1000] == segment[..1000] && file[1000..].iter().all(|byte| *byte == 0);
        assert!(whole(&end_before(&segment, begins, None).unwrap()), "none is here");
        let mut recycled = segment.clone();
        recycled[999] = 0;
        assert!(whole(&end_before(&segment, begins, Some(&recycled)).unwrap()), "less of it is here");
        assert!(whole(&end_before(&segment, begins, Some(&segment[..2000])).unwrap()), "a file that is cut short");
        let mut past = segment.clone();
        past[1000..].fill(9);
        assert_eq!(end_before(&segment, begins, Some(&past)), None, "it is here, with something after it");
        assert_eq!(end_before(&segment, Lsn(7 << 20), None), None, "nothing of it is in this segment");
    }

    #[test]
    fn pg_rewind_names_the_segment_that_it_misses() {
        let found = missing(SAID).unwrap();
        assert_eq!((found.name.as_str(), found.fork), ("0000003900000001000000B5", Lsn(0x1_B6E4_F758)));
        for (from, to) in [
            ("No such file", "Permission denied"),
            ("/data/pg_wal/", "/elsewhere/pg_wal/"),
            ("0000003900000001000000B5", "00000039.history"),
            ("servers diverged", "something else"),
        ] {
            assert_eq!(missing(&SAID.replace(from, to)), None, "{to}");
        }
    }

    #[test]
    fn only_a_whole_segment_of_this_place_before_the_fork_is_taken() {
        const SEGMENT: usize = 16 << 20;
        let segment = |begin: u64, bytes: usize| {
            let mut segment = vec![0; bytes];
            segment[8..16].copy_from_slice(&begin.to_ne_bytes());
            segment
        };
        let found = missing(SAID).unwrap();
        let says = |segment: &[u8]| found.judge(segment).map_err(|why| why.to_string());
        assert_eq!(says(&segment(0x1_B500_0000, SEGMENT)), Ok(()));
        assert!(says(&segment(0x1_B500_0000, SEGMENT - 1)).unwrap_err().contains("no segment"));
        assert!(says(&segment(0x1_B400_0000, SEGMENT)).unwrap_err().contains("another place"));
        let at_the_fork = missing(&SAID.replace("00B5\"", "00B6\"")).unwrap();
        assert!(at_the_fork.judge(&segment(0x1_B600_0000, SEGMENT)).unwrap_err().to_string().contains("part in it"));
    }
}
