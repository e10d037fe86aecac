//! The server is stopped: a deposed primary, one that is of no use, or on the arbiter's own end.

use crate::host::within;
use crate::judged::Done;
use crate::server::{Server, Stop};
use anyhow::{Context, Result};
use cluster::member::{MemberRole, MemberState};
use cluster::view::ClusterView;
use dcs::LocalDcs;
use std::time::Duration;

/// A fast shutdown may take this long before it becomes an immediate one, where the configuration says nothing else.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A deposed primary may take this long over its fast stop: its walsenders may wait for standbys that
/// have left, and nobody waits for what it would still write.
const DEMOTION_PATIENCE: Duration = Duration::from_secs(5);

/// How long an immediate stop may take before SIGKILL follows: the postmaster itself kills its children after 5 s.
const RELEASE_PATIENCE: Duration = Duration::from_secs(6);

/// How long this node's keys may take to be given back at its end.
const GIVING_BACK: Duration = Duration::from_secs(5);

/// How long a planned fast stop may take: `primary_stop_timeout`, where it counts.
pub fn patience(view: &ClusterView) -> Duration {
    view.config().primary_stop_timeout().unwrap_or(PATIENCE)
}

/// Another member leads, or nobody may: this server is primary no more.
pub async fn demote<S: Server>(server: &S) -> Result<Done> {
    server.speak(MemberState::Stopping, MemberRole::Demoted);
    // Its fence is closed, so nothing can be acknowledged any more; a clean stop spares the crash recovery before a rewind.
    server.stop(Stop::Fast, DEMOTION_PATIENCE).await?;
    server.speak(MemberState::Stopped, MemberRole::Demoted);
    Ok(Done::LookAgain)
}

/// The server can't serve: the leader key is given up for another member to take.
pub async fn release<S: Server>(server: &S, view: &ClusterView) -> Result<Done> {
    server.speak(MemberState::Crashed, MemberRole::Demoted);
    // The server was given up for being useless, perhaps since it hangs: an immediate stop that works takes no longer.
    server.stop(Stop::Immediate, RELEASE_PATIENCE).await?;
    server.clear_orphans().await?;
    let leader = view.leader_if(server.name()).context("this node leads no more")?;
    server.store().release_leader(leader).await?;
    server.demoted();
    Ok(Done::LookAgain)
}

/// A planned end: Postgres is stopped cleanly, and what was held is given back after that.
pub async fn stop<S: Server>(server: &S, view: &ClusterView) -> Result<Done> {
    if view.config().paused() {
        server.info(format_args!("the cluster is in maintenance mode: leaving Postgres as it is"));
        return Ok(Done::Stopped);
    }
    server.leave().await;
    server.speak(MemberState::Stopping, MemberRole::Replica);
    server.stop(Stop::Fast, patience(view)).await?;
    server.speak(MemberState::Stopped, MemberRole::Replica);
    let given_back = async {
        let view = server.store().load_view().await?;
        if let Some(other) = server.in_use(&view) {
            server.warn(format_args!("no key is released: {other}"));
            return Ok(());
        }
        if let Some(leader) = view.leader_if(server.name()) {
            server.store().release_leader(leader).await?;
        }
        if let Some(lease) = view.lease_of(server.name()) {
            server.fall_silent();
            server.store().revoke(lease).await?;
        }
        Ok::<(), dcs::Error>(())
    };
    match within(server, GIVING_BACK, given_back).await {
        Some(Ok(())) => {}
        Some(Err(why)) => server.warn(format_args!("this node's keys were not released, they expire by themselves: {why}")),
        None => {
            server.warn(format_args!("this node's keys were not released within {} s, they expire by themselves", GIVING_BACK.as_secs()))
        }
    }
    Ok(Done::Stopped)
}
