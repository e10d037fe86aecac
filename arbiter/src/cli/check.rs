//! `tenure check`: what is wrong with the cluster, worst first, and what to do next.

use super::context::{Tool, print, refuse};
use super::groups;
use super::list::yaml;
use super::surroundings;
use anyhow::Result;
use cluster::check::{self, Fault, Severity};
use cluster::surroundings as around;
use cluster::view::ClusterView;
use serde_json::{Value, json};

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
    let parts = groups::all(tool, args.cluster.as_deref(), args.group).await?;
    let several = parts.len() > 1;
    let scope = parts.iter().map(|part| part.target.scope.to_string()).next().unwrap_or_default();
    let mut faults: Vec<(Option<u32>, Fault)> = Vec::new();
    if let Some(part) = parts.first() {
        let around = surroundings::shared(tool, &part.target.etcd).await;
        let nothing = ClusterView::default();
        faults.extend(around::faults(&nothing, &around).into_iter().map(|fault| (None, fault)));
    }
    // A user who may read only this cluster's keys looks at this cluster only.
    let fleet = match parts.first() {
        Some(part) => part.target.etcd.load_fleet(tool.namespace()).await.ok(),
        None => None,
    };
    for part in &parts {
        let group = part.target.group.filter(|_| several);
        let around = surroundings::of(tool, part, fleet.as_ref()).await;
        let found = check::faults(&part.view).into_iter().chain(around::faults(&part.view, &around));
        faults.extend(found.map(|fault| (group, fault)));
    }
    faults.sort_by(|(group, fault), (other, than)| fault.cmp(than).then(group.cmp(other)));
    match args.format {
        Format::Json => print(serde_json::to_string(&objects(&faults)?)?)?,
        Format::Yaml => print(yaml(&objects(&faults)?)?)?,
        Format::Text if faults.is_empty() => print(format!("{scope}: no faults"))?,
        Format::Text => {
            for (group, fault) in &faults {
                let group = group.map(|group| format!(" (Citus group {group})")).unwrap_or_default();
                print(format!("{fault}{group}\n  hint: {}", fault.hint))?;
            }
        }
    }
    match faults.iter().filter(|(_, fault)| fault.severity == Severity::Critical).count() {
        0 => Ok(()),
        critical => Err(refuse(format!("{critical} critical fault(s)"))),
    }
}

/// The faults, those of a group with its number.
fn objects(faults: &[(Option<u32>, Fault)]) -> Result<Vec<Value>> {
    let object = |(group, fault): &(Option<u32>, Fault)| {
        let mut value = serde_json::to_value(fault)?;
        if let (Some(group), Some(fields)) = (group, value.as_object_mut()) {
            fields.insert("group".to_owned(), json!(group));
        }
        Ok(value)
    };
    faults.iter().map(object).collect()
}
