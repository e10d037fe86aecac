//! Reached: how far those whom the sync key trusts are known to have come. A member that comes back under such a name with less has other data.
//!
//! The sync key knows names. A copy of a member's disk, or a disk that was put back to a snapshot, goes by the same name and has
//! what that member had when it was copied. So the leader keeps in `status` what each of them said in its member key, and what the
//! synchronous standbys have confirmed to it. No member that kept its disk is ever behind either: a standby tells and confirms
//! only what it has flushed, a primary what it has flushed itself.
//!
//! What was confirmed in the last moments before the leader and that member were lost is not written down yet: a disk that was
//! copied within these moments, at most `loop_wait`, is not told from its original (docs/failure-modes.md).

use crate::lsn::Lsn;
use crate::name::{MemberName, Timeline};
use crate::sync::SyncState;
use crate::view::{ClusterView, Status};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;

/// The field of `status.tenure`.
const FIELD: &str = "reached";

/// The end of somebody's WAL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct End {
    /// Its timeline.
    pub timeline: Timeline,
    /// Up to here.
    pub lsn: Lsn,
}

impl End {
    /// These data are not those that ended there, or past it. A standby that had come to a new timeline's first byte may come back on the one
    /// before, at the same position.
    fn has_not(self, end: End) -> bool {
        self < end && self.lsn != end.lsn
    }

    /// These data end before that position. Whether an older timeline left the history before it is judged by the history.
    fn is_short_of(self, end: End) -> bool {
        self.timeline <= end.timeline && self.lsn < end.lsn
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on timeline {}", self.lsn, self.timeline)
    }
}

/// What is known of those in the sync key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Reached {
    /// What the synchronous standbys have confirmed: no member that may lead lacks it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<End>,
    /// What each one had.
    pub members: BTreeMap<String, End>,
}

impl Reached {
    /// As `status` has it, by whichever member it was written.
    pub fn of(status: Option<&Status>) -> Reached {
        let field = status.and_then(|status| status.other.get("tenure")?.get(FIELD));
        field.and_then(|field| serde_json::from_value(field.clone()).ok()).unwrap_or_default()
    }

    /// What the leader, which has flushed up to `mine`, writes now. Of members that left the key nothing needs to be known; of members that are away what was known last.
    pub fn kept(&self, view: &ClusterView, me: &MemberName, mine: End, confirmed: Option<Lsn>) -> Reached {
        let Some(sync) = trusted(view) else { return Reached::default() };
        let mut members: BTreeMap<String, End> = self.members.clone();
        members.retain(|name, _| MemberName::new(name).is_ok_and(|name| sync.may_lead(&name)));
        let told = view.members.iter().filter_map(|(name, entry)| {
            let end = End { timeline: entry.member.timeline?, lsn: entry.member.position()? };
            sync.may_lead(name).then_some((name, end))
        });
        for (name, end) in told.chain(sync.may_lead(me).then_some((me, mine))) {
            let known = members.entry(name.to_string()).or_default();
            *known = end.max(*known);
        }
        let confirmed = confirmed.filter(|lsn| lsn.is_valid()).map(|lsn| End { timeline: mine.timeline, lsn });
        Reached { confirmed: confirmed.max(self.confirmed), members }
    }

    /// Puts it into `status`, beside what stands there.
    pub fn put_into(&self, status: &mut Status) {
        let field = status.other.entry("tenure").or_insert_with(|| Value::Object(Map::new()));
        let Some(facts) = field.as_object_mut() else { return };
        match serde_json::to_value(self) {
            Ok(reached) if *self != Reached::default() => facts.insert(FIELD.to_owned(), reached),
            _ => facts.remove(FIELD),
        };
    }
}

/// The sync key, where it names anybody.
fn trusted(view: &ClusterView) -> Option<&SyncState> {
    view.sync.as_ref().map(|sync| &sync.value).filter(|sync| !sync.is_empty())
}

/// What the member of this name is known to have had, where these data, said to be its own, end before it: then what they say is no
/// word of the member that confirmed commits under that name.
pub fn lost_by(view: &ClusterView, name: &MemberName, data: End) -> Option<End> {
    trusted(view)?;
    let reached = Reached::of(view.status.as_ref().map(|status| &status.value));
    // Names in the key are compared without case.
    let had = reached.members.iter().filter(|(known, _)| known.eq_ignore_ascii_case(name.as_str())).map(|(_, end)| *end);
    had.max().filter(|had| data.has_not(*had))
}

/// What a leader under this sync key must have, where these data end before it.
pub fn lacked_by(view: &ClusterView, name: &MemberName, data: End) -> Option<End> {
    trusted(view)?;
    let confirmed = Reached::of(view.status.as_ref().map(|status| &status.value)).confirmed;
    lost_by(view, name, data).or(confirmed.filter(|end| data.is_short_of(*end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::LeaseId;
    use crate::member::MemberEntry;
    use crate::view::Versioned;
    use serde_json::json;

    fn name(text: &str) -> MemberName {
        MemberName::new(text).unwrap()
    }

    fn end(timeline: u32, lsn: u64) -> End {
        End { timeline: Timeline(timeline), lsn: Lsn(lsn) }
    }

    /// n1 leads with the synchronous standbys `standbys`; member keys as given.
    fn view(standbys: &[&str], members: &[(&str, u32, u64)]) -> ClusterView {
        let sync = SyncState::of(&name("n1"), &standbys.iter().copied().map(name).collect());
        let entry = |&(who, timeline, lsn): &(&str, u32, u64)| {
            let key =
                json!({"conn_url": "", "api_url": "", "state": "running", "role": "replica", "timeline": timeline, "xlog_location": lsn});
            (name(who), MemberEntry { member: serde_json::from_value(key).unwrap(), lease: LeaseId(1), revision: 1 })
        };
        ClusterView {
            sync: Some(Versioned { value: sync, revision: 1 }),
            members: members.iter().map(entry).collect(),
            ..ClusterView::default()
        }
    }

    fn reached(confirmed: Option<End>, members: &[(&str, End)]) -> Reached {
        Reached { confirmed, members: members.iter().map(|(name, end)| ((*name).to_owned(), *end)).collect() }
    }

    #[test]
    fn the_leader_keeps_the_furthest_of_each_whom_the_key_trusts() {
        let before = reached(Some(end(1, 90)), &[("n1", end(1, 100)), ("n2", end(1, 95)), ("n3", end(1, 95))]);
        let me = name("n1");
        for (what, view, mine, confirmed, kept) in [
            (
                "a standby told more",
                view(&["n2"], &[("n1", 1, 100), ("n2", 1, 110)]),
                end(1, 120),
                Some(Lsn(105)),
                reached(Some(end(1, 105)), &[("n1", end(1, 120)), ("n2", end(1, 110))]),
            ),
            (
                "one is away, one is there that the key does not trust",
                view(&["n2"], &[("n4", 1, 110)]),
                end(1, 120),
                None,
                reached(Some(end(1, 90)), &[("n1", end(1, 120)), ("n2", end(1, 95))]),
            ),
            (
                "one is back with less: what it had stays known",
                view(&["n2"], &[("n2", 1, 50)]),
                end(1, 120),
                Some(Lsn(80)),
                reached(Some(end(1, 90)), &[("n1", end(1, 120)), ("n2", end(1, 95))]),
            ),
            (
                "on another timeline, after a failover that was asked for: what is there counts",
                view(&["n2"], &[("n2", 2, 50)]),
                end(2, 60),
                Some(Lsn(50)),
                reached(Some(end(2, 50)), &[("n1", end(2, 60)), ("n2", end(2, 50))]),
            ),
            ("nobody is trusted any more", ClusterView::default(), end(1, 120), None, Reached::default()),
        ] {
            assert_eq!(before.kept(&view, &me, mine, confirmed), kept, "{what}");
        }
    }

    #[test]
    fn it_stands_in_status_beside_what_else_is_there() {
        let mut status = Status::default();
        status.other.insert("tenure".to_owned(), json!({"members": {"n1": null}}));
        let written = reached(Some(end(1, 7)), &[("n2", end(1, 9))]);
        written.put_into(&mut status);
        let kept = json!({"confirmed": {"timeline": 1, "lsn": 7}, "members": {"n2": {"timeline": 1, "lsn": 9}}});
        assert_eq!(status.other["tenure"], json!({"members": {"n1": null}, "reached": kept}));
        assert_eq!(Reached::of(Some(&status)), written);
        Reached::default().put_into(&mut status);
        assert_eq!(status.other["tenure"], json!({"members": {"n1": null}}));
    }

    #[test]
    fn data_that_end_before_what_the_name_had_are_other_data() {
        let mut view = view(&["n2", "n3"], &[]);
        let mut status = Status::default();
        reached(Some(end(2, 100)), &[("n2", end(2, 110)), ("n3", end(2, 80))]).put_into(&mut status);
        view.status = Some(Versioned { value: status, revision: 1 });
        for (what, who, data, lost, lacked) in [
            ("all that it had", "n2", end(2, 110), None, None),
            ("more", "n2", end(2, 111), None, None),
            ("less than it said", "n2", end(2, 109), Some(end(2, 110)), Some(end(2, 110))),
            ("by another spelling", "N2", end(2, 109), Some(end(2, 110)), Some(end(2, 110))),
            ("a timeline before", "n2", end(1, 120), Some(end(2, 110)), Some(end(2, 110))),
            ("a timeline before, at the very byte at which the next began", "n2", end(1, 110), None, None),
            ("a later timeline", "n2", end(3, 1), None, None),
            ("a voter that was slower than others, and lost nothing", "n3", end(2, 90), None, Some(end(2, 100))),
            ("the same, with what others confirmed", "n3", end(2, 100), None, None),
            ("somebody of whom nothing is known", "n4", end(2, 100), None, None),
        ] {
            assert_eq!(lost_by(&view, &name(who), data), lost, "{what}");
            assert_eq!(lacked_by(&view, &name(who), data), lacked, "{what}");
        }
        view.sync = None;
        assert_eq!(lacked_by(&view, &name("n2"), end(2, 1)), None, "nobody is trusted, so nothing is owed");
    }
}
