//! Roster: who is a member here, also while its key is away. The leader keeps it in `status`, so that a member that is lost is missed.

use crate::view::{ClusterView, Status};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// The field of `status.tenure`.
const FIELD: &str = "members";

/// By name: nothing for a member that is there, and for one that is away since when.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roster(pub BTreeMap<String, Option<String>>);

impl Roster {
    /// As `status` has it, by whichever member it was written.
    pub fn of(status: Option<&Status>) -> Roster {
        let field = status.and_then(|status| status.other.get("tenure")?.get(FIELD)?.as_object());
        let entry = |(name, since): (&String, &Value)| (name.clone(), since.as_str().map(str::to_owned));
        Roster(field.into_iter().flatten().map(entry).collect())
    }

    /// The roster that the leader keeps now: everybody who is there, and those that were, for as long as they are missed.
    ///
    /// `now` is the time as text, and `age` says how long ago such a text was; None where it can't be read, which ends the waiting.
    pub fn kept(&self, view: &ClusterView, missed_for: Duration, now: &str, age: impl Fn(&str) -> Option<Duration>) -> Roster {
        let mut kept: BTreeMap<String, Option<String>> = view.members.keys().map(|name| (name.to_string(), None)).collect();
        for (name, since) in &self.0 {
            let since = since.clone().unwrap_or_else(|| now.to_owned());
            let missed = age(&since).is_some_and(|age| age < missed_for);
            if missed && !kept.contains_key(name) {
                kept.insert(name.clone(), Some(since));
            }
        }
        Roster(kept)
    }

    /// Puts it into `status`, beside what stands there.
    pub fn put_into(&self, status: &mut Status) {
        let field = status.other.entry("tenure").or_insert_with(|| Value::Object(Map::new()));
        if let Some(facts) = field.as_object_mut() {
            facts.insert(FIELD.to_owned(), json!(self.0));
        }
    }
}

/// The members that were here and have no key now, with since when where the leader has noted it.
pub fn lost(view: &ClusterView) -> Vec<(String, Option<String>)> {
    let roster = Roster::of(view.status.as_ref().map(|status| &status.value));
    roster.0.into_iter().filter(|(name, _)| !view.members.keys().any(|present| present.as_str() == name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::LeaseId;
    use crate::member::MemberEntry;
    use crate::name::MemberName;
    use crate::view::Versioned;

    fn view(names: &str) -> ClusterView {
        let mut view = ClusterView::default();
        for name in names.split_whitespace() {
            let key = r#"{"conn_url":"","api_url":"","state":"running","role":"replica"}"#;
            let entry = MemberEntry { member: serde_json::from_str(key).unwrap(), lease: LeaseId(1), revision: 1 };
            view.members.insert(MemberName::new(name).unwrap(), entry);
        }
        view
    }

    fn roster(entries: &[(&str, Option<&str>)]) -> Roster {
        Roster(entries.iter().map(|(name, since)| ((*name).to_owned(), since.map(str::to_owned))).collect())
    }

    #[test]
    fn who_leaves_is_missed_for_a_while_and_who_comes_back_is_not() {
        let age = |since: &str| Some(Duration::from_secs(100 - since.parse::<u64>().ok()?));
        for (what, before, present, missed_for, kept) in [
            ("all are there", roster(&[]), "n1 n2", 60, roster(&[("n1", None), ("n2", None)])),
            ("one has just gone", roster(&[("n1", None), ("n2", None)]), "n1", 60, roster(&[("n1", None), ("n2", Some("100"))])),
            ("it is away for a while", roster(&[("n2", Some("50"))]), "n1", 60, roster(&[("n1", None), ("n2", Some("50"))])),
            ("it is missed no more", roster(&[("n2", Some("40"))]), "n1", 60, roster(&[("n1", None)])),
            ("it is back", roster(&[("n2", Some("50"))]), "n1 n2", 60, roster(&[("n1", None), ("n2", None)])),
            ("nobody is to be missed", roster(&[("n2", None)]), "n1", 0, roster(&[("n1", None)])),
            ("a time that nobody can read", roster(&[("n2", Some("noon"))]), "n1", 60, roster(&[("n1", None)])),
        ] {
            assert_eq!(before.kept(&view(present), Duration::from_secs(missed_for), "100", age), kept, "{what}");
        }
    }

    #[test]
    fn it_stands_in_status_beside_what_else_is_there() {
        let mut status = Status::default();
        status.other.insert("tenure".to_owned(), json!({"term": 5}));
        let written = roster(&[("n1", None), ("n2", Some("2026-11-21T18:00:00Z"))]);
        written.put_into(&mut status);
        assert_eq!(status.other["tenure"], json!({"term": 5, "members": {"n1": null, "n2": "2026-11-21T18:00:00Z"}}));
        assert_eq!(Roster::of(Some(&status)), written);
        let mut seen = view("n1");
        seen.status = Some(Versioned { value: status, revision: 1 });
        assert_eq!(lost(&seen), [("n2".to_owned(), Some("2026-11-21T18:00:00Z".to_owned()))]);
    }
}
