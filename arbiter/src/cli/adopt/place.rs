//! Where `tenure adopt` and `tenure abandon` work: what was asked, the node, its cluster.

use super::daemons;
use crate::config::NodeConfig;
use crate::ground::member_rest::Caller;
use anyhow::{Context, Result};
use cluster::citus::Groups;
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
    /// All groups of a Citus cluster, as they were when this began; none where it is no Citus cluster.
    pub groups: Groups,
}

/// Beside the data while one of the two commands is under way: which. What is found there later broke off.
impl Place<'_> {
    fn under_way(&self) -> PathBuf {
        let mut path = self.config.postgres.data_dir.as_os_str().to_owned();
        path.push(".changing");
        PathBuf::from(path)
    }

    /// The command in the other direction broke off here: the daemon that is wanted now may have been told to end.
    pub fn other_broke_off(&self) -> bool {
        std::fs::read_to_string(self.under_way()).is_ok_and(|text| text.trim() != self.to.to_string())
    }

    /// From here on something is stopped.
    pub async fn note_begin(&self) -> Result<()> {
        let path = self.under_way();
        crate::postgres::write_atomically(&path, &self.to.to_string(), 0o600).await.context("note what is under way")?;
        daemons::give_to(daemons::owner_of(&self.config.postgres.data_dir)?, &path)
    }

    /// All of it is done.
    pub fn note_end(&self) -> Result<()> {
        match std::fs::remove_file(self.under_way()) {
            Err(why) if why.kind() != std::io::ErrorKind::NotFound => Err(why).context("note that it is done"),
            _ => Ok(()),
        }
    }
}
