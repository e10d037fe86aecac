//! `tenure check`: what is wrong with the cluster, worst first, and what to do next.

use super::context::{Tool, print, refuse};
use super::list::yaml;
use anyhow::Result;
use cluster::check::{self, Severity};

/// How to write the faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// Sentences.
    #[default]
    Text,
    /// One JSON array.
    Json,
    /// A YAML list.
    #[value(alias = "yml")]
    Yaml,
}

/// Look for faults; exit code 1 where one is critical.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let target = tool.target(args.cluster.as_deref(), args.group)?;
    let mut faults = check::faults(&target.view().await?);
    faults.sort();
    match args.format {
        Format::Json => print(serde_json::to_string(&faults)?)?,
        Format::Yaml => print(yaml(&faults)?)?,
        Format::Text if faults.is_empty() => print(format!("{}: no faults", target.scope))?,
        Format::Text => {
            for fault in &faults {
                print(format!("{fault}\n  hint: {}", fault.hint))?;
            }
        }
    }
    match faults.iter().filter(|fault| fault.severity == Severity::Critical).count() {
        0 => Ok(()),
        critical => Err(refuse(format!("{critical} critical fault(s)"))),
    }
}
