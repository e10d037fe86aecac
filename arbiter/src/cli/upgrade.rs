//! `tenure upgrade`: a new major version of PostgreSQL; what stands in its way, and the upgrade in place.

use super::context::{Tool, confirm, must_be_interactive, print, refuse, refuse_with};
use super::groups::{self, Part};
use super::list::yaml;
use super::upgrading;
use crate::node::twin::Told;
use crate::upgrade::Checked;
use anyhow::{Context, Result};
use cluster::name::MemberName;
use cluster::upgrade::obstacle::{Obstacle, Weight};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A member tries `pg_upgrade --check`, which starts a server of the new version for a moment.
const CHECK_BOUND: Duration = Duration::from_secs(160);

/// The leader says that it has begun.
const BEGIN_BOUND: Duration = Duration::from_secs(30);

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// So long nothing may be known of an upgrade that was begun: its arbiter may be started again meanwhile.
const SILENCE: Duration = Duration::from_secs(180);

/// Upgrade the cluster to a later major version of PostgreSQL.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// The major version to upgrade to. Without --check or --in-place it is made beside the present one and follows it, until the two change places.
    #[arg(long, value_name = "MAJOR", required_unless_present_any = ["status", "switch", "back", "finish", "cancel", "compare"])]
    pub to: Option<u32>,
    /// Only look what stands in the way; exit code 1 where something does.
    #[arg(long)]
    pub check: bool,
    /// Upgrade now: the primary is stopped, carried over with hard links and started; the standbys are copied again.
    #[arg(long, conflicts_with = "check")]
    pub in_place: bool,
    #[command(flatten)]
    steps: upgrading::Steps,
    /// Do not ask for confirmation.
    #[arg(long)]
    pub force: bool,
    /// Output format of --check and --status.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: super::check::Format,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let to = match args.to {
        Some(to) if args.in_place => return in_place(tool, args, to).await,
        Some(to) if args.check => to,
        to => {
            let (cluster, group) = (args.cluster.as_deref(), args.group);
            let asked = upgrading::Upgrading { cluster, group, to, force: args.force, format: args.format, steps: &args.steps };
            return upgrading::run(tool, &asked).await;
        }
    };
    let mut several = Vec::new();
    for part in groups::all(tool, args.cluster.as_deref(), args.group).await? {
        let answers = futures_util::future::join_all(part.view.members.keys().map(|name| ask(tool, &part, name, to))).await;
        several.push((part.target.group, answers));
    }
    let found: Vec<(Option<u32>, Obstacle)> =
        several.iter().flat_map(|(group, answers)| all(answers).into_iter().map(|one| (*group, one))).collect();
    let count = |weight: Weight| found.iter().filter(|(_, obstacle)| obstacle.weight == weight).count();
    match args.format {
        super::check::Format::Json => print(serde_json::to_string(&objects(&found)?)?)?,
        super::check::Format::Yaml => print(yaml(&objects(&found)?)?)?,
        super::check::Format::Text => {
            for (group, obstacle) in &found {
                let group = group.map(|group| format!(" (Citus group {group})")).unwrap_or_default();
                let member = obstacle.member.as_ref().map(|member| format!("{member}: ")).unwrap_or_default();
                print(format!("{}: {member}{}{group}\n  cure: {}", obstacle.weight, obstacle.what, obstacle.cure))?;
            }
        }
    }
    if count(Weight::Stops) > 0 {
        return Err(refuse_with(
            format!("{} obstacle(s) stop an upgrade to PostgreSQL {}", count(Weight::Stops), to),
            "remove them as each says, then check again",
        ));
    }
    if args.format == super::check::Format::Text {
        let logical = count(Weight::StopsLogical);
        let beside = if logical == 0 { String::new() } else { format!(" ({logical} obstacle(s) to a path by logical replication)") };
        print(format!("Nothing stops an upgrade in place to PostgreSQL {to}{beside}"))?;
    }
    Ok(())
}

/// Asks the leader, which does it, and shows how far it is; what is begun goes on if this command ends.
async fn in_place(tool: &Tool, args: &Args, to: u32) -> Result<()> {
    let parts = groups::all(tool, args.cluster.as_deref(), args.group).await?;
    let [part] = &parts[..] else {
        return Err(refuse_with(
            "the groups of a Citus cluster have to change together, which this command does not do",
            "docs/upgrade.md says in which order to do it by hand",
        ));
    };
    let Some(leader) = &part.view.leader else { return Err(refuse_with("nobody leads", "`tenure check` says more")) };
    let scope = &part.target.scope;
    if !args.force {
        must_be_interactive("a major upgrade")?;
        let question = format!(
            "Are you sure you want to upgrade {scope} to PostgreSQL {to} now? Writers and readers are refused while {} is carried over, and there is no way back afterwards",
            leader.name
        );
        if !confirm(&question)? {
            return Err(refuse("Aborted upgrade"));
        }
    }
    let api_url = part.view.members.get(&leader.name).map_or("", |entry| entry.member.api_url.as_str());
    let body = json!({"to": to, "do": "in_place"});
    match tool.caller.ask(api_url, "POST", "upgrade", Some(&body), BEGIN_BOUND).await? {
        (202, _) => followed(tool, args, part, &leader.name, to).await,
        (status, text) => Err(refuse_with(
            format!("{scope} is not upgraded (status code {status}): {}", text.trim()),
            "`tenure list` shows what serves now; the log of the leader's arbiter has every step",
        )),
    }
}

/// Shows how far it is, until it has ended. It is done where etcd has another database system than before, of this version.
async fn followed(tool: &Tool, args: &Args, before: &Part, leader: &MemberName, to: u32) -> Result<()> {
    let scope = &before.target.scope;
    let api_url = before.view.members.get(leader).map_or("", |entry| entry.member.api_url.as_str());
    let (mut heard, mut shown) = (Instant::now(), String::new());
    loop {
        tokio::time::sleep(LOOK).await;
        let now = groups::all(tool, args.cluster.as_deref(), args.group).await.ok().and_then(|parts| parts.into_iter().next());
        let upgraded = now.as_ref().is_some_and(|now| {
            now.view.system_id() != before.view.system_id()
                && before.view.system_id().and_then(|old| now.view.upgraded_from(old)).is_some_and(|upgraded| upgraded.to == to)
        });
        let another = now.as_ref().and_then(|now| now.view.leader.as_ref()).filter(|now| now.name != *leader && !upgraded);
        if let Some(another) = another {
            return Err(refuse_with(
                format!("{scope} is not upgraded: {} leads now, which calls the upgrade off", another.name),
                "`tenure list` shows what serves now",
            ));
        }
        let asked = tool.caller.ask(api_url, "POST", "upgrade", Some(&json!({"do": "status"})), BEGIN_BOUND).await;
        let told: Option<Told> = asked.ok().filter(|(status, _)| *status == 200).and_then(|(_, text)| serde_json::from_str(&text).ok());
        match told {
            Some(told) if told.in_place.is_none() && upgraded => {
                return print(format!(
                    "Upgraded: {scope} is of PostgreSQL {to}, led by {leader}. Its standbys are copied again: `tenure list -W` shows it"
                ));
            }
            Some(Told { in_place: None, failed: Some(why), .. }) => {
                return Err(refuse_with(
                    format!("{scope} is not upgraded: {why}"),
                    "`tenure list` shows what serves now; the log of the leader's arbiter has every step",
                ));
            }
            Some(told) if told.in_place.is_some() => {
                heard = Instant::now();
                if told.doing != shown {
                    print(&told.doing)?;
                    shown = told.doing;
                }
            }
            // An arbiter that was started again has not taken it up yet, or none answers.
            _ => {}
        }
        if heard.elapsed() > SILENCE {
            return Err(refuse_with(
                format!("{leader} has said nothing of the upgrade for {} s", SILENCE.as_secs()),
                "an upgrade that has begun goes on, or is called off, without this command: `tenure list` shows it",
            ));
        }
    }
}

async fn ask(tool: &Tool, part: &Part, name: &MemberName, to: u32) -> (MemberName, Result<Checked>) {
    let api_url = part.view.members.get(name).map_or("", |entry| entry.member.api_url.as_str());
    let body = json!({"to": to, "check": true});
    let answered = async {
        let (status, text) = tool.caller.ask(api_url, "POST", "upgrade", Some(&body), CHECK_BOUND).await?;
        if status != 200 {
            return Err(refuse(format!("status code {status}: {}", text.trim())));
        }
        serde_json::from_str(&text).context("understand the answer")
    };
    (name.clone(), answered.await)
}

/// What all members say; that one gives no answer is an obstacle, too.
fn all(answers: &[(MemberName, Result<Checked>)]) -> Vec<Obstacle> {
    let mut found = Vec::new();
    let stops = |kind: &str, what: String, cure: &str, member: Option<&MemberName>| Obstacle {
        weight: Weight::Stops,
        kind: kind.to_owned(),
        what,
        cure: cure.to_owned(),
        member: member.map(ToString::to_string),
    };
    for (name, answer) in answers {
        match answer {
            Ok(checked) => found.extend(checked.obstacles.iter().cloned()),
            Err(why) => {
                let cure = "start it with a version of pg_tenure that knows upgrades, give -c a file with the credentials of its REST, or remove it from the cluster";
                found.push(stops("member", format!("it could not be asked: {why:#}"), cure, Some(name)));
            }
        }
    }
    if !answers.iter().any(|(_, answer)| answer.as_ref().is_ok_and(|checked| checked.primary)) {
        let cure = "wait until a member leads, or see `tenure check`";
        found.push(stops("leader", "no member says that it is the primary, so no database was looked into".to_owned(), cure, None));
    }
    found.sort();
    found.dedup();
    found
}

fn objects(found: &[(Option<u32>, Obstacle)]) -> Result<Vec<Value>> {
    let object = |(group, obstacle): &(Option<u32>, Obstacle)| {
        let mut value = serde_json::to_value(obstacle)?;
        if let (Some(group), Some(fields)) = (group, value.as_object_mut()) {
            fields.insert("group".to_owned(), json!(group));
        }
        Ok(value)
    };
    found.iter().map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_an_obstacle() {
        let name = MemberName::new("n1").unwrap();
        let found = all(&[(name.clone(), Err(anyhow::anyhow!("connection refused")))]);
        let kinds: Vec<&str> = found.iter().map(|obstacle| obstacle.kind.as_str()).collect();
        assert_eq!(kinds, ["leader", "member"]);
        let checked = Checked { member: "n1".to_owned(), primary: true, from: 15, to: 17, obstacles: Vec::new() };
        assert_eq!(all(&[(name, Ok(checked))]), []);
    }
}
