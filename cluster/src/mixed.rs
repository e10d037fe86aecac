//! A cluster with members of two kinds: ours, and those that Patroni runs, while one is being taken over or given back.
//!
//! Both sides keep to the same keys. The member that holds the leader key leads, of whichever kind; a key is taken only where there is none. What
//! differs is what can be known of a member: ours says what it has for a vacancy and is fenced; one of Patroni's does neither.
//! docs/adr/0046 has the argument.

use crate::config::SynchronousMode;
use crate::failover::{self, FailoverRequest};
pub use crate::kind::{Kind, kind};
use crate::leader::Leader;
use crate::member::MemberEntry;
use crate::name::MemberName;
use crate::quorum::{Rules, StandbySeen};
use crate::view::ClusterView;

/// The member of this name has a key, and it is Patroni's.
pub fn is_patronis(view: &ClusterView, name: &MemberName) -> bool {
    view.members.get(name).is_some_and(|entry| kind(&entry.member) == Kind::Patroni)
}

/// The member of this name has a key, and it is ours.
pub fn is_ours(view: &ClusterView, name: &MemberName) -> bool {
    view.members.get(name).is_some_and(|entry| kind(&entry.member) == Kind::Ours)
}

/// `how` in `tenure/term` where a member of Patroni's led: it does not write that key, so one of ours writes it on its behalf.
pub const BY_PATRONI: &str = "led by Patroni";

/// The leader whose term is to be noted in `tenure/term`, and what is compared there. A vacancy is named by that key: were it not written, words that
/// were said for the vacancy before a leader of Patroni's would count for the one after it, of members that have received more since.
pub fn term_to_note(view: &ClusterView) -> Option<(&Leader, i64)> {
    let leader = view.leader.as_ref().filter(|leader| is_patronis(view, &leader.name))?;
    let known = view.last_term.as_ref();
    let noted = known.is_some_and(|last| last.value.how == BY_PATRONI && last.value.holder == leader.name && last.revision > leader.term.0);
    (!noted).then(|| (leader, ClusterView::revision_of(&view.last_term)))
}

/// The last leader was one of Patroni's: nothing in its server knows of a lease.
pub fn after_patroni(view: &ClusterView) -> bool {
    view.last_term.as_ref().is_some_and(|last| last.value.how == BY_PATRONI)
}

/// In quorum mode voters have to hear each other: ours by their words in etcd, Patroni's over REST. Where voters of both kinds are named, the one
/// that is ahead may be one whom nobody of the other kind can hear, and then nobody leads. So a standby of ours is no voter of a Patroni leader as
/// long as that has another Patroni member to name; it says so by the tag that Patroni reads.
pub fn is_no_voter(view: &ClusterView, me: &MemberName) -> bool {
    let Some(leader) = view.leader.as_ref().filter(|leader| leader.name != *me && is_patronis(view, &leader.name)) else { return false };
    let could_vote = |(name, entry): (&MemberName, &MemberEntry)| {
        let member = &entry.member;
        *name != leader.name && kind(member) == Kind::Patroni && member.is_running() && !member.tags.nosync()
    };
    view.config().synchronous_mode() == SynchronousMode::Quorum && view.members.iter().any(could_vote)
}

/// The same for a leader of ours: it names members of Patroni's as voters only where there are not enough of ours.
pub fn of_one_kind(view: &ClusterView, rules: Rules, seen: &mut [StandbySeen]) {
    if rules.mode != SynchronousMode::Quorum {
        return;
    }
    let ours = seen.iter().filter(|standby| standby.streaming && standby.replays && standby.eligible && !is_patronis(view, &standby.name));
    if ours.count() >= rules.count.max(1) {
        for standby in seen.iter_mut().filter(|standby| is_patronis(view, &standby.name)) {
            standby.eligible = false;
        }
    }
}

/// What is next on a node whose member is to become one of the other kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It is, and runs.
    Done,
    /// Its daemon is stopped, which stops its server, and the other one started, which starts it.
    Exchange,
    /// It leads, and this member, of the kind that is wanted, is to lead instead.
    SwitchOver(MemberName),
}

/// Why nothing can be done on this node now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotYet {
    /// Patroni leaves its server as it is when it is stopped in maintenance mode, and nothing is started in it.
    #[error("the cluster is in maintenance mode, in which no server is stopped or started: resume it first")]
    Paused,
    /// A server that is stopped now may be the one that is missed.
    #[error("nobody leads this cluster")]
    NobodyLeads,
    /// It would have to lead, or nobody could.
    #[error("{me} leads, and the others come first: {others}")]
    StandbysFirst {
        /// This node.
        me: MemberName,
        /// Those that are of the other kind yet.
        others: String,
    },
    /// One standby at a time.
    #[error("{name} is not back yet ({why}): one member at a time")]
    AnotherIsAway {
        /// Which.
        name: MemberName,
        /// What it says of itself.
        why: String,
    },
    /// Nobody could take over from this leader.
    #[error("{0}")]
    NoCandidate(String),
}

/// What is next on node `me`, whose member is to become one `to` this kind.
///
/// Standbys come first, one at a time, then the leader hands over once: so there is one planned change of leader in all, and at each moment before
/// it everybody who might have to take over is of one kind, but for the time in which standbys of both kinds are there.
pub fn next(view: &ClusterView, me: &MemberName, to: Kind) -> Result<Next, NotYet> {
    let mine = view.members.get(me);
    if mine.is_some_and(|entry| kind(&entry.member) == to && entry.member.is_running()) {
        return Ok(Next::Done);
    }
    if view.config().paused() {
        return Err(NotYet::Paused);
    }
    let Some(leader) = &view.leader else { return Err(NotYet::NobodyLeads) };
    let others = || view.members.iter().filter(|(name, _)| *name != me);
    if let Some((name, entry)) = others().find(|(_, entry)| !entry.member.is_running()) {
        return Err(NotYet::AnotherIsAway { name: name.clone(), why: entry.member.state.to_string() });
    }
    if leader.name != *me || others().next().is_none() {
        return Ok(Next::Exchange);
    }
    let left: Vec<&str> = others().filter(|(_, entry)| kind(&entry.member) != to).map(|(name, _)| name.as_str()).collect();
    if !left.is_empty() {
        return Err(NotYet::StandbysFirst { me: me.clone(), others: left.join(", ") });
    }
    let request = FailoverRequest { leader: Some(me.to_string()), ..FailoverRequest::default() };
    let found = failover::candidates(view, &request).map_err(|why| NotYet::NoCandidate(why.to_string()))?;
    found.into_iter().next().map(Next::SwitchOver).ok_or_else(|| NotYet::NoCandidate("there is no candidate".to_owned()))
}

/// Who is next after this one, for a person who asks what remains: standbys by name, the leader last.
pub fn remaining(view: &ClusterView, to: Kind) -> Vec<MemberName> {
    let leads = |name: &MemberName| view.leader.as_ref().is_some_and(|leader| leader.name == *name);
    let mut left: Vec<MemberName> =
        view.members.iter().filter(|(_, entry)| kind(&entry.member) != to).map(|(name, _)| name.clone()).collect();
    left.sort_by_key(|name| (leads(name), name.clone()));
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::{LeaseId, Term};
    use crate::versioned::Versioned;
    use crate::view::LastTerm;
    use serde_json::{Value, json};

    fn name(text: &str) -> MemberName {
        MemberName::new(text).unwrap()
    }

    /// `p1 o2 s3`: Patroni's, ours, ours that is stopped; the first leads.
    fn view(members: &str, config: &Value) -> ClusterView {
        let mut view = ClusterView::default();
        for (number, word) in members.split_whitespace().enumerate() {
            let member = name(&format!("n{}", &word[1..]));
            if number == 0 {
                view.leader = Some(Leader { name: member.clone(), lease: LeaseId(1), term: Term(5) });
            }
            let mut json = json!({"conn_url": "postgres://h:1/postgres", "api_url": "", "state": "running", "role": "replica", "replication_state": "streaming"});
            match &word[..1] {
                "o" => json["tenure"] = json!({"arbiter": true}),
                "s" => {
                    json["tenure"] = json!({"arbiter": true});
                    json["state"] = json!("stopped");
                }
                _ => {}
            }
            let entry = MemberEntry { member: serde_json::from_value(json).unwrap(), lease: LeaseId(1), revision: 1 };
            view.members.insert(member, entry);
        }
        view.config = Some(Versioned { value: serde_json::from_value(config.clone()).unwrap(), revision: 1 });
        view
    }

    #[test]
    fn a_term_of_patronis_is_noted_once() {
        let mut view = view("p1 o2", &json!({}));
        let last =
            |holder: &str, how: &str, revision| Some(Versioned { value: LastTerm { holder: name(holder), how: how.to_owned() }, revision });
        for (last, noted) in [
            (None, Some(0)),
            (last("n2", "taken", 3), Some(3)),
            // Handed over by one of ours: known, but not by its kind.
            (last("n1", "handed over", 5), Some(5)),
            // Its tenure before this one.
            (last("n1", BY_PATRONI, 4), Some(4)),
            (last("n3", BY_PATRONI, 6), Some(6)),
            (last("n1", BY_PATRONI, 6), None),
        ] {
            view.last_term = last;
            assert_eq!(term_to_note(&view).map(|(_, judged)| judged), noted, "{:?}", view.last_term);
        }
        view.last_term = None;
        view.leader = Some(Leader { name: name("n2"), lease: LeaseId(1), term: Term(5) });
        assert_eq!(term_to_note(&view), None, "one of ours leads");
        assert!(!after_patroni(&view));
        view.last_term = last("n1", BY_PATRONI, 4);
        assert!(after_patroni(&view));
    }

    #[test]
    fn voters_are_of_one_kind() {
        let quorum = json!({"synchronous_mode": "quorum"});
        for (members, config, no_voter) in [
            ("p1 o2 p3", &quorum, true),
            ("p1 o2 o3", &quorum, false),
            ("p1 o2", &quorum, false),
            ("o1 o2 p3", &quorum, false),
            ("p1 o2 p3", &json!({"synchronous_mode": true}), false),
        ] {
            assert_eq!(is_no_voter(&view(members, config), &name("n2")), no_voter, "{members} {config}");
        }
        for (members, count, named) in
            [("o1 o2 p3", 1, "n2"), ("o1 p2 p3", 1, "n2 n3"), ("o1 o2 o3 p4", 2, "n2 n3"), ("o1 o2 p3", 2, "n2 n3")]
        {
            let view = view(members, &json!({"synchronous_mode": "quorum", "synchronous_node_count": count}));
            let standby = |name: &MemberName| StandbySeen {
                name: name.clone(),
                streaming: true,
                replays: true,
                eligible: true,
                nofailover: false,
                elsewhere: false,
                priority: 1,
                lag_bytes: 0,
            };
            let mut seen: Vec<StandbySeen> = view.members.keys().filter(|name| name.as_str() != "n1").map(standby).collect();
            of_one_kind(&view, Rules::of(view.config()), &mut seen);
            let eligible: Vec<&str> = seen.iter().filter(|standby| standby.eligible).map(|standby| standby.name.as_str()).collect();
            assert_eq!(eligible.join(" "), named, "{members} {count}");
        }
    }

    #[test]
    fn what_is_next_on_a_node() {
        use Kind::{Ours, Patroni};
        for (members, me, to, expected) in [
            ("p1 p2 p3", "n2", Ours, "exchange"),
            ("p1 o2 p3", "n3", Ours, "exchange"),
            ("p1 o2 p3", "n2", Ours, "done"),
            ("p1 o2 p3", "n1", Ours, "n1 leads, and the others come first: n3"),
            ("p1 s2 p3", "n3", Ours, "n2 is not back yet (stopped): one member at a time"),
            // The daemon was exchanged and its server is not there yet, or the exchange broke off: it goes on.
            ("p1 s2 p3", "n2", Ours, "exchange"),
            ("p1 o3", "n2", Ours, "exchange"),
            ("p1 o2 o3", "n1", Ours, "switch over to n2"),
            ("o2 o3 p1", "n1", Ours, "exchange"),
            ("p1", "n1", Ours, "exchange"),
            ("o2 o3 o1", "n1", Patroni, "exchange"),
            ("o2 p3 p1", "n2", Patroni, "switch over to n1"),
            ("o2 o3 p1", "n2", Patroni, "n2 leads, and the others come first: n3"),
            ("p1 o2 p3", "n2", Patroni, "exchange"),
        ] {
            let said = match next(&view(members, &json!({})), &name(me), to) {
                Ok(Next::Done) => "done".to_owned(),
                Ok(Next::Exchange) => "exchange".to_owned(),
                Ok(Next::SwitchOver(whom)) => format!("switch over to {whom}"),
                Err(why) => why.to_string(),
            };
            assert_eq!(said, expected, "{members}, {me} to {to}");
        }
        assert_eq!(next(&view("p1 p2", &json!({"pause": true})), &name("n2"), Ours), Err(NotYet::Paused));
        let vacant = ClusterView { leader: None, ..view("p1 p2", &json!({})) };
        assert_eq!(next(&vacant, &name("n2"), Ours), Err(NotYet::NobodyLeads));
        let left = |members| remaining(&view(members, &json!({})), Ours).iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!((left("p1 p2 o3"), left("o1 o2")), ("n2 n1".to_owned(), String::new()));
    }
}
