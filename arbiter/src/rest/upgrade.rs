//! POST `/upgrade`: what stands in the way of a major upgrade on this node; and the upgrade in place, of the leader.

use super::Reply;
use super::actions::{self, object};
use crate::node::snapshot::{Command, NodeHandle};
use crate::upgrade;
use cluster::local::Postgres;
use serde_json::Value;
use std::time::Duration;

/// Definitions of many tables take their time; whoever asks may go away before.
const UPGRADE_BOUND: Duration = Duration::from_secs(6 * 3600 - 60);

/// Answers what was asked for.
pub async fn asked(node: &NodeHandle, body: &[u8]) -> Result<Reply, Reply> {
    let body = object(body)?;
    let to = body.get("to").and_then(Value::as_u64).and_then(|to| u32::try_from(to).ok());
    let Some(to) = to else { return Err(Reply::text(400, "the body lacks \"to\", the major version as a number")) };
    let is = |key: &str| body.get(key) == Some(&Value::Bool(true));
    match (is("check"), is("in_place")) {
        (true, false) => {}
        (false, true) => {
            return match actions::command(node, |answer| Command::Upgrade(to, answer), UPGRADE_BOUND).await {
                Some(Ok(())) => Ok(Reply::text(200, format!("the cluster runs PostgreSQL {to}"))),
                Some(Err(why)) => Err(Reply::text(412, why)),
                None => Err(Reply::text(503, "no end yet: the upgrade goes on")),
            };
        }
        _ => return Err(Reply::text(400, "the body says neither \"check\": true nor \"in_place\": true")),
    }
    let snapshot = node.snapshot.borrow().clone();
    let primary = matches!(snapshot.local.postgres, Postgres::Primary { .. });
    let checked = Box::pin(upgrade::check(&node.config, &node.sql, &snapshot.view, primary, to)).await;
    checked.map(|checked| Reply::json(200, &checked)).map_err(|why| Reply::text(503, format!("{why:#}")))
}
