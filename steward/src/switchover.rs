//! Planned change of leader: checkpoint, drain, clean stop, proof that the candidate has everything,
//! and the key handed over in one guarded write.

use crate::host::within;
use crate::judged::{Done, Judged};
use crate::server::{Ended, Facts, Sender, Server, Stop};
use crate::stop;
use anyhow::{Context, Result, bail};
use cluster::failover::FailoverRequest;
use cluster::leader::Leader;
use cluster::lsn::{CHECKPOINT_RECORD_BYTES, Lsn};
use cluster::member::{MemberRole, MemberState};
use cluster::name::MemberName;
use cluster::sync::SyncState;
use cluster::view::{ClusterView, Status};
use dcs::{HandOver, LocalDcs};
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::time::Duration;

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
pub async fn serve<S: Server>(server: &S, judged: Judged<'_, S::Seen>, candidates: &[MemberName]) -> Result<Done> {
    let Judged { view, local, seen } = judged;
    let leader = view.leader_if(server.name()).context("this node leads no more")?;
    let facts = server.facts_of(seen.context("Postgres does not answer")?);
    let switched = switch_over(server, view, leader, candidates, &facts, local.stopping).await;
    if let Err(why) = switched {
        if local.stopping {
            server.warn(format_args!("leadership was not handed over before the stop: {why:#}"));
        } else {
            server.error(format_args!("switchover failed: {why:#}"));
            server.gave_up_switchover(view, local, format!("{why:#}"));
        }
        // Called off: writers that wait go on, the request is gone, and the loop starts Postgres again if it was stopped.
        let _ = server.undrain().await;
        if let Some(request) = view.request() {
            server.store().write_failover(&FailoverRequest::default(), request.revision).await.context("clear the request")?;
        }
        if local.stopping {
            return stop::stop(server, view).await;
        }
    }
    Ok(Done::LookAgain)
}

/// The server crashed and a synchronous standby has everything: it goes on at once. A postmaster that lives, and recovers, ends with the rest: its
/// server could lead again, or fail again on the disk that it failed on.
pub async fn hand_over_after_crash<S: Server>(server: &S, view: &ClusterView, to: &MemberName) -> Result<Done> {
    server.speak(MemberState::Crashed, MemberRole::Demoted);
    // What is left could still write: not one of it may live when another leads.
    server.end_by_force().await?;
    let leader = view.leader_if(server.name()).context("this node leads no more")?;
    hand_over(server, leader, to, None).await?;
    server.warn(format_args!("Postgres crashed: leadership handed over to {to}, which has every acknowledged commit"));
    Ok(Done::LookAgain)
}

/// A request that can't be served is gone before it is served at an hour when nobody thinks of it.
pub async fn call_off<S: Server>(server: &S, judged: Judged<'_, S::Seen>) -> Result<Done> {
    let Judged { view, local, .. } = judged;
    let Some(request) = view.request() else { return Ok(Done::LookAgain) };
    let why = cluster::failover::candidates(view, &request.value).err().map_or_else(String::new, |why| why.to_string());
    server.store().write_failover(&FailoverRequest::default(), request.revision).await?;
    server.warn(format_args!(
        "the request for another leader was taken back, as it can't be served: {why}; hint: ask again once that has changed"
    ));
    server.gave_up_switchover(view, local, why);
    Ok(Done::LookAgain)
}

/// Switches over to the first candidate that turns out to have everything; `leaving` says that this server ends in any case.
async fn switch_over<S: Server>(
    server: &S,
    view: &ClusterView,
    leader: &Leader,
    candidates: &[MemberName],
    facts: &Facts,
    leaving: bool,
) -> Result<MemberName> {
    let close = wait_for_candidates(server, view, candidates, facts).await?;
    // A walsender keeps the connection of a host that died for `wal_sender_timeout`: before anything stops, they are asked.
    let answered = server.answering(view, &close).await;
    let ready: Vec<MemberName> = close.into_iter().filter(|name| answered.contains(name)).collect();
    let Some(first) = ready.first() else { bail!("none of the candidates answers over REST") };
    if facts.in_recovery {
        // A standby cluster: nothing is written here, so nothing has to stop.
        hand_over(server, leader, first, None).await?;
        server.info(format_args!("leadership of the standby cluster handed over to {first}"));
        return Ok(first.clone());
    }
    let ready = without_promise(server, view, ready).await?;
    let Some(first) = ready.first() else { bail!("nobody is asked to take over") };
    server.info(format_args!("switchover to {first}: checkpoint while still serving"));
    server.announce_switchover(first);
    let began = server.clock();
    match within(server, CHECKPOINT_PATIENCE, server.checkpoint()).await {
        Some(Ok(())) => {}
        Some(Err(why)) => server.warn(format_args!("checkpoint before the switchover: {why:#}")),
        None => {
            server.warn(format_args!("checkpoint before the switchover takes longer than {} s: going on", CHECKPOINT_PATIENCE.as_secs()))
        }
    }
    let checkpointed = server.clock();
    let _quiet = server.quieten(view, leaving).await?;
    let draining = server.clock();
    server.drain(DRAIN_MOST).await.context("drain")?;
    wait_for_writers(server).await;
    let drained = server.clock();
    // The lease worker ends with the stop's first moment: from here on the lease is ours to keep.
    server.speak(MemberState::Stopping, MemberRole::Primary);
    let clean = server.stop(Stop::Fast, stop::patience(view)).await?;
    let stopped = server.clock();
    let Ended { is_clean, checkpoint, state } = server.ended().await?;
    if !clean || !is_clean {
        bail!("Postgres did not shut down cleanly ({state}), so it stays the leader");
    }
    let to = confirmed(server, view, &ready, Lsn(checkpoint.0 + CHECKPOINT_RECORD_BYTES)).await?;
    hand_over(server, leader, &to, Some(checkpoint)).await?;
    let done = server.clock();
    server.handed_over(done.since(draining));
    server.info(format_args!(
        "leadership handed over to {to}: checkpoint {} ms, drain {} ms, stop {} ms, proof and handover {} ms",
        checkpointed.since(began).as_millis(),
        drained.since(checkpointed).as_millis(),
        stopped.since(drained).as_millis(),
        done.since(stopped).as_millis()
    ));
    server.speak(MemberState::Stopped, MemberRole::Demoted);
    Ok(to)
}

/// Gives the leader key to a member, in one write guarded by the term that was judged.
pub async fn hand_over<S: Server>(server: &S, leader: &Leader, to: &MemberName, last: Option<Lsn>) -> Result<()> {
    if to != server.name() {
        // The member that gets the key takes them at once.
        server.release_addresses().await;
    }
    // Read again: only the leader key is guarded by what was judged, the rest must be as it is now.
    let view = server.store().load_view().await?;
    let to_lease = view.lease_of(to).with_context(|| format!("{to} has no member key any more"))?;
    let sync = view.sync.as_ref().filter(|sync| !sync.value.is_empty()).map(|sync| {
        let mine = sync.value.leader.as_deref() == Some(server.name().as_str());
        // Our own key says who has everything, and so have we: until the next leader is promoted we may go on in its place.
        let begins_with = if mine { sync.value.inherited(to) } else { SyncState::of(to, &BTreeSet::new()) };
        let state = SyncState { other: sync.value.other.clone(), ..begins_with };
        (state, sync.revision)
    });
    let before = view.status.as_ref().map(|status| status.value.clone()).unwrap_or_default();
    let handed = HandOver {
        from: leader.clone(),
        to: to.clone(),
        to_lease,
        sync,
        failover: view.request().map(|request| request.revision),
        status: last.map(|optime| Status { optime, ..before }),
    };
    server.store().hand_over(&handed).await.map(drop).with_context(|| format!("hand the leader key over to {to}"))
}

/// Those of the candidates that stream from here and are close, best first. One that has only just
/// connected has not told its position yet: it gets a moment, while this node serves on.
async fn wait_for_candidates<S: Server>(
    server: &S,
    view: &ClusterView,
    candidates: &[MemberName],
    facts: &Facts,
) -> Result<Vec<MemberName>> {
    let most = view.config().maximum_lag_on_failover();
    let close = |facts: &Facts| -> Vec<MemberName> {
        let ready = |name: &&MemberName| sender(facts, name).and_then(|sender| lag(facts, sender)).is_some_and(|lag| lag <= most);
        candidates.iter().filter(ready).cloned().collect()
    };
    let mut ready = close(facts);
    let deadline = server.clock() + CANDIDATE_PATIENCE;
    let mut last = describe(candidates, facts);
    while ready.is_empty() && server.clock() < deadline {
        server.sleep(Duration::from_millis(50)).await;
        let facts = server.facts().await?;
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
async fn without_promise<S: Server>(server: &S, view: &ClusterView, candidates: Vec<MemberName>) -> Result<Vec<MemberName>> {
    let deadline = server.clock() + view.config().timing().ttl + CANDIDATE_PATIENCE;
    loop {
        let asked = join_all(candidates.iter().map(|name| server.promise_of(view, name))).await;
        let promises = || candidates.iter().zip(&asked);
        let free: Vec<MemberName> = promises().filter(|(_, promise)| promise.is_none()).map(|(name, _)| name.clone()).collect();
        if !free.is_empty() {
            return Ok(free);
        }
        let Some((left, name)) = promises().filter_map(|(name, promise)| Some(((*promise)?, name))).min() else { return Ok(free) };
        let words = format!("{name} has promised not to take the leader key for {} ms yet (failsafe_mode)", left.as_millis());
        if server.clock() + left > deadline {
            bail!("{words}");
        }
        server.info(format_args!("the switchover waits: {words}"));
        // It may end before its time, so a look in between.
        server.sleep(left.min(Duration::from_millis(500))).await;
    }
}

fn sender<'a>(facts: &'a Facts, name: &MemberName) -> Option<&'a Sender> {
    facts.senders.iter().filter(|sender| sender.is_standby()).find(|sender| sender.application_name == name.as_str())
}

fn lag(facts: &Facts, sender: &Sender) -> Option<u64> {
    Some(sender.flushed?.lag_bytes_behind(facts.position))
}

fn describe(candidates: &[MemberName], facts: &Facts) -> String {
    let words = candidates.iter().map(|name| match sender(facts, name).map(|sender| lag(facts, sender)) {
        Some(Some(lag)) => format!("{name} is {lag} bytes behind"),
        Some(None) => format!("{name} has not told its position yet"),
        None => format!("{name} does not stream from here"),
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Gives transactions that are writing a moment to end; those that began after the drain wait at their commit.
pub async fn wait_for_writers<S: Server>(server: &S) {
    let quiet = async {
        while server.is_writing().await.unwrap_or(true) {
            server.sleep(Duration::from_millis(5)).await;
        }
    };
    if within(server, GRACE, quiet).await.is_none() {
        server.info(format_args!("transactions still run after {} ms: they are rolled back", GRACE.as_millis()));
    }
}

/// The first candidate that says it has received up to `end`.
async fn confirmed<S: Server>(server: &S, view: &ClusterView, candidates: &[MemberName], end: Lsn) -> Result<MemberName> {
    let deadline = server.clock() + CONFIRM_PATIENCE;
    let mut last = String::new();
    loop {
        for name in candidates {
            match server.position_of(view, name).await {
                Ok(lsn) if lsn >= end => return Ok(name.clone()),
                Ok(lsn) => last = format!("{name} has received up to {lsn}, {end} is needed"),
                Err(why) => last = format!("{name}: {why:#}"),
            }
        }
        if server.clock() >= deadline {
            bail!("no candidate has the end of the WAL, so this node stays the leader: {last}");
        }
        server.sleep(Duration::from_millis(5)).await;
    }
}
