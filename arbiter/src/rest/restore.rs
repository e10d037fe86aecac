//! POST `/restore`: the leader is asked to restore this cluster to a point in its past, or to undo that while it is under way.

use super::actions::{self, object};
use super::reply::Reply;
use crate::node::snapshot::{Command, NodeHandle, Restoring};
use cluster::restore::Target;
use serde_json::{Map, Value};
use std::time::Duration;

/// A backup takes as long as it takes; the client may go away before.
pub const RESTORE_WITHIN: Duration = Duration::from_secs(24 * 3600);

/// Answers what was asked for.
pub async fn answer(node: &NodeHandle, body: &[u8]) -> Result<Reply, Reply> {
    let body = object(body)?;
    let wanted = match body.get("undo") {
        Some(Value::Bool(true)) => Restoring::Undo,
        _ => Restoring::To(target(&body, jiff::Timestamp::now()).map_err(|why| Reply::text(400, why))?),
    };
    match actions::command(node, |answer| Command::Restore(wanted, answer), RESTORE_WITHIN).await {
        Some(Ok(())) => Ok(Reply::text(200, "done")),
        Some(Err(why)) => Err(Reply::text(412, why)),
        None => Err(Reply::text(503, "no end yet: the restore goes on")),
    }
}

/// One of `time`, `lsn` and `name`.
fn target(body: &Map<String, Value>, now: jiff::Timestamp) -> Result<Target, String> {
    let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
    match (text("time"), text("lsn"), text("name")) {
        (Some(time), None, None) => match time.parse::<jiff::Timestamp>() {
            Ok(at) if at >= now => Err(format!("{time} is yet to come")),
            // As PostgreSQL reads it, whatever its own time zone is.
            Ok(at) => Ok(Target::Time(at.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string())),
            Err(_) => Err(format!("{time} is no time with its zone, as in 2026-11-22T14:03:00+01:00")),
        },
        (None, Some(lsn), None) => lsn.parse().map(Target::Lsn).map_err(|_| format!("{lsn} is no position, as in 0/3000148")),
        (None, None, Some(name)) if name.len() <= 63 && !name.contains(['\0', '\n']) => Ok(Target::Name(name.to_owned())),
        (None, None, Some(_)) => Err("a restore point's name has at most 63 bytes".to_owned()),
        _ => Err("the body has none, or more than one, of \"time\", \"lsn\" and \"name\"".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_point_is_one_of_three_and_in_the_past() {
        let now = "2026-11-22T10:00:00Z".parse().unwrap();
        let of = |body: Value| target(body.as_object().unwrap(), now).map(|target| target.setting());
        for (body, expected) in [
            (json!({"time": "2026-11-22T10:59:59.5+01:00"}), Ok(("recovery_target_time", "2026-11-22 09:59:59.500000+00"))),
            (json!({"lsn": "0/3000148"}), Ok(("recovery_target_lsn", "0/3000148"))),
            (json!({"name": "wanted"}), Ok(("recovery_target_name", "wanted"))),
            (json!({"time": "2026-11-22T11:00:00Z"}), Err("yet to come")),
            (json!({"time": "2026-11-22 09:00:00"}), Err("no time with its zone")),
            (json!({"lsn": "here"}), Err("no position")),
            (json!({"lsn": "0/1", "name": "x"}), Err("more than one")),
            (json!({}), Err("none")),
            (json!({"name": "x".repeat(64)}), Err("63")),
        ] {
            match (of(body.clone()), expected) {
                (Ok((setting, value)), Ok(expected)) => assert_eq!((setting, value.as_str()), expected, "{body}"),
                (Err(why), Err(part)) => assert!(why.contains(part), "{body}: {why}"),
                (other, _) => panic!("{body}: {other:?}"),
            }
        }
    }
}
