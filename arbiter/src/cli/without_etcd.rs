//! What members say of themselves while etcd can't be reached: asked by their REST, and said with how old it is.
//!
//! The node of the configuration file is asked first; it knows the members as etcd last named them. Nothing here is more than a picture: who leads
//! is known to etcd alone.

use super::context::{Tool, print};
use super::journals;
use super::list::{Format, yaml};
use super::table::{self, Column};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// A member answers from its memory at once, or it is not well.
const BOUND: Duration = Duration::from_secs(3);

/// What is wanted to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The members (`list`, `check`).
    Members,
    /// Also so many of their decisions (`explain`).
    Decisions(usize),
}

/// One member, asked.
struct Answered {
    name: String,
    api_url: String,
    answer: Result<Map<String, Value>>,
    decisions: Vec<crate::node::journal::Record>,
}

/// Prints what the members say; nothing where the configuration names none.
pub async fn tell(tool: &Tool, wanted: Wanted, format: Format) -> Result<()> {
    let Some(own) = &tool.rest else { return Ok(()) };
    let members = members(tool, own).await;
    let asked = futures_util::future::join_all(members.into_iter().map(|(name, api_url)| ask(tool, name, api_url, wanted))).await;
    let now = jiff::Timestamp::now().as_second();
    match format {
        Format::Json => print(serde_json::to_string(&objects(&asked, now))?),
        Format::Yaml => print(yaml(&objects(&asked, now))?),
        Format::Pretty | Format::Topology | Format::Tsv => print(picture(&asked, now)),
    }
}

/// Name and REST of every member that the file's own node knows of, that one included.
async fn members(tool: &Tool, own: &str) -> BTreeMap<String, String> {
    let known = async {
        let (_, text) = tool.caller.ask(own, "GET", "cluster", None, BOUND).await?;
        let cluster: Value = serde_json::from_str(&text).context("understand /cluster")?;
        let member = |member: &Value| Some((plain(member["name"].as_str()?), plain(member["api_url"].as_str()?)));
        Ok::<_, anyhow::Error>(cluster["members"].as_array().into_iter().flatten().filter_map(member).collect::<BTreeMap<_, _>>())
    };
    let mut known = known.await.unwrap_or_default();
    let name = tool.member.clone().unwrap_or_else(|| own.to_owned());
    known.entry(name).or_insert_with(|| own.to_owned());
    known
}

async fn ask(tool: &Tool, name: String, api_url: String, wanted: Wanted) -> Answered {
    let status = async {
        let (_, text) = tool.caller.ask(&api_url, "GET", "patroni", None, BOUND).await?;
        serde_json::from_str(&text).context("understand /patroni")
    };
    let answer = status.await;
    let mut decisions = Vec::new();
    if let Wanted::Decisions(count) = wanted
        && let Ok((_, text)) = tool.caller.ask(&api_url, "GET", "journal", None, BOUND).await
    {
        decisions = serde_json::from_str(&text).unwrap_or_default();
        let old = decisions.len().saturating_sub(count);
        decisions.drain(..old);
    }
    Answered { name, api_url, answer, decisions }
}

/// Seconds since etcd last answered this member; None where it never did.
fn age(status: &Map<String, Value>, now: i64) -> Option<i64> {
    let seen = status.get("dcs_last_seen")?.as_i64().filter(|seen| *seen > 0)?;
    Some((now - seen).max(0))
}

fn text(status: &Map<String, Value>, pointer: &[&str]) -> String {
    let mut value = status.get(pointer[0]).unwrap_or(&Value::Null);
    for key in &pointer[1..] {
        value = &value[*key];
    }
    match value {
        Value::String(text) => plain(text),
        Value::Null => String::new(),
        other => plain(&other.to_string()),
    }
}

/// Anybody may have answered: nothing of it steers the terminal.
fn plain(text: &str) -> String {
    text.chars().map(|character| if character.is_control() { '?' } else { character }).collect()
}

fn picture(asked: &[Answered], now: i64) -> String {
    let columns = ["Member", "REST", "Role", "State", "TL", "etcd answered it"].map(|title| Column { title, right: title == "TL" });
    let cells = asked.iter().map(|asked| match &asked.answer {
        Ok(status) => {
            let age = age(status, now).map_or("never".to_owned(), |age| format!("{age} s ago"));
            vec![
                asked.name.clone(),
                asked.api_url.clone(),
                text(status, &["role"]),
                text(status, &["state"]),
                text(status, &["timeline"]),
                age,
            ]
        }
        Err(_) => vec![asked.name.clone(), asked.api_url.clone(), String::new(), "no answer".to_owned(), String::new(), String::new()],
    });
    let mut lines = table::pretty(Some(" By the members' REST, etcd is away "), &columns, &cells.collect::<Vec<_>>());
    for asked in asked {
        match &asked.answer {
            Ok(status) => {
                let why = text(status, &["tenure", "why"]);
                if !why.is_empty() {
                    lines.push_str(&format!(" {}: {why}\n", asked.name));
                }
            }
            Err(why) => lines.push_str(&format!(" {} can't be asked: {why:#}\n", asked.name)),
        }
        lines.extend(asked.decisions.iter().map(|record| plain(&journals::sentence(record)) + "\n"));
    }
    lines
}

fn objects(asked: &[Answered], now: i64) -> Vec<Value> {
    let object = |asked: &Answered| match &asked.answer {
        Ok(status) => json!({"member": asked.name, "api_url": asked.api_url, "etcd_answered_s_ago": age(status, now), "status": status,
            "decisions": asked.decisions}),
        Err(why) => json!({"member": asked.name, "api_url": asked.api_url, "error": format!("{why:#}")}),
    };
    asked.iter().map(object).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, status: Option<Value>) -> Answered {
        let answer = match status {
            Some(Value::Object(status)) => Ok(status),
            _ => Err(anyhow::anyhow!("connection refused")),
        };
        Answered { name: name.to_owned(), api_url: format!("http://{name}:8008/patroni"), answer, decisions: Vec::new() }
    }

    #[test]
    fn what_is_shown_says_how_old_it_is() {
        let one =
            json!({"role": "primary", "state": "running", "timeline": 3, "dcs_last_seen": 988, "tenure": {"why": "its lease has run out"}});
        let never = json!({"role": "replica", "state": "running", "timeline": 3, "dcs_last_seen": 0, "tenure": {}});
        let text = picture(&[member("n0", Some(one)), member("n1", None), member("n2", Some(never))], 1000);
        for part in ["12 s ago", "no answer", "never", " n0: its lease has run out", " n1 can't be asked: connection refused"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let value = objects(&[member("n1", None)], 1000);
        assert_eq!(value, [json!({"member": "n1", "api_url": "http://n1:8008/patroni", "error": "connection refused"})]);
    }
}
