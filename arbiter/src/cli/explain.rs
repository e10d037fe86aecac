//! `tenure explain`: why each member does what it does, in its own arbiter's words, and what stands in the way of a candidate.

use super::context::{Tool, print, refuse_with};
use super::groups::{self, Part};
use super::incident;
use super::journals::{records, sentence};
use super::list::{Format, yaml};
use anyhow::Result;
use cluster::check;
use serde_json::{Value, json};

/// Say why members do what they do: the last decisions of their arbiters, each with the facts and the reason.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// [CLUSTER] [MEMBER...]; all members where none is named.
    pub words: Vec<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// One page about the last time that the leadership moved: who saw what when, what was lost, why this node.
    #[arg(long)]
    pub incident: bool,
    /// How many decisions of each member to show.
    #[arg(short = 'n', long, default_value_t = 3, value_name = "COUNT")]
    pub last: usize,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let (cluster, names) = tool.cluster_and_members(&args.words);
    let parts = groups::all(tool, cluster, args.group).await?;
    if let Some(odd) = names.iter().find(|wished| !parts.iter().any(|part| part.has(wished))) {
        return Err(refuse_with(format!("{odd} is not a member of the cluster"), "`tenure list` shows who is"));
    }
    if args.incident {
        return incident::tell(tool, &parts, args.format).await;
    }
    let mut told: Vec<Value> = Vec::new();
    let mut lines: Vec<String> = Vec::new();
    let members = parts.iter().flat_map(|Part { view, .. }| view.members.iter().map(move |(name, entry)| (view, name, entry)));
    for (view, name, entry) in members.filter(|(_, name, _)| names.is_empty() || names.iter().any(|wished| wished == name.as_str())) {
        lines.push(format!("{name}:"));
        match records(tool, &entry.member).await {
            Ok(records) => {
                let records = &records[records.len().saturating_sub(args.last)..];
                lines.extend(records.iter().map(sentence));
                told.push(json!({"member": name, "decisions": records}));
            }
            Err(why) => {
                lines.push(format!("  its arbiter can't be asked: {why:#}"));
                told.push(json!({"member": name, "error": format!("{why:#}")}));
            }
        }
        // Only a vacancy has announcements: who does not stand says why.
        if let Some(why) = view.announcements.get(name).filter(|_| view.leader.is_none()).and_then(|word| word.value.why.as_ref()) {
            lines.push(format!("  does not stand for leader: {why}"));
        }
    }
    match args.format {
        Format::Json => print(serde_json::to_string(&told)?),
        Format::Yaml => print(yaml(&told)?),
        Format::Pretty | Format::Topology | Format::Tsv => {
            let mut faults: Vec<_> = parts.iter().flat_map(|part| check::faults(&part.view)).collect();
            faults.sort();
            lines.extend(faults.iter().map(|fault| format!("{fault}\n  hint: {}", fault.hint)));
            print(lines.join("\n"))
        }
    }
}
