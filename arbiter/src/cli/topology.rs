//! `tenure topology`: the members as a tree of who streams from whom.

use super::context::Tool;
use super::list::{self, Format};
use anyhow::Result;

/// Show the members as a tree.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names of clusters; the configured one where none is given.
    pub clusters: Vec<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Show again whenever something changed.
    #[arg(short = 'W')]
    pub follow: bool,
    /// Show again every so many seconds.
    #[arg(short, long, value_name = "SECONDS")]
    pub watch: Option<f64>,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let Args { clusters, group, follow, watch } = args;
    let args = list::Args {
        clusters: clusters.clone(),
        group: *group,
        follow: *follow,
        watch: *watch,
        extended: false,
        timestamp: false,
        format: Format::Topology,
    };
    list::run(tool, &args).await
}
