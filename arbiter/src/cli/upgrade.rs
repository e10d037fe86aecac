//! `tenure upgrade`: a new major version of PostgreSQL; what stands in its way.

use super::context::{Tool, print, refuse, refuse_with};
use super::groups::{self, Part};
use super::list::yaml;
use crate::upgrade::Checked;
use anyhow::{Context, Result};
use cluster::name::MemberName;
use cluster::upgrade::obstacle::{Obstacle, Weight};
use serde_json::{Value, json};
use std::time::Duration;

/// A member tries `pg_upgrade --check`, which starts a server of the new version for a moment.
const CHECK_BOUND: Duration = Duration::from_secs(160);

/// Upgrade the cluster to a later major version of PostgreSQL.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// The major version to upgrade to.
    #[arg(long, value_name = "MAJOR")]
    pub to: u32,
    /// Only look what stands in the way; exit code 1 where something does.
    #[arg(long)]
    pub check: bool,
    /// Output format of --check.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: super::check::Format,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    if !args.check {
        return Err(refuse_with("only the check is there", "give --check"));
    }
    let mut several = Vec::new();
    for part in groups::all(tool, args.cluster.as_deref(), args.group).await? {
        let answers = futures_util::future::join_all(part.view.members.keys().map(|name| ask(tool, &part, name, args.to))).await;
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
            format!("{} obstacle(s) stop an upgrade to PostgreSQL {}", count(Weight::Stops), args.to),
            "remove them as each says, then check again",
        ));
    }
    if args.format == super::check::Format::Text {
        let logical = count(Weight::StopsLogical);
        let beside = if logical == 0 { String::new() } else { format!(" ({logical} obstacle(s) to a path by logical replication)") };
        print(format!("Nothing stops an upgrade in place to PostgreSQL {}{beside}", args.to))?;
    }
    Ok(())
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
