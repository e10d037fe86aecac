//! `tenure fleet`: every cluster of a namespace, from a few reads of etcd that do not grow with the number of members asked.

use super::context::{Tool, print, refuse, unreachable_store};
use super::list::{Format, yaml};
use super::table::{self, Column};
use anyhow::Result;
use cluster::check::{self, Fault, Severity};
use cluster::roster;
use cluster::view::ClusterView;
use dcs::survey::{Fleet, Which};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Every cluster of the namespace, its groups too: one look at etcd, no member is asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub what: What,
}

/// What to do with all of them.
#[derive(Debug, clap::Subcommand)]
pub enum What {
    /// A line for each cluster; exit code 1 where one has a critical fault.
    List(Options),
    /// The faults of all clusters, the worst first; exit code 1 where one is critical.
    Check(Options),
}

/// For both.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let began = std::time::Instant::now();
    let fleet = tool.store()?.load_fleet(tool.namespace()).await.map_err(unreachable_store)?;
    let cost = format!(
        "{} cluster(s) of /{}/, {} keys in {} request(s), {} ms",
        fleet.clusters.len(),
        tool.namespace().trim_matches('/'),
        fleet.keys,
        fleet.requests,
        began.elapsed().as_millis()
    );
    let judged = judge(&fleet);
    match &args.what {
        What::List(options) => list(&fleet, &judged, options.format, &cost)?,
        What::Check(options) => faults(&judged, options.format, &cost)?,
    }
    let critical = judged.values().flatten().filter(|fault| fault.severity == Severity::Critical).count();
    match critical {
        0 => Ok(()),
        critical => Err(refuse(format!("{critical} critical fault(s)"))),
    }
}

/// The faults of each cluster, and those that only show beside the others: two with one identity that both take writes.
fn judge(fleet: &Fleet) -> BTreeMap<&Which, Vec<Fault>> {
    let mut judged: BTreeMap<&Which, Vec<Fault>> = fleet.clusters.iter().map(|(which, view)| (which, check::faults(view))).collect();
    for (which, twins) in cluster::surroundings::twins(&fleet.clusters) {
        let found = judged.entry(which).or_default();
        found.push(cluster::surroundings::twin_fault(&twins.iter().map(|twin| name(twin)).collect::<Vec<_>>().join(", ")));
        found.sort();
    }
    judged
}

/// `demo`, or `demo/1` for a group.
fn name((scope, group): &Which) -> String {
    group.map_or(scope.to_string(), |group| format!("{scope}/{group}"))
}

fn summary(which: &Which, view: &ClusterView, faults: &[Fault]) -> Value {
    let running = view.members.values().filter(|entry| entry.member.is_running()).count();
    let of = |severity| faults.iter().filter(|fault| fault.severity == severity).count();
    let leader = view.leader.as_ref();
    let ahead = view.leader_position();
    let behind = view.members.values().filter_map(|entry| Some(entry.member.position()?.lag_bytes_behind(ahead?))).max();
    json!({
        "scope": which.0.as_str(),
        "group": which.1,
        "leader": leader.map(|leader| leader.name.as_str()),
        "term": leader.map(|leader| leader.term.0),
        "timeline": leader.and_then(|leader| view.members.get(&leader.name)?.member.timeline),
        "members": view.members.len(),
        "running": running,
        "lost": roster::lost(view).len(),
        "lag_bytes_most": behind,
        "pause": view.config().paused(),
        "critical": of(Severity::Critical),
        "warnings": of(Severity::Warning),
        "notices": of(Severity::Notice),
    })
}

fn list(fleet: &Fleet, judged: &BTreeMap<&Which, Vec<Fault>>, format: Format, cost: &str) -> Result<()> {
    let of = |which: &Which| judged.get(which).map_or(&[][..], Vec::as_slice);
    let rows: Vec<Value> = fleet.clusters.iter().map(|(which, view)| summary(which, view, of(which))).collect();
    let titles = [
        ("Cluster", "scope"),
        ("Group", "group"),
        ("Leader", "leader"),
        ("TL", "timeline"),
        ("Running", "running"),
        ("Members", "members"),
        ("Lost", "lost"),
        ("Most behind", "lag_bytes_most"),
        ("Pause", "pause"),
        ("Critical", "critical"),
        ("Warnings", "warnings"),
    ];
    let cell = |value: &Value| match value {
        Value::Null | Value::Bool(false) => String::new(),
        Value::Bool(true) => "yes".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let cells: Vec<Vec<String>> = rows.iter().map(|row| titles.iter().map(|(_, key)| cell(&row[*key])).collect()).collect();
    match format {
        Format::Json => print(serde_json::to_string(&rows)?),
        Format::Yaml => print(yaml(&rows)?),
        Format::Tsv => {
            let head = titles.map(|(title, _)| title).join("\t");
            print(std::iter::once(head).chain(cells.iter().map(|row| row.join("\t"))).collect::<Vec<_>>().join("\n"))
        }
        Format::Pretty | Format::Topology => {
            let columns = titles.map(|(title, key)| Column { title, right: !matches!(key, "scope" | "leader" | "pause") });
            print(table::pretty(None, &columns, &cells) + cost)
        }
    }
}

fn faults(judged: &BTreeMap<&Which, Vec<Fault>>, format: Format, cost: &str) -> Result<()> {
    let mut all: Vec<(&Which, &Fault)> =
        judged.iter().flat_map(|(which, faults)| faults.iter().map(move |fault| (*which, fault))).collect();
    all.sort_by(|(which, fault), (other, than)| fault.severity.cmp(&than.severity).then(which.cmp(other)).then(fault.cmp(than)));
    let object = |(which, fault): &(&Which, &Fault)| json!({"scope": which.0.as_str(), "group": which.1, "severity": fault.severity, "subject": fault.subject, "sentence": fault.sentence, "hint": fault.hint});
    let objects = || all.iter().map(object).collect::<Vec<_>>();
    match format {
        Format::Json => print(serde_json::to_string(&objects())?),
        Format::Yaml => print(yaml(&objects())?),
        Format::Tsv => {
            let line = |(which, fault): &(&Which, &Fault)| {
                [name(which), fault.severity.to_string(), fault.subject.to_string(), fault.sentence.clone(), fault.hint.clone()].join("\t")
            };
            print(all.iter().map(line).collect::<Vec<_>>().join("\n"))
        }
        Format::Pretty | Format::Topology => {
            let line = |(which, fault): &(&Which, &Fault)| format!("{}: {fault}\n  hint: {}", name(which), fault.hint);
            let lines = all.iter().map(line).chain([if all.is_empty() { format!("no faults; {cost}") } else { cost.to_owned() }]);
            print(lines.collect::<Vec<_>>().join("\n"))
        }
    }
}
