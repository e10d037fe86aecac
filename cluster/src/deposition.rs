//! Deposition: in the synchronous modes the voters of the `sync` key end the power to acknowledge of a leader that they have
//! lost, by ending their receivers, and one of them takes the key without waiting for the lease to run out.
//!
//! Under a key with `N` voters of which at most `quorum` may lack an acknowledged commit ([`crate::quorum`]), every commit waits
//! for at least `N - quorum` of the voters. Once `quorum + 1` of them receive no more, too few are left to confirm anything; and of everything that
//! was acknowledged before, at least one of those `quorum + 1` has it. So the fittest of them has it all. `docs/adr/0045-deposition.md`
//! has the whole argument; [`decide`] is the rule, [`binds`] says from whom a server that has spoken must not receive, and
//! [`crate::hearing`] is when a leader counts as lost.

use crate::config::SynchronousMode;
use crate::hearing::{Ears, period};
use crate::leader::{Leader, Term};
use crate::lsn::Lsn;
use crate::mixed;
use crate::name::{MemberName, Timeline};
use crate::reason::{Decision, Never, Reason};
use crate::standing::{self, Bond, Candidate, Guarded, Judged, RaceStep};
use crate::sync::SyncState;
use crate::view::{Announcement, ClusterView};

/// The file with the data in which a server keeps its [`Bond`].
pub const FILE: &str = "pg_tenure.bond";

/// Does the bond bind still, as far as this believed view and this server's own timeline say? Not once this server has followed a later primary, which
/// the deposed one can't pass for; and not once the deposed leader has come to lead in another term: no word for the old one can be used any more.
///
/// That the term is over in etcd is not enough. The deposed leader may not know it before its own deadline, and would count the confirmation of a
/// server that connects to it meanwhile.
pub fn binds(bond: &Bond, view: &ClusterView, timeline: Timeline) -> bool {
    let leads_again = view.leader.as_ref().is_some_and(|leader| leader.name == bond.leader && leader.term != bond.term);
    !leads_again && timeline <= bond.timeline
}

/// May a server with this bond receive from one that says it is on `timeline`?
pub fn may_receive(bond: &Bond, timeline: Timeline) -> bool {
    timeline > bond.timeline
}

/// May this node say a word that deposes the leader, as far as keys and tags go? Whether it may lead afterwards is another question ([`standing::may_stand`]): a
/// voter that lacks what the others have confirmed must not lead, and without its word there may be no `quorum + 1` that receive no more.
pub fn may_speak(view: &ClusterView, leader: &Leader, me: &Candidate) -> Result<(), Reason> {
    let never = |why| Err(Reason::NeverDeposed(why));
    if !view.config().deposition() {
        return never(Never::Off);
    }
    if view.config().synchronous_mode() == SynchronousMode::Off {
        return never(Never::Asynchronous);
    }
    if !mixed::is_ours(view, &leader.name) {
        return never(Never::NotOurs(leader.name.clone()));
    }
    let Some(sync) = voters_key(view, leader) else { return never(Never::KeyOfAnother) };
    if !sync.has_standby(&me.name) {
        return never(Never::NoVoter);
    }
    if view.request().is_some_and(|request| request.value.scheduled_at.is_none()) {
        return never(Never::Requested);
    }
    if me.primary || me.tags.nofailover() {
        return Err(if me.primary { Reason::StillPrimary } else { Reason::NoFailover });
    }
    if !me.end_known {
        return Err(Reason::EndUnknown);
    }
    match standing::may_stand(view, me) {
        Err(Reason::LacksConfirmed { .. }) => Ok(()),
        may => may,
    }
}

/// What is to be written before the data of this node is replaced, and with it the bond that keeps its word true. None where it has said nothing that
/// could be used.
pub fn before_new_data(view: &ClusterView, me: &MemberName, bond: Option<&Bond>) -> Option<Guarded> {
    let leader = view.leader.as_ref()?;
    let mine = view.announcements.get(me);
    let spoke = words(view, leader.term).any(|(name, ..)| name == me);
    // A bond of a later term: the view is old, and the write fails by that.
    let bound = bond.is_some_and(|bond| bond.term >= leader.term);
    let word = Announcement {
        after: Term(0),
        stands: false,
        why: Some("the data of this node is being replaced".to_owned()),
        primary: false,
        receives: false,
        deposes: false,
        hears: None,
        timeline: Timeline::default(),
        lsn: Lsn::default(),
        priority: 0,
    };
    (spoke || bound).then(|| Guarded { word, leader: leader.term, mine: mine.map_or(0, |mine| mine.revision) })
}

/// Is this member to listen to the leader: could it come to depose it?
pub fn listens(view: &ClusterView, leader: &Leader, me: &MemberName) -> bool {
    let on = view.config().deposition() && view.config().synchronous_mode() != SynchronousMode::Off;
    on && mixed::is_ours(view, &leader.name) && voters_key(view, leader).is_some_and(|sync| sync.has_standby(me))
}

/// The sync key, where it is the one that this leader's commits wait by.
fn voters_key<'a>(view: &'a ClusterView, leader: &Leader) -> Option<&'a SyncState> {
    let sync = &view.sync.as_ref()?.value;
    let own = sync.leader.as_deref() == Some(leader.name.as_str()) && !sync.until_promoted;
    (own && sync.sync_standby.is_some()).then_some(sync)
}

/// What this node does about a leader that is there; None where there is nothing of that kind to do.
pub fn decide(view: &ClusterView, leader: &Leader, me: &Candidate) -> Option<Decision<RaceStep>> {
    if leader.name == me.name {
        return None;
    }
    let term = leader.term;
    let known = &me.deposition;
    let mine = view.announcements.get(&me.name);
    let guarded = |word| Guarded { word, leader: term, mine: mine.map_or(0, |word| word.revision) };
    let allowed = may_speak(view, leader, me);
    let stands = standing::may_stand(view, me);
    let word = Announcement {
        after: term,
        stands: stands.is_ok(),
        why: stands.as_ref().err().map(ToString::to_string),
        primary: false,
        receives: false,
        deposes: true,
        hears: None,
        timeline: me.timeline,
        lsn: me.lsn,
        priority: me.tags.failover_priority(),
    };
    let bound = known.bond.as_ref().is_some_and(|bond| bond.term == term);
    // A word that is none: it counts for no vacancy, whatever reads it.
    let no_word = |why: &Reason| Announcement {
        after: Term(0),
        stands: false,
        why: Some(why.to_string()),
        deposes: false,
        hears: (known.ears == Ears::Hears).then_some(term),
        ..word.clone()
    };
    if bound {
        let off = match (&allowed, known.ears) {
            (Err(why), _) => Some(why.clone()),
            (Ok(()), Ears::Hears) => Some(Reason::LeaderHeard(leader.name.clone())),
            (Ok(()), _) => None,
        };
        if let Some(why) = off {
            return Some(Decision::new(RaceStep::CallOff(guarded(no_word(&why))), why));
        }
        if known.ears == Ears::Unsure {
            // The worker began again: its word stands, and it is no reason to lead.
            return Some(Decision::new(RaceStep::Wait(period(view.config().timing().ttl)), Reason::LeaderUnsure(leader.name.clone())));
        }
    } else if allowed.is_err() || known.ears != Ears::Lost || known.rests {
        if let Err(why) = &allowed
            && known.ears == Ears::Lost
            && listens(view, leader, &me.name)
        {
            return Some(Decision::new(RaceStep::Rest, Reason::LostAndNotDeposed(leader.name.clone(), Box::new(why.clone()))));
        }
        return answer(view, leader, me).map(|why| Decision::new(RaceStep::Tell(guarded(no_word(&why))), why));
    }
    let said = mine.filter(|said| {
        let said = &said.value;
        said.after == term && said.deposes && said.stands == word.stands && (said.timeline, said.lsn) == (word.timeline, word.lsn)
    });
    let lost = || Reason::LeaderLost(leader.name.clone(), term);
    let Some(said) = said.filter(|_| bound) else {
        return Some(Decision::new(RaceStep::Depose(guarded(word)), lost()));
    };
    if let Err(why) = stands {
        return Some(Decision::new(RaceStep::Wait(period(view.config().timing().ttl)), why));
    }
    if let Some(wait) = others(view, leader, me, &said.value) {
        return Some(wait);
    }
    let judged = Judged {
        after: term,
        deposes: true,
        sync: ClusterView::revision_of(&view.sync),
        config: ClusterView::revision_of(&view.config),
        failover: ClusterView::revision_of(&view.failover),
        announcements: words(view, term).map(|(name, _, revision)| (name.clone(), revision)).collect(),
        sync_becomes: view.sync.as_ref().map(|sync| sync.value.inherited(&me.name)),
        position: Some((said.value.timeline, said.value.lsn)),
    };
    Some(Decision::new(RaceStep::Take(judged), lost()))
}

/// Voters that depose are to know that this one hears the leader: it says so once, while a word of theirs stands.
fn answer(view: &ClusterView, leader: &Leader, me: &Candidate) -> Option<Reason> {
    let voter = voters_key(view, leader).is_some_and(|sync| sync.has_standby(&me.name));
    let said = view.announcements.get(&me.name).is_some_and(|word| word.value.hears == Some(leader.term));
    let asked = words(view, leader.term).any(|(name, ..)| *name != me.name);
    (voter && asked && !said && me.deposition.ears == Ears::Hears).then(|| Reason::LeaderHeard(leader.name.clone()))
}

/// The words that depose this term, with their revisions: also of those who don't stand, which have ended their receivers as well.
fn words(view: &ClusterView, term: Term) -> impl Iterator<Item = (&MemberName, &Announcement, i64)> {
    let of = move |word: &Announcement| word.after == term && word.deposes;
    view.announcements.iter().filter(move |(_, word)| of(&word.value)).map(|(name, word)| (name, &word.value, word.revision))
}

/// What is to be waited for before the key is taken.
fn others(view: &ClusterView, leader: &Leader, me: &Candidate, mine: &Announcement) -> Option<Decision<RaceStep>> {
    let patience = period(view.config().timing().ttl) * 3;
    let on = |why| Some(Decision::new(RaceStep::Wait(patience), why));
    let sync = voters_key(view, leader)?;
    let running = |name: &MemberName| view.members.get(name).is_some_and(|entry| entry.member.is_running());
    let is_voter = |name: &MemberName| *name != me.name && sync.has_standby(name);
    let hears = |name: &MemberName| view.announcements.get(name).is_some_and(|word| word.value.hears == Some(leader.term));
    if !running(&me.name) {
        return on(Reason::NotPublished);
    }
    let voters = || view.members.keys().filter(|name| is_voter(name));
    if let Some(name) = voters().find(|name| hears(name)) {
        return on(Reason::VoterHears(name.clone(), leader.name.clone()));
    }
    let mut heard = 0;
    for (name, word, _) in words(view, leader.term).filter(|(name, ..)| is_voter(name)) {
        if word.stands && running(name) && standing::fitness(name, word) > standing::fitness(&me.name, mine) {
            return on(Reason::FitterAlive(name.clone()));
        }
        heard += usize::from((word.timeline, word.lsn) <= (mine.timeline, mine.lsn) && standing::is_its_own(view, name, word));
    }
    let silent = || voters().filter(|name| running(name) && !words(view, leader.term).any(|(spoke, ..)| spoke == *name));
    let missing = || silent().map(MemberName::as_str).collect::<Vec<_>>().join(", ");
    if heard < sync.quorum as usize {
        return on(Reason::QuorumUnheard(missing()));
    }
    if silent().next().is_some() && me.deposition.bound_for < patience {
        let wait = RaceStep::Wait(patience - me.deposition.bound_for);
        return Some(Decision::new(wait, Reason::PositionsUnknown(missing())));
    }
    None
}

/// What this server binds itself to before it says the word.
pub fn bond(view: &ClusterView, leader: Term, timeline: Timeline, before: Option<&Bond>) -> Option<Bond> {
    let leader = view.leader.as_ref().filter(|now| now.term == leader)?;
    let known = view.members.values().filter_map(|entry| entry.member.timeline);
    let claimed = view.claimed_timeline.as_ref().map(|claimed| claimed.value);
    let all = known.chain(claimed).chain(before.map(|bond| bond.timeline)).chain([view.history().current()]);
    Some(Bond { term: leader.term, leader: leader.name.clone(), timeline: all.fold(timeline, Timeline::max) })
}
