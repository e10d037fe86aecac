//! A new copy of the cluster's data: the methods of the node's file, in their order, until one works.

use crate::config::{MethodCommand, ReplicaMethod};
use crate::duties::done::Done;
use crate::duties::follow::{self, unless_nostream};
use crate::duties::leave::leave;
use crate::duties::source;
use crate::duties::start::start;
use crate::duties::word;
use crate::ground::program::{self, Run, Stragglers, WORKS_ON};
use crate::node::Node;
use crate::postgres::basebackup::basebackup;
use crate::postgres::marker::Incomplete;
use crate::postgres::postmaster::{Postmaster, StopMode};
use crate::postgres::{controldata, empty_directory, is_empty_directory, sync_data_directory};
use anyhow::{Context, Result, bail};
use cluster::config::DynamicConfig;
use cluster::member::{MemberRole, MemberState};
use cluster::upstream::Upstream;
use cluster::view::ClusterView;

/// Makes a copy of this member's (or the remote cluster's) data and starts it as a standby.
pub async fn clone(node: &Node, view: &ClusterView, from: &Upstream, only_basebackup: bool) -> Result<Done> {
    let made = replace(node, view, from, only_basebackup).await;
    let failed = from.member().filter(|name| made.is_err() && view.leader.as_ref().is_none_or(|leader| leader.name != **name));
    node.note_clone(failed.cloned());
    made?;
    node.note_rewind(None);
    // A copy of a standby streams from where `Duty::Follow` says next; until then from its source.
    start(node, view, &follow::settings(node, view, &unless_nostream(node, from.clone()))).await
}

/// Replaces the data directory by a copy; of the remote cluster's data by the methods that `standby_cluster` names.
pub async fn replace(node: &Node, view: &ClusterView, from: &Upstream, only_basebackup: bool) -> Result<()> {
    let of_file = &node.config.postgres.create_replica_methods;
    let upgraded = view.store.as_ref().and_then(|store| store.value.upgraded.as_ref());
    if let Some(upgraded) = upgraded.filter(|_| *from != Upstream::Remote) {
        // What is copied is of that version.
        node.run_major(upgraded.to)?;
    }
    let dynamic = node.dynamic(view);
    let methods: Vec<&ReplicaMethod> = match from {
        _ if only_basebackup => vec![&ReplicaMethod::Basebackup],
        Upstream::Remote => of_remote(of_file, &dynamic),
        Upstream::Member(_) | Upstream::Nobody => of_file.iter().collect(),
    };
    let credentials = &node.config.postgres.authentication.replication;
    let conninfo = match source::conninfo(node, view, from, credentials, None) {
        Ok(conninfo) => conninfo,
        // Only an archive is named: a command may know where a backup is.
        Err(_) if *from == Upstream::Remote && methods.iter().any(|method| matches!(method, ReplicaMethod::Command(_))) => String::new(),
        Err(why) => return Err(why),
    };
    tracing::info!("cloning from {from} ({})", source::address(&conninfo));
    make(node, view, &methods, Some((from, &conninfo))).await
}

/// The methods in `standby_cluster.create_replica_methods` that the node's file lists as well: what the dynamic
/// configuration says is no command. All of the file's where it names none.
fn of_remote<'a>(of_file: &'a [ReplicaMethod], dynamic: &DynamicConfig) -> Vec<&'a ReplicaMethod> {
    let names = dynamic.standby_cluster().map(|remote| remote.create_replica_methods).unwrap_or_default();
    if names.is_empty() {
        return of_file.iter().collect();
    }
    let method = |name: &String| match of_file.iter().find(|method| method.name() == name) {
        Some(method) => Some(method),
        None if name == "basebackup" => Some(&ReplicaMethod::Basebackup),
        None => {
            tracing::warn!(
                "standby_cluster.create_replica_methods names {name}, which is not in postgresql.create_replica_methods of this node's file: left out"
            );
            None
        }
    };
    names.iter().filter_map(method).collect()
}

/// Makes the data from a backup, with the methods that need no member, and starts it as a standby of nobody.
pub async fn restore(node: &Node, view: &ClusterView) -> Result<Done> {
    let needs_nobody = |method: &&ReplicaMethod| matches!(method, ReplicaMethod::Command(command) if command.no_leader);
    let methods: Vec<&ReplicaMethod> = node.config.postgres.create_replica_methods.iter().filter(needs_nobody).collect();
    make(node, view, &methods, None).await?;
    start(node, view, &follow::settings(node, view, &Upstream::Nobody)).await
}

async fn make(node: &Node, view: &ClusterView, methods: &[&ReplicaMethod], source: Option<(&Upstream, &str)>) -> Result<()> {
    let data_dir = &node.config.postgres.data_dir;
    leave(node).await;
    node.speak(MemberState::CreatingReplica, MemberRole::Uninitialized);
    node.stop(StopMode::Immediate).await?;
    node.clear_orphans().await?;
    program::end_leftovers(data_dir).await?;
    word::take_back(node, view).await?;
    node.write_pgpass().await?;
    let mut failures = Vec::new();
    for method in methods {
        let made = match (method, source) {
            // An archive is no source for it.
            (ReplicaMethod::Basebackup, Some((_, ""))) => continue,
            (ReplicaMethod::Basebackup, Some((from, conninfo))) => copy(node, from, conninfo).await,
            (ReplicaMethod::Basebackup, None) => continue,
            (ReplicaMethod::Command(command), _) => by_command(node, view, command, source).await,
        };
        match made {
            Ok(()) => {
                crate::postgres::server_log::forget_copied(data_dir).await?;
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

async fn copy(node: &Node, from: &Upstream, conninfo: &str) -> Result<()> {
    let config = &node.config;
    let mut told = 0;
    let progress = |percent: u8| {
        node.speak_progress(percent);
        if percent >= told + 10 {
            told = percent;
            tracing::info!("clone from {from}: {percent} %");
        }
    };
    let what = format!("clone from {from}");
    basebackup(&node.programs, &config.postgres.data_dir, conninfo, &config.postgres.basebackup, &what, progress).await
}

async fn by_command(node: &Node, view: &ClusterView, method: &MethodCommand, source: Option<(&Upstream, &str)>) -> Result<()> {
    let config = &node.config;
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
        made = usable(node, view).await;
    }
    if made.is_err() && !method.keep_data {
        empty_directory(data_dir).await.with_context(|| format!("clean up after {what}"))?;
    }
    made?;
    sync_data_directory(data_dir).await?;
    mark.clear().await
}

/// A method that says it worked must have left a database of this cluster, with no server on it.
async fn usable(node: &Node, view: &ClusterView) -> Result<()> {
    let data_dir = &node.config.postgres.data_dir;
    if let Some(running) = Postmaster::adopt(data_dir).await? {
        bail!("it left a server running on the data directory (process id {})", running.pid());
    }
    let control = controldata::read(&node.programs, data_dir).await.context("it left no usable data directory")?;
    match view.system_id() {
        Some(expected) if *expected != control.system_id => {
            bail!("what it made is the database system {}, the cluster is {expected}: is this another cluster's backup?", control.system_id)
        }
        _ => Ok(()),
    }
}
