//! Deposition: in the synchronous modes the voters of the `sync` key end the power to acknowledge of a leader that they have
//! lost, by ending their receivers, and one of them takes the key without waiting for the lease to run out.
//!
//! Under a key with `N` voters of which at most `quorum` may lack an acknowledged commit ([`crate::quorum`]), every commit waits
//! for at least `N - quorum` of the voters. Once `quorum + 1` of them receive no more, too few are left to confirm anything; and of everything that
//! was acknowledged before, at least one of those `quorum + 1` has it. So the fittest of them has it all. `docs/adr/0045-deposition.md`
//! has the whole argument; [`decide`] is the rule, [`binds`] says from whom a server that has spoken must not receive, and
//! [`Hearing`] is when a leader counts as lost.

use crate::config::SynchronousMode;
use crate::leader::{Leader, Term};
use crate::lsn::Lsn;
use crate::mixed;
use crate::name::{MemberName, Timeline};
use crate::race::{self, Candidate, Judged, RaceStep};
use crate::reason::{Decision, Reason};
use crate::sync::SyncState;
use crate::time::Moment;
use crate::view::{Announcement, ClusterView};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The leader is listened to at most this often, whatever the TTL.
pub const PERIOD_MINIMUM: Duration = Duration::from_millis(200);

/// A refused connection is tried once more after this long: one refusal may be a listener that is being replaced.
pub const REFUSED_AGAIN: Duration = Duration::from_millis(50);

/// The file with the data in which a server keeps its [`Bond`].
pub const FILE: &str = "pg_tenure.bond";

/// How often the leader is listened to, and how long an answer may take.
pub fn period(ttl: Duration) -> Duration {
    (ttl / 20).max(PERIOD_MINIMUM)
}

/// What a server has bound itself to before it spoke: kept with its data, durably, until it is over ([`binds`]) or called off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bond {
    /// The term that it deposes.
    pub term: Term,
    /// The member that led in it.
    pub leader: MemberName,
    /// The greatest timeline on which that leader may be. The next leader begins a greater one.
    pub timeline: Timeline,
}

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

/// What one try to hear the leader gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Its WAL came, or its arbiter or its Postgres answered: it lives, whatever it is busy with.
    Heard,
    /// The host answers, and neither process is there.
    Refused,
    /// Nothing at all.
    Silent,
}

/// What this node knows of the leader by its own ears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ears {
    /// Not enough to say.
    #[default]
    Unsure,
    /// It was heard at the last try.
    Hears,
    /// It is lost.
    Lost,
}

/// The answers of one leader in one term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Hearing {
    term: Term,
    first: Option<Moment>,
    last: Option<Moment>,
    refused: u32,
    silent: u32,
    told: Ears,
}

impl Hearing {
    /// Notes what a try gave that began at `began` and ended at `ended`. A try that took far longer than it may says more of this node,
    /// which was held up itself, than of the leader.
    #[must_use]
    pub fn noted(self, term: Term, answer: Answer, began: Moment, ended: Moment, period: Duration) -> Hearing {
        let before = if self.term == term { self } else { Hearing { term, ..Hearing::default() } };
        match answer {
            Answer::Heard => Hearing { first: before.first.or(Some(began)), last: Some(began), refused: 0, silent: 0, ..before },
            _ if ended.since(began) > period * 2 => before,
            Answer::Refused => Hearing { refused: before.refused + 1, ..before },
            Answer::Silent => Hearing { silent: before.silent + 1, ..before },
        }
    }

    /// What that comes to. A leader is lost that refused twice in a row, or has given no sign for three periods although asked twice within them.
    /// A leader that was never heard in its term, or not for a TTL yet, is not lost: the cluster is just coming up.
    pub fn ears(&self, term: Term, now: Moment, ttl: Duration) -> Ears {
        let (Some(first), Some(last)) = (self.first.filter(|_| self.term == term), self.last) else { return Ears::Unsure };
        if self.refused + self.silent == 0 {
            return Ears::Hears;
        }
        let known = last.since(first) >= ttl;
        let silent = self.refused + self.silent >= 2 && now.since(last) >= period(ttl) * 3;
        if known && (self.refused >= 2 || silent) { Ears::Lost } else { Ears::Unsure }
    }

    /// What it comes to now, where that is news since this was asked last: the leader is lost, or was and is not any more, or was heard and is not. Silence becomes a loss
    /// by the time that passes, also between two tries, so what is news is judged by what was told and not by the try before.
    pub fn news(&mut self, now: Moment, ttl: Duration) -> Option<Ears> {
        let ears = self.ears(self.term, now, ttl);
        let before = std::mem::replace(&mut self.told, ears);
        (ears != before && (ears == Ears::Lost || before != Ears::Unsure)).then_some(ears)
    }

    /// How soon to try again.
    pub fn again(&self, ttl: Duration) -> Duration {
        match (self.refused, self.silent) {
            (1, 0) => REFUSED_AGAIN,
            // A try that gave silence took its period already.
            (_, 1..) => Duration::from_millis(10),
            _ => period(ttl),
        }
    }
}

/// What the lease worker knows that a deposition depends on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Knowledge {
    /// The leader by this node's own ears.
    pub ears: Ears,
    /// The bond that binds this server.
    pub bond: Option<Bond>,
    /// For how long it has been bound, as far as this worker knows.
    pub bound_for: Duration,
    /// A deposition was called off here less than a TTL ago.
    pub rests: bool,
}

/// A word that is written only if the leader and this node's own word are as they were judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// What is said.
    pub word: Announcement,
    /// The term of the leader key.
    pub leader: Term,
    /// The revision of this node's own word; 0 where there is none.
    pub mine: i64,
}

/// Why nobody is deposed from here. The Display is part of the reason in the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Never {
    /// `deposition` is off.
    #[error("deposition is off")]
    Off,
    /// One of Patroni's leads: it changes the sync key without a look at the holder of the leader key.
    #[error("{0} is not a member that pg_tenure runs")]
    NotOurs(MemberName),
    /// Commits wait for nobody.
    #[error("synchronous_mode is off")]
    Asynchronous,
    /// The key is another's, or not one by which commits wait.
    #[error("the sync key is not one that this leader's commits wait by")]
    KeyOfAnother,
    /// This node is no voter.
    #[error("this node is not among the standbys in the sync key")]
    NoVoter,
    /// A planned change.
    #[error("a switchover or failover was asked for")]
    Requested,
}

/// May this node say a word that deposes the leader, as far as keys and tags go? Whether it may lead afterwards is another question ([`race::may_stand`]): a
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
    match race::may_stand(view, me) {
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
    let stands = race::may_stand(view, me);
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
        if word.stands && running(name) && race::fitness(name, word) > race::fitness(&me.name, mine) {
            return on(Reason::FitterAlive(name.clone()));
        }
        heard += usize::from((word.timeline, word.lsn) <= (mine.timeline, mine.lsn) && race::is_its_own(view, name, word));
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
