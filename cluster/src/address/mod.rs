//! Virtual addresses: for how long this node may hold the primary's, and which member holds those for reads.

pub mod facts;

pub use facts::AddressFacts;

use crate::member::{Member, MemberRole};
use crate::name::MemberName;
use crate::view::ClusterView;
use crate::watchdog::ServerSeen;
use std::cmp::Reverse;
use std::fmt;
use std::time::Duration;

/// So much later than it was told to the kernel may take an address away. It keeps whole seconds and looks for old addresses at most once
/// in one, a quarter of one later than it should at the latest.
pub const LATE: Duration = Duration::from_millis(1250);

/// For how long an address that is, or may be, on this host is there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// It is there for so many seconds from now on; the kernel takes it away after that, whatever became of us.
    For(u32),
    /// Its time is not prolonged.
    Lapse,
    /// It goes now.
    Drop,
}

/// For how many whole seconds an address may be given to the kernel that must be gone when `left` is over. None where that is less than one.
pub fn lifetime_s(left: Duration) -> Option<u32> {
    let seconds = left.checked_sub(LATE)?.as_secs();
    u32::try_from(seconds).ok().filter(|seconds| *seconds > 0)
}

/// The primary's address goes with the page: `left` is how long that is open yet.
///
/// While a planned change drains, the address stays, for those who are still served; it goes with the stop. Where the server says
/// nothing, nobody knows: what was given to the kernel runs out before the deadline that was last seen.
pub fn primary(server: ServerSeen, left: Option<Duration>, draining: bool) -> Lifetime {
    match (server, left.and_then(lifetime_s)) {
        (ServerSeen::Open, Some(seconds)) => Lifetime::For(seconds),
        (ServerSeen::Open | ServerSeen::Silent, _) => Lifetime::Lapse,
        (ServerSeen::Closed, _) if draining => Lifetime::Lapse,
        (ServerSeen::Closed | ServerSeen::Standby | ServerSeen::Starting | ServerSeen::Gone | ServerSeen::Left, _) => Lifetime::Drop,
    }
}

/// The addresses for reads hang on a key of etcd, held by a lease of their own: `left` is how long that lease counts, and `mine` whether
/// this node is the one to hold them.
pub fn reads(server: ServerSeen, left: Option<Duration>, mine: bool) -> Lifetime {
    match (server, left.and_then(lifetime_s)) {
        _ if !mine => Lifetime::Drop,
        (ServerSeen::Open | ServerSeen::Standby | ServerSeen::Closed, Some(seconds)) => Lifetime::For(seconds),
        (ServerSeen::Open | ServerSeen::Standby | ServerSeen::Closed | ServerSeen::Silent, _) => Lifetime::Lapse,
        (ServerSeen::Starting | ServerSeen::Gone | ServerSeen::Left, _) => Lifetime::Drop,
    }
}

/// Why a member is the one that reads go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It holds the addresses and is as good as any.
    Holds,
    /// It has the most.
    Fittest,
    /// It is the primary, and no standby streams that reads may go to.
    NobodyElse,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Holds => "it holds them and streams",
            Why::Fittest => "it is the fittest standby that streams",
            Why::NobodyElse => "no standby streams that reads may go to, so they go to the primary",
        })
    }
}

/// The member whose server takes reads; None where nothing is to change: nobody leads, or nobody's file names such addresses.
///
/// The member that holds them keeps them as long as it streams and is not too far behind: a move costs every client its connection.
pub fn reader(view: &ClusterView) -> Option<(MemberName, Why)> {
    let leader = view.leader.as_ref()?;
    let facts = |member: &Member| member.tenure.as_ref().and_then(|facts| facts.addresses.clone()).unwrap_or_default();
    let (ahead, most) = (view.leader_position(), view.config().maximum_lag_on_failover());
    let fit = |member: &Member| {
        let near = match (member.position(), ahead) {
            (Some(mine), Some(ahead)) => mine.lag_bytes_behind(ahead) <= most,
            _ => false,
        };
        let streams = member.is_running() && member.role == MemberRole::Replica && member.replication_state.as_deref() == Some("streaming");
        facts(member).replica && streams && near && !member.tags.noloadbalance()
    };
    let standbys = || view.members.iter().filter(|(name, entry)| **name != leader.name && fit(&entry.member));
    if let Some((name, _)) = standbys().find(|(_, entry)| facts(&entry.member).reads) {
        return Some((name.clone(), Why::Holds));
    }
    if let Some((name, _)) = standbys().max_by_key(|(name, entry)| (entry.member.position(), Reverse(*name))) {
        return Some((name.clone(), Why::Fittest));
    }
    let primary = view.members.get(&leader.name).filter(|entry| facts(&entry.member).replica && entry.member.is_running())?;
    (primary.member.role == MemberRole::Primary).then(|| (leader.name.clone(), Why::NobodyElse))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::{Leader, LeaseId, Term};
    use crate::member::MemberEntry;
    use ServerSeen::*;

    #[test]
    fn the_kernel_takes_an_address_away_before_the_deadline() {
        for (left_ms, expected) in [(0, None), (1_250, None), (2_249, None), (2_250, Some(1)), (9_800, Some(8)), (29_400, Some(28))] {
            let left = Duration::from_millis(left_ms);
            assert_eq!(lifetime_s(left), expected, "{left_ms}");
            assert!(lifetime_s(left).is_none_or(|seconds| Duration::from_secs(u64::from(seconds)) + LATE <= left));
        }
    }

    #[test]
    fn the_primarys_address_goes_with_the_page() {
        let left = Some(Duration::from_secs(8));
        for (server, left, draining, expected) in [
            (Open, left, false, Lifetime::For(6)),
            (Open, Some(Duration::from_secs(1)), false, Lifetime::Lapse),
            (Closed, None, true, Lifetime::Lapse),
            (Closed, None, false, Lifetime::Drop),
            (Silent, None, false, Lifetime::Lapse),
            (Standby, left, false, Lifetime::Drop),
            (Starting, None, false, Lifetime::Drop),
            (Gone, None, false, Lifetime::Drop),
            (Left, None, true, Lifetime::Drop),
        ] {
            assert_eq!(primary(server, left, draining), expected, "{server:?} {left:?} draining {draining}");
        }
    }

    #[test]
    fn reads_need_the_key_and_a_server_that_answers() {
        let left = Some(Duration::from_secs(8));
        for (server, left, mine, expected) in [
            (Standby, left, true, Lifetime::For(6)),
            (Open, left, true, Lifetime::For(6)),
            (Standby, None, true, Lifetime::Lapse),
            (Silent, left, true, Lifetime::Lapse),
            (Starting, left, true, Lifetime::Drop),
            (Gone, left, true, Lifetime::Drop),
            (Standby, left, false, Lifetime::Drop),
        ] {
            assert_eq!(reads(server, left, mine), expected, "{server:?} {left:?} {mine}");
        }
    }

    /// A member: name, role, replication state, position, what it says of its addresses, a tag.
    fn member(role: &str, state: &str, at: &str, replica: bool, reads: bool, tag: &str) -> serde_json::Value {
        let mut member = serde_json::json!({"conn_url": "postgres://h:5432/postgres", "api_url": "http://h:8008/patroni", "state": "running",
            "role": role, "xlog_location": u64::from_str_radix(at, 16).unwrap(), "timeline": 1,
            "tenure": {"arbiter": true, "addresses": {"replica": replica, "reads": reads}}});
        if !state.is_empty() {
            member["replication_state"] = state.into();
        }
        if !tag.is_empty() {
            member["tags"] = serde_json::json!({ tag: true });
        }
        member
    }

    #[test]
    fn reads_go_to_the_fittest_standby_and_stay_there() {
        let name = |text: &str| text.parse::<MemberName>().unwrap();
        let (streaming, primary) = ("streaming", member("primary", "", "3000000", true, false, ""));
        let replica = |at, reads| member("replica", streaming, at, true, reads, "");
        for (story, members, expected) in [
            ("the one with most", [replica("2f80000", false), replica("2f80001", false)], Some(("c", Why::Fittest))),
            ("a draw goes by name", [replica("2f80000", false), replica("2f80000", false)], Some(("b", Why::Fittest))),
            ("the holder keeps them", [replica("2f80000", true), replica("2f80001", false)], Some(("b", Why::Holds))),
            (
                "one that does not stream",
                [member("replica", "in archive recovery", "3000000", true, true, ""), replica("2f80000", false)],
                Some(("c", Why::Fittest)),
            ),
            ("one far behind", [replica("1000", true), replica("2f00000", false)], Some(("c", Why::Fittest))),
            (
                "tags",
                [member("replica", streaming, "3000000", true, false, "noloadbalance"), replica("2f00000", false)],
                Some(("c", Why::Fittest)),
            ),
            (
                "nobody else",
                [
                    member("replica", streaming, "3000000", true, false, "noloadbalance"),
                    member("replica", streaming, "3000000", false, false, ""),
                ],
                Some(("a", Why::NobodyElse)),
            ),
        ] {
            let mut view = ClusterView::default();
            for (who, value) in ["a", "b", "c"].into_iter().zip([primary.clone()].into_iter().chain(members)) {
                let entry = MemberEntry { member: serde_json::from_value(value).unwrap(), lease: LeaseId(7), revision: 1 };
                view.members.insert(name(who), entry);
            }
            assert_eq!(reader(&view), None, "{story}: nobody leads");
            view.leader = Some(Leader { name: name("a"), lease: LeaseId(7), term: Term(1) });
            let expected = expected.map(|(who, why)| (name(who), why));
            assert_eq!(reader(&view), expected, "{story}");
        }
    }
}
