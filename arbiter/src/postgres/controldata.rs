//! What `pg_control` says of a data directory, read through `pg_controldata`.

use super::{Programs, run};
use anyhow::{Context, Result};
use cluster::lsn::Lsn;
use cluster::name::{SystemId, Timeline};
use std::collections::HashMap;
use std::path::Path;

/// What the server noted of itself when it last wrote `pg_control`: PostgreSQL's own phrases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    StartingUp,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
}

impl ClusterState {
    const PHRASES: [(ClusterState, &'static str); 7] = [
        (ClusterState::StartingUp, "starting up"),
        (ClusterState::ShutDown, "shut down"),
        (ClusterState::ShutDownInRecovery, "shut down in recovery"),
        (ClusterState::ShuttingDown, "shutting down"),
        (ClusterState::InCrashRecovery, "in crash recovery"),
        (ClusterState::InArchiveRecovery, "in archive recovery"),
        (ClusterState::InProduction, "in production"),
    ];

    /// True where the server ended by its own will and needs no crash recovery.
    pub fn is_clean(self) -> bool {
        matches!(self, ClusterState::ShutDown | ClusterState::ShutDownInRecovery)
    }

    /// True where the data directory was a primary's when it was last written.
    pub fn was_primary(self) -> bool {
        matches!(self, ClusterState::ShutDown | ClusterState::ShuttingDown | ClusterState::InCrashRecovery | ClusterState::InProduction)
    }
}

impl std::fmt::Display for ClusterState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let phrase = Self::PHRASES.iter().find_map(|(state, phrase)| (state == self).then_some(*phrase));
        f.write_str(phrase.unwrap_or("unknown"))
    }
}

/// The facts of `pg_control` that decisions need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlData {
    /// Which database system this is a copy of.
    pub system_id: SystemId,
    /// How it was left.
    pub state: ClusterState,
    /// The latest checkpoint's timeline.
    pub timeline: Timeline,
    /// Where the latest checkpoint record is.
    pub checkpoint: Lsn,
    /// Where recovery from that checkpoint begins.
    pub redo: Lsn,
    /// A standby may not be used before it has replayed to here.
    pub min_recovery_end: Lsn,
    /// The timeline of `min_recovery_end`.
    pub min_recovery_timeline: Timeline,
    /// Where an online backup ends that is not yet replayed; invalid when there is none.
    pub backup_end_required: bool,
    /// How large a segment of WAL is.
    pub segment_bytes: u64,
    /// Pages carry checksums.
    pub data_checksums: bool,
    /// Hint bits are logged (with checksums: what pg_rewind needs).
    pub wal_log_hints: bool,
    /// The primary's settings below which a standby must not go.
    pub required: RequiredSettings,
}

/// Settings that a standby must have at least as high as the primary whose log it replays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RequiredSettings {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_xacts: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_xact: u32,
}

impl ControlData {
    /// The timeline up to which this data directory has gone: a standby that has replayed past its last
    /// checkpoint knows it from the minimum recovery point.
    pub fn reached_timeline(&self) -> Timeline {
        self.timeline.max(self.min_recovery_timeline)
    }

    /// The last position this data directory is known to hold: at a clean end the checkpoint, else what recovery must reach.
    pub fn reached(&self) -> Lsn {
        self.checkpoint.max(self.min_recovery_end)
    }
}

/// Reads `pg_control` of a data directory.
pub async fn read(programs: &Programs, data_dir: &Path) -> Result<ControlData> {
    let mut command = programs.command("pg_controldata");
    command.arg("--pgdata").arg(data_dir);
    let output = run(command).await.with_context(|| format!("read pg_control of {}", data_dir.display()))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    parse(&text).with_context(|| format!("read pg_control of {}", data_dir.display()))
}

/// True where this failure to read `pg_control` is known to be damage of a data directory: the checksum is
/// wrong, or the file is missing beside a `PG_VERSION`. Anything else may be a file system that is not mounted,
/// a missing right, or a machine without memory.
pub async fn is_lost(data_dir: &Path, why: &anyhow::Error) -> bool {
    let missing = matches!(tokio::fs::try_exists(data_dir.join("global/pg_control")).await, Ok(false));
    let is_database = matches!(tokio::fs::try_exists(data_dir.join("PG_VERSION")).await, Ok(true));
    why.is::<Damaged>() || why.chain().any(|cause| cause.is::<Damaged>()) || missing && is_database
}

/// The checksum of `pg_control` does not match.
#[derive(Debug, thiserror::Error)]
#[error("pg_control is damaged: its checksum does not match")]
pub struct Damaged;

/// Parses what the program wrote (`LC_ALL=C`). Of a wrong checksum it only warns (where and how depends on the version): here it is refused.
pub fn parse(text: &str) -> Result<ControlData> {
    if text.to_ascii_lowercase().contains("crc checksum does not match") {
        return Err(Damaged.into());
    }
    let lines: HashMap<&str, &str> =
        text.lines().filter_map(|line| line.split_once(':')).map(|(label, value)| (label.trim(), value.trim())).collect();
    let of = |label: &str| lines.get(label).copied().with_context(|| format!("pg_controldata printed no line \"{label}\""));
    let number = |label: &str| -> Result<u32> { of(label)?.parse().with_context(|| format!("\"{label}\" is not a number")) };
    let position = |label: &str| -> Result<Lsn> { of(label)?.parse().with_context(|| format!("\"{label}\" is not a position")) };
    let phrase = of("Database cluster state")?;
    let state = ClusterState::PHRASES
        .into_iter()
        .find_map(|(state, known)| (known == phrase).then_some(state))
        .with_context(|| format!("\"{phrase}\" is not a known cluster state"))?;
    Ok(ControlData {
        system_id: SystemId(of("Database system identifier")?.to_owned()),
        state,
        timeline: Timeline(number("Latest checkpoint's TimeLineID")?),
        checkpoint: position("Latest checkpoint location")?,
        redo: position("Latest checkpoint's REDO location")?,
        min_recovery_end: position("Minimum recovery ending location")?,
        min_recovery_timeline: Timeline(number("Min recovery ending loc's timeline")?),
        backup_end_required: of("End-of-backup record required")? == "yes" || position("Backup start location")?.is_valid(),
        segment_bytes: number("Bytes per WAL segment")?.into(),
        data_checksums: number("Data page checksum version")? != 0,
        wal_log_hints: of("wal_log_hints setting")? == "on",
        required: RequiredSettings {
            max_connections: number("max_connections setting")?,
            max_worker_processes: number("max_worker_processes setting")?,
            max_wal_senders: number("max_wal_senders setting")?,
            max_prepared_xacts: number("max_prepared_xacts setting")?,
            max_locks_per_xact: number("max_locks_per_xact setting")?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by PostgreSQL 15.
    const SAMPLE: &str = include_str!("../../tests/fixtures/pg_controldata-15.txt");

    #[test]
    fn a_fresh_directory_reads_as_it_was_printed() {
        let control = parse(SAMPLE).unwrap();
        assert_eq!(control.system_id.0, "7710313075285934823");
        assert_eq!(control.state, ClusterState::ShutDown);
        assert_eq!((control.timeline, control.min_recovery_timeline), (Timeline(1), Timeline(0)));
        assert_eq!((control.checkpoint, control.redo), (Lsn(0x1511A88), Lsn(0x1511A88)));
        assert_eq!((control.min_recovery_end, control.segment_bytes), (Lsn::INVALID, 16 << 20));
        assert_eq!((control.data_checksums, control.wal_log_hints), (false, false));
        assert_eq!(
            control.required,
            RequiredSettings {
                max_connections: 100,
                max_worker_processes: 8,
                max_wal_senders: 10,
                max_prepared_xacts: 0,
                max_locks_per_xact: 64
            }
        );
    }

    #[test]
    fn every_state_is_known_by_its_phrase() {
        for (state, phrase) in ClusterState::PHRASES {
            let text = SAMPLE.replace("shut down\n", &format!("{phrase}\n"));
            assert_eq!(parse(&text).unwrap().state, state);
            assert_eq!(state.to_string(), phrase);
        }
    }

    #[test]
    fn a_standby_that_replayed_past_its_checkpoint_knows_the_later_timeline() {
        let text = SAMPLE
            .replace("Minimum recovery ending location:     0/0", "Minimum recovery ending location:     1/20")
            .replace("loc's timeline:   0", "loc's timeline:   3");
        let control = parse(&text).unwrap();
        assert_eq!((control.reached_timeline(), control.reached()), (Timeline(3), Lsn(0x1_0000_0020)));
    }

    #[test]
    fn what_is_missing_or_damaged_is_named() {
        for (text, part) in [
            (SAMPLE.replace("wal_log_hints setting", "x"), "wal_log_hints setting"),
            (SAMPLE.replace("shut down\n", "asleep\n"), "asleep"),
            (format!("WARNING: Calculated CRC checksum does not match value stored in file.\n{SAMPLE}"), "damaged"),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
