//! `tenure explain --incident`: one page about the last time that the leadership moved, from all members' journals.

use super::context::{Tool, print, refuse_with};
use super::groups::Part;
use super::journals;
use super::list::{Format, yaml};
use anyhow::Result;
use cluster::incident::{self, Incident, Journals, Seen};
use futures_util::future::join_all;
use serde_json::{Value, json};

/// Asks every member and tells what came of it, a page for each group.
pub async fn tell(tool: &Tool, parts: &[Part], format: Format) -> Result<()> {
    let mut told: Vec<Value> = Vec::new();
    let mut pages = Vec::new();
    for Part { target, view } in parts {
        let ask = view.members.iter().map(|(name, entry)| async move {
            (name.to_string(), journals::records(tool, &entry.member).await.map_err(|why| format!("{why:#}")))
        });
        let mut journals: Journals = join_all(ask).await.into_iter().collect();
        for (name, since) in cluster::roster::lost(view) {
            let since = since.map(|since| format!(" since {since}")).unwrap_or_default();
            journals.entry(name).or_insert_with(|| Err(format!("it is away{since}")));
        }
        let Some(incident) = incident::last(view, &journals) else { continue };
        let title = target.group.map_or(target.scope.to_string(), |group| format!("{}, group {group}", target.scope));
        pages.push(page(&title, &incident));
        told.push(json!({"scope": target.scope.as_str(), "group": target.group, "incident": incident}));
    }
    if told.is_empty() {
        return Err(refuse_with(
            "no member's journal goes back to a change of leader",
            "a journal lasts as long as its arbiter runs; `tenure history` shows the changes of before",
        ));
    }
    match format {
        Format::Json => print(serde_json::to_string(&told)?),
        Format::Yaml => print(yaml(&told)?),
        Format::Pretty | Format::Topology | Format::Tsv => print(pages.join("\n\n")),
    }
}

fn page(title: &str, incident: &Incident) -> String {
    let Incident { from, to, ended, began, how, vacant, served, seen, lost, why, unheard } = incident;
    let term = |term: &Option<i64>| term.map(|term| format!(" (term {term})")).unwrap_or_default();
    let now = match to {
        Some(to) => format!("{to} leads{}", term(began)),
        None => "nobody leads".to_owned(),
    };
    let how = how.as_ref().map(|how| format!(", the key was {how}")).unwrap_or_default();
    let mut lines = vec![format!("{title}: {from} led{}, now {now}{how}", term(ended))];
    if let Some((first, last)) = vacant {
        lines.push(format!("Members saw no leader from {first} to {last}"));
    }
    if let (Some(served), Some(to)) = (served, to) {
        lines.push(format!("{to} saw itself as primary at {served}"));
    }
    lines.push(format!("Lost: {}", lost.sentence()));
    lines.push("Why this node:".to_owned());
    lines.extend(why.iter().map(|line| format!("  {line}")));
    lines.push("Who saw what, each by its own clock:".to_owned());
    lines.extend(seen.iter().map(|Seen { member, record }| format!("  {member}{}", journals::sentence(record))));
    lines.extend(unheard.iter().map(|(member, why)| format!("  {member} was not heard: {why}")));
    lines.join("\n")
}
