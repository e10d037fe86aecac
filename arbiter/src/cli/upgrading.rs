//! `tenure upgrade` beside the present version: begun, shown, and taken step by step; the leader's arbiter does it.

use super::check::Format;
use super::context::{Tool, confirm, must_be_interactive, print, refuse, refuse_with};
use super::groups;
use super::list::yaml;
use crate::node::twin::Told;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::time::Duration;

/// One step of an upgrade that is under way.
#[derive(Debug, clap::Args)]
pub struct Steps {
    /// Show how far the upgrade is.
    #[arg(long, group = "step", conflicts_with_all = ["to", "check", "in_place"])]
    pub status: bool,
    /// Compare the data of both versions now.
    #[arg(long, group = "step", conflicts_with_all = ["to", "check", "in_place"])]
    pub compare: bool,
    /// Let the new version serve: writers wait for a moment, and the old one follows it from then on.
    #[arg(long, group = "step", conflicts_with_all = ["to", "check", "in_place"])]
    pub switch: bool,
    /// Let the old version serve again, with everything that was written since.
    #[arg(long, group = "step", conflicts_with_all = ["to", "check", "in_place"])]
    pub back: bool,
    /// End the upgrade: the old version goes, and there is no way back afterwards.
    #[arg(long, group = "step", conflicts_with_all = ["to", "check", "in_place"])]
    pub finish: bool,
    /// Call the upgrade off: the new version goes.
    #[arg(long, group = "step", conflicts_with_all = ["to", "check", "in_place"])]
    pub cancel: bool,
}

/// What was asked for.
pub struct Upgrading<'a> {
    /// The cluster, where one is named.
    pub cluster: Option<&'a str>,
    /// The Citus group.
    pub group: Option<u32>,
    /// The major version, where an upgrade is to begin.
    pub to: Option<u32>,
    /// Without questions.
    pub force: bool,
    /// Of --status.
    pub format: Format,
    /// The step.
    pub steps: &'a Steps,
}

/// An answer about how far it is.
const LOOK_BOUND: Duration = Duration::from_secs(10);
/// The change of places, with a stop in between.
const SWITCH_BOUND: Duration = Duration::from_secs(600);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// The leader, as asked now: it may be another one than a moment ago.
async fn ask(tool: &Tool, args: &Upgrading<'_>, body: &Value, bound: Duration) -> Result<(u16, String)> {
    let parts = groups::all(tool, args.cluster, args.group).await?;
    let [part] = &parts[..] else {
        return Err(refuse_with(
            "the groups of a Citus cluster have to change together, which this command does not do",
            "docs/upgrade.md says in which order to do it by hand",
        ));
    };
    let Some(leader) = &part.view.leader else { return Err(refuse_with("nobody leads", "`tenure check` says more")) };
    let api_url = part.view.members.get(&leader.name).map_or("", |entry| entry.member.api_url.as_str());
    tool.caller.ask(api_url, "POST", "upgrade", Some(body), bound).await
}

async fn act(tool: &Tool, args: &Upgrading<'_>, what: &str, bound: Duration) -> Result<()> {
    let mut body = json!({"do": what});
    if let Some(to) = args.to {
        body["to"] = json!(to);
    }
    match ask(tool, args, &body, bound).await? {
        (200 | 202, _) => Ok(()),
        (status, text) => Err(refuse_with(
            format!("{what}: not done (status code {status}): {}", text.trim()),
            "`tenure upgrade --status` shows how far it is",
        )),
    }
}

async fn look(tool: &Tool, args: &Upgrading<'_>) -> Result<Told> {
    let (status, text) = ask(tool, args, &json!({"do": "status"}), LOOK_BOUND).await?;
    if status != 200 {
        return Err(refuse(format!("the leader does not say how far the upgrade is (status code {status}): {}", text.trim())));
    }
    serde_json::from_str(&text).context("understand how far the upgrade is")
}

/// Runs the step that is asked for; all of them, up to the change of places, where none is.
pub async fn run(tool: &Tool, args: &Upgrading<'_>) -> Result<()> {
    if args.steps.status {
        let told = look(tool, args).await?;
        return match args.format {
            Format::Json => print(serde_json::to_string(&told)?),
            Format::Yaml => print(yaml(&[serde_json::to_value(&told)?])?),
            Format::Text => print(sentences(&told).join("\n")),
        };
    }
    if args.steps.compare {
        return act(tool, args, "compare", LOOK_BOUND).await;
    }
    if args.steps.switch || args.steps.back {
        return change_places(tool, args).await;
    }
    if args.steps.finish || args.steps.cancel {
        let (what, question) = if args.steps.finish {
            ("finish", "End the upgrade? There is no way back to the old version afterwards")
        } else {
            ("cancel", "Call the upgrade off? What was made of the new version goes")
        };
        sure(args, question)?;
        act(tool, args, what, LOOK_BOUND).await?;
        return until(tool, args, |told| told.beside.is_none())
            .await
            .and_then(|_| print("The upgrade is over; definitions may be changed again"));
    }
    if look(tool, args).await?.beside.is_none() {
        sure(
            args,
            "Make the new version beside the present one? Until the upgrade is over, definitions (CREATE, ALTER, DROP) are refused",
        )?;
        act(tool, args, "begin", LOOK_BOUND).await?;
    }
    // What the arbiter begins it goes on with, whether this command lives or not.
    let told = until(tool, args, |told| told.beside.is_some() && told.not_yet.is_empty() && told.compared.is_some()).await?;
    print(sentences(&told).join("\n"))?;
    if told.switched {
        return print("The new version serves already: `tenure upgrade --finish` ends the upgrade, `--back` goes back");
    }
    change_places(tool, args).await
}

fn sure(args: &Upgrading<'_>, question: &str) -> Result<()> {
    if args.force {
        return Ok(());
    }
    must_be_interactive("a major upgrade")?;
    if confirm(question)? { Ok(()) } else { Err(refuse("Aborted; what was begun goes on, and `tenure upgrade --cancel` calls it off")) }
}

async fn change_places(tool: &Tool, args: &Upgrading<'_>) -> Result<()> {
    let told = look(tool, args).await?;
    let (Some(serves), Some(beside)) = (told.serves, told.beside) else {
        return Err(refuse_with("no upgrade is under way", "`tenure upgrade --to MAJOR` begins one"));
    };
    sure(
        args,
        &format!(
            "Let PostgreSQL {beside} serve instead of {serves} now? Sessions end, writers wait for a moment, and the standbys are copied again"
        ),
    )?;
    act(tool, args, if told.switched { "back" } else { "switch" }, SWITCH_BOUND).await?;
    print(format!(
        "PostgreSQL {beside} serves, and {serves} follows it. `tenure upgrade --back` goes back with everything that is written meanwhile, `--finish` ends the upgrade"
    ))
}

/// Shows what changes, until this holds; an error where the upgrade ended meanwhile.
async fn until(tool: &Tool, args: &Upgrading<'_>, holds: impl Fn(&Told) -> bool) -> Result<Told> {
    let mut shown = String::new();
    let mut begun = false;
    loop {
        let told = look(tool, args).await?;
        if holds(&told) {
            return Ok(told);
        }
        begun |= told.beside.is_some();
        if let Some(why) = told.failed.as_ref().filter(|_| told.beside.is_none() && (begun || told.doing.is_empty())) {
            return Err(refuse_with(why.clone(), "`tenure upgrade --to MAJOR --check` says what stands in the way"));
        }
        let line = sentences(&told).join("; ");
        if line != shown {
            print(&line)?;
            shown = line;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// For people.
fn sentences(told: &Told) -> Vec<String> {
    let mut lines = Vec::new();
    match (told.serves, told.beside) {
        (Some(serves), Some(beside)) => lines.push(format!("PostgreSQL {serves} serves, {beside} is beside it")),
        _ if told.doing.is_empty() => lines.push("No upgrade is under way".to_owned()),
        _ if told.in_place.is_some() => {
            lines.push(told.in_place.map_or_else(String::new, |to| format!("An upgrade in place to PostgreSQL {to} is under way")))
        }
        _ => {}
    }
    if !told.doing.is_empty() {
        lines.push(told.percent.map_or_else(|| told.doing.clone(), |percent| format!("{} ({percent} %)", told.doing)));
    }
    if let Some(bytes) = told.lag_bytes {
        let left = told.seconds_left.map(|seconds| format!(", {seconds} s left at this rate")).unwrap_or_default();
        lines.push(format!("{bytes} bytes behind{left}"));
    }
    if told.apply_errors > 0 {
        lines.push(format!(
            "{} changes could not be applied at once: the log beside the data, <data_dir>.twin/server.log, says why",
            told.apply_errors
        ));
    }
    if let Some(compared) = &told.compared {
        lines.push(format!(
            "compared at {}: {} tables with {} rows, {} differences (writers waited {} ms)",
            compared.at, compared.tables, compared.rows, compared.different, compared.held_ms
        ));
        lines.extend(compared.differences.iter().map(|difference| format!("  {difference}")));
    }
    if told.beside.is_some() {
        lines.push(if told.not_yet.is_empty() {
            "the two may change places".to_owned()
        } else {
            format!("the two may not change places yet: {}", told.not_yet.join(", "))
        });
    }
    lines.extend(
        told.held_ms.map(|held| format!("writers waited {held} ms for the last change of places, without the start of the server")),
    );
    lines.extend(told.failed.iter().map(|why| format!("failed: {why}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is_is_said_in_sentences() {
        assert_eq!(sentences(&Told::default()), ["No upgrade is under way"]);
        let told = Told {
            doing: "PostgreSQL 17 follows".to_owned(),
            serves: Some(15),
            beside: Some(17),
            lag_bytes: Some(5000),
            seconds_left: Some(3),
            not_yet: vec!["the data was not compared since the new version follows".to_owned()],
            ..Told::default()
        };
        assert_eq!(
            sentences(&told).join("\n"),
            "PostgreSQL 15 serves, 17 is beside it\nPostgreSQL 17 follows\n5000 bytes behind, 3 s left at this rate\n\
             the two may not change places yet: the data was not compared since the new version follows"
        );
    }
}
