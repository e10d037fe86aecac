//! How this node is, seen from outside of the server: does the disk take a write, does the server take a connection, what is free?
//!
//! A disk that hangs holds every thread that touches it, so what asks it runs on a thread for blocking calls, one at a time, and how long
//! it has been under way is an answer too.

use crate::node::Node;
use crate::node::snapshot::Snapshot;
use crate::postgres::query::{is_refusal, is_starting};
use crate::postgres::reserve;
use anyhow::{Context, Result};
use cluster::health::{Mode, Rules, Vitals, rounded};
use cluster::local::Postgres;
use std::fs::{self, File};
use std::io::ErrorKind;
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

/// A question under way, or its last answer.
struct Question<T> {
    under_way: Option<(JoinHandle<T>, Instant)>,
    next: Instant,
}

impl<T> Question<T> {
    fn new() -> Question<T> {
        Question { under_way: None, next: Instant::now() }
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
    let (mut disk, mut door) = (Question::<Result<Option<Disk>>>::new(), Question::<Result<Duration>>::new());
    let (mut disk_ms, mut space, mut fault) = (Duration::ZERO, None, None);
    let mut shut_since: Option<Instant> = None;
    let mut door_took = Duration::ZERO;
    let mut reserved = Question::<()>::new();
    loop {
        let (rules, serves) = {
            let snapshot = shown.borrow();
            let serves = matches!(snapshot.local.postgres, Postgres::Primary { .. } | Postgres::Standby { .. } | Postgres::Silent);
            (Rules::of(&node.dynamic(&snapshot.view)), serves)
        };
        if rules.mode == Mode::Off {
            node.vitals.note(None);
            let _ = reserved.answer().await;
            if serves {
                let data_dir = node.config.postgres.data_dir.clone();
                reserved.ask(move || tokio::task::spawn_blocking(move || keep_reserve(&data_dir, &rules)));
            }
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
            Some((Err(why), _)) if is_starting(&why) || is_refusal(&why) => (door_took, shut_since) = (Duration::ZERO, None),
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
            // In steps, so that the member key is not written again for each MB.
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

/// Writes a few bytes to each disk of the server and waits until they are there. Blocks, for as long as the disk does. None where no
/// server runs on the data: nothing may be put into a directory that a copy is about to fill.
fn ask_disk(data_dir: &Path, rules: &Rules) -> Result<Option<Disk>> {
    if !data_dir.join("postmaster.pid").exists() {
        return Ok(None);
    }
    let wal = fs::canonicalize(data_dir.join("pg_wal")).context("find pg_wal")?;
    let apart = fs::metadata(&wal)?.dev() != fs::metadata(data_dir)?.dev();
    let directories: Vec<&Path> = if apart { vec![data_dir, &wal] } else { vec![data_dir] };
    let mut free_mb = u64::MAX;
    for directory in &directories {
        free_mb = free_mb.min(reserve::free_mb(directory)?);
    }
    keep_reserve(data_dir, rules);
    let began = Instant::now();
    let written = directories.iter().try_for_each(|directory| write(&directory.join(PROBE)));
    let fault = written.err().filter(|why| why.kind() != ErrorKind::NotFound).map(|why| why.to_string());
    Ok(Some(Disk { free_mb, fault, took: began.elapsed() }))
}

/// Also where nobody looks at how the server is: a planned change of leader needs it.
fn keep_reserve(data_dir: &Path, rules: &Rules) {
    if let Err(why) = reserve::keep(data_dir, rules.reserve_mb, rules.disk_free_mb) {
        tracing::debug!("{why:#}");
    }
}

fn write(path: &PathBuf) -> std::io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).open(path)?;
    file.write_all_at(&[0; 512], 0)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_put_where_no_server_runs() {
        let room = tempfile::tempdir().unwrap();
        let rules = Rules { reserve_mb: 1, disk_free_mb: 0, ..Rules::of(&cluster::config::DynamicConfig::default()) };
        assert!(ask_disk(room.path(), &rules).unwrap().is_none());
        assert_eq!(fs::read_dir(room.path()).unwrap().count(), 0);
        fs::write(room.path().join("postmaster.pid"), "").unwrap();
        fs::create_dir(room.path().join("pg_wal")).unwrap();
        let said = ask_disk(room.path(), &rules).unwrap().unwrap();
        assert!(said.fault.is_none() && said.free_mb > 0);
        assert!(room.path().join(PROBE).exists());
    }
}
