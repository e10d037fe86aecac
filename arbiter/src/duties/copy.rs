//! A new copy of the cluster's data: the methods of the node's file, in their order, until one works.

use crate::config::{MethodCommand, ReplicaMethod};
use crate::duties::done::Done;
use crate::duties::follow::{self, unless_nostream};
use crate::duties::leave::leave;
use crate::duties::past;
use crate::duties::source;
use crate::duties::start::start;
use crate::duties::word;
use crate::ground::program::{self, Run, Stragglers, WORKS_ON};
use crate::node::{Node, data};
use crate::postgres::aside;
use crate::postgres::basebackup::basebackup;
use crate::postgres::marker::Incomplete;
use crate::postgres::postmaster::{Postmaster, StopMode};
use crate::postgres::{controldata, empty_directory, is_empty_directory, remove_if_there, sync_data_directory};
use anyhow::{Context, Result, bail};
use cluster::config::DynamicConfig;
use cluster::deposition;
use cluster::local::DataDir;
use cluster::member::{MemberRole, MemberState, Tags};
use cluster::mixed::{self, Kind};
use cluster::name::MemberName;
use cluster::replaced::{self, Facts, Old, Room};
use cluster::slots;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use dcs::Dcs;
use std::ffi::OsString;
use std::time::Duration;

/// How often etcd is asked whether WAL is kept for a copy, which takes far longer than that.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Beyond a `loop_wait`, for the leader to make the slot and to say so.
const RESERVED_WITHIN: Duration = Duration::from_secs(5);

/// What a copy may do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Terms {
    /// No other method than `pg_basebackup`.
    pub only_basebackup: bool,
    /// The configuration says that data which left the cluster's history may go.
    pub forked_may_go: bool,
}

/// Makes a copy of this member's (or the remote cluster's) data and starts it as a standby.
pub async fn clone(node: &Node, view: &ClusterView, from: &Upstream, terms: Terms) -> Result<Done> {
    let made = replace(node, view, from, terms).await;
    let failed = from.member().filter(|name| made.is_err() && view.leader.as_ref().is_none_or(|leader| leader.name != **name));
    node.note_clone(failed.cloned());
    made?;
    node.note_rewind(None);
    node.note_overwrite(false);
    // A copy of a standby streams from where `Duty::Follow` says next; until then from its source.
    start(node, view, &follow::settings(node, view, &unless_nostream(node, from.clone()))).await
}

/// Replaces the data directory by a copy; of the remote cluster's data by the methods that `standby_cluster` names.
pub async fn replace(node: &Node, view: &ClusterView, from: &Upstream, terms: Terms) -> Result<()> {
    let of_file = &node.config.postgres.create_replica_methods;
    let upgraded = view.store.as_ref().and_then(|store| store.value.upgraded.as_ref());
    if let Some(upgraded) = upgraded.filter(|_| *from != Upstream::Remote) {
        // What is copied is of that version.
        node.run_major(upgraded.to)?;
    }
    let dynamic = node.dynamic(view);
    let methods: Vec<&ReplicaMethod> = match from {
        _ if terms.only_basebackup => vec![&ReplicaMethod::Basebackup],
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
    make(node, view, &methods, Some((from, &conninfo)), terms).await
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

/// Nobody leads: what was set aside for a copy is put back; else the data are made from a backup, with the methods that need no member.
/// Started as a standby of nobody.
pub async fn restore(node: &Node, view: &ClusterView) -> Result<Done> {
    let data_dir = &node.config.postgres.data_dir;
    if aside::is_there(data_dir).await {
        program::end_leftovers(data_dir).await?;
        aside::put_back(data_dir).await?;
        tracing::warn!("nobody leads, so the data that were set aside for a new copy were put back");
        return start(node, view, &follow::settings(node, view, &Upstream::Nobody)).await;
    }
    let needs_nobody = |method: &&ReplicaMethod| matches!(method, ReplicaMethod::Command(command) if command.no_leader);
    let methods: Vec<&ReplicaMethod> = node.config.postgres.create_replica_methods.iter().filter(needs_nobody).collect();
    make(node, view, &methods, None, Terms::default()).await?;
    start(node, view, &follow::settings(node, view, &Upstream::Nobody)).await
}

/// Makes the data from a backup, by the methods that need no member; these are told in their environment.
pub async fn from_backup(node: &Node, view: &ClusterView, told: &[(&'static str, String)]) -> Result<()> {
    let mut failures = Vec::new();
    for method in &node.config.postgres.create_replica_methods {
        let ReplicaMethod::Command(command) = method else { continue };
        if !command.no_leader {
            continue;
        }
        match by_command(node, view, command, None, told).await {
            Ok(()) => return Ok(()),
            Err(why) => failures.push(format!("{}: {why:#}", method.name())),
        }
    }
    bail!("no method made data from a backup ({})", failures.join("; "))
}

async fn make(node: &Node, view: &ClusterView, methods: &[&ReplicaMethod], source: Option<(&Upstream, &str)>, terms: Terms) -> Result<()> {
    let data_dir = &node.config.postgres.data_dir;
    leave(node).await;
    node.speak(MemberState::CreatingReplica, MemberRole::Uninitialized);
    node.stop(StopMode::Immediate).await?;
    node.clear_orphans().await?;
    program::end_leftovers(data_dir).await?;
    if let Some((from, _)) = source {
        reserve(node, view, from).await;
        word::take_back(node, view).await?;
        spare_the_old(node, view, methods, from, terms).await?;
    } else {
        word::take_back(node, view).await?;
    }
    node.write_pgpass().await?;
    let mut failures = Vec::new();
    for method in methods {
        let made = match (method, source) {
            // An archive is no source for it.
            (ReplicaMethod::Basebackup, Some((_, ""))) => continue,
            (ReplicaMethod::Basebackup, Some((from, conninfo))) => copy(node, from, conninfo).await,
            (ReplicaMethod::Basebackup, None) => continue,
            (ReplicaMethod::Command(command), _) => by_command(node, view, command, source, &[]).await,
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

/// Waits until the leader says that it keeps WAL for this member from now on: what is written while the copy is made is needed when it streams.
/// The slot is the member's own, so it outlives the copy; a member that does not come back loses it after `member_slots_ttl`.
async fn reserve(node: &Node, view: &ClusterView, from: &Upstream) {
    let config = &node.config;
    let leader = view.leader.as_ref().filter(|leader| leader.name != config.name).map(|leader| &leader.name);
    let ours = |name: &MemberName| view.members.get(name).is_some_and(|entry| mixed::kind(&entry.member) == Kind::Ours);
    let uses_slots = config.postgres.use_slots.unwrap_or_else(|| view.config().use_slots());
    let Some(leader) = leader.filter(|name| *from != Upstream::Remote && ours(name)) else { return };
    if !uses_slots || Tags(config.tags.clone()).nostream() {
        return tracing::info!("no WAL is kept for this copy: it has no slot (use_slots, nostream)");
    }
    let slot = config.name.slot_name();
    let patience = view.config().timing().loop_wait + RESERVED_WITHIN;
    let said = async {
        loop {
            if let Ok(view) = node.etcd.load_view().await
                && slots::said(&view).reserved.contains(&slot)
            {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    match tokio::time::timeout(patience, said).await {
        Ok(()) => tracing::info!("{leader} keeps WAL for this copy from now on, by the slot {slot}"),
        Err(_) => tracing::warn!(
            "{leader} has not said within {} s that it keeps WAL for this copy: what it removes meanwhile must be in the archive",
            patience.as_secs()
        ),
    }
}

/// What is here is set aside until the copy streams; or it is replaced at once, or must stay, and then nothing is begun.
async fn spare_the_old(node: &Node, view: &ClusterView, methods: &[&ReplicaMethod], from: &Upstream, terms: Terms) -> Result<()> {
    let data_dir = &node.config.postgres.data_dir;
    let data = data::of_files(&node.programs, data_dir).await?;
    let usable = matches!(data, DataDir::Present(_));
    if !usable && aside::is_there(data_dir).await {
        // An earlier copy did not come to its end: what is set aside is the whole.
        return Ok(());
    }
    let room = if usable || matches!(data, DataDir::Damaged { .. }) { aside::room(data_dir).await? } else { Room::Enough };
    let reuses = matches!(methods.first(), Some(ReplicaMethod::Command(method)) if method.keep_data);
    let facts = Facts {
        view,
        name: &node.config.name,
        data: &data,
        from,
        room: &room,
        reuses,
        overwrite: node.may_overwrite(),
        forked_may_go: terms.forked_may_go,
    };
    match replaced::old(&facts)? {
        Old::Nothing => {}
        Old::Aside => {
            aside::set(data_dir).await?;
            // The word that it stands for was taken back just now.
            remove_if_there(&aside::place(data_dir).join(deposition::FILE)).await?;
            tracing::info!("the data that are here are set aside as {} until the new copy streams", aside::place(data_dir).display());
        }
        Old::Replace(why) => tracing::info!("the data that are here go before the new copy is there: {why}"),
    }
    Ok(())
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

async fn by_command(
    node: &Node,
    view: &ClusterView,
    method: &MethodCommand,
    source: Option<(&Upstream, &str)>,
    told: &[(&'static str, String)],
) -> Result<()> {
    let config = &node.config;
    let data_dir = &config.postgres.data_dir;
    let mark = Incomplete::of(data_dir);
    let what = format!("replica method {}", method.name);
    mark.set(&what).await?;
    if method.keep_data {
        if is_empty_directory(data_dir).await? && aside::is_there(data_dir).await {
            aside::copy_back(data_dir).await?;
        }
        tracing::info!("{what}: the data directory is left as it is (keep_data)");
    } else {
        empty_directory(data_dir).await?;
    }
    let connstring = source.map_or("", |(_, conninfo)| conninfo);
    let ours =
        [("scope", config.scope.as_str()), ("role", "replica"), ("datadir", &data_dir.display().to_string()), ("connstring", connstring)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut environment: Vec<(&'static str, OsString)> =
        vec![("PGPASSFILE", config.postgres.pgpass.clone().into()), (WORKS_ON, data_dir.into())];
    environment.extend(told.iter().map(|(name, value)| (*name, value.into())));
    let run = Run { what: &what, environment, patience: None, stragglers: Stragglers::End };
    let mut made = method.line.and(method.arguments(&ours)).run(run).await;
    if made.is_ok() {
        made = usable(node, view).await;
    }
    if made.is_ok()
        && let Some((from @ Upstream::Member(_), _)) = source
    {
        made = of_our_past(node, view, from).await;
    }
    if made.is_err() && !method.keep_data {
        empty_directory(data_dir).await.with_context(|| format!("clean up after {what}"))?;
    }
    made?;
    sync_data_directory(data_dir).await?;
    mark.clear().await
}

/// What a backup has must be of the leader's past. Another may lead by now, or have been restored, than when the copy began.
async fn of_our_past(node: &Node, view: &ClusterView, from: &Upstream) -> Result<()> {
    let fresh = node.etcd.load_view().await;
    let view = fresh.as_ref().unwrap_or(view);
    past::judge(node, view, &follow::settings(node, view, from)).await
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
