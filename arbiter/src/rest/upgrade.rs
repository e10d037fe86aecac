//! POST `/upgrade`: what stands in the way of a major upgrade on this node.

use super::Reply;
use super::actions::object;
use crate::node::snapshot::NodeHandle;
use crate::upgrade;
use serde_json::Value;

/// Answers what was asked for.
pub async fn asked(node: &NodeHandle, body: &[u8]) -> Result<Reply, Reply> {
    let body = object(body)?;
    let to = body.get("to").and_then(Value::as_u64).and_then(|to| u32::try_from(to).ok());
    let Some(to) = to else { return Err(Reply::text(400, "the body lacks \"to\", the major version as a number")) };
    if body.get("check") != Some(&Value::Bool(true)) {
        return Err(Reply::text(400, "only \"check\": true is served"));
    }
    let snapshot = node.snapshot.borrow().clone();
    let checked = Box::pin(upgrade::check(&node.config, &node.sql, &snapshot.view, &snapshot.local.postgres, to)).await;
    checked.map(|checked| Reply::json(200, &checked)).map_err(|why| Reply::text(503, format!("{why:#}")))
}
