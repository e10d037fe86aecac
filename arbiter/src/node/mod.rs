//! Everything that the arbiter's procedures work with: one node's server, files, lease and store.

pub mod callback;
pub mod certificates;
pub mod changes;
pub mod citus;
pub mod configuration;
pub mod data;
pub mod extension;
pub mod hba;
pub mod heard;
pub mod hook;
pub mod journal;
pub mod known;
pub mod lease;
pub mod memory;
pub mod page;
pub mod paths;
mod process;
pub mod promise;
pub mod recovery;
pub mod remote;
pub mod replay;
pub mod restoring;
pub mod settings;
pub mod slots;
pub mod snapshot;
pub mod store;
pub mod timings;
pub mod twin;
pub mod vitals;
pub mod watchdog;

use crate::config::NodeConfig;
use crate::ground::member_rest::Caller;
use crate::node::callback::Callbacks;
use crate::node::lease::{NodeLease, Word};
use crate::postgres::Programs;
use crate::postgres::local::{LocalServer, Way};
use crate::postgres::postmaster::Postmaster;
use crate::postgres::query::LocalSql;
use anyhow::{Result, bail};
use cluster::failsafe::Members;
use cluster::member::{MemberRole, MemberState};
use cluster::name::{MemberName, Timeline};
use dcs::Etcd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// So many starts in a row may end before the server is ready, before the node says so and waits.
const STARTS: u32 = 3;

/// The longest pause before a server that does not start, or a rewind that met a failing disk, is tried again.
const START_AGAIN_MAX: Duration = Duration::from_secs(60);

/// None after the first starts that failed, then 1, 2, 4 ... seconds. A start that fails because what was killed a moment ago
/// is not quite gone must not cost a minute.
fn pause_after_starts(failed: u32) -> Duration {
    let Some(more) = failed.checked_sub(STARTS) else { return Duration::ZERO };
    START_AGAIN_MAX.min(Duration::from_secs(1 << more.min(6)))
}

/// What the procedures share. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    /// The node's file.
    pub config: Arc<NodeConfig>,
    /// How other members' REST is asked.
    pub caller: Caller,
    /// The cluster's store.
    pub etcd: Arc<Etcd>,
    /// The lease while no server runs.
    pub lease: Arc<NodeLease>,
    /// Our session in the server.
    pub sql: Arc<LocalSql>,
    /// PostgreSQL's programs.
    pub programs: Programs,
    /// Wakes the daemon's loop.
    pub wake: Arc<Notify>,
    /// Commands that are told what became of the server.
    pub callbacks: Arc<Callbacks>,
    /// What the cluster in `standby_cluster` said.
    pub remote: crate::node::remote::Remote,
    /// What this node promised in `failsafe_mode`.
    pub promise: crate::node::promise::Promise,
    /// What this node remembers of its slots.
    pub slots: Arc<crate::node::slots::SlotMemory>,
    /// What this node decided.
    pub journal: crate::node::journal::Journal,
    /// What the server knows of parameters.
    pub knowledge: Arc<crate::node::known::Knowledge>,
    /// How long procedures took.
    pub timings: crate::node::timings::Timings,
    /// Changes that keep poolers paused.
    pub poolers: Arc<crate::node::changes::Changes>,
    /// Virtual addresses.
    pub addresses: Arc<crate::address::Addresses>,
    /// The watchdog device.
    pub watchdog: Arc<crate::node::watchdog::Watchdog>,
    /// What is under way with the twin of a major upgrade.
    pub twin: Arc<crate::node::twin::TwinWork>,
    /// What an operator wants of this standby's replay.
    pub replay: Arc<crate::node::replay::Replay>,
    /// How this node is, seen from outside of the server.
    pub vitals: Arc<crate::node::vitals::Seen>,
    /// What was heard from its standbys.
    pub heard: Arc<crate::node::heard::Heard>,
    /// When its certificates end.
    pub certificates: Arc<crate::node::certificates::Ends>,
    /// How the page is read between two turns of the loop.
    pub page: Arc<crate::node::page::Reader>,
    /// Who writes the server's files.
    writing: Arc<tokio::sync::Mutex<()>>,
    /// What is known of its synchronous standbys.
    pub standbys: Arc<steward::synchronous::Standbys>,
    state: Arc<Mutex<State>>,
    checkpoint: Arc<tokio::sync::Semaphore>,
}

/// The last rewind failed.
#[derive(Debug)]
struct RewindFailed {
    words: String,
    /// A disk failed: it is tried again after this moment, and so many failed in a row.
    again: Option<(Instant, u32)>,
}

/// What the procedures leave for the next observation.
#[derive(Debug, Default)]
struct State {
    postmaster: Option<Postmaster>,
    started: Option<Instant>,
    /// Until then this node does not stand for leadership.
    stands_down: Option<Instant>,
    /// The timeline whose histories were seen to.
    histories_of: Option<Timeline>,
    rewind_failed: Option<RewindFailed>,
    /// The source other than the leader from which the last clone failed.
    clone_failed: Option<MemberName>,
    /// An operator said that the old data may go before a new copy is there.
    overwrite: bool,
    /// Starts that ended before the server was ready, in a row: how many, when the last, its words.
    start_failed: Option<(u32, Instant, String)>,
    /// The step of a major upgrade that was tried last failed.
    upgrade_failed: bool,
    /// This node is about to stop: its member key says that it is not to be synchronous.
    leaving: bool,
    /// Everybody who may stand in the `failsafe` key by what was sent to be written.
    failsafe_sent: Option<Members>,
    /// The server read pg_hba.conf, and nobody has looked since whether it took it.
    rules_owed: bool,
    /// Rules of the dynamic configuration that do not count here, as last said.
    told_rules: Vec<String>,
    /// What the server did not take of its rules, or what they lack, when it was last looked at.
    rule_faults: Vec<String>,
}

impl Node {
    /// A node without a server yet.
    pub fn new(config: Arc<NodeConfig>, caller: Caller, etcd: Arc<Etcd>, wake: Arc<Notify>) -> Node {
        let postgres = &config.postgres;
        let tcp = || Way::Tcp(postgres.listen.local_host());
        let ways = match postgres.use_unix_socket {
            Some(true) => vec![Way::Socket],
            Some(false) => vec![tcp()],
            // A file of the field may let the superuser in by TCP alone.
            None => vec![Way::Socket, tcp()],
        };
        let server = LocalServer { data_dir: postgres.data_dir.clone(), port: postgres.listen.port, ways };
        let session = || LocalSql::new(server.clone(), &postgres.authentication.superuser, &postgres.database);
        let (sql, page) =
            (Arc::new(session().telling(wake.clone())), Arc::new(crate::node::page::Reader { sql: session(), changed: Notify::new() }));
        let lease = Arc::new(NodeLease::new(etcd.clone(), config.clone(), wake.clone()));
        let programs = config.postgres.programs_at_start();
        Node {
            config,
            caller,
            etcd,
            lease,
            sql,
            programs,
            wake,
            callbacks: Arc::default(),
            remote: Default::default(),
            promise: Default::default(),
            slots: Arc::default(),
            journal: Default::default(),
            knowledge: Arc::default(),
            timings: Default::default(),
            poolers: Arc::default(),
            addresses: Arc::default(),
            watchdog: Arc::default(),
            vitals: Arc::default(),
            certificates: Arc::default(),
            heard: Arc::default(),
            twin: Arc::default(),
            replay: Arc::default(),
            writing: Arc::default(),
            page,
            standbys: Arc::default(),
            state: Arc::default(),
            checkpoint: Arc::new(tokio::sync::Semaphore::new(1)),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server's process, while it is alive.
    pub fn postmaster(&self) -> Option<Postmaster> {
        self.state().postmaster.clone().filter(Postmaster::is_alive)
    }

    /// The server's process, ended or not: its end is what the loop waits for.
    pub fn last_postmaster(&self) -> Option<Postmaster> {
        self.state().postmaster.clone()
    }

    /// When the server was started by this arbiter.
    pub fn started(&self) -> Option<Instant> {
        self.state().started
    }

    /// Takes note of a server that runs.
    pub fn adopted(&self, postmaster: Option<Postmaster>) {
        let mut state = self.state();
        state.started = postmaster.is_some().then(Instant::now);
        state.rules_owed = postmaster.is_some();
        state.postmaster = postmaster;
    }

    /// The server has read pg_hba.conf since this was asked last.
    pub fn take_rules_owed(&self) -> bool {
        std::mem::take(&mut self.state().rules_owed)
    }

    /// What is wrong with the rules that the server has read; said once each.
    pub fn say_of_rules(&self, faults: Vec<String>) {
        let before = std::mem::replace(&mut self.state().rule_faults, faults.clone());
        for fault in faults.iter().filter(|fault| !before.contains(fault)) {
            tracing::warn!("{fault}; hint: correct the lines where they are given: postgresql.pg_hba, or the file itself");
        }
    }

    /// All that is wrong with the rules of who may come in.
    pub fn rules_at_fault(&self) -> Vec<String> {
        let state = self.state();
        state.told_rules.iter().chain(&state.rule_faults).cloned().collect()
    }

    /// The right to begin the checkpoint after a promotion; None while one is under way.
    pub fn begin_checkpoint(&self) -> Option<tokio::sync::OwnedSemaphorePermit> {
        self.checkpoint.clone().try_acquire_owned().ok()
    }

    /// The histories up to this timeline have not been seen to since this arbiter was started, and are from now on.
    pub fn begins_histories_of(&self, timeline: Timeline) -> bool {
        self.state().histories_of.replace(timeline) != Some(timeline)
    }

    /// From now on and for so long this node does not stand: the lease worker stands only while an arbiter is
    /// attached to it, so the session that says so is ended, and none says so before the time is over.
    pub async fn stand_down(&self, time: Duration) {
        self.state().stands_down = Some(Instant::now() + time);
        self.sql.hang_up().await;
    }

    /// This node does not stand for leadership now.
    pub fn stands_down(&self) -> bool {
        self.state().stands_down.is_some_and(|until| Instant::now() < until)
    }

    /// Why the last rewind failed, if it did and is not to be tried again by now.
    pub fn rewind_failed(&self) -> Option<String> {
        let state = self.state();
        let failed = state.rewind_failed.as_ref()?;
        failed.again.is_none_or(|(at, _)| Instant::now() < at).then(|| failed.words.clone())
    }

    /// Notes how a rewind ended.
    pub fn note_rewind(&self, failed: Option<String>) {
        self.state().rewind_failed = failed.map(|words| RewindFailed { words, again: None });
    }

    /// Notes that a rewind ended as the disk failed; after this long it is tried again, longer each time and at least once a minute.
    pub fn note_disk_failed(&self, why: &str) -> Duration {
        let mut state = self.state();
        let before = state.rewind_failed.as_ref().and_then(|failed| failed.again).map_or(0, |(_, count)| count);
        let pause = pause_after_starts(STARTS.saturating_add(before));
        let words = format!("{why}; that says nothing of the data, so it is tried again in {} s", pause.as_secs());
        state.rewind_failed = Some(RewindFailed { words, again: Some((Instant::now() + pause, before.saturating_add(1))) });
        pause
    }

    /// The source other than the leader from which the last clone failed.
    pub fn clone_failed(&self) -> Option<MemberName> {
        self.state().clone_failed.clone()
    }

    /// Notes how a clone ended.
    pub fn note_clone(&self, failed: Option<MemberName>) {
        self.state().clone_failed = failed;
    }

    /// An operator said that the old data may go before a new copy is there.
    pub fn may_overwrite(&self) -> bool {
        self.state().overwrite
    }

    /// Notes what an operator said of the old data; what was said for one copy does not count for the next.
    pub fn note_overwrite(&self, may: bool) {
        self.state().overwrite = may;
    }

    /// The words of a server that does not start, once it did not [`STARTS`] times. After a pause it is tried again: what
    /// kept it from starting (a full disk) may have passed.
    pub fn start_failed(&self) -> Option<String> {
        let state = self.state();
        let (count, at, words) = state.start_failed.as_ref()?;
        (at.elapsed() < pause_after_starts(*count)).then(|| words.clone())
    }

    /// The step of a major upgrade that was tried last failed here.
    pub fn upgrade_failed(&self) -> bool {
        self.state().upgrade_failed
    }

    /// Notes how a step of a major upgrade ended.
    pub fn note_upgrade(&self, failed: bool) {
        self.state().upgrade_failed = failed;
    }

    /// From now on the programs of this major version are used.
    pub fn run_major(&self, major: u32) -> Result<()> {
        let programs = self.config.postgres.programs_of(major).filter(|programs| programs.path("postgres").is_file());
        let Some(programs) = programs else {
            bail!(
                "the cluster runs PostgreSQL {major}, which is not beside {} on this node: install it there",
                self.config.postgres.bin_dir.display()
            );
        };
        if programs.bin_dir() != self.programs.bin_dir() {
            tracing::warn!(
                "PostgreSQL {major} is used, from {}; hint: write that into postgresql.bin_dir of this node's file",
                programs.bin_dir().display()
            );
            self.programs.move_to(programs.bin_dir());
            self.knowledge.forget();
        }
        Ok(())
    }

    /// Notes how a start ended.
    pub fn note_start(&self, failed: Option<String>) {
        let mut state = self.state();
        let before = state.start_failed.take().map_or(0, |(count, ..)| count);
        state.start_failed = failed.map(|words| (before + 1, Instant::now(), words));
    }

    /// From the next writing of the configuration on, the member key says that this node is not to be synchronous; or no more.
    pub fn note_leaving(&self, leaving: bool) {
        self.state().leaving = leaving;
    }

    /// The `failsafe` key is about to be written. Until one write is confirmed any of those sent may be carried out,
    /// so they add up.
    pub fn note_failsafe_sent(&self, members: &Members) {
        self.state().failsafe_sent.get_or_insert_default().extend(members.clone());
    }

    /// This was written: whatever was sent before it is judged by an older revision and comes to nothing.
    pub fn note_failsafe_written(&self, members: Members) {
        self.state().failsafe_sent = Some(members);
    }

    /// Who may be in the `failsafe` key by our own writes.
    pub fn failsafe_sent(&self) -> Option<Members> {
        self.state().failsafe_sent.clone()
    }

    /// Says what this node is doing while no server speaks for it.
    pub fn speak(&self, state: MemberState, role: MemberRole) {
        self.lease.take_over(Word { state, role, progress_percent: None, reason: None });
    }

    /// As [`Node::speak`], with why nothing is done, or why the last copy failed: nobody should have to look for it.
    pub fn speak_reason(&self, state: MemberState, role: MemberRole, reason: String) {
        self.lease.take_over(Word { state, role, progress_percent: None, reason: Some(reason) });
    }

    /// As [`Node::speak`], with how far a clone is.
    pub fn speak_progress(&self, percent: u8) {
        self.lease.take_over(Word {
            state: MemberState::CreatingReplica,
            role: MemberRole::Uninitialized,
            progress_percent: Some(percent),
            reason: None,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_after_starts_that_fail_grows_to_a_minute() {
        for (failed, seconds) in [(1, 0), (2, 0), (3, 1), (4, 2), (5, 4), (8, 32), (9, 60), (1000, 60)] {
            assert_eq!(pause_after_starts(failed), Duration::from_secs(seconds), "{failed}");
        }
    }
}
