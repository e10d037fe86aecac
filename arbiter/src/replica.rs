//! A new copy of the cluster's data: the methods of the node's file, in their order, until one works.

use crate::apply::{Done, follow, start};
use crate::config::{MethodCommand, ReplicaMethod};
use crate::hands::Hands;
use crate::postgres::basebackup::basebackup;
use crate::postgres::marker::Incomplete;
use crate::postgres::postmaster::{Postmaster, StopMode};
use crate::postgres::query::member_conninfo;
use crate::postgres::{controldata, empty_directory, is_empty_directory, sync_data_directory};
use crate::program::{self, Run, Stragglers, WORKS_ON};
use crate::tend;
use anyhow::{Context, Result, bail};
use cluster::member::{MemberRole, MemberState};
use cluster::name::MemberName;
use cluster::view::ClusterView;

/// Makes a copy of this member's data and starts it as a standby.
pub async fn clone(hands: &Hands, view: &ClusterView, from: &MemberName, only_basebackup: bool) -> Result<Done> {
    let source = &view.members.get(from).with_context(|| format!("{from} has no member key"))?.member;
    let (host, port) = source.host_port().with_context(|| format!("{from} has no usable address: {}", source.conn_url))?;
    let passfile = hands.config.postgres.pgpass.display().to_string();
    let replication = &hands.config.postgres.authentication.replication;
    let conninfo = member_conninfo(&host, port, replication, &passfile, hands.config.name.as_str(), None);
    tracing::info!("cloning from {from} ({host}:{port})");
    let methods: Vec<&ReplicaMethod> = match only_basebackup {
        true => vec![&ReplicaMethod::Basebackup],
        false => hands.config.postgres.create_replica_methods.iter().collect(),
    };
    let made = make(hands, view, &methods, Some((from, &conninfo))).await;
    let leads = view.leader.as_ref().is_some_and(|leader| leader.name == *from);
    hands.note_clone(if made.is_err() && !leads { Some(from.clone()) } else { None });
    made?;
    hands.note_rewind(None);
    // A copy of a standby streams from where `follow` says next; until then from its source.
    start(hands, view, &follow(hands, view, Some(from))).await
}

/// Makes the data from a backup, with the methods that need no member, and starts it as a standby of nobody.
pub async fn restore(hands: &Hands, view: &ClusterView) -> Result<Done> {
    let needs_nobody = |method: &&ReplicaMethod| matches!(method, ReplicaMethod::Command(command) if command.no_leader);
    let methods: Vec<&ReplicaMethod> = hands.config.postgres.create_replica_methods.iter().filter(needs_nobody).collect();
    make(hands, view, &methods, None).await?;
    start(hands, view, &follow(hands, view, None)).await
}

async fn make(hands: &Hands, view: &ClusterView, methods: &[&ReplicaMethod], source: Option<(&MemberName, &str)>) -> Result<()> {
    let data_dir = &hands.config.postgres.data_dir;
    tend::leaving::leave(hands).await;
    hands.speak(MemberState::CreatingReplica, MemberRole::Uninitialized);
    hands.stop(StopMode::Immediate).await?;
    hands.clear_orphans().await?;
    program::end_leftovers(data_dir).await?;
    hands.write_pgpass().await?;
    let mut failures = Vec::new();
    for method in methods {
        let made = match (method, source) {
            (ReplicaMethod::Basebackup, Some((from, conninfo))) => copy(hands, from, conninfo).await,
            (ReplicaMethod::Basebackup, None) => continue,
            (ReplicaMethod::Command(command), _) => by_command(hands, view, command, source).await,
        };
        match made {
            Ok(()) => {
                tracing::info!("the replica was made by {}", method.name());
                return Ok(());
            }
            Err(why) => {
                tracing::error!("replica method {} failed: {why:#}", method.name());
                failures.push(format!("{}: {why:#}", method.name()));
            }
        }
    }
    // What a method left is nobody's data: marked it stays, and empty it needs no mark.
    if is_empty_directory(data_dir).await? {
        Incomplete::of(data_dir).clear().await?;
    }
    bail!("no replica method worked ({})", failures.join("; "))
}

async fn copy(hands: &Hands, from: &MemberName, conninfo: &str) -> Result<()> {
    let config = &hands.config;
    let mut told = 0;
    let progress = |percent: u8| {
        hands.speak_progress(percent);
        if percent >= told + 10 {
            told = percent;
            tracing::info!("clone from {from}: {percent} %");
        }
    };
    let what = format!("clone from {from}");
    basebackup(&hands.programs, &config.postgres.data_dir, conninfo, &config.postgres.basebackup, &what, progress).await
}

async fn by_command(hands: &Hands, view: &ClusterView, method: &MethodCommand, source: Option<(&MemberName, &str)>) -> Result<()> {
    let config = &hands.config;
    let data_dir = &config.postgres.data_dir;
    let mark = Incomplete::of(data_dir);
    let what = format!("replica method {}", method.name);
    mark.set(&what).await?;
    if method.keep_data {
        tracing::info!("{what}: the data directory is left as it is (keep_data)");
    } else {
        empty_directory(data_dir).await?;
    }
    let connstring = source.map_or("", |(_, conninfo)| conninfo);
    let ours =
        [("scope", config.scope.as_str()), ("role", "replica"), ("datadir", &data_dir.display().to_string()), ("connstring", connstring)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let run = Run {
        what: &what,
        environment: vec![("PGPASSFILE", config.postgres.pgpass.clone().into()), (WORKS_ON, data_dir.into())],
        patience: None,
        stragglers: Stragglers::End,
    };
    let mut made = method.line.and(method.arguments(&ours)).run(run).await;
    if made.is_ok() {
        made = usable(hands, view).await;
    }
    if made.is_err() && !method.keep_data {
        empty_directory(data_dir).await.with_context(|| format!("clean up after {what}"))?;
    }
    made?;
    sync_data_directory(data_dir).await?;
    mark.clear().await
}

/// A method that says it worked must have left a database of this cluster, with no server on it.
async fn usable(hands: &Hands, view: &ClusterView) -> Result<()> {
    let data_dir = &hands.config.postgres.data_dir;
    if let Some(running) = Postmaster::adopt(data_dir).await? {
        bail!("it left a server running on the data directory (process id {})", running.pid());
    }
    let control = controldata::read(&hands.programs, data_dir).await.context("it left no usable data directory")?;
    match view.system_id() {
        Some(expected) if *expected != control.system_id => {
            bail!("what it made is the database system {}, the cluster is {expected}: is this another cluster's backup?", control.system_id)
        }
        _ => Ok(()),
    }
}
