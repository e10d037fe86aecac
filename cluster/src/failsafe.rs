//! `failsafe_mode`: whom a leader without etcd asks, who promises, and what a promise forbids.
//!
//! The leader may go on while everybody who could take its key has promised not to. Which members could is said by the
//! key `failsafe` (see [`crate::standing::may_stand`]), so the leader has to ask at least all in it.

use crate::citus;
use crate::leader::Term;
use crate::lease;
use crate::name::MemberName;
use crate::time::Moment;
use crate::view::{Announcement, ClusterView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// Name to REST address, as the key `failsafe` has them.
pub type Members = BTreeMap<String, String>;

/// What the leader is to write into the key: every member while the mode is on, nobody while it is off. None where
/// that stands there already.
pub fn key_to_write(view: &ClusterView) -> Option<Members> {
    let on = view.config().failsafe_mode();
    let members = view.members.iter().filter(|(_, entry)| on && entry.is_kept());
    let members: Members = members.map(|(name, entry)| (name.to_string(), entry.member.api_url.clone())).collect();
    let known = view.failsafe.as_ref().map(|known| &known.value);
    (known != Some(&members) && !(known.is_none() && members.is_empty())).then_some(members)
}

/// Why the leader can't go on by promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unable {
    /// No key, as far as is known.
    #[error("the failsafe key was never read")]
    NoKey,
    /// The key was written before this node was a member.
    #[error("this node is not in the failsafe key")]
    NotInKey,
}

/// The members whose promise the leader `me` needs, with their REST addresses: everybody in the key as last read, and everybody in what
/// was last sent to be written. That may have been carried out although its answer was lost, and then those it
/// added may stand.
pub fn whom_to_ask(view: &ClusterView, sent: Option<&Members>, me: &MemberName) -> Result<Members, Unable> {
    let known = &view.failsafe.as_ref().ok_or(Unable::NoKey)?.value;
    if !known.contains_key(me.as_str()) {
        return Err(Unable::NotInKey);
    }
    let all = sent.into_iter().flatten().chain(known).filter(|(name, _)| name.as_str() != me.as_str());
    Ok(all.map(|(name, address)| (name.clone(), address.clone())).collect())
}

/// One member's answer must come within this part of the TTL: a busy member may take its time, as what it promises is counted from before it was asked.
/// etcd was asked for half of the TTL before, so with a quarter for the answers the next round is over before what this one gave.
pub fn answer_patience(ttl: Duration) -> Duration {
    ttl / 4
}

/// Why a member does not promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The mode is off, as far as this node knows.
    #[error("failsafe_mode is off")]
    Off,
    /// Somebody else leads.
    #[error("{0} leads, as far as this node knows")]
    AnotherLeads(MemberName),
    /// Nobody leads, and the last leader is not the one that asks.
    #[error("{0} led after it, as far as this node knows")]
    AnotherLed(MemberName),
}

/// May a member promise `leader` not to take its key? The lease worker's page has the last word.
///
/// A leader that was deposed may not know it, and ask. Everybody whom it asks has to promise, and among them is the one that led after it: that
/// one knows, also when its own lease has run out and nobody leads.
pub fn may_promise(view: &ClusterView, leader: &str) -> Result<(), Refusal> {
    if !view.config().failsafe_mode() {
        return Err(Refusal::Off);
    }
    match &view.leader {
        Some(other) if other.name.as_str() != leader => Err(Refusal::AnotherLeads(other.name.clone())),
        Some(_) => Ok(()),
        None => match &view.last_term {
            Some(last) if last.value.holder.as_str() != leader => Err(Refusal::AnotherLed(last.value.holder.clone())),
            _ => Ok(()),
        },
    }
}

/// The latest tenure that this view tells of, as a server's page counts them ([`citus::order`]). A server that led in a later one knows more than
/// its arbiter, which was frozen meanwhile: it promises nothing to the member that the arbiter takes for the leader (simulation, seed 124 with `--forgets`).
pub fn latest_tenure(view: &ClusterView) -> i64 {
    let leads = view.leader.as_ref().map(|leader| leader.term).unwrap_or_default();
    citus::order(view.store_generation(), view.last_term().max(leads).0)
}

/// For how long a member promises that asks for `asked`: its own TTL at most, whichever member asks, so that one word forbids it the key for no
/// longer than a lease would. The leader counts on what it is told, not on what it asked.
pub fn promised_for(view: &ClusterView, asked: Option<Duration>) -> Duration {
    let own = view.config().timing().ttl;
    asked.map_or(own, |asked| asked.min(own))
}

/// Is a promise to `leader` until `until` over before its time? It is where a fresh view shows that member as the leader, on a lease that
/// etcd lets live for `left` from `now` on, which was before etcd was asked.
///
/// What the promise forbids is to take the key while that leader may count on it. If the key outlives the promise, nobody can take it
/// before then but after the leader has given it up itself, and it does that with a closed fence. That the leader is there is not
/// enough: a lease may run out before what it was promised does, and it may serve on that promise alone.
pub fn is_superseded(view: &ClusterView, leader: &str, until: Moment, now: Moment, left: Duration) -> bool {
    view.leader.as_ref().is_some_and(|now| now.name.as_str() == leader) && lease::deadline(now, left) >= until
}

/// The file with the data in which a server keeps that it has spoken ([`Spoken`]).
pub const SPOKEN_FILE: &str = "pg_tenure.word";

/// That a server has said a word which counts for who leads after this term: kept with its data, durably, until that vacancy is over ([`is_over`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spoken {
    /// The last term before the vacancy.
    pub after: Term,
}

/// Must a server keep that it says this word, and promise nothing from then on until the vacancy is over?
///
/// Under a key `sync` with a quorum a word is a vote: others count on it that its member has no more than it says. A member that promises goes on
/// receiving, and the leader acknowledges by what it confirms; so it must not have a word that counts. The key `failsafe` tells whether a leader can go on
/// by promises at all: only a leader changes it, so it is as the last one left it. Where nobody may lack an acknowledged commit (`quorum` 0) no word is a
/// vote: whoever may lead has everything itself, also what it has confirmed since.
pub fn keeps_word(view: &ClusterView, word: &Announcement) -> bool {
    let by_promises = view.failsafe.as_ref().is_some_and(|known| !known.value.is_empty());
    let votes = view.sync.as_ref().is_some_and(|sync| sync.value.quorum > 0);
    by_promises && votes && !word.receives
}

/// Is the vacancy over in which a word was said, so that the word counts no more? Another term has begun since: a take compares the last term.
/// Where this node itself leads, only once its page has `opened` for that term, because from then on the page refuses the leader of before.
pub fn is_over(view: &ClusterView, spoken: Spoken, me: &MemberName, opened: bool) -> bool {
    view.leader.as_ref().is_some_and(|leader| leader.term != spoken.after && (leader.name != *me || opened))
}

/// Must the page stay as it is although etcd says that this node leads in `leads_in`? A take whose answer was lost may be
/// carried out after its node promised to stay away; a page that is open for that term already goes on.
pub fn keeps_closed(promised: bool, page_term: i64, leads_in: i64) -> bool {
    promised && page_term != leads_in
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DynamicConfig;
    use crate::leader::{Leader, LeaseId};
    use crate::view::Versioned;

    const SECOND: Duration = Duration::from_secs(1);

    fn view(ttl: u64) -> ClusterView {
        let config = DynamicConfig(serde_json::from_str(&format!(r#"{{"ttl":{ttl},"failsafe_mode":true}}"#)).unwrap());
        let leader = Leader { name: MemberName::new("n0").unwrap(), lease: LeaseId(7), term: Term(5) };
        ClusterView { config: Some(Versioned { value: config, revision: 1 }), leader: Some(leader), ..ClusterView::default() }
    }

    #[test]
    fn nobody_promises_for_longer_than_a_lease_of_its_own() {
        for (asked, own, expected) in
            [(Some(3600), 10, 10), (Some(5), 10, 5), (None, 10, 10), (Some(10), 10, 10), (Some(u64::MAX), 3, 3), (Some(0), 10, 0)]
        {
            assert_eq!(promised_for(&view(own), asked.map(Duration::from_secs)), SECOND * expected, "{asked:?} of {own}");
        }
    }

    #[test]
    fn a_promise_ends_early_only_where_the_leaders_lease_outlives_it() {
        let now = Moment(SECOND * 1000);
        for (leader, until, left, expected) in [
            ("n0", 5, 9, true),
            // The key may run out before the promise does, and the leader may serve on the promise alone.
            ("n0", 9, 9, false),
            ("n0", 9, 5, false),
            ("n0", 5, 0, false),
            // Another leads: the member to which this was promised may serve yet.
            ("n1", 1, 10, false),
        ] {
            assert_eq!(is_superseded(&view(10), leader, now + SECOND * until, now, SECOND * left), expected, "{leader} {until} {left}");
        }
        assert!(!is_superseded(&ClusterView::default(), "n0", now + SECOND, now, SECOND * 10), "nobody leads");
    }
}
