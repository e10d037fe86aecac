//! `tenure pause` and `tenure resume`: maintenance mode on and off.

use super::context::{Target, Tool, print, refuse, refuse_with};
use super::groups::{self, Part};
use anyhow::Result;
use cluster::config::DynamicConfig;
use cluster::member::Member;
use cluster::name::MemberName;
use cluster::view::ClusterView;
use dcs::{Dcs, Error};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Longest wait for all members to have seen it.
const BOUND: Duration = Duration::from_secs(60);

/// Switch maintenance mode.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Every group of a Citus cluster, also where the configuration file is of one of them.
    #[arg(long, conflicts_with = "group")]
    pub all_groups: bool,
    /// Wait until every member has seen it.
    #[arg(long)]
    pub wait: bool,
}

/// Runs either command.
pub async fn run(tool: &Tool, args: &Args, paused: bool) -> Result<()> {
    let parts = groups::own(tool, args.cluster.as_deref(), args.group, args.all_groups).await?;
    let several = parts.len() > 1;
    let already = |part: &Part| part.view.config().paused() == paused;
    if parts.iter().all(already) {
        return Err(refuse(format!("Cluster is {} paused", if paused { "already" } else { "not" })));
    }
    for part in parts {
        if let Some(group) = part.target.group.filter(|_| several) {
            print(format!("Citus group: {group}"))?;
        }
        if !already(&part) {
            Box::pin(switch(tool, part, paused, args.wait)).await?;
        } else {
            print(format!("It is {} paused", if paused { "already" } else { "not" }))?;
        }
    }
    Ok(())
}

async fn switch(tool: &Tool, Part { target, mut view }: Part, paused: bool, waits: bool) -> Result<()> {
    // Another writer may come between our read and our write; what it wrote is kept.
    for _ in 0..5 {
        match Box::pin(target.etcd.write_config(&changed(view.config(), paused), ClusterView::revision_of(&view.config))).await {
            Ok(_) if waits => return Box::pin(wait(tool, &target, paused)).await,
            Ok(_) => return print(success(paused)),
            Err(Error::Lost(_)) => view = target.view().await?,
            Err(error) => return Err(error.into()),
        }
    }
    Err(refuse_with("the configuration kept changing while it was being written", "try again"))
}

fn success(paused: bool) -> String {
    format!("Success: cluster management is {}", if paused { "paused" } else { "resumed" })
}

fn changed(config: &DynamicConfig, paused: bool) -> DynamicConfig {
    let mut config = config.clone();
    if paused {
        config.0.insert("pause".to_owned(), json!(true));
    } else {
        config.0.remove("pause");
    }
    config
}

async fn wait(tool: &Tool, target: &Target, paused: bool) -> Result<()> {
    print(format!("'{}' request sent, waiting until it is recognized by all nodes", if paused { "pause" } else { "resume" }))?;
    let wake = Arc::new(Notify::new());
    let mut missing: Vec<MemberName> = Vec::new();
    let looking = async {
        loop {
            wake.notified().await;
            if let Ok(view) = target.etcd.load_view().await {
                missing.clear();
                for (name, entry) in &view.members {
                    if !recognizes(tool, &entry.member, paused).await {
                        missing.push(name.clone());
                    }
                }
                if missing.is_empty() {
                    return;
                }
            }
        }
    };
    let all = tokio::select! {
        () = looking => true,
        () = dcs::watch::keep_watching(target.etcd.clone(), wake.clone()) => false,
        () = tokio::time::sleep(BOUND) => false,
    };
    if all {
        return print(success(paused));
    }
    let names = missing.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ");
    Err(refuse_with(
        format!("{names} did not recognize it within {} s; the setting is written", BOUND.as_secs()),
        "look at the log of these members",
    ))
}

/// Patroni's members write it into their key; ours tell it over REST, from the view that they act on.
async fn recognizes(tool: &Tool, member: &Member, paused: bool) -> bool {
    let said = |status: &Value| status.get("pause").and_then(Value::as_bool).unwrap_or(false);
    if let Some(written) = member.other.get("pause").and_then(Value::as_bool) {
        return written == paused;
    }
    if member.tenure.is_none() {
        return !paused;
    }
    let asked = tool.caller.ask(&member.api_url, "GET", "patroni", None, Duration::from_secs(2)).await;
    let status = asked.ok().and_then(|(_, text)| serde_json::from_str(&text).ok());
    status.is_some_and(|status: Value| said(&status) == paused)
}
