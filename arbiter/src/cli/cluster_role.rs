//! What demote-cluster and promote-cluster share: check, ask, write `standby_cluster`, wait for what comes of it.

use super::context::{self, Target, Tool, confirm, print, refuse, refuse_with};
use super::list::{self, Format};
use anyhow::Result;
use cluster::config::DynamicConfig;
use cluster::member::MemberRole;
use cluster::view::ClusterView;
use dcs::{Dcs, Error};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Longest wait for the outcome: a clean stop waits for standbys and archive, and `tenure list` shows the rest.
const BOUND: Duration = Duration::from_secs(120);

/// Makes the cluster follow another one (`section`), or nobody (None).
pub async fn change(tool: &Tool, cluster: Option<&str>, force: bool, section: Option<Map<String, Value>>) -> Result<()> {
    let target = tool.target(cluster, None)?;
    let view = target.view().await?;
    let (stem, role) = if section.is_some() { ("demot", MemberRole::StandbyLeader) } else { ("promot", MemberRole::Primary) };
    let Some(leader) = &view.leader else {
        return Err(refuse_with(format!("Cluster has no leader, {stem}ion is not possible"), "`tenure check` says why nobody leads"));
    };
    if view.is_standby_cluster() == section.is_some() && leads_as(&view, &role) {
        return Err(refuse("Cluster is already in the required state"));
    }
    if view.config().paused() {
        return Err(refuse_with(
            "the cluster is in maintenance mode, in which no server is stopped or promoted",
            "`tenure resume` ends it",
        ));
    }
    let name = target.scope.as_str();
    print(format!("Current cluster topology\n{}", list::members(&view, name, target.group, false, Format::Pretty)?))?;
    if !force {
        context::must_be_interactive(&format!("{stem}ing a cluster"))?;
        if !confirm(&format!("Are you sure you want to {stem}e {name} cluster?"))? {
            return Err(refuse(format!("Aborted cluster {stem}ion")));
        }
    }
    let before = leader.name.clone();
    let Some(config) = &view.config else {
        return Err(refuse_with("The config key does not exist", "restore it with `tenure edit-config --replace FILE`"));
    };
    match Box::pin(target.etcd.write_config(&changed(&config.value, section), config.revision)).await {
        Ok(_) => {}
        Err(Error::Lost(_)) => return Err(refuse_with("the configuration changed meanwhile; nothing was written", "try again")),
        Err(error) => return Err(error.into()),
    }
    let done = Box::pin(wait(&target, |view| {
        // The old leader is back as well: a demotion that leaves it down is none.
        leads_as(view, &role) && view.members.get(&before).is_some_and(|entry| entry.member.is_running())
    }))
    .await;
    let view = target.view().await?;
    if !done {
        print(list::members(&view, name, target.group, false, Format::Pretty)?)?;
        return Err(refuse_with(
            format!(
                "the cluster was not {stem}ed within {} s; the setting is written, and the operation may still be in progress",
                BOUND.as_secs()
            ),
            format!("`tenure list -W` follows it; the log of {before}'s arbiter says what it waits for"),
        ));
    }
    print(format!("{} cluster is successfully {stem}ed", context::timestamp()))?;
    print(list::members(&view, name, target.group, false, Format::Pretty)?)
}

/// Puts the section into the configuration, or takes it out.
fn changed(config: &DynamicConfig, section: Option<Map<String, Value>>) -> DynamicConfig {
    let mut config = config.clone();
    match section {
        Some(section) => config.0.insert("standby_cluster".to_owned(), Value::Object(section)),
        None => config.0.remove("standby_cluster"),
    };
    config
}

fn leads_as(view: &ClusterView, role: &MemberRole) -> bool {
    let leader = view.leader.as_ref().and_then(|leader| view.members.get(&leader.name));
    leader.is_some_and(|entry| entry.member.role == *role && entry.member.is_running())
}

/// Looks whenever the cluster changed; false after [`BOUND`].
async fn wait(target: &Target, done: impl Fn(&ClusterView) -> bool) -> bool {
    let wake = Arc::new(Notify::new());
    let outcome = async {
        loop {
            wake.notified().await;
            // An etcd that is away says nothing; the watch wakes us again when it is back.
            if let Ok(view) = target.etcd.load_view().await
                && done(&view)
            {
                return;
            }
        }
    };
    tokio::select! {
        () = outcome => true,
        () = dcs::watch::keep_watching(target.etcd.clone(), wake.clone()) => false,
        () = tokio::time::sleep(BOUND) => false,
    }
}
