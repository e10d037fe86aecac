//! Founding a cluster: the claim, initdb (or the data that is there), the first leader, the roles, the
//! extension; only then does the cluster exist for the others.

use crate::duties::copy;
use crate::duties::found_by_method;
use crate::ground::program::{CommandLine, Run, Stragglers};
use crate::node::Node;
use crate::node::extension::attach;
use crate::node::hba::{self, MadeBy};
use crate::node::memory;
use crate::node::recovery;
use crate::postgres::conf::Recovery;
use crate::postgres::controldata;
use crate::postgres::initdb::initdb;
use crate::postgres::marker::Incomplete;
use crate::postgres::postmaster::StopMode;
use anyhow::{Context, Result, bail};
use cluster::config::{DynamicConfig, SynchronousMode};
use cluster::leader::{Leader, LeaseId};
use cluster::local::DataDir;
use cluster::member::{MemberRole, MemberState};
use cluster::store::{self, Making, Memory};
use cluster::sync::SyncState;
use cluster::upstream::Upstream;
use cluster::view::{ClusterView, Versioned};
use dcs::{Dcs, FirstKeys};
use std::time::Duration;
use steward::founding;

/// How long a lease may take to come before the claim is given up.
const LEASE_PATIENCE: Duration = Duration::from_secs(5);

/// Makes the cluster, or finds that another node does.
pub async fn bootstrap(node: &Node, data: &DataDir) -> Result<()> {
    node.speak(MemberState::InitializingNewCluster, MemberRole::Uninitialized);
    let Some((claim, lease)) = founding::claim(node, || lease(node)).await? else { return Ok(()) };
    tracing::info!("founding the cluster {}: this node makes the first data directory", node.config.scope);
    let made = make(node, data, claim, lease).await;
    let follows = cluster::config::DynamicConfig(node.config.bootstrap.dcs.clone()).standby_cluster().is_some();
    if made.is_err() && !follows && !matches!(data, DataDir::Present(_)) {
        // The claim goes back whatever becomes of the data: its mark keeps it from being started.
        if let Err(why) = failed(node).await {
            tracing::error!("put the data of the failed founding aside: {why:#}");
        }
    }
    if made.is_err()
        && let Err(why) = founding::give_back(node, claim).await
    {
        tracing::warn!("the claim to found the cluster was not released: {why}");
    }
    made
}

/// The founding did not work: what it left is put aside, to be looked at, before this node or another one may try again.
async fn failed(node: &Node) -> Result<()> {
    node.speak(failed_state(node), MemberRole::Uninitialized);
    if node.postmaster().is_some() {
        node.stop(StopMode::Immediate).await?;
    }
    found_by_method::set_aside(&node.config.postgres.data_dir).await
}

/// The field's words for a node whose founding failed.
pub fn failed_state(node: &Node) -> MemberState {
    let what = if node.config.founding_method().is_some() { "custom bootstrap failed" } else { "initdb failed" };
    MemberState::from(what.to_owned())
}

async fn lease(node: &Node) -> Result<LeaseId> {
    let got = async {
        loop {
            if let Some(lease) = node.lease.lease() {
                return lease;
            }
            node.wake.notified().await;
        }
    };
    tokio::time::timeout(LEASE_PATIENCE, got).await.context("no lease could be had from etcd")
}

async fn make(node: &Node, data: &DataDir, claim: i64, lease: LeaseId) -> Result<()> {
    let config = &node.config;
    let postgres = &config.postgres;
    let mark = Incomplete::of(&postgres.data_dir);
    let present = matches!(data, DataDir::Present(_));
    let memory = node.etcd.remembered().map(|remembered| remembered.memory()).filter(|memory| present && memory.system_id.is_some());
    // Where the cluster was there before, its configuration is the one that was last known, not the file's.
    let before = memory.as_ref().and_then(|memory| memory.config.as_ref()).map(|config| config.value.clone());
    let own = DynamicConfig(config.bootstrap.dcs.clone());
    let dynamic = match before.map_or_else(|| own.for_founding(), |known| Ok((known, Vec::new()))) {
        Ok((dynamic, left_out)) => {
            for fault in left_out {
                tracing::warn!("bootstrap.dcs: {fault}: it is left out");
            }
            dynamic
        }
        Err(faults) => {
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            bail!(
                "no cluster is founded with this bootstrap.dcs: {}; hint: correct the node's file, and look with `tenure validate`",
                faults.join("; ")
            );
        }
    };
    let follows = dynamic.standby_cluster().is_some();
    if follows && !matches!(data, DataDir::Present(_)) {
        copy::replace(node, &ClusterView::default(), &Upstream::Remote, copy::Terms::default()).await?;
        mark.set("founding the cluster").await?;
    }
    let fresh = !follows && !matches!(data, DataDir::Present(_));
    if fresh {
        if node.postmaster().is_some() {
            // An arbiter that was killed left it in the middle of the founding.
            node.stop(StopMode::Immediate).await?;
        }
        node.clear_orphans().await?;
        if matches!(data, DataDir::Incomplete { .. }) {
            crate::postgres::empty_directory(&postgres.data_dir).await?;
        }
        match config.founding_method() {
            Some(method) => {
                found_by_method::make(node, method).await?;
                hba::found(config, MadeBy::Method).await?;
                memory::forget(&node.config).await?;
            }
            None => {
                initdb(&node.programs, &postgres.data_dir, &postgres.authentication.superuser, &config.bootstrap.initdb).await?;
                hba::found(config, MadeBy::Initdb).await?;
            }
        }
        // Marked until the cluster exists: what a crash leaves before that is nobody's data.
        mark.set("founding the cluster").await?;
    }
    let control = controldata::read(&node.programs, &postgres.data_dir).await?;
    for note in dynamic.notes() {
        tracing::warn!("bootstrap.dcs: {note}");
    }
    if !present {
        // Making the data took a moment, in which members that have data of the cluster had time to say so.
        let view = node.etcd.look().await?;
        store::may_found(&view, &config.name, None, false, false)?;
    }
    let first = first_keys(node, &dynamic, memory.as_ref(), claim);
    // Written down before it is done: were etcd emptied once more before anybody has seen these keys, their number is not used again.
    if memory.is_some() {
        memory::attempt(config, &node.etcd, first.making.generation).await;
    }
    let term = node.etcd.lead_first(&config.name, lease, claim, &first).await.context("write the first leader")?;
    let leader = Leader { name: config.name.clone(), lease, term };
    let known = |sync| Versioned { value: sync, revision: 0 };
    let config_known = Some(Versioned { value: dynamic.clone(), revision: 0 });
    // The key of a first founding trusts nobody, and nobody can confirm anything yet: in strict mode the commits that follow would wait for ever.
    let kept = first.sync.clone().filter(|_| memory.as_ref().is_some_and(|memory| memory.sync.is_some()));
    let nothing = ClusterView { config: config_known, sync: kept.map(known), ..ClusterView::default() };
    if node.postmaster().is_none() {
        let upstream = if follows { Upstream::Remote } else { Upstream::Nobody };
        let recovery = if follows { recovery::of(config, &dynamic, &nothing, &upstream) } else { Recovery::None };
        node.start_and_wait(&nothing, &recovery).await?;
    }
    // From here on the lease worker keeps the lease, and opens the fence.
    node.lease.hand_to_worker();
    if fresh {
        node.sql.ensure_roles(&postgres.authentication).await?;
        for user in &config.bootstrap.users {
            let mut options = user.options.clone();
            if !options.iter().any(|option| option.eq_ignore_ascii_case("login") || option.eq_ignore_ascii_case("nologin")) {
                // As with Patroni: somebody who has a password is meant to come in.
                options.push("LOGIN".to_owned());
            }
            node.sql.ensure_role(&user.credentials, &options).await?;
        }
    }
    if follows {
        // Nothing can be created here: the extension comes from the other side, or with the promotion.
        if let Err(why) = attach(node, None, true).await {
            tracing::warn!(
                "{why:#}; hint: run CREATE EXTENSION pg_tenure in the cluster that this one follows: without it no other member here can take over"
            );
        }
    } else {
        node.sql.execute("CREATE EXTENSION IF NOT EXISTS pg_tenure").await.context("create the extension pg_tenure")?;
        attach(node, None, true).await?;
        crate::citus::make_ready(node).await.context("make the distributed databases ready")?;
    }
    if fresh && let Some(command) = &config.bootstrap.post_bootstrap {
        post_bootstrap(node, command).await?;
    }
    mark.clear().await?;
    founding::finish(node, &leader, claim, &control.system_id).await?;
    tracing::info!("the cluster {} exists, database system {}, term {term}", config.scope, control.system_id);
    Ok(())
}

/// What the keys begin with; of a cluster that was there before, what this node, who led it last, knows of it.
fn first_keys(node: &Node, dynamic: &DynamicConfig, memory: Option<&Memory>, claim: i64) -> FirstKeys {
    let me = node.config.name.as_str();
    let sync =
        memory.and_then(|memory| memory.sync.as_ref()).map(|sync| sync.value.clone()).filter(|sync| sync.leader.as_deref() == Some(me));
    // From the first commit on nobody else may lead without it.
    let synchronous = dynamic.synchronous_mode() != SynchronousMode::Off && dynamic.standby_cluster().is_none();
    let own = || SyncState::before_promotion(None, &node.config.name, synchronous);
    FirstKeys {
        config: dynamic.clone(),
        making: Making {
            generation: memory.map_or(1, Memory::next_generation),
            by: format!("{me} at {claim}"),
            upgraded: memory.and_then(|memory| memory.making.upgraded.clone()),
        },
        sync: sync.or_else(own),
        timeline: memory.map(|memory| memory.timeline),
    }
}

async fn post_bootstrap(node: &Node, command: &CommandLine) -> Result<()> {
    let postgres = &node.config.postgres;
    node.write_pgpass().await?;
    let conninfo = crate::postgres::conf::conninfo([
        ("host", postgres.listen.local_host().as_str()),
        ("port", postgres.listen.port.to_string().as_str()),
        ("user", postgres.authentication.superuser.username.as_str()),
        ("dbname", postgres.database.as_str()),
    ]);
    let run = Run {
        what: "bootstrap.post_bootstrap",
        environment: vec![("PGPASSFILE", postgres.pgpass.as_os_str().to_owned())],
        patience: None,
        stragglers: Stragglers::Leave,
    };
    command.and([conninfo]).run(run).await.context("bootstrap.post_bootstrap")
}
