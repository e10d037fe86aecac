//! How this node is, seen from outside of the server: does the disk take a write, does the server take a connection, what is free?
//!
//! A disk that hangs holds whoever touches it, so what asks it runs on a thread for blocking calls, one at a time, and how long
//! it has been under way is an answer too.

use crate::node::Node;
use crate::node::snapshot::Snapshot;
use crate::postgres::query::{is_refusal, is_starting};
use anyhow::{Context, Result};
use cluster::health::{Mode, Rules, Vitals, rounded};
use cluster::local::Postgres;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// Between two questions, to the disk and to the server.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// PostgreSQL takes what begins like this for a temporary file: no base backup has it.
const PROBE: &str = "pgsql_tmp.tenure_probe";
const RESERVE: &str = "pgsql_tmp.tenure_reserve";

const MB: u64 = 1 << 20;

/// A question under way, or its last answer.
struct Asked<T> {
    under_way: Option<(JoinHandle<T>, Instant)>,
    next: Instant,
}

impl<T> Asked<T> {
    fn new() -> Asked<T> {
        Asked { under_way: None, next: Instant::now() }
    }

    /// The answer, where it has come: with how long it took.
    async fn answer(&mut self) -> Option<(T, Duration)> {
        let (task, since) = self.under_way.take_if(|(task, _)| task.is_finished())?;
        Some((task.await.ok()?, since.elapsed()))
    }

    fn ask(&mut self, begin: impl FnOnce() -> JoinHandle<T>) {
        if self.under_way.is_none() && Instant::now() >= self.next {
            self.next = Instant::now() + ASK_EVERY;
            self.under_way = Some((begin(), Instant::now()));
        }
    }

    /// For how long it has been under way.
    fn for_long(&self) -> Duration {
        self.under_way.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }
}

/// What the disk said.
struct Disk {
    free_mb: u64,
    fault: Option<String>,
    took: Duration,
}

/// Looks for as long as the future is polled.
pub async fn keep(node: Node, shown: watch::Receiver<Snapshot>) {
    let (mut disk, mut door) = (Asked::<Result<Option<Disk>>>::new(), Asked::<Result<Duration>>::new());
    let (mut disk_ms, mut space, mut fault) = (Duration::ZERO, None, None);
    let mut shut_since: Option<Instant> = None;
    let mut door_took = Duration::ZERO;
    loop {
        let (rules, serves) = {
            let snapshot = shown.borrow();
            let serves = matches!(snapshot.local.postgres, Postgres::Primary { .. } | Postgres::Standby { .. } | Postgres::Silent);
            (Rules::of(&node.dynamic(&snapshot.view)), serves)
        };
        if rules.mode == Mode::Off {
            node.vitals.note(None);
            tokio::time::sleep(EVERY).await;
            continue;
        }
        match disk.answer().await {
            Some((Ok(Some(said)), _)) => (disk_ms, space, fault) = (said.took, Some(said.free_mb), said.fault),
            Some((Ok(None), _)) => (disk_ms, fault) = (Duration::ZERO, None),
            Some((Err(why), _)) => tracing::debug!("ask the disk: {why:#}"),
            None => {}
        }
        match door.answer().await {
            Some((Ok(took), _)) => (door_took, shut_since) = (took, None),
            Some((Err(why), _)) if is_starting(&why) || is_refusal(&why) && !is_crowded(&why) => {
                (door_took, shut_since) = (Duration::ZERO, None)
            }
            // The question itself gave up after seconds.
            Some((Err(_), took)) => drop(shut_since.get_or_insert_with(|| Instant::now() - took)),
            None => {}
        }
        if serves {
            let data_dir = node.config.postgres.data_dir.clone();
            disk.ask(move || tokio::task::spawn_blocking(move || ask_disk(&data_dir, &rules)));
            let sql = node.sql.clone();
            door.ask(move || {
                tokio::spawn(async move {
                    let began = Instant::now();
                    sql.open_as("tenure arbiter, new connection", None, "").await?;
                    Ok(began.elapsed())
                })
            });
        } else {
            (door_took, shut_since) = (Duration::ZERO, None);
        }
        let shut_for =
            shut_since.map_or(Duration::ZERO, |since| since.elapsed()).max(if serves { door.for_long() } else { Duration::ZERO });
        let few = |free: &u64| *free < rules.disk_free_mb * 2;
        let seen = Vitals {
            disk_ms: rounded(disk_ms.max(disk.for_long())),
            connect_ms: rounded(door_took.max(shut_for)),
            // Four steps for each power of two, as with durations.
            disk_free_mb: space.filter(few).map(|free| free - free % 8),
            disk_fault: fault.clone(),
            ..Vitals::default()
        };
        let has_symptoms = !seen.symptoms(&rules).is_empty();
        if node.vitals.note(Some(seen)) || has_symptoms {
            node.wake.notify_one();
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// All slots are taken, those that are kept for a superuser too.
fn is_crowded(why: &anyhow::Error) -> bool {
    why.chain()
        .filter_map(|cause| cause.downcast_ref::<tokio_postgres::Error>())
        .any(|error| error.code() == Some(&tokio_postgres::error::SqlState::TOO_MANY_CONNECTIONS))
}

/// Writes a few bytes to each disk of the server and waits until they are there. Blocks, for as long as the disk does. None where no
/// server runs on the data: nothing may be put into a directory that a copy is about to fill.
fn ask_disk(data_dir: &Path, rules: &Rules) -> Result<Option<Disk>> {
    if !data_dir.join("postmaster.pid").exists() {
        return Ok(None);
    }
    let wal = fs::canonicalize(data_dir.join("pg_wal")).context("find pg_wal")?;
    let apart = fs::metadata(&wal)?.dev() != fs::metadata(data_dir)?.dev();
    let directories: Vec<&Path> = if apart { vec![data_dir, &wal] } else { vec![data_dir] };
    let free = |directory: &Path| -> Result<u64> {
        let space = rustix::fs::statvfs(directory).with_context(|| format!("ask {} for its space", directory.display()))?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize) / MB)
    };
    let mut free_mb = u64::MAX;
    for directory in &directories {
        free_mb = free_mb.min(free(directory)?);
    }
    if let Err(why) = keep_reserve(&wal, free(&wal)?, rules) {
        tracing::debug!("{why:#}");
    }
    let began = Instant::now();
    let written = directories.iter().try_for_each(|directory| write(&directory.join(PROBE)));
    let fault = written.err().filter(|why| why.kind() != ErrorKind::NotFound).map(|why| why.to_string());
    Ok(Some(Disk { free_mb, fault, took: began.elapsed() }))
}

fn write(path: &PathBuf) -> std::io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(&[0; 512], 0)?;
    file.sync_data()
}

/// Space that only this arbiter can give back: with it a server whose disk is full writes its last checkpoint.
fn keep_reserve(wal: &Path, free_mb: u64, rules: &Rules) -> Result<()> {
    let path = wal.join(RESERVE);
    let wanted = if rules.mode == Mode::Act { rules.reserve_mb } else { 0 };
    let there = path.exists();
    let spare = wanted / 4;
    if there && (wanted == 0 || free_mb <= spare) {
        fs::remove_file(&path).with_context(|| format!("free {}", path.display()))?;
        if wanted > 0 {
            tracing::error!("the disk of {} is full: the {wanted} MB that were kept for a clean stop are freed", wal.display());
        }
    } else if !there && wanted > 0 && free_mb > rules.disk_free_mb.max(spare) + 2 * wanted {
        let mut file = File::options().write(true).create_new(true).open(&path).with_context(|| format!("make {}", path.display()))?;
        let kept = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, wanted * MB);
        if let Err(why) = kept {
            let _ = fs::remove_file(&path);
            return Err(why).context("keep space for a clean stop");
        }
        file.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(mode: Mode, reserve_mb: u64) -> Rules {
        let config = cluster::config::DynamicConfig::default();
        Rules { mode, reserve_mb, disk_free_mb: 0, ..Rules::of(&config) }
    }

    #[test]
    fn the_reserve_is_there_while_there_is_room_and_somebody_would_use_it() {
        let room = tempfile::tempdir().unwrap();
        let there = || room.path().join(RESERVE).exists();
        for (mode, free_mb, expected) in [
            (Mode::Observe, 1000, false),
            (Mode::Act, 3, false),
            (Mode::Act, 1000, true),
            (Mode::Act, 3, true),
            (Mode::Act, 1, false),
            (Mode::Act, 1000, true),
            (Mode::Observe, 1000, false),
        ] {
            keep_reserve(room.path(), free_mb, &rules(mode, 4)).unwrap();
            assert_eq!(there(), expected, "{mode:?} with {free_mb} MB free");
        }
    }

    #[test]
    fn nothing_is_put_where_no_server_runs() {
        let room = tempfile::tempdir().unwrap();
        assert!(ask_disk(room.path(), &rules(Mode::Act, 1)).unwrap().is_none());
        assert_eq!(fs::read_dir(room.path()).unwrap().count(), 0);
        fs::write(room.path().join("postmaster.pid"), "").unwrap();
        fs::create_dir(room.path().join("pg_wal")).unwrap();
        let said = ask_disk(room.path(), &rules(Mode::Observe, 1)).unwrap().unwrap();
        assert!(said.fault.is_none() && said.free_mb > 0);
        assert!(room.path().join(PROBE).exists());
    }
}
