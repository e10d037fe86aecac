//! Duty -> procedure: one match, no wildcard arm; the only door from a decision to the server's files and process.

pub mod copy;
pub mod demote_cluster;
pub mod found;
pub mod found_by_method;
pub mod switchover;

use crate::config::Credentials;
use crate::ground::program;
use crate::node::Node;
use crate::node::hook;
use crate::node::recovery;
use crate::node::timings::Timed;
use crate::postgres::conf::Recovery;
use crate::postgres::postmaster::{Readiness, StopMode, last_words};
use crate::postgres::promote::promote;
use crate::postgres::query::{ServerFacts, member_conninfo};
use crate::postgres::rewind::{self, Rewound, rewind};
use crate::postgres::{controldata, server_log, timelines};
use crate::upkeep;
use crate::upkeep::slots;
use anyhow::{Context, Result, bail};
use cluster::duty::Duty;
use cluster::failover::FailoverRequest;
use cluster::history::History;
use cluster::leader::Term;
use cluster::local::LocalState;
use cluster::member::{MemberRole, MemberState, Tags};
use cluster::name::MemberName;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use dcs::Dcs;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A promotion that takes longer than this is reported as failed; the loop then looks again.
const PROMOTION_PATIENCE: Duration = Duration::from_secs(60);

/// A deposed primary may take this long over its fast stop: its walsenders may wait for standbys that
/// have left, and nobody waits for what it would still write.
const DEMOTION_PATIENCE: Duration = Duration::from_secs(5);

/// How long an immediate stop may take before SIGKILL follows: the postmaster itself kills its children after 5 s.
const RELEASE_PATIENCE: Duration = Duration::from_secs(6);

/// What a procedure works from: everything that was judged.
#[derive(Clone)]
pub struct Judged {
    /// The cluster.
    pub view: Arc<ClusterView>,
    /// This node.
    pub local: Arc<LocalState>,
    /// Its server's words.
    pub facts: Option<Arc<ServerFacts>>,
}

/// How a procedure ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Look again when something changes.
    Settled,
    /// Look again now.
    LookAgain,
    /// The arbiter ends (Postgres is stopped).
    Stopped,
}

/// Does what the node owes the cluster.
pub async fn apply(node: Node, duty: Duty, judged: Judged) -> Result<Done> {
    let view = &*judged.view;
    match duty {
        Duty::Rest => rest(&node, &judged).await,
        Duty::Bootstrap if let Some(why) = node.watchdog.bars(&node.config.watchdog, view.config().timing().ttl) => {
            bail!("the cluster is not founded here: {why}")
        }
        Duty::Bootstrap => found::bootstrap(&node, &judged.local.data).await.context("found the cluster").map(|()| Done::LookAgain),
        Duty::Clone { from } => {
            let only_basebackup = judged.local.cloning.from_leader;
            copy::clone(&node, view, &from, only_basebackup).await.with_context(|| format!("clone from {from}"))
        }
        Duty::Restore => copy::restore(&node, view).await.context("make the data from a backup"),
        Duty::StartPrimary { term } => start_primary(&node, view, term).await.context("start Postgres as primary"),
        Duty::StartStandby { upstream } => {
            let recovery = follow(&node, view, &upstream);
            start(&node, view, &recovery).await.context("start Postgres as standby")
        }
        Duty::Promote { term } => promote_to(&node, term).await.context("promote"),
        Duty::Demote => demote(&node).await.context("demote"),
        Duty::DemoteCluster { term } => demote_to_standby_cluster(&node, view, term).await.context("become a standby cluster"),
        Duty::Follow { upstream } => {
            node.write_configuration(view, &follow(&node, view, &upstream)).await?;
            node.reload().await.with_context(|| format!("follow {upstream}"))?;
            Ok(Done::LookAgain)
        }
        Duty::Rewind { from } => rewind_from(&node, view, &from).await.with_context(|| format!("rejoin {from} by pg_rewind")),
        Duty::Switchover { candidates } => switch_over(&node, &judged, &candidates).await,
        Duty::HandOver { to } => hand_over(&node, view, &to).await,
        Duty::CallOff => call_off(&node, &judged).await.context("take a request back that can't be served"),
        Duty::Release => release(&node, view).await.context("give the leader key up"),
        Duty::Stop => stop(&node, view).await.context("stop"),
        Duty::Quit => Ok(Done::Stopped),
    }
}

async fn rest(node: &Node, judged: &Judged) -> Result<Done> {
    server_log::rotate(&node.config.postgres.server_log).await?;
    let Some(facts) = &judged.facts else { return Ok(Done::Settled) };
    if let Err(why) = node.knowledge.learn(&node.sql, &node.programs, &node.config, facts).await {
        // What it said before counts until it can be asked.
        tracing::warn!("{why:#}");
    }
    // Maintenance or not: settings, the synchronous standbys and slots are kept, as commits and the disk depend on them. What drops a
    // slot, or starts, stops and promotes a server, knows of maintenance mode itself.
    let again = match judged.view.leader_if(&node.config.name) {
        _ if facts.in_recovery => upkeep::standby(node, &judged.view, facts).await?,
        Some(leader) => upkeep::primary(node, &judged.view, leader, facts).await?,
        None => upkeep::leaderless(node, &judged.view, facts).await?,
    };
    Ok(if again { Done::LookAgain } else { Done::Settled })
}

/// Recovery settings for following an upstream.
pub fn follow(node: &Node, view: &ClusterView, upstream: &Upstream) -> Recovery {
    recovery::of(&node.config, &node.dynamic(view), view, upstream)
}

/// How a copy or a rewind reaches its source, as whom. Never under the member's own name: to the primary that is the name of a
/// standby, for which commits may wait, and the stream of a copy confirms WAL that nobody could promote. (No member can be called so.)
pub fn source(node: &Node, view: &ClusterView, from: &Upstream, credentials: &Credentials, database: Option<&str>) -> Result<String> {
    let config = &node.config;
    let application_name = format!("copy/{}", config.name);
    match from {
        Upstream::Member(name) => {
            let source = &view.members.get(name).with_context(|| format!("{name} has no member key"))?.member;
            let (host, port) = source.host_port().with_context(|| format!("{name} has no usable address: {}", source.conn_url))?;
            let passfile = config.postgres.pgpass.display().to_string();
            Ok(member_conninfo(&host, port, credentials, &passfile, &application_name, database))
        }
        Upstream::Remote => {
            let remote = node.dynamic(view).standby_cluster().context("standby_cluster names nothing to copy from")?;
            recovery::remote_conninfo(config, &remote, credentials, &application_name, database).context("standby_cluster names no host")
        }
        Upstream::Nobody => bail!("nobody to copy from"),
    }
}

/// The process is started, not waited for: the loop sees when it serves, and keeps the lease until then.
pub async fn start(node: &Node, view: &ClusterView, recovery: &Recovery) -> Result<Done> {
    let role = if *recovery == Recovery::None { MemberRole::Primary } else { node.standby_role(view) };
    node.speak(MemberState::Starting, role);
    node.clear_orphans().await?;
    if *recovery != Recovery::None {
        timelines::remove_placeholders(&node.config.postgres.data_dir).await?;
        let damaged = timelines::set_damaged_aside(&node.config.postgres.data_dir).await?;
        for name in &damaged {
            tracing::warn!("pg_wal/{name} is no history file and was renamed to {name}.damaged: it is fetched again where it is needed");
        }
        if !damaged.is_empty() {
            write_own_history(node, view).await?;
        }
    }
    let postmaster = node.start(view, recovery).await?;
    let (wake, config, noting) = (node.wake.clone(), node.config.clone(), node.clone());
    tokio::spawn(async move {
        // Ready or ended, the loop looks.
        match postmaster.ready().await {
            Ok(Readiness::Ended) => {
                let words = last_words(&config.postgres.server_log).await;
                tracing::error!("Postgres ended while it started: {words}");
                noting.note_start(Some(words));
            }
            Ok(Readiness::Ready | Readiness::Standby) => noting.note_start(None),
            Err(why) => tracing::warn!("watch the start of Postgres: {why:#}"),
        }
        wake.notify_one();
    });
    Ok(Done::Settled)
}

/// The watchdog first: from its first moment on the server may write.
async fn start_primary(node: &Node, view: &ClusterView, term: Term) -> Result<Done> {
    let _armed = match node.watchdog.arm(&node.config.watchdog, view.config().timing().ttl).await {
        Ok(armed) => armed,
        Err(why) => {
            tracing::error!("Postgres is not started as primary, and this node stands down: {why:#}");
            return not_promoted(node, term).await;
        }
    };
    start(node, view, &Recovery::None).await
}

/// The history of the timeline that this server is on is needed from the first record on: fetched later by the walreceiver, it does not count
/// before the next start (`unexpected timeline ID` until then). etcd has it.
async fn write_own_history(node: &Node, view: &ClusterView) -> Result<()> {
    let control = controldata::read(&node.programs, &node.config.postgres.data_dir).await?;
    let timeline = control.timeline.max(control.min_recovery_timeline);
    let path = node.config.postgres.data_dir.join("pg_wal").join(format!("{:08X}.history", timeline.0));
    if crate::postgres::read_if_there(&path).await?.is_none()
        && let Some(text) = view.history().file_of(timeline)
    {
        crate::postgres::write_atomically(&path, &text, 0o600).await?;
        tracing::info!("the history of timeline {timeline}, which this server is on, was written from etcd");
    }
    Ok(())
}

async fn promote_to(node: &Node, term: Term) -> Result<Done> {
    let began = Instant::now();
    if let Err(why) = hook::pre_promote(node).await {
        tracing::error!("this node is not promoted and stands down: {why:#}");
        return not_promoted(node, term).await;
    }
    // Read after the hook: it may have taken long.
    let view = node.etcd.load_view().await?;
    // The key in our name, in the term that was judged, on a lease that etcd confirms now.
    if view.leader_if(&node.config.name).is_none_or(|leader| leader.term != term) {
        bail!("term {term} is over");
    }
    if view.is_standby_cluster() {
        bail!("the cluster is to follow another one (standby_cluster)");
    }
    if !node.lease.confirm(&view).await {
        bail!("the lease was not confirmed by etcd");
    }
    let _armed = match node.watchdog.arm(&node.config.watchdog, view.config().timing().ttl).await {
        Ok(armed) => armed,
        Err(why) => {
            tracing::error!("this node is not promoted and stands down: {why:#}");
            return not_promoted(node, term).await;
        }
    };
    let postmaster = node.postmaster().context("Postgres does not run")?;
    claim_timeline(node, &view).await.context("claim a timeline")?;
    let view = upkeep::synchronous::trust_nobody_else(node, view).await.context("write a sync key of this node's own")?;
    let begins_with = upkeep::synchronous::before_promotion(node, &view).await.context("name the synchronous standbys to begin with")?;
    slots::before_promotion(node, &view).await;
    crate::citus::before_promotion(node, &view, &begins_with).await.context("set Citus to reading from primaries")?;
    tracing::info!("promoting, term {term}");
    promote(&postmaster, &node.config.postgres.data_dir).await?;
    let promoted = async {
        loop {
            match node.sql.facts().await {
                Ok(facts) if !facts.in_recovery => return Ok(facts),
                Err(why) if node.postmaster().is_none() => return Err(why),
                // Nothing tells another process that recovery has ended; no client waits for this look.
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let facts = tokio::time::timeout(PROMOTION_PATIENCE, promoted).await.context("Postgres does not leave recovery")??;
    tracing::info!("promoted: timeline {}, term {term}", facts.timeline);
    node.page.changed.notify_one();
    node.timings.observe(Timed::Promotion, began.elapsed());
    node.begin_synchronous(begins_with);
    node.callbacks.serves(&node.config, &MemberRole::Primary);
    // Wakes the lease worker: the new role is to be in the member key.
    if let Err(why) = node.sql.execute("SELECT tenure_internal.attach_arbiter()").await {
        tracing::warn!("attach to the lease worker: {why:#}");
    }
    upkeep::first_checkpoint(node);
    Ok(Done::LookAgain)
}

/// The hook refused: the key goes back, for another to take, and this node leaves it alone for a TTL.
async fn not_promoted(node: &Node, term: Term) -> Result<Done> {
    let view = node.etcd.load_view().await?;
    node.stand_down(view.config().timing().ttl).await;
    if let Some(leader) = view.leader_if(&node.config.name).filter(|leader| leader.term == term) {
        node.etcd.release_leader(leader).await.context("give the leader key up")?;
    }
    Ok(Done::LookAgain)
}

/// Claims the number of the timeline that the promotion will begin, and makes Postgres use it. By itself
/// Postgres takes the first number for which it has no history file, so two servers that are promoted
/// one after the other, neither knowing of the other's, would begin timelines of one number whose
/// histories parted: nothing would tell them apart afterwards.
async fn claim_timeline(node: &Node, view: &ClusterView) -> Result<()> {
    let leader = view.leader_if(&node.config.name).context("this node leads no more")?;
    let mine = node.sql.facts().await?.timeline;
    let claimed = view.timeline_to_claim(mine);
    node.etcd.claim_timeline(claimed, ClusterView::revision_of(&view.claimed_timeline), leader).await?;
    let wal = node.config.postgres.data_dir.join("pg_wal");
    for number in mine.next().0..claimed.0 {
        let path = wal.join(format!("{number:08X}.history"));
        if crate::postgres::read_if_there(&path).await?.is_none() {
            tracing::warn!("timeline {number} was used or claimed elsewhere: this promotion passes over it");
            crate::postgres::write_atomically(&path, &History::placeholder(mine), 0o600).await?;
        }
    }
    Ok(())
}

async fn demote(node: &Node) -> Result<Done> {
    node.speak(MemberState::Stopping, MemberRole::Demoted);
    // Its fence is closed, so nothing can be acknowledged any more; a clean stop spares the crash recovery before a rewind.
    node.stop_within(StopMode::Fast, DEMOTION_PATIENCE).await?;
    node.speak(MemberState::Stopped, MemberRole::Demoted);
    Ok(Done::LookAgain)
}

/// Stops and starts again as a standby of the other cluster, in a new term.
async fn demote_to_standby_cluster(node: &Node, view: &ClusterView, term: Term) -> Result<Done> {
    let view = demote_cluster::stop_and_begin_term(node, view, term).await?;
    start(node, &view, &follow(node, &view, &unless_nostream(node, Upstream::Remote))).await
}

/// This upstream, but for a node that streams from nobody.
pub fn unless_nostream(node: &Node, upstream: Upstream) -> Upstream {
    if Tags(node.config.tags.clone()).nostream() { Upstream::Nobody } else { upstream }
}

/// Host and port of a conninfo, for the log: the rest is nobody's business there.
pub fn address(conninfo: &str) -> String {
    let words = conninfo.split_whitespace().filter(|word| word.starts_with("host=") || word.starts_with("port="));
    words.collect::<Vec<_>>().join(" ")
}

async fn rewind_from(node: &Node, view: &ClusterView, from: &Upstream) -> Result<Done> {
    let config = &node.config;
    let conninfo = source(node, view, from, config.postgres.authentication.for_rewind(), Some(&config.postgres.database))?;
    // A member of a standby cluster is wound back to the other cluster's history, and follows its own leader again.
    let upstream = unless_nostream(
        node,
        match view.leader.as_ref().filter(|leader| leader.name != config.name) {
            Some(leader) => Upstream::Member(leader.name.clone()),
            None => from.clone(),
        },
    );
    let role = node.standby_role(view);
    node.speak(MemberState::Stopping, role.clone());
    node.stop(StopMode::Fast).await?;
    node.clear_orphans().await?;
    program::end_leftovers(&config.postgres.data_dir).await?;
    node.speak(MemberState::Stopped, role);
    let recovery = follow(node, view, &upstream);
    node.write_configuration(view, &recovery).await?;
    tracing::info!("rewinding to the history of {from} ({})", address(&conninfo));
    let options = rewind::Options { user: &config.postgres.rewind, restore_target_wal: recovery::restores(config, &recovery) };
    match rewind(&node.programs, &config.postgres.data_dir, &config.postgres.files().main(), &conninfo, options).await? {
        Rewound::Done => {
            node.note_rewind(None);
            tracing::info!("rewound");
            node.remote.forget();
            start(node, view, &recovery).await
        }
        Rewound::NotPossible { why, .. } => {
            tracing::error!("pg_rewind failed: {why}");
            node.note_rewind(Some(why));
            Ok(Done::LookAgain)
        }
    }
}

async fn switch_over(node: &Node, judged: &Judged, candidates: &[MemberName]) -> Result<Done> {
    let view = &*judged.view;
    let leader = view.leader_if(&node.config.name).context("this node leads no more")?;
    let facts = judged.facts.as_deref().context("Postgres does not answer")?;
    let switched = switchover::switch_over(node, view, leader, candidates, facts, judged.local.stopping).await;
    if let Err(why) = switched {
        if judged.local.stopping {
            tracing::warn!("leadership was not handed over before the stop: {why:#}");
        } else {
            tracing::error!("switchover failed: {why:#}");
            node.journal.gave_up_switchover(view, &judged.local, format!("{why:#}"));
        }
        // Called off: who waits goes on, the request is gone, and the loop starts Postgres again if it was stopped.
        let _ = node.sql.execute("SELECT tenure_internal.undrain()").await;
        if let Some(request) = view.request() {
            node.etcd.write_failover(&FailoverRequest::default(), request.revision).await.context("clear the request")?;
        }
        if judged.local.stopping {
            return stop(node, view).await;
        }
    }
    Ok(Done::LookAgain)
}

/// The postmaster is dead and a synchronous standby has everything: it goes on at once.
async fn hand_over(node: &Node, view: &ClusterView, to: &MemberName) -> Result<Done> {
    node.speak(MemberState::Crashed, MemberRole::Demoted);
    // What the postmaster left behind could still write: not one of it may live when another leads.
    node.clear_orphans().await?;
    let leader = view.leader_if(&node.config.name).context("this node leads no more")?;
    switchover::hand_over(node, leader, to, None).await?;
    tracing::warn!("Postgres crashed: leadership handed over to {to}, which has every acknowledged commit");
    Ok(Done::LookAgain)
}

/// A request that can't be served is gone before it is served at an hour when nobody thinks of it.
async fn call_off(node: &Node, judged: &Judged) -> Result<Done> {
    let Some(request) = judged.view.request() else { return Ok(Done::LookAgain) };
    let why = cluster::failover::candidates(&judged.view, &request.value).err().map_or_else(String::new, |why| why.to_string());
    node.etcd.write_failover(&FailoverRequest::default(), request.revision).await?;
    tracing::warn!("the request for another leader was taken back, as it can't be served: {why}; hint: ask again once that has changed");
    node.journal.gave_up_switchover(&judged.view, &judged.local, why);
    Ok(Done::LookAgain)
}

async fn release(node: &Node, view: &ClusterView) -> Result<Done> {
    node.speak(MemberState::Crashed, MemberRole::Demoted);
    // The server was given up for being useless, perhaps since it hangs: an immediate stop that works takes no longer.
    node.stop_within(StopMode::Immediate, RELEASE_PATIENCE).await?;
    node.clear_orphans().await?;
    let leader = view.leader_if(&node.config.name).context("this node leads no more")?;
    node.etcd.release_leader(leader).await?;
    node.callbacks.demoted(&node.config);
    Ok(Done::LookAgain)
}

/// A planned end: Postgres is stopped cleanly, and what was held is given back after that.
async fn stop(node: &Node, view: &ClusterView) -> Result<Done> {
    if view.config().paused() {
        tracing::info!("the cluster is in maintenance mode: leaving Postgres as it is");
        return Ok(Done::Stopped);
    }
    upkeep::leaving::leave(node).await;
    node.speak(MemberState::Stopping, MemberRole::Replica);
    node.stop_within(StopMode::Fast, node.patience(view)).await?;
    node.speak(MemberState::Stopped, MemberRole::Replica);
    let bound = Duration::from_secs(5);
    let given_back = tokio::time::timeout(bound, async {
        let view = node.etcd.load_view().await?;
        if let Some(other) = node.lease.in_use(&view) {
            tracing::warn!("no key is released: {other}");
            return Ok(());
        }
        if let Some(leader) = view.leader_if(&node.config.name) {
            node.etcd.release_leader(leader).await?;
        }
        if let Some(lease) = view.lease_of(&node.config.name) {
            node.lease.speak(None);
            node.etcd.revoke(lease).await?;
        }
        Ok::<(), dcs::Error>(())
    });
    match given_back.await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => tracing::warn!("this node's keys were not released, they expire by themselves: {why}"),
        Err(_) => tracing::warn!("this node's keys were not released within {} s, they expire by themselves", bound.as_secs()),
    }
    Ok(Done::Stopped)
}
