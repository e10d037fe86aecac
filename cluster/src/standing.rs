//! Standing: what a node knows of itself when the leader key is at stake, whether it may lead, who is fitter, and what it may do about the key.
//!
//! The race for a vacancy ([`crate::race`]) and the deposition of a leader that is lost ([`crate::deposition`]) decide by these.

use crate::hearing::Ears;
use crate::history::Ancestry;
use crate::leader::Term;
use crate::lsn::Lsn;
use crate::member::Tags;
use crate::mixed;
use crate::name::{MemberName, Timeline};
use crate::reached::{self, End};
use crate::reason::Reason;
use crate::speech::{self, Apart};
use crate::sync::SyncState;
use crate::view::{Announcement, ClusterView};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::time::Duration;

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
    match named(view) {
        // Asked for by name: lag and sync state were for the operator who asked to weigh.
        Some(named) if named.name == me.name && named.whatever_it_lacks => return Ok(()),
        Some(named) if named.name != me.name && named.could && !me.primary => {
            return Err(Reason::OtherCandidateAsked(named.name));
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
        return Err(Reason::OlderTimeline { mine: me.timeline, cluster: current });
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
    let asked_for = named(view).is_some_and(|named| named.name == *me && named.whatever_it_lacks);
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

/// Whom a failover names.
pub(crate) struct Named {
    pub(crate) name: MemberName,
    /// It runs and has not refused: the others stand back. Were they to stand back for one that can't,
    /// a forgotten request would leave the cluster without a leader.
    pub(crate) could: bool,
    /// A failover: the operator who asked has weighed what it may lack.
    pub(crate) whatever_it_lacks: bool,
}

/// The member that a failover asks for, if there is such a member. A switchover asks the leader to
/// hand over; once the leader is gone it binds nobody. One of Patroni's gives its key up for that, and the request says for whom.
pub(crate) fn named(view: &ClusterView) -> Option<Named> {
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

/// Is this the word of the member that confirmed commits under that name? It is not where the data are less than that member had.
pub(crate) fn is_its_own(view: &ClusterView, name: &MemberName, word: &Announcement) -> bool {
    reached::lost_by(view, name, End { timeline: word.timeline, lsn: word.lsn }).is_none()
}
