//! What somebody on another node asks of a member: `tenure/request/<name>`, the way by which SQL, which has no credentials of the
//! members' REST, reaches them. It hangs on a lease of its own, so that one that nobody takes up is gone before it surprises.

use crate::restart::Conditions;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A request that is not taken up within this time is gone.
pub const REQUEST_TTL: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Restart Postgres in place.
    Restart,
    /// Read the node's file again and reload Postgres.
    Reload,
    /// Make a new copy of a standby's data.
    Reinit,
}

impl std::fmt::Display for Wish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Wish::Restart => "restart",
            Wish::Reload => "reload",
            Wish::Reinit => "reinit",
        })
    }
}

/// The value of the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRequest {
    /// What.
    pub wish: Wish,
    /// Under which conditions a restart is done.
    #[serde(flatten)]
    pub conditions: Conditions,
    /// Through which member it was asked for.
    #[serde(default)]
    pub by: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_as_it_is_written_and_an_unknown_wish_is_none() {
        let text = r#"{"wish":"restart","restart_pending":true,"by":"n1"}"#;
        let request: MemberRequest = serde_json::from_str(text).unwrap();
        assert!(request.conditions.restart_pending);
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert!(serde_json::from_str::<MemberRequest>(r#"{"wish":"destroy"}"#).is_err());
    }
}
