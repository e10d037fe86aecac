//! `tenure reinit`: replace a standby's data by a new copy.

use super::context::{Tool, print, refuse};
use super::members;
use anyhow::Result;
use cluster::name::MemberName;
use dcs::Dcs;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The member answers once the job has begun.
const BOUND: Duration = Duration::from_secs(30);

/// Make a new copy of the data on standbys.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// [CLUSTER] [MEMBER...]
    pub words: Vec<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Do not ask for confirmation, also where another job must be ended first.
    #[arg(long)]
    pub force: bool,
    /// Copy from the leader.
    #[arg(long)]
    pub from_leader: bool,
    /// Give the old data up before the new copy is there, also where they are the only other copy and can't be set aside.
    #[arg(long)]
    pub overwrite: bool,
    /// Wait until the new copies run.
    #[arg(long)]
    pub wait: bool,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let chosen = members::choose(tool, &args.words, args.group, None, args.force, "reinitialize").await?;
    members::are_you_sure(&chosen, args.force, "reinitialize")?;
    let body = json!({"force": args.force, "from_leader": args.from_leader, "overwrite": args.overwrite});
    let mut done = Vec::new();
    let mut waiting: Vec<(&members::Chosen, MemberName)> = Vec::new();
    for (chosen, name) in members::each(&chosen) {
        match chosen.ask(tool, name, "POST", "reinitialize", Some(&body), BOUND).await {
            Ok((200, _)) => {
                print(format!("Success: reinitialize for member {name}"))?;
                waiting.push((chosen, name.clone()));
                done.push(true);
            }
            answer => done.push(members::report(name, "reinitialize", answer)?),
        }
    }
    members::all_done("reinitialize", &done)?;
    if args.wait && !waiting.is_empty() {
        print(format!(
            "Waiting for reinitialize to complete on: {}",
            waiting.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ")
        ))?;
        for part in &chosen {
            let here = waiting.iter().filter(|(of, _)| std::ptr::eq(*of, part)).map(|(_, name)| name.clone()).collect();
            Box::pin(wait(part, here)).await?;
        }
    }
    Ok(())
}

/// `n1  [########            ]  40 %`, one below the other: what runs in a pipe or a log stays readable.
fn progress(name: &MemberName, percent: u8) -> String {
    let done = usize::from(percent.min(100)) / 5;
    format!("{name}  [{:<20}] {percent:>3} %", "#".repeat(done))
}

/// Looks whenever the cluster changed: a member is done when it was seen at work and then runs again.
async fn wait(chosen: &members::Chosen, mut waiting: Vec<MemberName>) -> Result<()> {
    let wake = Arc::new(Notify::new());
    let etcd = chosen.target.etcd.clone();
    let mut at_work: Vec<MemberName> = Vec::new();
    let mut told: BTreeMap<MemberName, u8> = BTreeMap::new();
    let looking = async {
        loop {
            wake.notified().await;
            let Ok(view) = etcd.load_view().await else { continue };
            let runs = |name: &MemberName| view.members.get(name).is_some_and(|entry| entry.member.is_running());
            at_work.extend(waiting.iter().filter(|name| !runs(name)).cloned());
            for name in &waiting {
                let facts = view.members.get(name).and_then(|entry| entry.member.tenure.as_ref());
                if let Some(percent) = facts.and_then(|facts| facts.progress_percent)
                    && told.insert(name.clone(), percent) != Some(percent)
                {
                    print(progress(name, percent))?;
                }
            }
            for name in waiting.iter().filter(|name| runs(name) && at_work.contains(name)) {
                print(format!("Reinitialize is completed on: {name}"))?;
            }
            waiting.retain(|name| !(runs(name) && at_work.contains(name)));
            if waiting.is_empty() {
                return Ok(());
            }
        }
    };
    tokio::select! {
        ended = looking => ended,
        () = dcs::watch::keep_watching(etcd.clone(), wake.clone()) => Err(refuse("the watch on the cluster ended")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_grows_with_the_copy() {
        let name = MemberName::new("n1").unwrap();
        assert_eq!(progress(&name, 0), "n1  [                    ]   0 %");
        assert_eq!(progress(&name, 40), "n1  [########            ]  40 %");
        assert_eq!(progress(&name, 100), "n1  [####################] 100 %");
    }
}
