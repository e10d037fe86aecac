//! The `sync` key: who may take over without losing an acknowledged commit. The order of its writes is [`crate::quorum`]'s.

use crate::name::MemberName;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// The value of `sync`: the leader that keeps it, the standbys that may take over, the quorum.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SyncState {
    /// The leader whose synchronous standbys these are.
    #[serde(default)]
    pub leader: Option<String>,
    /// Votes needed besides one's own; 0 outside quorum mode.
    #[serde(default)]
    pub quorum: u32,
    /// Comma list of names, sorted; null where there is none.
    #[serde(default)]
    pub sync_standby: Option<String>,
    /// Fields of newer versions.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl SyncState {
    /// A leader with these standbys (which may be none).
    pub fn of(leader: &MemberName, standbys: &BTreeSet<MemberName>) -> SyncState {
        let list = standbys.iter().map(MemberName::as_str).collect::<Vec<_>>().join(",");
        SyncState { leader: Some(leader.to_string()), sync_standby: (!list.is_empty()).then_some(list), ..SyncState::default() }
    }

    /// The standbys named, as texts.
    pub fn standbys(&self) -> impl Iterator<Item = &str> {
        self.sync_standby.as_deref().unwrap_or("").split(',').map(str::trim).filter(|name| !name.is_empty())
    }

    /// Is this member a synchronous standby? Names are compared without case, as the field does.
    pub fn has_standby(&self, name: &MemberName) -> bool {
        self.standbys().any(|standby| standby.eq_ignore_ascii_case(name.as_str()))
    }

    /// May this member lead without losing an acknowledged commit: the recorded leader or a standby of it.
    pub fn may_lead(&self, name: &MemberName) -> bool {
        self.has_standby(name) || self.leader.as_deref().is_some_and(|leader| leader.eq_ignore_ascii_case(name.as_str()))
    }

    /// Nothing is recorded: no promise was ever made.
    pub fn is_empty(&self) -> bool {
        self.leader.is_none() && self.sync_standby.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_key_are_compared_without_case() {
        let name = |text: &str| MemberName::new(text).unwrap();
        let state: SyncState = serde_json::from_str(r#"{"leader":"N0","quorum":0,"sync_standby":"n1,N2"}"#).unwrap();
        assert!(state.may_lead(&name("n0")) && state.has_standby(&name("n2")) && !state.may_lead(&name("n3")));
    }
}
