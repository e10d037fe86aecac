//! The race: the leader key is gone; may this node stand, and is it the fittest?
//!
//! Used by the lease worker. The rules, in order: who may stand at all ([`may_stand`]); each says
//! what it has received for this vacancy ([`Announcement`]), after it stopped receiving; the fittest
//! ([`fitness`]) takes the key, the others wait for it as long as it is alive.

use crate::deposition::{self, Guarded, Knowledge};
use crate::history::Ancestry;
use crate::leader::{LeaseId, Term};
use crate::lsn::Lsn;
use crate::member::{MemberEntry, MemberRole, Tags};
use crate::mixed;
use crate::name::{MemberName, Timeline};
use crate::reached::{self, End};
use crate::reason::{Decision, Reason};
use crate::speech::{self, Apart};
use crate::sync::SyncState;
use crate::view::{Announcement, ClusterView};
use std::cmp::Reverse;
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

/// What the lease worker knows of its own server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// This node.
    pub name: MemberName,
    /// Its tags.
    pub tags: Tags,
    /// Out of recovery.
    pub primary: bool,
    /// The timeline of its newest WAL.
    pub timeline: Timeline,
    /// Written (primary) or received and replayed, the further (standby).
    pub lsn: Lsn,
    /// `lsn` is the end of the WAL here. After a start it is not known until all that lies on disk has been read,
    /// and until then `lsn` is only what was replayed so far.
    pub end_known: bool,
    /// The WAL receiver is connected.
    pub streaming: bool,
    /// An arbiter is attached: somebody could promote this server.
    pub arbiter: bool,
    /// For how long this node has known that the key is gone, by its own clock.
    pub vacant_for: Duration,
    /// It took the key lately and was not promoted.
    pub stood_down: bool,
    /// It promised the leader not to take the key for now (`failsafe_mode`).
    pub promised: bool,
    /// What a deposition depends on.
    pub deposition: Knowledge,
}

/// What the lease worker does about the leader key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RaceStep {
    /// There is a leader, or nothing to lead.
    Rest,
    /// Wait: somebody else goes first, or is to be heard. Look again when woken or after this long.
    Wait(Duration),
    /// Stop receiving WAL, then write this announcement (with the position read after the stop).
    Announce(Announcement),
    /// Take the key, if nothing changed of what was judged.
    Take(Judged),
    /// Bind this server, stop receiving WAL, then say so (with the position read after the stop).
    Depose(Guarded),
    /// Say this, and receive again only once it was written.
    CallOff(Guarded),
    /// Say this.
    Tell(Guarded),
}

/// What a take rests on: the guarded write compares all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// The vacancy: the last term.
    pub after: Term,
    /// There is no vacancy: that term's leader holds its key, and must hold it still.
    pub deposes: bool,
    /// Revision of `sync` (0: absent).
    pub sync: i64,
    /// Revision of `config`.
    pub config: i64,
    /// Revision of `failover`.
    pub failover: i64,
    /// Revision of each announcement that was weighed.
    pub announcements: Vec<(MemberName, i64)>,
    /// What `sync` becomes in the same transaction, where it must change.
    pub sync_becomes: Option<SyncState>,
    /// The timeline and position this node announced: it must not have more by now. None where it goes
    /// on receiving ([`Announcement::receives`]).
    pub position: Option<(Timeline, Lsn)>,
}

/// May this node stand, whatever the others are? The reason of a refusal names the rule.
pub fn may_stand(view: &ClusterView, me: &Candidate) -> Result<(), Reason> {
    if view.system_id().is_none() {
        return Err(Reason::NoData);
    }
    if view.config().paused() && !me.primary {
        return Err(Reason::Paused);
    }
    if me.promised && !me.primary {
        return Err(Reason::Promised);
    }
    if me.stood_down {
        return Err(Reason::NotPromotedInTime);
    }
    if let Some((name, why)) = apart(view, &me.name).filter(|_| !me.primary) {
        return Err(Reason::NotUnderstood(name.clone(), why));
    }
    if !me.primary && !me.arbiter {
        return Err(Reason::NoArbiter);
    }
    // It must not lead as it is, and its arbiter makes it a standby first.
    if me.primary && view.is_standby_cluster() {
        return Err(Reason::StandbyClusterAsked);
    }
    // Whatever the mode says by now, and whichever member was asked for: a leader that is cut off may be serving on
    // the promises of those in the key, and only of those. (The leader itself empties the key.)
    if !me.primary
        && let Some(known) = &view.failsafe
        && !known.value.is_empty()
        && !known.value.contains_key(me.name.as_str())
    {
        return Err(Reason::NotInFailsafe);
    }
    let history = view.history();
    let current = history.current();
    if let Ancestry::Diverged { fork } = history.ancestry(current, me.timeline, me.lsn)
        && !is_last_resort(view, &me.name)
    {
        return Err(Reason::DivergedCandidate { fork });
    }
    match asked(view) {
        // Asked for by name: lag and sync state were for the operator who asked to weigh.
        Some(asked) if asked.name == me.name && asked.whatever_it_lacks => return Ok(()),
        Some(asked) if asked.name != me.name && asked.could && !me.primary => {
            return Err(Reason::OtherCandidateAsked(asked.name));
        }
        _ => {}
    }
    if me.tags.nofailover() && !me.primary {
        return Err(Reason::NoFailover);
    }
    let config = view.config();
    // Whatever the mode says by now: the key is what the leader kept to. Where the mode is switched off, the leader
    // empties the key before its commits stop waiting.
    if let Some(sync) = &view.sync
        && !sync.value.is_empty()
        && !sync.value.may_lead(&me.name)
    {
        return Err(Reason::NotInSync);
    }
    let mine = End { timeline: me.timeline, lsn: me.lsn };
    if let Some(had) = reached::lacked_by(view, &me.name, mine) {
        let other_data = reached::lost_by(view, &me.name, mine).is_some();
        return Err(if other_data { Reason::OtherData { mine, had } } else { Reason::LacksConfirmed { mine, confirmed: had } });
    }
    if me.timeline < current && (config.check_timeline() || me.primary) {
        return Err(Reason::BehindTimeline { mine: me.timeline, cluster: current });
    }
    let most = config.maximum_lag_on_failover();
    let lag = view.status.as_ref().map_or(0, |status| me.lsn.lag_bytes_behind(status.value.optime));
    if lag > most && !sync_covers(view, me) {
        return Err(Reason::TooFarBehind { lag, most });
    }
    Ok(())
}

/// The member that went on after the fork is gone, and somebody asked for this member by name: it leads on without that. Not while any other member that runs could
/// lead, or has not said that it can't: the history of a member that gave its key up for this request would be thrown away.
fn is_last_resort(view: &ClusterView, me: &MemberName) -> bool {
    let refuses = |name: &MemberName| {
        let word = view.announcements.get(name).map(|word| &word.value);
        word.is_some_and(|word| word.after == view.last_term() && !word.stands)
    };
    let asked_for = asked(view).is_some_and(|asked| asked.name == *me && asked.whatever_it_lacks);
    let others = || view.members.iter().filter(|(name, entry)| *name != me && entry.member.is_running());
    asked_for && others().all(|(name, _)| refuses(name))
}

/// A member that is of a later time than this build can serve: what it wrote may mean something else than is read here.
fn apart<'a>(view: &'a ClusterView, me: &MemberName) -> Option<(&'a MemberName, Apart)> {
    let others = view.members.iter().filter(|(name, _)| *name != me);
    others.into_iter().find_map(|(name, entry)| {
        let theirs = entry.member.tenure.as_ref()?.speech.unwrap_or_default();
        let why = speech::OURS.apart_from(theirs).filter(|why| matches!(why, Apart::Newer { .. }))?;
        Some((name, why))
    })
}

/// Does the leader key hang where its holder does not keep it, and is this node to give it up (once that has lasted for a TTL)? In its own name on
/// another lease than its own, which it will never renew; or in the name of a member that is not there, on its own lease or on
/// none, which would keep it for ever. Whatever wrote it, nobody's fence is open by it: a page opens only for a key on the node's own lease.
pub fn misplaced(view: &ClusterView, me: &MemberName, lease: LeaseId) -> bool {
    view.leader.as_ref().is_some_and(|leader| {
        let by_nobody = leader.lease == lease || leader.lease == LeaseId::NONE;
        if leader.name == *me { leader.lease != lease } else { by_nobody && !view.members.contains_key(&leader.name) }
    })
}

/// Whom a failover names.
struct Named {
    name: MemberName,
    /// It runs and has not refused: the others stand back. Were they to stand back for one that can't,
    /// a forgotten request would leave the cluster without a leader.
    could: bool,
    /// A failover: the operator who asked has weighed what it may lack.
    whatever_it_lacks: bool,
}

/// The member that a failover asks for, if there is such a member. A switchover asks the leader to
/// hand over; once the leader is gone it binds nobody. One of Patroni's gives its key up for that, and the request says for whom.
fn asked(view: &ClusterView) -> Option<Named> {
    let request = view.request().filter(|key| !key.value.is_switchover() || mixed::after_patroni(view))?;
    let name = MemberName::new(request.value.candidate()?).ok()?;
    let running = view.members.get(&name)?.member.is_running();
    let refused = view.announcements.get(&name).is_some_and(|word| word.value.after == view.last_term() && !word.value.stands);
    Some(Named { name, could: running && !refused, whatever_it_lacks: !request.value.is_switchover() })
}

/// Membership in the key (and the votes it asks for) says that no acknowledged commit is missing; the lag
/// then only speaks of commits that nobody was told of.
fn sync_covers(view: &ClusterView, me: &Candidate) -> bool {
    view.sync.as_ref().is_some_and(|sync| !sync.value.is_empty() && sync.value.may_lead(&me.name))
}

/// The order of candidates: newest timeline, then a primary (it lost its lease, not its data), then
/// most WAL, then priority, then name. The greatest wins. Total, so two nodes never both believe it.
pub fn fitness<'a>(name: &'a MemberName, word: &Announcement) -> (Timeline, bool, Lsn, i64, Reverse<&'a MemberName>) {
    (word.timeline, word.primary, word.lsn, word.priority, Reverse(name))
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
    let asked = asked(view).is_some_and(|asked| asked.could && asked.name == me.name && asked.whatever_it_lacks);
    let words = view.announcements.iter().filter(|(name, word)| **name != me.name && word.value.after == after);
    for (name, word) in words {
        let word = &word.value;
        if word.stands && !down(name) && (word.primary || !asked) && fitness(name, word) > fitness(&me.name, mine) {
            return on(PATIENCE, Reason::FitterAlive(name.clone()));
        }
    }
    if let Some(unheard) = quorum_missing(view, me, after, mine).filter(|_| !asked) {
        return on(PATIENCE, Reason::QuorumUnheard(unheard));
    }
    let spoke = |name: &MemberName| view.announcements.get(name).is_some_and(|word| word.value.after == after);
    let silent = view
        .members
        .iter()
        .filter(|(name, _)| **name != me.name && !spoke(name))
        .filter(|(name, entry)| could_be_fitter(view, name, entry, asked))
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

/// Is this the word of the member that confirmed commits under that name? It is not where the data are less than that member had.
pub(crate) fn is_its_own(view: &ClusterView, name: &MemberName, word: &Announcement) -> bool {
    reached::lost_by(view, name, End { timeline: word.timeline, lsn: word.lsn }).is_none()
}

/// Is a member that has not spoken worth waiting for? A primary always is: its tags don't bar it.
fn could_be_fitter(view: &ClusterView, name: &MemberName, entry: &MemberEntry, primaries_only: bool) -> bool {
    let barred = view.sync.as_ref().is_some_and(|sync| !sync.value.is_empty() && !sync.value.may_lead(name));
    let primary = entry.member.role == MemberRole::Primary;
    let stands = primary || !(primaries_only || entry.member.tags.nofailover());
    entry.member.is_running() && stands && !barred
}
