//! Where `tenure adopt` and `tenure abandon` work: what was asked, the node, its cluster.

use crate::config::NodeConfig;
use crate::ground::member_rest::Caller;
use cluster::mixed::Kind;
use dcs::Etcd;
use std::path::PathBuf;

/// Take this node over from Patroni: its daemon is stopped, and with it its server, which our arbiter starts again.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node's file: the one that Patroni runs with, or a copy of it.
    pub file: PathBuf,
    /// Change nothing: say what stands in the way, and print every step.
    #[arg(long)]
    pub check: bool,
    /// How the daemon that is started is to be started, as a shell cuts words; default: as it was, or by its unit.
    #[arg(long, value_name = "COMMAND")]
    pub start: Option<String>,
    /// Give up waiting for one step after so many seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub timeout: u64,
}

/// All that a step needs.
pub struct Place<'a> {
    /// What was asked.
    pub args: &'a Args,
    /// This node.
    pub config: NodeConfig,
    /// The cluster's store.
    pub etcd: Etcd,
    /// How members are asked.
    pub caller: Caller,
    /// What this node's member is to become.
    pub to: Kind,
}
