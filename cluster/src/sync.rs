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
    /// The standbys named are those that had everything before this leader: true until it is promoted, so before that it
    /// writes a key of its own.
    #[serde(default, rename = "tenure_until_promoted", skip_serializing_if = "std::ops::Not::not")]
    pub until_promoted: bool,
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

    /// The key that a standby begins with which takes over under this one. As long as it is not promoted nothing more has been
    /// acknowledged than before: a member that had everything then has it still, and may lead if the new leader never comes to serve. That
    /// is the leader of this key, which has all that it acknowledged itself, and, where no vote was needed, each of its standbys.
    pub fn inherited(&self, by: &MemberName) -> SyncState {
        let voters = if self.quorum == 0 { self.standbys().collect() } else { Vec::new() };
        let names = self.leader.as_deref().into_iter().chain(voters).filter(|name| !name.eq_ignore_ascii_case(by.as_str()));
        let names: BTreeSet<MemberName> = names.filter_map(|name| MemberName::new(name).ok()).collect();
        SyncState { until_promoted: !names.is_empty(), ..SyncState::of(by, &names) }
    }

    /// The key that `me` writes before it is promoted, where it is to write one: a member that had everything until now lacks what is acknowledged
    /// from then on. So also where nothing was recorded yet and a synchronous mode is on: an empty key lets everybody lead.
    pub fn before_promotion(key: Option<&SyncState>, me: &MemberName, synchronous: bool) -> Option<SyncState> {
        let other = key.map(|key| key.other.clone()).unwrap_or_default();
        let due = match key {
            Some(key) if !key.is_empty() => key.waits_for_promotion(me),
            _ => synchronous,
        };
        due.then(|| SyncState { other, ..SyncState::of(me, &BTreeSet::new()) })
    }

    /// This member leads in it and is not to serve under it yet: others may lead instead.
    pub fn waits_for_promotion(&self, me: &MemberName) -> bool {
        self.until_promoted && self.leader.as_deref() == Some(me.as_str())
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
    fn who_had_everything_may_lead_until_the_next_leader_is_promoted() {
        let read = |text: &str| serde_json::from_str::<SyncState>(text).unwrap();
        let n2 = MemberName::new("n2").unwrap();
        for (before, after) in [
            (r#"{"leader":"n1","sync_standby":"n2"}"#, r#"{"leader":"n2","quorum":0,"sync_standby":"n1","tenure_until_promoted":true}"#),
            (
                r#"{"leader":"n1","sync_standby":"n2,n3"}"#,
                r#"{"leader":"n2","quorum":0,"sync_standby":"n1,n3","tenure_until_promoted":true}"#,
            ),
            (
                r#"{"leader":"n1","quorum":1,"sync_standby":"n2,n3"}"#,
                r#"{"leader":"n2","quorum":0,"sync_standby":"n1","tenure_until_promoted":true}"#,
            ),
            (r#"{"leader":"n2","quorum":1,"sync_standby":"n1,n3"}"#, r#"{"leader":"n2","quorum":0,"sync_standby":null}"#),
            (r#"{"leader":"N2","sync_standby":null}"#, r#"{"leader":"n2","quorum":0,"sync_standby":null}"#),
            (
                r#"{"leader":"n1","quorum":0,"sync_standby":"n3,n4","tenure_until_promoted":true}"#,
                r#"{"leader":"n2","quorum":0,"sync_standby":"n1,n3,n4","tenure_until_promoted":true}"#,
            ),
        ] {
            let inherited = read(before).inherited(&n2);
            assert_eq!(serde_json::to_string(&inherited).unwrap(), after, "{before}");
            assert_eq!(inherited.waits_for_promotion(&n2), inherited.sync_standby.is_some());
        }
    }

    #[test]
    fn nobody_is_promoted_while_others_may_lead_without_what_it_acknowledges() {
        let read = |text: &str| serde_json::from_str::<SyncState>(text).unwrap();
        let n2 = MemberName::new("n2").unwrap();
        let own = Some(SyncState::of(&n2, &BTreeSet::new()));
        let inherited = r#"{"leader":"n2","quorum":0,"sync_standby":"n1","tenure_until_promoted":true}"#;
        for (key, synchronous, written) in [
            (None, true, &own),
            (None, false, &None),
            (Some(r#"{"leader":null,"sync_standby":null}"#), true, &own),
            (Some(inherited), true, &own),
            (Some(inherited), false, &own),
            (Some(r#"{"leader":"n2","sync_standby":"n1"}"#), true, &None),
            (Some(r#"{"leader":"n2","sync_standby":null}"#), true, &None),
        ] {
            assert_eq!(SyncState::before_promotion(key.map(read).as_ref(), &n2, synchronous), *written, "{key:?} {synchronous}");
        }
    }

    #[test]
    fn names_in_the_key_are_compared_without_case() {
        let name = |text: &str| MemberName::new(text).unwrap();
        let state: SyncState = serde_json::from_str(r#"{"leader":"N0","quorum":0,"sync_standby":"n1,N2"}"#).unwrap();
        assert!(state.may_lead(&name("n0")) && state.has_standby(&name("n2")) && !state.may_lead(&name("n3")));
    }
}
