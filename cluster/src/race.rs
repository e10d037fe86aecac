//! The race: the leader key is gone; may this node stand, and is it the fittest?
//!
//! Used by the lease worker. The rules, in order: who may stand at all ([`may_stand`]); each says
//! what it has received for this vacancy ([`Announcement`]), after it stopped receiving; the fittest
//! ([`fitness`]) takes the key, the others wait for it as long as it is alive.

use crate::deposition;
use crate::leader::{LeaseId, Term};
use crate::member::{MemberEntry, MemberRole};
use crate::mixed;
use crate::name::MemberName;
use crate::reason::{Decision, Reason};
use crate::standing::{Candidate, Judged, RaceStep, fitness, is_its_own, may_stand, named};
use crate::sync::SyncState;
use crate::view::{Announcement, ClusterView};
use std::collections::BTreeSet;
use std::time::Duration;

/// A standby that still streams lets the primary that lost its lease go first for this long. A
/// primary that is back with etcd tries every quarter second; a frozen one must not cost more.
pub const HEAD_START: Duration = Duration::from_millis(500);

/// How long to wait for the word of a member that is alive but has not announced anything.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// How soon a server that reads the WAL on its disk is looked at again.
pub const READING: Duration = Duration::from_millis(20);

/// How long a node that took the key may stay unpromoted before it stands down.
pub const PROMOTION_PATIENCE: Duration = Duration::from_secs(30);

/// Does the leader key hang where its holder does not keep it, and is this node to give it up (once that has lasted for a TTL)? In its own name on
/// another lease than its own, which it will never renew; or in the name of a member that is not there, on its own lease or on
/// none, which would keep it for ever. Whatever wrote it, nobody's fence is open by it: a page opens only for a key on the node's own lease.
pub fn misplaced(view: &ClusterView, me: &MemberName, lease: LeaseId) -> bool {
    view.leader.as_ref().is_some_and(|leader| {
        let by_nobody = leader.lease == lease || leader.lease == LeaseId::NONE;
        if leader.name == *me { leader.lease != lease } else { by_nobody && !view.members.contains_key(&leader.name) }
    })
}

/// The lease worker's next step. Same facts, same answer.
pub fn decide(view: &ClusterView, me: &Candidate) -> Decision<RaceStep> {
    use RaceStep::{Announce, Rest, Take, Wait};
    if let Some(leader) = &view.leader {
        if let Some(decision) = deposition::decide(view, leader, me) {
            return decision;
        }
        let why = if leader.name == me.name {
            Reason::IHoldTheLease(leader.term)
        } else {
            Reason::AnotherHoldsTheLease(leader.name.clone(), leader.term)
        };
        return Decision::new(Rest, why);
    }
    let after = view.last_term();
    let allowed = may_stand(view, me);
    if let Err(why @ Reason::NoData) = allowed {
        return Decision::new(Rest, why);
    }
    // A word says what was confirmed to the primaries before, and others count on it: on less than the whole truth of
    // `quorum` voters one would lead that lacks what this one has. So a server that does not know its end yet says nothing,
    // neither that it stands nor that it doesn't.
    if !me.end_known && !me.primary {
        return Decision::new(Wait(READING), Reason::EndUnknown);
    }
    // In a standby cluster everybody streams from elsewhere: there is no primary to go first.
    let receives = view.is_standby_cluster() && !me.primary;
    let head_start = head_start(view);
    if allowed.is_ok() && !me.primary && !receives && me.streaming && me.vacant_for < head_start {
        return Decision::new(Wait(head_start - me.vacant_for), Reason::HeadStart);
    }
    let word = Announcement {
        after,
        stands: allowed.is_ok(),
        why: allowed.as_ref().err().map(ToString::to_string),
        primary: me.primary,
        // A member that has promised (`failsafe_mode`) has not stopped its receiver: the old leader goes on, and commits by what is confirmed to it.
        receives: receives || me.promised && !me.primary,
        deposes: false,
        hears: None,
        timeline: me.timeline,
        lsn: me.lsn,
        priority: me.tags.failover_priority(),
    };
    // A primary's position moves while it waits; what counts is that it is one. Of a node that stands aside the reason counts: the first one
    // may be that no arbiter was there yet, and an operator who asks why nobody leads is to read the last.
    let said = view.announcements.get(&me.name).filter(|said| {
        let same = if word.stands {
            word.primary || word.receives || (said.value.timeline, said.value.lsn) == (word.timeline, word.lsn)
        } else {
            gist(said.value.why.as_deref()) == gist(word.why.as_deref())
        };
        said.value.after == after && said.value.stands == word.stands && said.value.receives == word.receives && same
    });
    let Some(said) = said else {
        let why = allowed.err().unwrap_or(if me.primary { Reason::StillPrimary } else { Reason::NoLeader });
        return Decision::new(Announce(word), why);
    };
    if let Err(why) = allowed {
        return Decision::new(Wait(PATIENCE), why);
    }
    if let Some(wait) = others(view, me, after, &said.value) {
        return wait;
    }
    let sync = view.sync.as_ref();
    let judged = Judged {
        after,
        deposes: false,
        sync: ClusterView::revision_of(&view.sync),
        config: ClusterView::revision_of(&view.config),
        failover: ClusterView::revision_of(&view.failover),
        announcements: view
            .announcements
            .iter()
            .filter(|(_, word)| word.value.after == after)
            .map(|(name, word)| (name.clone(), word.revision))
            .collect(),
        sync_becomes: sync.filter(|sync| resets(&sync.value, me)).map(|sync| becomes(&sync.value, me)),
        position: (!receives).then_some((said.value.timeline, said.value.lsn)),
    };
    Decision::new(Take(judged), if me.primary { Reason::StillPrimary } else { Reason::Fittest })
}

/// A primary of Patroni's that still sends is not fenced and may go on acknowledging until its agent has looked, which it does once in `loop_wait`:
/// it takes its key up again, or stops its server. A primary that is gone streams to nobody.
fn head_start(view: &ClusterView) -> Duration {
    if mixed::after_patroni(view) { view.config().timing().loop_wait.max(HEAD_START) } else { HEAD_START }
}

/// A refusal without its numbers: a lag that changes all the time is no news to be written again and again.
fn gist(why: Option<&str>) -> String {
    why.unwrap_or_default().chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// Must the taker rewrite the sync key to name itself alone? Where another leads in it; and where it leads
/// itself but is a standby by now: once promoted it awaits nobody, so nobody may be trusted to have what it
/// acknowledges from then on. A primary still awaits those that the key names.
fn resets(sync: &SyncState, me: &Candidate) -> bool {
    let mine = sync.leader.as_deref() == Some(me.name.as_str());
    !sync.is_empty() && !(mine && (me.primary || sync.sync_standby.is_none()))
}

/// A primary serves as soon as it has the key, so nobody else may be trusted. A standby serves once it is promoted: until then a member that had
/// everything may still take over, should it die first.
fn becomes(sync: &SyncState, me: &Candidate) -> SyncState {
    if me.primary { SyncState::of(&me.name, &BTreeSet::new()) } else { sync.inherited(&me.name) }
}

/// Waits for a fitter member while it is alive, and a moment for those that have not spoken.
///
/// A word hangs on the lease of the node that spoke, so a node that has a word is alive, member key or
/// not. Its Postgres need not be: an arbiter keeps the lease of a server that stops or crashed. The
/// member key then says so, to the others (which don't wait for it) and to itself (it does not take).
fn others(view: &ClusterView, me: &Candidate, after: Term, mine: &Announcement) -> Option<Decision<RaceStep>> {
    let on = |wait, why| Some(Decision::new(RaceStep::Wait(wait), why));
    let down = |name: &MemberName| view.members.get(name).is_some_and(|entry| !entry.member.is_running());
    if down(&me.name) {
        return on(PATIENCE, Reason::NotPublished);
    }
    // A node that is asked for by name waits for a primary only; other standbys stand back.
    let asked_for = named(view).is_some_and(|named| named.could && named.name == me.name && named.whatever_it_lacks);
    let words = view.announcements.iter().filter(|(name, word)| **name != me.name && word.value.after == after);
    for (name, word) in words {
        let word = &word.value;
        if word.stands && !down(name) && (word.primary || !asked_for) && fitness(name, word) > fitness(&me.name, mine) {
            return on(PATIENCE, Reason::FitterAlive(name.clone()));
        }
    }
    if let Some(unheard) = quorum_missing(view, me, after, mine).filter(|_| !asked_for) {
        return on(PATIENCE, Reason::QuorumUnheard(unheard));
    }
    let spoke = |name: &MemberName| view.announcements.get(name).is_some_and(|word| word.value.after == after);
    let silent = view
        .members
        .iter()
        .filter(|(name, _)| **name != me.name && !spoke(name))
        .filter(|(name, entry)| could_be_fitter(view, name, entry, asked_for))
        .map(|(name, _)| name.as_str())
        .collect::<Vec<_>>();
    if !silent.is_empty() && me.vacant_for < PATIENCE {
        return on(PATIENCE - me.vacant_for, Reason::PositionsUnknown(silent.join(", ")));
    }
    None
}

/// With a quorum in the sync key a voter alone may lack an acknowledged commit: it must have heard that
/// many other voters say that they have no more. None where they were heard; else the member whose word is missing.
fn quorum_missing(view: &ClusterView, me: &Candidate, after: Term, mine: &Announcement) -> Option<String> {
    let sync = &view.sync.as_ref()?.value;
    let is_me = |name: &str| name.eq_ignore_ascii_case(me.name.as_str());
    if sync.leader.as_deref().is_some_and(is_me) {
        return None; // the leader of the key has everything it ever acknowledged
    }
    let has_no_more = |voter: &str| {
        view.announcements.iter().any(|(name, word)| {
            let word = &word.value;
            // Of a member that goes on receiving the position says nothing: it may have confirmed more since.
            let holds = !word.receives && word.after == after && (word.timeline, word.lsn) <= (mine.timeline, mine.lsn);
            holds && name.as_str().eq_ignore_ascii_case(voter) && is_its_own(view, name, word)
        })
    };
    if sync.leader.as_deref().is_some_and(has_no_more) {
        return None;
    }
    let (heard, missing): (Vec<_>, Vec<_>) = sync.standbys().filter(|voter| !is_me(voter)).partition(|voter| has_no_more(voter));
    (heard.len() < sync.quorum as usize).then(|| missing.join(", "))
}

/// Is a member that has not spoken worth waiting for? A primary always is: its tags don't bar it.
fn could_be_fitter(view: &ClusterView, name: &MemberName, entry: &MemberEntry, primaries_only: bool) -> bool {
    let barred = view.sync.as_ref().is_some_and(|sync| !sync.value.is_empty() && !sync.value.may_lead(name));
    let primary = entry.member.role == MemberRole::Primary;
    let stands = primary || !(primaries_only || entry.member.tags.nofailover());
    entry.member.is_running() && stands && !barred
}
