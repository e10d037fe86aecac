//! Which release of pg_tenure runs where (arbiter, library, SQL objects), and when the SQL objects may follow the library.
//!
//! The three come one after another: packages bring arbiter and library, each server loads the library at its next restart, and the SQL objects, which
//! all servers of a cluster share, follow last. Until then each serves its neighbours (`speech.rs` says which).

use crate::mixed::{self, Kind};
use crate::name::MemberName;
use crate::view::ClusterView;
use std::cmp::Ordering;

/// Compares releases by their numbers; what is no number counts as none.
pub fn compare(one: &str, other: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> { text.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0)).collect() };
    let (one, other) = (numbers(one), numbers(other));
    let at = |numbers: &[u64], place: usize| numbers.get(place).copied().unwrap_or(0);
    let places = one.len().max(other.len());
    (0..places).map(|place| at(&one, place).cmp(&at(&other, place))).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

/// What the primary's arbiter does about SQL objects that are not the library's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Update {
    /// They are the library's, or later ones: nothing is taken back by itself.
    Nothing,
    /// They are to follow the library.
    Due,
    /// They wait for the servers of these members, whose libraries do not have the functions that they name.
    Waits(Vec<MemberName>),
}

/// Are the SQL objects of release `installed` to be brought to that of this server's `library`?
pub fn update(view: &ClusterView, installed: &str, library: &str) -> Update {
    if compare(installed, library).is_ge() {
        return Update::Nothing;
    }
    let older = |member: &crate::member::Member| {
        let facts = member.tenure.as_ref().filter(|_| member.is_running() && mixed::kind(member) == Kind::Ours);
        facts.is_some_and(|facts| compare(&facts.version, library).is_lt())
    };
    let waits: Vec<MemberName> = view.members.iter().filter(|(_, entry)| older(&entry.member)).map(|(name, _)| name.clone()).collect();
    if waits.is_empty() { Update::Due } else { Update::Waits(waits) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::{MemberEntry, MemberState};
    use serde_json::json;

    #[test]
    fn releases_are_compared_by_their_numbers() {
        for (one, other, order) in [
            ("0.1.0", "0.1.0", Ordering::Equal),
            ("0.1", "0.1.0", Ordering::Equal),
            ("0.9.9", "0.10.0", Ordering::Less),
            ("1.0.0", "0.99.99", Ordering::Greater),
            ("", "0.1.0", Ordering::Less),
        ] {
            assert_eq!(compare(one, other), order, "{one} {other}");
        }
    }

    #[test]
    fn sql_objects_follow_the_library_once_every_server_that_runs_has_it() {
        let view = |members: &[(&str, &str, Option<&str>)]| {
            let entry = |state: &str, version: Option<&str>| {
                let member = json!({"conn_url": "postgres://a:5432/postgres", "api_url": "http://a:8008/patroni", "state": state,
                    "role": "replica", "version": "4.1.5", "tenure": version.map(|version| json!({"version": version}))});
                let member: crate::member::Member = serde_json::from_value(member).unwrap();
                MemberEntry { member, lease: crate::leader::LeaseId(1), revision: 1 }
            };
            let members = members.iter().map(|(name, state, version)| (MemberName::new(name).unwrap(), entry(state, *version)));
            ClusterView { members: members.collect(), ..ClusterView::default() }
        };
        let waits = |name: &str| Update::Waits(vec![MemberName::new(name).unwrap()]);
        let running = MemberState::Running.to_string();
        let running = running.as_str();
        for (installed, library, members, expected) in [
            ("0.1.0", "0.1.0", vec![("n2", running, Some("0.1.0"))], Update::Nothing),
            ("0.2.0", "0.1.0", vec![("n2", running, Some("0.2.0"))], Update::Nothing),
            ("0.1.0", "0.2.0", vec![("n2", running, Some("0.2.0"))], Update::Due),
            ("0.1.0", "0.2.0", vec![("n2", running, Some("0.1.0")), ("n3", running, Some("0.2.0"))], waits("n2")),
            // It starts with what is on its disk by then; Patroni's servers have none of ours.
            ("0.1.0", "0.2.0", vec![("n2", "stopped", Some("0.1.0")), ("n3", running, None)], Update::Due),
        ] {
            assert_eq!(update(&view(&members), installed, library), expected, "{installed} {library} {members:?}");
        }
    }
}
