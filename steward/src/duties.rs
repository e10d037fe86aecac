//! Duty -> procedure: one match, no wildcard arm, and nothing else; the only door from a decision to the server's files and process.

use crate::judged::{Done, Judged};
use crate::server::Server;
use crate::{promote, stop, switchover};
use anyhow::{Context, Result};
use cluster::duty::Duty;

/// Does what the node owes the cluster.
pub async fn apply<S: Server>(server: &S, duty: Duty, judged: Judged<'_, S::Seen>) -> Result<Done> {
    let view = judged.view;
    match duty {
        Duty::Rest => server.rest(judged).await,
        Duty::Bootstrap => server.found(judged).await.context("found the cluster"),
        Duty::Clone { from } => server.clone_from(judged, &from).await.with_context(|| format!("clone from {from}")),
        Duty::Restore => server.restore(view).await.context("make the data from a backup"),
        Duty::StartPrimary { term } => promote::start(server, view, term).await.context("start Postgres as primary"),
        Duty::StartStandby { upstream } => server.start_standby(view, &upstream).await.context("start Postgres as standby"),
        Duty::Promote { term } => promote::promote(server, term).await.context("promote"),
        Duty::Demote => stop::demote(server).await.context("demote"),
        Duty::DemoteCluster { term } => server.demote_cluster(view, term).await.context("become a standby cluster"),
        Duty::Follow { upstream } => server.follow(view, &upstream).await,
        Duty::Rewind { from } => server.rewind(view, &from).await.with_context(|| format!("rejoin {from} by pg_rewind")),
        Duty::Switchover { candidates } => switchover::serve(server, judged, &candidates).await,
        Duty::HandOver { to } => switchover::hand_over_after_crash(server, view, &to).await,
        Duty::GiveWay { to } => server.give_way(judged, &to).await.context("give way to a member that is better off"),
        Duty::CallOff => switchover::call_off(server, judged).await.context("take a request back that can't be served"),
        Duty::Release => stop::release(server, view).await.context("give the leader key up"),
        Duty::Upgrade { owed } => server.resume_upgrade(view, owed).await.context("bring a major upgrade to its end"),
        Duty::RestoreTo { owed } => server.resume_restore(view, owed).await.context("bring a restore to its end"),
        Duty::Stop => stop::stop(server, view).await.context("stop"),
        Duty::Quit => Ok(Done::Stopped),
    }
}
