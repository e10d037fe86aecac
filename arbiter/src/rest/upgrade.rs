//! POST `/upgrade`: what stands in the way of a major upgrade on this node; and what is asked of the leader: an upgrade in place, one beside
//! the old version, and the steps of that.

use super::actions::{self, object};
use super::reply::Reply;
use crate::node::snapshot::{Command, NodeHandle, Wanted};
use crate::node::twin::Wish;
use crate::upgrade;
use cluster::local::Postgres;
use serde_json::{Map, Value};
use std::time::Duration;

/// The change of places, with a stop in between; it goes on without the client that asked.
const CHANGE_BOUND: Duration = Duration::from_secs(590);

/// Answers what was asked for.
pub async fn answer(node: &NodeHandle, body: &[u8]) -> Result<Reply, Reply> {
    let body = object(body)?;
    if let Some(what) = body.get("do") {
        return acted(node, what.as_str().unwrap_or_default(), &body).await;
    }
    let to = major(&body)?;
    if body.get("check") != Some(&Value::Bool(true)) {
        return Err(Reply::text(400, "the body says neither \"check\": true nor \"do\""));
    }
    let snapshot = node.snapshot.borrow().clone();
    let primary = matches!(snapshot.local.postgres, Postgres::Primary { .. });
    let checked = Box::pin(upgrade::check(&node.config, &node.sql, &snapshot.view, primary, to)).await;
    checked.map(|checked| Reply::json(200, &checked)).map_err(|why| Reply::text(503, format!("{why:#}")))
}

fn major(body: &Map<String, Value>) -> Result<u32, Reply> {
    let to = body.get("to").and_then(Value::as_u64).and_then(|to| u32::try_from(to).ok());
    to.ok_or_else(|| Reply::text(400, "the body lacks \"to\", the major version as a number"))
}

/// A step of an upgrade, by its word.
async fn acted(node: &NodeHandle, what: &str, body: &Map<String, Value>) -> Result<Reply, Reply> {
    let told = node.twin.told();
    if what == "status" {
        return Ok(Reply::json(200, &told));
    }
    let (view, name) = (node.snapshot.borrow().view.clone(), &node.config.name);
    if view.leader_if(name).is_none() {
        return Err(Reply::text(412, "this member does not lead: ask the leader"));
    }
    let refuse = |why: &str| Err(Reply::text(412, why));
    let wanted = match what {
        "in_place" if told.beside.is_some() => {
            return refuse("another version follows this one: `tenure upgrade --cancel` ends that first");
        }
        "in_place" => Wanted::InPlace(major(body)?),
        "switch" if told.switched => return refuse("the new version serves already"),
        "back" if !told.switched => return refuse("the old version serves"),
        "switch" | "back" => Wanted::ChangePlaces,
        "begin" => {
            let refused = if told.beside.is_some() {
                Some("an upgrade is under way: GET /upgrade says how far it is")
            } else if view.config().paused() {
                Some("the cluster is in maintenance mode: `tenure resume` ends it")
            } else if view.is_standby_cluster() {
                Some("a standby cluster is upgraded by making it again")
            } else {
                None
            };
            if let Some(why) = refused {
                return refuse(why);
            }
            let wish = Wish::Begin(major(body)?);
            // Of an earlier try.
            node.twin.tell(|told| told.failed = None);
            return wished(node, wish);
        }
        "compare" if told.beside.is_some() => return wished(node, Wish::Compare),
        "finish" if told.beside.is_some() && told.switched => return wished(node, Wish::End),
        "finish" => return refuse("the new version does not serve yet: `tenure upgrade --cancel` calls the upgrade off"),
        "cancel" if told.switched => {
            return refuse("the new version serves: `tenure upgrade --back` goes back first, `--finish` ends the upgrade");
        }
        "cancel" if told.beside.is_some() => return wished(node, Wish::End),
        "cancel" | "compare" => return refuse("no upgrade is under way"),
        _ => return Err(Reply::text(400, "\"do\" is none of status, begin, compare, switch, back, finish, cancel, in_place")),
    };
    match actions::command(node, |answer| Command::Upgrade(wanted, answer), CHANGE_BOUND).await {
        Some(Ok(())) if what == "in_place" => Ok(Reply::text(202, "begun")),
        Some(Ok(())) => Ok(Reply::text(200, "done")),
        Some(Err(why)) => Err(Reply::text(412, why)),
        None => Err(Reply::text(503, "no end yet: the upgrade goes on")),
    }
}

fn wished(node: &NodeHandle, wish: Wish) -> Result<Reply, Reply> {
    node.twin.ask(wish).map(|()| Reply::text(202, "begun")).map_err(|why| Reply::text(412, why))
}
