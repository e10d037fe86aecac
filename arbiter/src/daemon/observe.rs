//! LocalState: what the data directory, the process and the server itself say, once per turn.

use crate::config::ReplicaMethod;
use crate::daemon::health::Watching;
use crate::ground::answers;
use crate::node::Node;
use crate::node::data::{self, control, ended};
use crate::node::recovery;
use crate::node::restoring;
use crate::node::settings;
use crate::postgres;
use crate::postgres::controldata;
use crate::postgres::facts::{FenceSeen, ServerFacts};
use crate::postgres::marker::Incomplete;
use crate::postgres::postmaster::{PidFile, Postmaster};
use crate::upkeep::remote;
use anyhow::{Context, Result};
use cluster::described::Described;
use cluster::health::Symptom;
use cluster::local::{Cloning, Control, DataDir, Ended, LocalState, Postgres};
use cluster::lsn::Lsn;
use cluster::mark;
use cluster::name::{MemberName, SystemId, Timeline};
use cluster::restart::Scheduled;
use cluster::standby_cluster::Remote;
use cluster::upgrade::step::HalfUpgraded;
use cluster::view::ClusterView;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Longer than a planned change keeps new transactions waiting before it stops the server.
const DRAINING_LONG: Duration = Duration::from_secs(2);

/// What only the daemon's loop knows.
#[derive(Debug, Clone, Default)]
pub struct LoopMemory {
    /// Since when this node leads without a server that serves.
    pub down_since: Option<Instant>,
    /// SIGTERM was received.
    pub stopping: bool,
    /// A new copy was asked for.
    pub reinit: bool,
    /// Why the standby that runs can't go on, by the last decision.
    pub stuck: Option<String>,
    /// Why the lease worker could not be attached to, as it was last told.
    pub attach_told: String,
    /// What was said last of SQL objects that are not of the library's release.
    pub update_told: String,
    /// Postgres was stopped for a switchover and does not serve again yet.
    pub start_owed: bool,
    /// A restart that waits for its time.
    pub scheduled_restart: Option<Scheduled>,
    /// It is to come from the leader, by pg_basebackup.
    pub from_leader: bool,
    /// Draws one of several sources of a copy; drawn again after each.
    pub lot: u64,
    /// Why the data directory can't be used is not known well enough to replace it.
    pub unsure_of_damage: bool,
    /// A procedure works on the data directory itself: there is no server to be looked for.
    pub in_surgery: bool,
    /// The data directory as last read while no server ran.
    pub control: Option<Control>,
    /// The newest timeline that the running server was seen to receive.
    pub received: Received,
    /// The revision of the request that is due, and since when it was seen to be.
    pub request_due: Option<(i64, Instant)>,
    /// The postmaster whose server was last seen to be primary.
    pub served: Option<i32>,
    /// Since when the postmaster has been stopped by a signal.
    pub frozen_since: Option<Instant>,
    /// How this node and the others are.
    pub health: Watching,
}

/// The newest timeline that a standby was seen to receive, and the start of the server that did.
///
/// `pg_stat_wal_receiver` forgets its timeline with its process and `pg_control` learns it at the next restart point, but the
/// position stays: beside the older timeline it would look like a fork, and both standbys would rewind to a primary that only
/// restarts. A standby asks for a timeline only after it found it to descend from all that it has replayed.
#[derive(Debug, Clone, Default)]
pub struct Received {
    server: String,
    timeline: Timeline,
}

impl Received {
    /// The timeline of a standby's position: what it says now, or what this same server received before.
    fn newest(&mut self, server: &str, receives: Option<Timeline>, says: Timeline) -> Timeline {
        if self.server != server {
            *self = Received { server: server.to_owned(), timeline: Timeline::default() };
        }
        self.timeline = self.timeline.max(receives.unwrap_or_default());
        self.timeline.max(says)
    }
}

impl LoopMemory {
    /// A memory with a number to draw by.
    pub fn with_a_lot() -> LoopMemory {
        let mut memory = LoopMemory::default();
        memory.draw_lot();
        memory
    }

    /// The low bits of the clock do: nothing depends on the quality of this number.
    pub fn draw_lot(&mut self) {
        self.lot = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| u64::from(since.subsec_micros()));
    }

    /// How long the request in `failover` has been due, as far as this arbiter has seen.
    fn request_waits(&mut self, view: &ClusterView) -> Duration {
        let due = view.request().filter(|_| request_due(view)).map(|request| request.revision);
        match (due, self.request_due) {
            (Some(now), Some((before, since))) if now == before => since.elapsed(),
            _ => {
                self.request_due = due.map(|revision| (revision, Instant::now()));
                Duration::ZERO
            }
        }
    }

    /// The server that was primary recovers from the crash of one of its processes, under the same postmaster. Its file says "ready" all the while;
    /// of one that somebody stops it says "stopping".
    async fn crashed(&mut self, node: &Node, postgres: &Postgres) -> bool {
        let process = node.postmaster().map(|postmaster| postmaster.pid());
        match postgres {
            Postgres::Primary { .. } => self.served = process,
            Postgres::Starting { .. } if process.is_some() && self.served == process => {
                let file = PidFile::read(&node.config.postgres.data_dir).await.ok().flatten();
                return file.and_then(|file| file.status).is_some_and(|status| status != "stopping");
            }
            _ => {}
        }
        false
    }

    /// For how long the postmaster has been stopped by a signal.
    async fn frozen_for(&mut self, node: &Node) -> Duration {
        let frozen = match node.postmaster() {
            Some(postmaster) => postmaster.is_stopped_by_signal().await,
            None => false,
        };
        if !frozen {
            self.frozen_since = None;
            return Duration::ZERO;
        }
        self.frozen_since.get_or_insert_with(Instant::now).elapsed().max(Duration::from_millis(1))
    }
}

/// What was seen.
pub struct Seen {
    /// When the look began.
    pub began: Instant,
    /// For the decision.
    pub local: LocalState,
    /// The server's own words, while it answers.
    pub facts: Option<ServerFacts>,
    /// Until when the server's fence is open, by its own page.
    pub fence_until: Option<Instant>,
    /// What the member key is to say besides.
    pub described: Described,
    /// What is wrong with its health and has lasted.
    pub symptoms: Vec<Symptom>,
    /// Why this node must not lead, where it must not.
    pub barred: Option<String>,
}

/// Looks at this node.
pub async fn look(node: &Node, view: &ClusterView, memory: &mut LoopMemory) -> Result<Seen> {
    let began = Instant::now();
    let data_dir = &node.config.postgres.data_dir;
    if node.postmaster().is_none() && !memory.in_surgery {
        // Somebody may have started the server by hand, or it survived the arbiter before us.
        let running = Postmaster::adopt(data_dir).await.context("look for a running server")?;
        if running.is_some() {
            tracing::info!("adopting the server that runs on {}", data_dir.display());
        }
        node.adopted(running);
    }
    let (postgres, facts) = server(node, &mut memory.received).await;
    let data = data_here(node, &postgres, facts.as_ref(), memory).await?;
    let remote = followed(node, view, &data, &postgres, facts.as_ref());
    let wal_until = wal_until(node, &postgres, facts.as_ref()).await;
    let config = &node.config;
    let allowed = |local: Option<bool>, key: &str| {
        local.unwrap_or_else(|| {
            view.config().postgresql().and_then(|section| section.get(key)).and_then(serde_json::Value::as_bool).unwrap_or(false)
        })
    };
    let rewinds = config.postgres.use_pg_rewind.unwrap_or_else(|| view.config().use_pg_rewind());
    let leads = view.leader_if(&config.name).is_some();
    let serves = matches!(postgres, Postgres::Primary { .. } | Postgres::Standby { .. });
    if leads && !serves {
        memory.down_since.get_or_insert_with(Instant::now);
    } else {
        memory.down_since = None;
    }
    let frozen_for = memory.frozen_for(node).await;
    let crashed = memory.crashed(node, &postgres).await;
    let start_failed = node.start_failed();
    let health = memory.health.look(node, view);
    let in_need = leads && (start_failed.is_some() || !frozen_for.is_zero() || !health.lasting.is_empty());
    let answered = answered(node, view, leads, in_need, &postgres).await;
    let flushed = match &postgres {
        Postgres::Primary { flushed, .. } => Some(*flushed),
        // By the last word of the lease worker.
        _ => view.members.get(&config.name).and_then(|entry| entry.member.xlog_location),
    };
    let holders_idle = memory.health.holders_idle(node, view, &health).await;
    let (sick, gives_way) = memory.health.judge(node, view, &health, flushed, &answered, holders_idle);
    let strange = strange(node, &postgres, facts.as_ref()).await;
    let upgrade = match memory.in_surgery {
        true => None,
        false => {
            crate::upgrade::journal::read(config).await?.map(|journal| Box::new(HalfUpgraded { journal, failed: node.upgrade_failed() }))
        }
    };
    let restore = match memory.in_surgery {
        true => None,
        false => restoring::read(config).await?.map(Box::new),
    };
    let aside = match data {
        DataDir::Empty | DataDir::Incomplete { .. } if !memory.in_surgery && postgres::aside::is_there(data_dir).await => {
            match data::of_files(&node.programs, &postgres::aside::place(data_dir)).await {
                Ok(DataDir::Present(control)) => Some(control),
                _ => None,
            }
        }
        _ => None,
    };
    let local = LocalState {
        aside,
        restore,
        upgrade,
        name: config.name.clone(),
        tags: cluster::member::Tags(config.tags.clone()),
        data,
        postgres,
        lease_valid: node.lease.lease().is_some(),
        rewind_failed: node.rewind_failed().or_else(|| (!rewinds).then(|| "use_pg_rewind is off".to_owned())),
        may_clone_over: !memory.unsure_of_damage
            // As in Patroni: one allows it where pg_rewind failed, the other also where it may not be tried.
            && (allowed(config.postgres.remove_data_directory_on_diverged_timelines, "remove_data_directory_on_diverged_timelines")
                || rewinds && allowed(config.postgres.remove_data_directory_on_rewind_failure, "remove_data_directory_on_rewind_failure")),
        down_for: memory.down_since.map_or(Duration::ZERO, |since| since.elapsed()),
        stopping: memory.stopping,
        reinit: memory.reinit,
        cloning: Cloning {
            lot: memory.lot,
            failed: node.clone_failed(),
            from_leader: memory.from_leader,
            without_leader: config
                .postgres
                .create_replica_methods
                .iter()
                .any(|method| matches!(method, ReplicaMethod::Command(command) if command.no_leader)),
        },
        start_failed,
        crashed,
        request_due: request_due(view),
        request_waits: memory.request_waits(view),
        frozen_for,
        start_owed: memory.start_owed,
        memory: node.etcd.remembered().map(|remembered| Box::new(remembered.memory())).filter(|memory| memory.system_id.is_some()),
        fence_open: false,
        remote,
        wal_until,
        strange,
        answered,
        gives_way,
    };
    // The clock is read before the question: the page's time runs on while the answer travels.
    let asked = Instant::now();
    let fence = match &facts {
        Some(facts) if !facts.in_recovery || view.is_standby_cluster() => node.sql.fence().await.unwrap_or_default(),
        _ => FenceSeen::default(),
    };
    let fence_until = fence.left.map(|left| asked + left);
    let drained = fence.draining_for.is_some_and(|span| span > DRAINING_LONG).then(|| cluster::check::DRAINING.to_owned());
    let pending_restart =
        facts.as_ref().map(|facts| settings::pending(config, &node.dynamic(view), &node.knowledge.known(), facts)).unwrap_or_default();
    let barred = node.watchdog.bars(&config.watchdog, view.config().timing().ttl);
    let described = Described {
        pending_restart,
        arbiter_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        extension_version: facts.as_ref().and_then(|facts| facts.extension.clone()),
        scheduled_restart: memory.scheduled_restart.clone(),
        paused: view.config().paused(),
        oldest_wal: facts.as_ref().and_then(|facts| facts.oldest_wal_lsn),
        reason: memory.stuck.clone().or(drained).or_else(|| barred.clone()),
        addresses: node.addresses.facts(&config.vip),
        left_out: node.knowledge.left_out().into_iter().take(LEFT_OUT_MOST).map(|(key, why)| (shortened(&key), shortened(&why))).collect(),
        vitals: health.outside.clone(),
        sick,
        rules: node.rules_at_fault().iter().take(LEFT_OUT_MOST).map(|said| said.chars().take(RULE_MOST).collect()).collect(),
    };
    let local = LocalState { fence_open: fence_until.is_some_and(|until| Instant::now() < until), ..local };
    Ok(Seen { began, local, facts, fence_until, described, symptoms: health.lasting, barred })
}

/// So many settings that are left out stand in the member key; the log names all.
const LEFT_OUT_MOST: usize = 10;

/// A sentence about a rule has the rule in it.
const RULE_MOST: usize = 300;

fn shortened(text: &str) -> String {
    text.chars().take(160).collect()
}

/// Those that answer now and could go on. Nobody is asked but by a leader whose server is down or recovers: it may give its key to a
/// synchronous standby; where its server does not start or lets nobody in (`in_need`), it may give it up to a member that may lead.
async fn answered(node: &Node, view: &ClusterView, leads: bool, in_need: bool, postgres: &Postgres) -> BTreeSet<MemberName> {
    let down = leads && matches!(postgres, Postgres::Stopped | Postgres::Starting { .. });
    if !down && !in_need {
        return BTreeSet::new();
    }
    let sync = view.sync.as_ref().map(|sync| &sync.value).filter(|sync| !sync.is_empty());
    let could = |name: &&MemberName| **name != node.config.name && sync.map_or(in_need, |sync| sync.has_standby(name));
    answers::of(&node.caller, view, view.members.keys().filter(could)).await
}

/// Why the server that was found running is not this node's own. One that this arbiter started is; so is one that nobody could tell
/// from that because it does not answer, unless it listens elsewhere or its process is seen not to have loaded the library.
async fn strange(node: &Node, postgres: &Postgres, facts: Option<&ServerFacts>) -> Option<String> {
    let found = node.postmaster().filter(Postmaster::is_adopted)?;
    let me = settings::identity(&node.config);
    match (postgres, facts) {
        (_, Some(facts)) => mark::strange(&me, facts.identity().as_ref()),
        (Postgres::Silent | Postgres::Starting { .. }, None) => {
            let file = PidFile::read(&node.config.postgres.data_dir).await.ok().flatten();
            let (port, ours) = (file.and_then(|file| file.port), node.config.postgres.listen.port);
            if let Some(port) = port.filter(|port| *port != ours) {
                return Some(format!("it listens on port {port}, this node's is {ours}"));
            }
            let silent = *postgres == Postgres::Silent && found.has_loaded("pg_tenure.so").await == Some(false);
            if silent { mark::strange(&me, None) } else { None }
        }
        _ => None,
    }
}

/// Where the WAL of a standby without an archive ends. Also of one that streams: refused, a receiver streams for a moment every few seconds.
async fn wal_until(node: &Node, postgres: &Postgres, facts: Option<&ServerFacts>) -> Option<Lsn> {
    let (Postgres::Standby { position, .. }, Some(facts)) = (postgres, facts) else { return None };
    let bytes = facts.wal_segment_bytes.filter(|bytes| *bytes > 0 && !facts.restores && position.is_valid())?;
    let end = postgres::segments::end_of_wal(&node.config.postgres.data_dir, *position, bytes).await;
    end.inspect_err(|why| tracing::debug!("{why:#}")).ok()
}

/// The cluster that this one follows. It is asked in the background, by the one who leads here and does not stream from it.
fn followed(node: &Node, view: &ClusterView, data: &DataDir, postgres: &Postgres, facts: Option<&ServerFacts>) -> Remote {
    let mine = match (postgres, data) {
        (Postgres::Standby { streaming: false, timeline, .. }, _) => Some(*timeline),
        (Postgres::Stopped, DataDir::Present(control)) => Some(control.timeline),
        _ => None,
    };
    let leads = view.is_standby_cluster() && view.leader_if(&node.config.name).is_some();
    match mine.filter(|_| leads) {
        Some(mine) => remote::ask(node, view, mine),
        None => node.remote.forget(),
    }
    // Where the configuration's key is lost, nothing is known that would have to be followed instead.
    let followed = |facts: &ServerFacts| view.config.is_none() || recovery::follows_remote(&node.config, &node.dynamic(view), facts);
    Remote { followed: leads && facts.is_some_and(followed), said: node.remote.said() }
}

/// A scheduled request whose time has come (or one that is not scheduled).
fn request_due(view: &ClusterView) -> bool {
    let at = view.request().and_then(|request| request.value.scheduled_at.as_deref());
    at.and_then(|at| at.parse::<jiff::Timestamp>().ok()).is_none_or(|at| at <= jiff::Timestamp::now())
}

/// How long until a scheduled request is due, if there is one.
pub fn due_in(view: &ClusterView) -> Option<Duration> {
    let at = view.request()?.value.scheduled_at.as_deref()?.parse::<jiff::Timestamp>().ok()?;
    Duration::try_from(at.duration_since(jiff::Timestamp::now())).ok()
}

async fn server(node: &Node, received: &mut Received) -> (Postgres, Option<ServerFacts>) {
    if node.postmaster().is_none() {
        return (Postgres::Stopped, None);
    }
    let asked = match node.sql.facts().await {
        Err(why) if postgres::query::is_lost(&why) => node.sql.facts().await,
        asked => asked,
    };
    match asked {
        Ok(mut facts) => {
            if facts.in_recovery {
                let receives = facts.receiver.as_ref().and_then(|receiver| receiver.timeline);
                facts.timeline = received.newest(&facts.postmaster_start_time, receives, facts.timeline);
            }
            (of_facts(&facts), Some(facts))
        }
        Err(why) => {
            let status = PidFile::read(&node.config.postgres.data_dir).await.ok().flatten().and_then(|file| file.status);
            let since = node.started().map_or(Duration::ZERO, |at| at.elapsed());
            match status.as_deref() {
                // The file still says "ready" while the server recovers from the crash of one of its processes.
                Some("ready") if !postgres::query::is_starting(&why) => {
                    tracing::warn!("Postgres runs but does not answer: {why:#}");
                    (Postgres::Silent, None)
                }
                _ if node.postmaster().is_none() => (Postgres::Stopped, None),
                _ => (Postgres::Starting { since }, None),
            }
        }
    }
}

fn of_facts(facts: &ServerFacts) -> Postgres {
    if !facts.in_recovery {
        return Postgres::Primary { timeline: facts.timeline, flushed: facts.flush_lsn.unwrap_or(Lsn::INVALID) };
    }
    Postgres::Standby {
        timeline: facts.timeline,
        position: facts.position(),
        upstream: recovery::address_in(&facts.primary_conninfo),
        streaming: facts.receiver.as_ref().is_some_and(postgres::facts::Receiver::is_streaming),
    }
}

async fn data_here(node: &Node, postgres: &Postgres, facts: Option<&ServerFacts>, memory: &mut LoopMemory) -> Result<DataDir> {
    let data_dir = &node.config.postgres.data_dir;
    memory.unsure_of_damage = false;
    if let Some(what) = Incomplete::of(data_dir).read().await? {
        return Ok(DataDir::Incomplete { what });
    }
    if let Some(facts) = facts {
        let (timeline, checkpoint) = (facts.timeline, facts.position());
        let ended = if facts.in_recovery { Ended::Standby } else { Ended::CrashedPrimary };
        return Ok(DataDir::Present(Control { system_id: SystemId(facts.system_id.clone()), timeline, checkpoint, ended }));
    }
    if *postgres == Postgres::Stopped {
        if postgres::is_empty_directory(data_dir).await? {
            return Ok(DataDir::Empty);
        }
        match controldata::read(&node.programs, data_dir).await {
            Ok(read) => memory.control = Some(Control { ended: ended(data_dir, &read).await, ..control(&read) }),
            Err(why) => {
                memory.control = None;
                memory.unsure_of_damage = !controldata::is_lost(data_dir, &why).await;
                return Ok(DataDir::Damaged { why: format!("{why:#}") });
            }
        }
    }
    match &memory.control {
        Some(control) => Ok(DataDir::Present(control.clone())),
        None => {
            let read = controldata::read(&node.programs, data_dir).await?;
            let control = Control { ended: ended(data_dir, &read).await, ..control(&read) };
            memory.control = Some(control.clone());
            Ok(DataDir::Present(control))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_whose_receiver_ended_keeps_its_timeline_until_the_server_is_another() {
        let mut received = Received::default();
        assert_eq!(received.newest("monday", Some(Timeline(5)), Timeline(5)), Timeline(5));
        assert_eq!(received.newest("monday", None, Timeline(4)), Timeline(5));
        assert_eq!(received.newest("monday", None, Timeline(6)), Timeline(6));
        assert_eq!(received.newest("tuesday", None, Timeline(4)), Timeline(4));
    }
}
