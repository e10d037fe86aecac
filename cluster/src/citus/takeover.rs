//! A Citus cluster is taken over group by group: which groups come before which, and where a coordinator is told that reads none of our keys.

use crate::citus::groups::{COORDINATOR, Groups};
use crate::kind::{Kind, kind};
use crate::mixed;
use crate::name::MemberName;

/// Where the coordinator's leader answers, as long as Patroni runs it: it reads no `tenure/hold`.
pub fn patronis_coordinator(groups: &Groups) -> Option<&str> {
    let view = groups.get(&COORDINATOR)?;
    let entry = view.members.get(&view.leader.as_ref()?.name)?;
    (kind(&entry.member) == Kind::Patroni).then_some(entry.member.api_url.as_str())
}

/// Groups with members that are to become of this kind yet, in the order in which they change: those members, in their order.
///
/// A worker of ours speaks to a coordinator of Patroni's in Patroni's way, and a worker of Patroni's would speak to a coordinator of ours in vain: it sends
/// its events over REST, and we hold writers by etcd alone. So there is never one: workers are taken over before the coordinator, and given back after it.
pub fn remaining(groups: &Groups, to: Kind) -> Vec<(u32, Vec<MemberName>)> {
    let mut left: Vec<(u32, Vec<MemberName>)> =
        groups.iter().map(|(group, view)| (*group, mixed::remaining(view, to))).filter(|(_, members)| !members.is_empty()).collect();
    left.sort_by_key(|(group, _)| ((*group == COORDINATOR) == (to == Kind::Ours), *group));
    left
}

/// Those of them that come before this group; None where it may change now.
pub fn before(groups: &Groups, group: u32, to: Kind) -> Option<Vec<(u32, Vec<MemberName>)>> {
    let mut left = remaining(groups, to);
    match (to, group) {
        (Kind::Ours, COORDINATOR) => left.retain(|(other, _)| *other != COORDINATOR),
        (Kind::Patroni, worker) if worker != COORDINATOR => left.retain(|(other, _)| *other == COORDINATOR),
        _ => return None,
    }
    (!left.is_empty()).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::{Leader, LeaseId, Term};
    use crate::member::MemberEntry;
    use crate::view::ClusterView;
    use serde_json::json;

    /// `p o, o o`: the coordinator's group, then the workers'; the first of each leads.
    fn groups(text: &str) -> Groups {
        let mut groups = Groups::new();
        for (group, kinds) in (0_u32..).zip(text.split(',')) {
            let mut view = ClusterView::default();
            for (number, kind) in kinds.split_whitespace().enumerate() {
                let name = MemberName::new(&format!("n{group}{number}")).unwrap();
                if number == 0 {
                    view.leader = Some(Leader { name: name.clone(), lease: LeaseId(1), term: Term(5) });
                }
                let api = format!("http://h{group}:1/patroni");
                let mut json = json!({"conn_url": "postgres://h:1/postgres", "api_url": api, "state": "running", "role": "replica", "version": "4.1.5"});
                if kind == "o" {
                    json["tenure"] = json!({"arbiter": true});
                }
                let entry = MemberEntry { member: serde_json::from_value(json).unwrap(), lease: LeaseId(1), revision: 1 };
                view.members.insert(name, entry);
            }
            groups.insert(group, view);
        }
        groups
    }

    fn said(left: Vec<(u32, Vec<MemberName>)>) -> String {
        let group = |(group, members): &(u32, Vec<MemberName>)| {
            format!("{group}: {}", members.iter().map(MemberName::as_str).collect::<Vec<_>>().join(" "))
        };
        left.iter().map(group).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn workers_come_first_and_go_last() {
        use Kind::{Ours, Patroni};
        for (members, group, to, first) in [
            ("p p, p p, p p", 0, Ours, "1: n11 n10, 2: n21 n20"),
            ("p p, o o, p o", 0, Ours, "2: n20"),
            ("p p, o o, o o", 0, Ours, ""),
            ("p p, p p, p p", 1, Ours, ""),
            // Where it was begun in the wrong order by other means, workers go on.
            ("o p, p p", 1, Ours, ""),
            ("o o, o o", 1, Patroni, "0: n01 n00"),
            ("p o, o o", 1, Patroni, "0: n01"),
            ("p p, o o, o o", 1, Patroni, ""),
            ("o o, o o", 0, Patroni, ""),
        ] {
            assert_eq!(before(&groups(members), group, to).map(said).unwrap_or_default(), first, "{members}, {group} to {to}");
        }
        assert_eq!(said(remaining(&groups("p p, p o, o o"), Ours)), "1: n10, 0: n01 n00");
        assert_eq!(said(remaining(&groups("o p, o o, o o"), Patroni)), "0: n00, 1: n11 n10, 2: n21 n20");
    }

    #[test]
    fn a_coordinator_of_patronis_is_told_where_it_answers() {
        assert_eq!(patronis_coordinator(&groups("p o, o o")), Some("http://h0:1/patroni"));
        assert_eq!(patronis_coordinator(&groups("o p, o o")), None, "ours reads the keys");
        let mut nobody = groups("p, o");
        nobody.get_mut(&0).unwrap().leader = None;
        assert_eq!(patronis_coordinator(&nobody), None);
        assert_eq!(patronis_coordinator(&Groups::new()), None);
    }
}
