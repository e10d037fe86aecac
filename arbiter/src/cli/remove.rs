//! `tenure remove`: delete everything that etcd knows of a cluster. The servers and their data are not touched.

use super::context::{Tool, ask, print, refuse, refuse_with};
use super::groups::{self, Part};
use super::list::{self, Format};
use anyhow::Result;

/// Remove a cluster from etcd; its servers and their data stay.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name.
    pub cluster: String,
    /// The Citus group; needed where the cluster has groups.
    #[arg(long)]
    pub group: Option<u32>,
    /// Output format of the member table.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// Runs the command. There is no way around its questions; answers may come from a pipe.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let Part { target, view } = groups::one(tool, Some(&args.cluster), args.group, |_| true, "a removal").await?;
    print(list::members(&view, &args.cluster, target.group, false, args.format)?)?;
    if ask("Please confirm the cluster name to remove", "")? != args.cluster {
        return Err(refuse("Cluster names specified do not match"));
    }
    let aware = "Yes I am aware";
    let question = format!("You are about to remove all information in DCS for {}, please type: \"{aware}\"", args.cluster);
    if ask(&question, "")? != aware {
        return Err(refuse(format!("You did not exactly type \"{aware}\"")));
    }
    if let Some(leader) = &view.leader
        && ask("This cluster currently is healthy. Please specify the leader name to continue", "")? != leader.name.as_str()
    {
        return Err(refuse("You did not specify the current leader of the cluster"));
    }
    let removed = target
        .etcd
        .remove_cluster()
        .await
        .map_err(|why| refuse_with(why.to_string(), "nothing is known to be removed: look with `tenure list`"))?;
    print(format!(
        "Removed {removed} keys of {}. Arbiters that still run write their keys again: stop them first, then remove the cluster",
        args.cluster
    ))
}
