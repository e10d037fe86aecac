//! Planned change of leader: checkpoint, drain, clean stop, proof that the candidate has everything,
//! and the key handed over in one guarded write.

use crate::duties::done::{Done, Judged};
use crate::duties::stop;
use crate::ground::answers;
use crate::ground::member_rest::Caller;
use crate::node::Node;
use crate::node::timings::Timed;
use crate::postgres::controldata::{self, ClusterState};
use crate::postgres::postmaster::StopMode;
use crate::postgres::query::{Sender, ServerFacts};
use anyhow::{Context, Result, bail};
use cluster::failover::FailoverRequest;
use cluster::leader::Leader;
use cluster::lsn::{CHECKPOINT_RECORD_BYTES, Lsn};
use cluster::member::{MemberRole, MemberState};
use cluster::name::MemberName;
use cluster::sync::SyncState;
use cluster::view::{ClusterView, Status};
use dcs::{Dcs, HandOver};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Running transactions may take this long to end once the drain began.
const GRACE: Duration = Duration::from_millis(500);

/// From the drain to the stop, which ends it: an arbiter that freezes in between does not leave clients waiting for longer.
const DRAIN_MOST: Duration = Duration::from_secs(5);

/// A checkpoint before the stop may take this long; the stop makes its own in any case.
const CHECKPOINT_PATIENCE: Duration = Duration::from_secs(60);

/// How long a candidate that has only just connected may take to tell its position.
const CANDIDATE_PATIENCE: Duration = Duration::from_secs(2);

/// How long the candidate may take to confirm that it has the shutdown checkpoint. The walsender has
/// waited for that already, so this is for a candidate that lost its connection at the last moment.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(2);

/// Serves the request for another leader; one that can't be served is called off.
pub async fn serve(node: &Node, judged: &Judged, candidates: &[MemberName]) -> Result<Done> {
    let view = &*judged.view;
    let leader = view.leader_if(&node.config.name).context("this node leads no more")?;
    let facts = judged.facts.as_deref().context("Postgres does not answer")?;
    let switched = switch_over(node, view, leader, candidates, facts, judged.local.stopping).await;
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
            return stop::stop(node, view).await;
        }
    }
    Ok(Done::LookAgain)
}

/// The postmaster is dead and a synchronous standby has everything: it goes on at once.
pub async fn hand_over_after_crash(node: &Node, view: &ClusterView, to: &MemberName) -> Result<Done> {
    node.speak(MemberState::Crashed, MemberRole::Demoted);
    // What the postmaster left behind could still write: not one of it may live when another leads.
    node.clear_orphans().await?;
    let leader = view.leader_if(&node.config.name).context("this node leads no more")?;
    hand_over(node, leader, to, None).await?;
    tracing::warn!("Postgres crashed: leadership handed over to {to}, which has every acknowledged commit");
    Ok(Done::LookAgain)
}

/// A request that can't be served is gone before it is served at an hour when nobody thinks of it.
pub async fn call_off(node: &Node, judged: &Judged) -> Result<Done> {
    let Some(request) = judged.view.request() else { return Ok(Done::LookAgain) };
    let why = cluster::failover::candidates(&judged.view, &request.value).err().map_or_else(String::new, |why| why.to_string());
    node.etcd.write_failover(&FailoverRequest::default(), request.revision).await?;
    tracing::warn!("the request for another leader was taken back, as it can't be served: {why}; hint: ask again once that has changed");
    node.journal.gave_up_switchover(&judged.view, &judged.local, why);
    Ok(Done::LookAgain)
}

/// Switches over to the first candidate that turns out to have everything; `leaving` says that this server ends in any case.
async fn switch_over(
    node: &Node,
    view: &ClusterView,
    leader: &Leader,
    candidates: &[MemberName],
    facts: &ServerFacts,
    leaving: bool,
) -> Result<MemberName> {
    let close = wait_for_candidates(node, view, candidates, facts).await?;
    // A walsender keeps the connection of a host that died for `wal_sender_timeout`: before anything stops, they are asked.
    let answered = answers::of(&node.caller, view, &close).await;
    let ready: Vec<MemberName> = close.into_iter().filter(|name| answered.contains(name)).collect();
    let Some(first) = ready.first() else { bail!("none of the candidates answers over REST") };
    if facts.in_recovery {
        // A standby cluster: nothing is written here, so nothing has to stop.
        hand_over(node, leader, first, None).await?;
        tracing::info!("leadership of the standby cluster handed over to {first}");
        return Ok(first.clone());
    }
    let ready = without_promise(node, view, ready).await?;
    let Some(first) = ready.first() else { bail!("nobody is asked to take over") };
    tracing::info!("switchover to {first}: checkpoint while still serving");
    announce(node, first);
    let began = Instant::now();
    match tokio::time::timeout(CHECKPOINT_PATIENCE, node.sql.checkpoint()).await {
        Ok(Ok(())) => {}
        Ok(Err(why)) => tracing::warn!("checkpoint before the switchover: {why:#}"),
        Err(_) => tracing::warn!("checkpoint before the switchover takes longer than {} s: going on", CHECKPOINT_PATIENCE.as_secs()),
    }
    crate::citus::daemon::end(node).await?;
    let checkpointed = began.elapsed();
    // Before poolers are paused: what is under way through one of them could not end.
    crate::citus::ask(node, view, leaving).await?;
    let _held = crate::poolers::hold(node, view).await;
    let draining = Instant::now();
    node.sql.execute(&format!("SELECT tenure_internal.drain({})", DRAIN_MOST.as_millis())).await.context("drain")?;
    wait_for_writers(node).await;
    let drained = began.elapsed();
    // The lease worker ends with the stop's first moment: from here on the lease is ours to keep.
    node.speak(MemberState::Stopping, MemberRole::Primary);
    let clean = node.stop_within(StopMode::Fast, node.patience(view)).await?;
    let stopped = began.elapsed();
    let control = controldata::read(&node.programs, &node.config.postgres.data_dir).await?;
    if !clean || control.state != ClusterState::ShutDown {
        bail!("Postgres did not shut down cleanly ({:?}), so it stays the leader", control.state);
    }
    let to = confirmed(&node.caller, view, &ready, Lsn(control.checkpoint.0 + CHECKPOINT_RECORD_BYTES)).await?;
    hand_over(node, leader, &to, Some(control.checkpoint)).await?;
    let total = began.elapsed();
    node.timings.observe(Timed::Handover, draining.elapsed());
    tracing::info!(
        "leadership handed over to {to}: checkpoint {} ms, drain {} ms, stop {} ms, proof and handover {} ms",
        checkpointed.as_millis(),
        (drained - checkpointed).as_millis(),
        (stopped - drained).as_millis(),
        (total - stopped).as_millis()
    );
    node.speak(MemberState::Stopped, MemberRole::Demoted);
    Ok(to)
}

/// Tells whoever listens here (`LISTEN tenure`) that this server is about to be a standby. Nobody waits for it. Of a promotion nobody
/// could hear: LISTEN is refused during recovery.
fn announce(node: &Node, to: &MemberName) {
    let told = serde_json::json!({"event": "switchover", "from": node.config.name, "to": to});
    let sql = node.sql.clone();
    tokio::spawn(async move {
        if let Err(why) = sql.notify("tenure", &told.to_string()).await {
            tracing::warn!("NOTIFY tenure: {why:#}");
        }
    });
}

/// Gives the leader key to a member, in one write guarded by the term that was judged.
pub async fn hand_over(node: &Node, leader: &Leader, to: &MemberName, last: Option<Lsn>) -> Result<()> {
    if *to != node.config.name {
        // Whoever gets the key takes them at once.
        node.addresses.release(&node.config.vip).await;
    }
    // Read again: only the leader key is guarded by what was judged, the rest must be as it is now.
    let view = node.etcd.load_view().await?;
    let to_lease = view.lease_of(to).with_context(|| format!("{to} has no member key any more"))?;
    let sync = view.sync.as_ref().filter(|sync| !sync.value.is_empty()).map(|sync| {
        let mine = sync.value.leader.as_deref() == Some(node.config.name.as_str());
        // Our own key says who has everything, and so have we: until the next leader is promoted we may go on in its place.
        let begins_with = if mine { sync.value.inherited(to) } else { SyncState::of(to, &BTreeSet::new()) };
        let state = SyncState { other: sync.value.other.clone(), ..begins_with };
        (state, sync.revision)
    });
    let before = view.status.as_ref().map(|status| status.value.clone()).unwrap_or_default();
    let handed = node
        .etcd
        .hand_over(&HandOver {
            from: leader.clone(),
            to: to.clone(),
            to_lease,
            sync,
            failover: view.request().map(|request| request.revision),
            status: last.map(|optime| Status { optime, ..before }),
        })
        .await;
    handed.map(drop).with_context(|| format!("hand the leader key over to {to}"))
}

/// Those of the candidates that stream from here and are close, best first. One that has only just
/// connected has not told its position yet: it gets a moment, while this node serves on.
async fn wait_for_candidates(node: &Node, view: &ClusterView, candidates: &[MemberName], facts: &ServerFacts) -> Result<Vec<MemberName>> {
    let most = view.config().maximum_lag_on_failover();
    let close = |facts: &ServerFacts| -> Vec<MemberName> {
        let ready = |name: &&MemberName| sender(facts, name).and_then(|sender| lag(facts, sender)).is_some_and(|lag| lag <= most);
        candidates.iter().filter(ready).cloned().collect()
    };
    let mut ready = close(facts);
    let deadline = Instant::now() + CANDIDATE_PATIENCE;
    let mut last = describe(candidates, facts);
    while ready.is_empty() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let facts = node.sql.facts().await?;
        ready = close(&facts);
        last = describe(candidates, &facts);
    }
    if ready.is_empty() {
        bail!("no candidate streams with at most {most} bytes of lag (maximum_lag_on_failover): {last}");
    }
    Ok(ready)
}

/// Those that no promise binds, in their order: a member that has promised not to take the key opens no fence with one that it is handed.
/// While all are bound this node serves on, for a TTL at most.
async fn without_promise(node: &Node, view: &ClusterView, candidates: Vec<MemberName>) -> Result<Vec<MemberName>> {
    let deadline = Instant::now() + view.config().timing().ttl + CANDIDATE_PATIENCE;
    loop {
        let asked = futures_util::future::join_all(candidates.iter().map(|name| answers::promise(&node.caller, view, name))).await;
        let promises = || candidates.iter().zip(&asked);
        let free: Vec<MemberName> = promises().filter(|(_, promise)| promise.is_none()).map(|(name, _)| name.clone()).collect();
        if !free.is_empty() {
            return Ok(free);
        }
        let Some((left, name)) = promises().filter_map(|(name, promise)| Some(((*promise)?, name))).min() else { return Ok(free) };
        let words = format!("{name} has promised not to take the leader key for {} ms yet (failsafe_mode)", left.as_millis());
        if Instant::now() + left > deadline {
            bail!("{words}");
        }
        tracing::info!("the switchover waits: {words}");
        // It may end before its time, so a look in between.
        tokio::time::sleep(left.min(Duration::from_millis(500))).await;
    }
}

fn sender<'a>(facts: &'a ServerFacts, name: &MemberName) -> Option<&'a Sender> {
    let streams = |sender: &&Sender| sender.state.as_deref() == Some("streaming") && sender.replay_lsn.is_some();
    facts.replication.iter().filter(streams).find(|sender| sender.application_name == name.as_str())
}

fn lag(facts: &ServerFacts, sender: &Sender) -> Option<u64> {
    Some(sender.flush_lsn?.lag_bytes_behind(facts.position()))
}

fn describe(candidates: &[MemberName], facts: &ServerFacts) -> String {
    let words = candidates.iter().map(|name| match sender(facts, name).map(|sender| lag(facts, sender)) {
        Some(Some(lag)) => format!("{name} is {lag} bytes behind"),
        Some(None) => format!("{name} has not told its position yet"),
        None => format!("{name} does not stream from here"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Gives transactions that are writing a moment to end; those that began after the drain wait at their commit.
pub async fn wait_for_writers(node: &Node) {
    const WRITERS: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
        AND wait_event IS DISTINCT FROM 'Extension')";
    let quiet = async {
        while node.sql.ask(WRITERS).await.unwrap_or(true) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(GRACE, quiet).await.is_err() {
        tracing::info!("transactions still run after {} ms: they are rolled back", GRACE.as_millis());
    }
}

/// The first candidate that says it has received up to `end`.
async fn confirmed(caller: &Caller, view: &ClusterView, candidates: &[MemberName], end: Lsn) -> Result<MemberName> {
    let deadline = Instant::now() + CONFIRM_PATIENCE;
    let mut last = String::new();
    loop {
        for name in candidates {
            match answers::position(caller, view, name).await {
                Ok(lsn) if lsn >= end => return Ok(name.clone()),
                Ok(lsn) => last = format!("{name} has received up to {lsn}, {end} is needed"),
                Err(why) => last = format!("{name}: {why:#}"),
            }
        }
        if Instant::now() >= deadline {
            bail!("no candidate has the end of the WAL, so this node stays the leader: {last}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
