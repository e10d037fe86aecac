//! A requested switchover or failover: from whom, to whom, when.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The value of `failover`. `{}` means that nothing is requested.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FailoverRequest {
    /// Who must lead now for the request to hold; set for a switchover, absent for a failover.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Who shall lead; any fit member where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// When, ISO 8601 with a time zone; at once where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled_at: Option<String>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl FailoverRequest {
    /// Nothing is requested.
    pub fn is_empty(&self) -> bool {
        self.leader.as_deref().unwrap_or("").is_empty() && self.member.as_deref().unwrap_or("").is_empty()
    }

    /// A switchover names the leader it takes over from; a failover does not.
    pub fn is_switchover(&self) -> bool {
        self.leader.as_deref().is_some_and(|leader| !leader.is_empty())
    }

    /// The wished candidate, if one is named.
    pub fn candidate(&self) -> Option<&str> {
        self.member.as_deref().filter(|member| !member.is_empty())
    }
}
