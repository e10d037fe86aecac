//! The `sync` key: who may take over without losing an acknowledged commit, and the order of its writes.

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

/// One standby as the primary sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbySeen {
    /// Its `application_name`, which is its member name.
    pub name: MemberName,
    /// It streams and has caught up to the walsender's tail.
    pub streaming: bool,
    /// It may be chosen: no `nosync`, not on its way out.
    pub eligible: bool,
    /// Preference, higher first.
    pub priority: i64,
    /// Bytes it is behind what the primary has flushed.
    pub lag_bytes: u64,
}

/// What the primary's Postgres is set to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Names in `synchronous_standby_names`.
    pub names: BTreeSet<MemberName>,
    /// A commit made after the setting took effect was confirmed by all of them.
    pub confirmed: bool,
}

/// The next single write; each leaves a state in which a crash loses nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncStep {
    /// Key and setting agree with what is wanted.
    Settled,
    /// Write the key first: it may trust less than the setting demands, never more.
    WriteKey(SyncState),
    /// Change `synchronous_standby_names` (empty: commits no longer wait).
    Apply(BTreeSet<MemberName>),
    /// Commit a marker under the present setting and see it confirmed.
    Confirm,
}

/// Chooses the one standby to wait for: the present one while it is fit, else the highest priority,
/// the least behind, the first by name.
pub fn choose(seen: &[StandbySeen], present: &BTreeSet<MemberName>) -> BTreeSet<MemberName> {
    let fit = || seen.iter().filter(|standby| standby.streaming && standby.eligible);
    if let Some(kept) = fit().find(|standby| present.contains(&standby.name)) {
        return BTreeSet::from([kept.name.clone()]);
    }
    fit()
        .min_by_key(|standby| (-standby.priority, standby.lag_bytes, standby.name.clone()))
        .map(|standby| standby.name.clone())
        .into_iter()
        .collect()
}

/// The next step from what the key says and what Postgres does towards `wanted`.
///
/// The invariant on which every failover rests: each standby in the key is in the setting and has
/// confirmed under it. So trust shrinks in the key first, then in the setting; it grows in the
/// setting first, is confirmed, and only then stands in the key.
pub fn step(me: &MemberName, key: &SyncState, applied: &Applied, wanted: &BTreeSet<MemberName>) -> SyncStep {
    let mine = key.leader.as_deref() == Some(me.as_str());
    let trusted: BTreeSet<MemberName> = key.standbys().filter_map(|name| MemberName::new(name).ok()).collect();
    if !mine {
        return SyncStep::WriteKey(SyncState { other: key.other.clone(), ..SyncState::of(me, &BTreeSet::new()) });
    }
    let keep: BTreeSet<MemberName> = trusted.intersection(wanted).filter(|name| applied.names.contains(*name)).cloned().collect();
    if keep != trusted {
        return SyncStep::WriteKey(SyncState { other: key.other.clone(), ..SyncState::of(me, &keep) });
    }
    if applied.names != *wanted {
        return SyncStep::Apply(wanted.clone());
    }
    if trusted == *wanted {
        return SyncStep::Settled;
    }
    if !applied.confirmed {
        return SyncStep::Confirm;
    }
    SyncStep::WriteKey(SyncState { other: key.other.clone(), ..SyncState::of(me, wanted) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> MemberName {
        MemberName::new(text).unwrap()
    }

    fn set(text: &str) -> BTreeSet<MemberName> {
        text.split_whitespace().map(name).collect()
    }

    /// From every key and setting to every wish: ends, and the invariant holds after each write.
    #[test]
    fn every_change_ends_and_never_trusts_an_unconfirmed_standby() {
        let sets = ["", "n2", "n3", "n2 n3"].map(set);
        let me = name("n1");
        for key_set in &sets {
            for leader in ["n1", "n2"] {
                for (applied_set, wanted) in sets.iter().flat_map(|a| sets.iter().map(move |w| (a, w))) {
                    if leader == "n1" && !key_set.is_subset(applied_set) {
                        continue; // not reachable: the invariant forbids it
                    }
                    let mut key = SyncState::of(&name(leader), key_set);
                    // A restart of the arbiter forgets the confirmation.
                    let mut applied = Applied { names: applied_set.clone(), confirmed: false };
                    let mut steps = 0;
                    loop {
                        steps += 1;
                        assert!(steps < 10, "no end: {key:?} {applied:?} {wanted:?}");
                        match step(&me, &key, &applied, wanted) {
                            SyncStep::Settled => break,
                            SyncStep::WriteKey(next) => key = next,
                            SyncStep::Apply(names) => applied = Applied { names, confirmed: false },
                            SyncStep::Confirm => applied.confirmed = true,
                        }
                        if key.leader.as_deref() == Some("n1") {
                            for standby in key.standbys() {
                                assert!(applied.names.contains(&name(standby)), "{key:?} {applied:?}");
                            }
                        }
                    }
                    assert_eq!(key, SyncState::of(&me, wanted));
                    assert_eq!(&applied.names, wanted);
                }
            }
        }
    }

    #[test]
    fn the_present_standby_is_kept_while_it_is_fit() {
        let seen =
            |name_: &str, streaming, priority, lag_bytes| StandbySeen { name: name(name_), streaming, eligible: true, priority, lag_bytes };
        let both = [seen("n2", true, 1, 50), seen("n3", true, 1, 0)];
        assert_eq!(choose(&both, &set("n2")), set("n2"));
        assert_eq!(choose(&both, &set("")), set("n3"));
        assert_eq!(choose(&[seen("n2", false, 1, 0), seen("n3", true, 1, 9)], &set("n2")), set("n3"));
        assert_eq!(choose(&[seen("n2", true, 2, 50), seen("n3", true, 1, 0)], &set("")), set("n2"));
        assert_eq!(choose(&[], &set("n2")), set(""));
    }

    #[test]
    fn names_in_the_key_are_compared_without_case() {
        let state: SyncState = serde_json::from_str(r#"{"leader":"N0","quorum":0,"sync_standby":"n1,N2"}"#).unwrap();
        assert!(state.may_lead(&name("n0")) && state.has_standby(&name("n2")) && !state.may_lead(&name("n3")));
    }
}
