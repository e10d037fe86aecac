//! The in-memory twin of etcd for one cluster: the same trait over a map with revisions and leases, the
//! clock in the test's hand.
//!
//! Leases live by etcd's rules: whole seconds with a least TTL, renewed to their full TTL, expired only
//! when a scan looks, extended in full when etcd changes its leader. Each write has the guards of `etcd.rs`. A leader of
//! before can be asked, too: it answers keep-alives as etcd 3.4.23 does, without asking anybody ([`InMemory::asked_of_deposed`]).
//! [`InMemory::next_fate`] loses requests and answers; a caller with a network of its own delays them.

mod verbs;

use crate::codec::to_bytes;
use crate::error::Error;
use crate::key::Keys;
use crate::remember::Remembered;
use crate::verbs::Result;
use cluster::leader::{Leader, LeaseId, Term};
use cluster::lease::Standing;
use cluster::name::{MemberName, SystemId, Timeline};
use cluster::store::{Making, Rebuild, Upgraded};
use cluster::sync::SyncState;
use cluster::view::{ClusterView, LastTerm};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// etcd looks for expired leases this often.
pub const SCAN_EVERY: Duration = Duration::from_millis(500);

/// The least TTL that etcd grants with its default election timeout of 1 s: 1.5 of it, in whole seconds.
pub const LEAST_TTL: Duration = Duration::from_secs(2);

/// etcd's cluster id: of its members' names and addresses, so also one that was emptied or restored has it.
const CLUSTER: u64 = 1;

/// What becomes of the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Applied and answered.
    Answered,
    /// The request is lost: nothing happens, the caller knows nothing.
    RequestLost,
    /// Applied, but the answer is lost: the caller knows nothing.
    AnswerLost,
    /// Applied twice, as by a client that tried again; the second answer is heard.
    Repeated,
}

#[derive(Debug, Clone)]
struct Stored {
    value: Vec<u8>,
    created: i64,
    modified: i64,
    lease: i64,
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    ttl: Duration,
    until: Duration,
}

#[derive(Debug)]
struct State {
    now: Duration,
    scanned: Duration,
    scan_every: Duration,
    revision: i64,
    keys: BTreeMap<String, Stored>,
    leases: BTreeMap<i64, Lease>,
    next_lease: i64,
    fates: VecDeque<Fate>,
    raft_term: u64,
    /// The term of the leader before this one, the revision that it had come to, and the leases that it knew, while it may still believe that it leads.
    deposed: Option<(u64, i64, BTreeMap<i64, Lease>)>,
    /// The call that is being answered reached that leader.
    asks_deposed: bool,
}

/// A backup of the whole store.
#[derive(Debug, Clone)]
pub struct Saved {
    revision: i64,
    keys: BTreeMap<String, Stored>,
    leases: BTreeMap<i64, Lease>,
}

/// One compared key of a guard.
enum Guard {
    Modified(String, i64),
    Absent(String),
}

/// One write of a transaction.
enum Write {
    Put(String, Vec<u8>, LeaseId),
    Delete(String),
}

/// etcd in memory, seen as one cluster's keys.
#[derive(Debug)]
pub struct InMemory {
    keys: Keys,
    state: Mutex<State>,
    /// By what answers are judged, where one node alone asks.
    remembered: Option<Arc<Remembered>>,
}

impl InMemory {
    /// Empty, at revision 1 and time 0.
    pub fn new(keys: Keys) -> InMemory {
        let state = State {
            now: Duration::ZERO,
            scanned: Duration::ZERO,
            scan_every: SCAN_EVERY,
            revision: 1,
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            next_lease: 1000,
            fates: VecDeque::new(),
            raft_term: 2,
            deposed: None,
            asks_deposed: false,
        };
        InMemory { keys, state: Mutex::new(state), remembered: None }
    }

    /// As `Etcd::remembering`, for a test of one node.
    pub fn remembering(self, remembered: Arc<Remembered>) -> InMemory {
        InMemory { remembered: Some(remembered), ..self }
    }

    fn memory(&self) -> cluster::store::Memory {
        self.remembered.as_ref().map(|remembered| remembered.memory()).unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster's keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// What an operator's backup has: keys, leases and the revision.
    pub fn save(&self) -> Saved {
        let state = self.state();
        Saved { revision: state.revision, keys: state.keys.clone(), leases: state.leases.clone() }
    }

    /// etcd is put back to a backup: every lease that was there then has its full time again.
    pub fn restore(&self, saved: &Saved, now: Duration) {
        let mut state = self.state();
        let before = (state.raft_term, state.revision, state.leases.clone());
        (state.revision, state.keys, state.leases) = (saved.revision, saved.keys.clone(), saved.leases.clone());
        drop(state);
        self.change_leader(now);
        // A member that nobody stopped knows what was there before.
        self.state().deposed = Some(before);
    }

    /// etcd is emptied: it begins again at its first revision.
    pub fn lose(&self) {
        let mut state = self.state();
        (state.revision, state.keys, state.leases) = (1, BTreeMap::new(), BTreeMap::new());
    }

    /// As `Etcd::rebuild`: an operator makes the cluster's keys again.
    pub fn rebuild(&self, plan: &Rebuild, judged: &ClusterView) -> Result<Term> {
        let keys = &self.keys;
        let modified = |key: String, revision: i64| if revision == 0 { Guard::Absent(key) } else { Guard::Modified(key, revision) };
        let when = vec![
            modified(keys.leader(), plan.replaces.as_ref().map_or(0, |leader| leader.term.0)),
            modified(keys.store(), ClusterView::revision_of(&judged.store)),
            modified(keys.initialize(), ClusterView::revision_of(&judged.initialize)),
        ];
        let upgraded = judged.store.as_ref().and_then(|store| store.value.upgraded.clone());
        let making = Making { generation: plan.generation, by: format!("{} at {}", plan.leader, judged.revision), upgraded };
        let then = || {
            let mut then = vec![
                put(keys.store(), to_bytes(&making)),
                put(keys.initialize(), plan.system_id.0.as_str().into()),
                self.put_leader(&plan.leader, plan.entry.lease),
                self.last_term(&plan.leader, "made again"),
                put(keys.sync(), to_bytes(&plan.sync)),
                put(keys.claimed_timeline(), to_bytes(&plan.timeline)),
                put(keys.failover(), b"{}".to_vec()),
                Write::Delete(keys.status()),
            ];
            then.extend(plan.config.iter().map(|config| put(keys.config(), to_bytes(config))));
            then
        };
        self.guarded("what the keys were", when, then).map(Term)
    }

    /// As `Etcd::upgraded`: the cluster goes on as another database system. No member of this etcd remembers a later making.
    pub fn upgraded(&self, leader: &Leader, judged: &ClusterView, to: &SystemId, timeline: Timeline, upgraded: &Upgraded) -> Result<()> {
        let keys = &self.keys;
        let when = vec![
            self.is_leader(leader),
            Guard::Modified(keys.store(), ClusterView::revision_of(&judged.store)),
            Guard::Modified(keys.initialize(), ClusterView::revision_of(&judged.initialize)),
            Guard::Modified(keys.sync(), ClusterView::revision_of(&judged.sync)),
        ];
        let making = Making {
            generation: judged.store_generation().saturating_add(1),
            by: format!("{} at {}", leader.name, judged.revision),
            upgraded: Some(upgraded.clone()),
        };
        let then = || {
            let mut then = vec![
                put(keys.store(), to_bytes(&making)),
                put(keys.initialize(), to.0.as_str().into()),
                put(keys.claimed_timeline(), to_bytes(&timeline)),
                put(keys.failover(), b"{}".to_vec()),
            ];
            then.extend([keys.history(), keys.status(), keys.failsafe()].map(Write::Delete));
            let alone = SyncState::of(&leader.name, &BTreeSet::new());
            let sync = judged.sync.as_ref().map(|sync| SyncState { other: sync.value.other.clone(), ..alone });
            then.extend(sync.map(|sync| put(keys.sync(), to_bytes(&sync))));
            then
        };
        self.guarded("what the cluster was", when, then).map(drop)
    }

    /// The revision of the last change.
    pub fn revision(&self) -> i64 {
        self.state().revision
    }

    /// Looks for expired leases this often instead: an etcd that lets go at the earliest moment.
    pub fn scan_every(&self, every: Duration) {
        self.state().scan_every = every;
    }

    /// Sets etcd's own clock, which never goes back. Gives the leases that a scan found expired since, in order.
    pub fn set_now(&self, now: Duration) -> Vec<LeaseId> {
        let mut state = self.state();
        let mut expired = Vec::new();
        let every = state.scan_every;
        while state.scanned + every <= now {
            state.scanned += every;
            let at = state.scanned;
            let due: Vec<i64> = state.leases.iter().filter(|(_, lease)| lease.until <= at).map(|(id, _)| *id).collect();
            for id in due {
                state.drop_lease(id);
                expired.push(LeaseId(id));
            }
        }
        state.now = state.now.max(now);
        expired
    }

    /// etcd elects another leader, or starts again: every lease gets its full TTL from now. Time in which no
    /// leader looked for expired leases is passed over.
    pub fn change_leader(&self, now: Duration) {
        let mut state = self.state();
        state.deposed = Some((state.raft_term, state.revision, state.leases.clone()));
        state.raft_term += 1;
        state.now = state.now.max(now);
        state.scanned = state.now;
        let now = state.now;
        for lease in state.leases.values_mut() {
            lease.until = now + lease.ttl;
        }
    }

    /// The leader of before has learned that it leads no more.
    pub fn deposed_knows(&self) {
        self.state().deposed = None;
    }

    /// Is there a leader of before that does not know yet?
    pub fn has_deposed(&self) -> bool {
        self.state().deposed.is_some()
    }

    /// The same call, where it reaches the leader of before: keep-alives are answered by what that one knows, under its
    /// raft term, and change nothing; everything else needs a majority, which it does not have.
    pub fn asked_of_deposed<T>(&self, ask: impl FnOnce(&InMemory) -> Result<T>) -> Result<T> {
        self.state().asks_deposed = true;
        let answer = ask(self);
        self.state().asks_deposed = false;
        answer
    }

    /// When a lease runs out by etcd's clock, if it is there.
    pub fn lease_until(&self, lease: LeaseId) -> Option<Duration> {
        self.state().leases.get(&lease.0).map(|lease| lease.until)
    }

    /// What becomes of the next calls, in order; those after them are answered.
    pub fn next_fate(&self, fate: Fate) {
        self.state().fates.push_back(fate);
    }

    /// Puts a value without any guard: what an operator or another program does by hand.
    pub fn put_by_hand(&self, key: String, value: &[u8]) {
        let _ = self.state().commit(&[], vec![Write::Put(key, value.to_vec(), LeaseId::NONE)]);
    }

    fn call<T>(&self, mut ask: impl FnMut(&mut State) -> Result<T>) -> Result<T> {
        let mut state = self.state();
        let lost = |what: &str| Err(Error::Unreachable(format!("the {what} was lost")));
        if state.asks_deposed {
            return Err(Error::Unreachable("this member of etcd has no majority".to_owned()));
        }
        match state.fates.pop_front().unwrap_or(Fate::Answered) {
            Fate::Answered => ask(&mut state),
            Fate::RequestLost => lost("request"),
            Fate::AnswerLost => {
                let _ = ask(&mut state);
                lost("answer")
            }
            Fate::Repeated => {
                let _ = ask(&mut state);
                ask(&mut state)
            }
        }
    }

    fn guarded(&self, what: &'static str, when: Vec<Guard>, then: impl Fn() -> Vec<Write>) -> Result<i64> {
        self.call(|state| state.commit(&when, then())?.ok_or(Error::Lost(what)))
    }

    fn last_term(&self, holder: &MemberName, how: &str) -> Write {
        put(self.keys.last_term(), to_bytes(&LastTerm { holder: holder.clone(), how: how.to_owned() }))
    }

    fn put_leader(&self, name: &MemberName, lease: LeaseId) -> Write {
        Write::Put(self.keys.leader(), name.as_str().into(), lease)
    }

    fn is_leader(&self, leader: &Leader) -> Guard {
        Guard::Modified(self.keys.leader(), leader.term.0)
    }
}

fn put(key: String, value: Vec<u8>) -> Write {
    Write::Put(key, value, LeaseId::NONE)
}

impl State {
    fn standing(&self) -> Standing {
        Standing { cluster: CLUSTER, raft_term: self.raft_term, revision: self.revision }
    }

    fn drop_lease(&mut self, id: i64) {
        self.leases.remove(&id);
        let before = self.keys.len();
        self.keys.retain(|_, stored| stored.lease != id);
        if self.keys.len() != before {
            self.revision += 1;
        }
    }

    /// One transaction: None where a guard fails, the new revision where it is done.
    fn commit(&mut self, when: &[Guard], then: Vec<Write>) -> Result<Option<i64>> {
        let holds = |guard: &Guard| match guard {
            Guard::Modified(key, revision) => self.keys.get(key).map_or(0, |stored| stored.modified) == *revision,
            Guard::Absent(key) => !self.keys.contains_key(key),
        };
        if !when.iter().all(holds) {
            return Ok(None);
        }
        // etcd checks every lease before it writes anything.
        let unknown = |write: &Write| matches!(write, Write::Put(_, _, lease) if lease.0 != 0 && !self.leases.contains_key(&lease.0));
        if then.iter().any(unknown) {
            return Err(Error::LeaseGone);
        }
        let changes = then.iter().any(|write| match write {
            Write::Put(..) => true,
            Write::Delete(key) => self.keys.contains_key(key),
        });
        self.revision += i64::from(changes);
        let revision = self.revision;
        for write in then {
            match write {
                Write::Put(key, value, lease) => {
                    let created = self.keys.get(&key).map_or(revision, |stored| stored.created);
                    self.keys.insert(key, Stored { value, created, modified: revision, lease: lease.0 });
                }
                Write::Delete(key) => drop(self.keys.remove(&key)),
            }
        }
        Ok(Some(revision))
    }
}

/// The result of a future that never waits, as those of [`InMemory`] are; None for one that does.
pub fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

#[cfg(test)]
mod tests;
