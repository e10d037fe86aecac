//! The in-memory twin of etcd for one cluster: the same trait over a map with revisions and leases, the
//! clock in the test's hand.
//!
//! Leases live by etcd's rules: whole seconds with a least TTL, renewed to their full TTL, expired only
//! when a scan looks, extended in full when etcd changes its leader. Each write has the guards of `etcd.rs`. A leader of
//! before can be asked, too: it answers keep-alives as etcd 3.4.23 does, without asking anybody ([`Memory::asked_of_deposed`]).
//! [`Memory::next_fate`] loses requests and answers; a caller with a network of its own delays them.

use crate::codec::{self, Raw, to_bytes};
use crate::error::Error;
use crate::key::Keys;
use crate::verbs::{Dcs, FirstKeys, Grant, HandOver, KeepAlive, LeaderLook, Result};
use cluster::config::DynamicConfig;
use cluster::deposition::Guarded;
use cluster::failover::FailoverRequest;
use cluster::failsafe::Members;
use cluster::history::History;
use cluster::leader::{Leader, LeaseId, Term};
use cluster::lease::Standing;
use cluster::member::Member;
use cluster::mixed;
use cluster::name::{MemberName, SystemId, Timeline};
use cluster::race::Judged;
use cluster::store::{Making, Rebuild};
use cluster::sync::SyncState;
use cluster::view::{Announcement, ClusterView, LastTerm, Status};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
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
pub struct Memory {
    keys: Keys,
    state: Mutex<State>,
}

impl Memory {
    /// Empty, at revision 1 and time 0.
    pub fn new(keys: Keys) -> Memory {
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
        Memory { keys, state: Mutex::new(state) }
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

    /// As `Etcd::rebuild`: an operator makes the cluster's keys anew.
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
                self.last_term(&plan.leader, "made anew"),
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
    pub fn asked_of_deposed<T>(&self, ask: impl FnOnce(&Memory) -> Result<T>) -> Result<T> {
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

/// The result of a future that never waits, as those of [`Memory`] are; None for one that does.
pub fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

impl Dcs for Memory {
    async fn load_view(&self) -> Result<ClusterView> {
        self.call(|state| {
            let raws =
                state.keys.iter().map(|(key, stored)| Raw { key, value: &stored.value, revision: stored.modified, lease: stored.lease });
            Ok(ClusterView { etcd: CLUSTER, ..codec::view(&self.keys, state.revision, raws) })
        })
    }

    async fn grant(&self, ttl: Duration) -> Result<Grant> {
        self.call(|state| {
            let ttl = Duration::from_secs(ttl.as_secs()).max(LEAST_TTL);
            state.next_lease += 1;
            let (id, until) = (state.next_lease, state.now + ttl);
            state.leases.insert(id, Lease { ttl, until });
            Ok(Grant { lease: LeaseId(id), ttl })
        })
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<KeepAlive> {
        let state = self.state();
        if state.asks_deposed {
            let (raft_term, revision, leases) = state.deposed.as_ref().ok_or(Error::Unreachable("no leader".to_owned()))?;
            // It knows no lease as gone that it let go by its own count: its word for that needs a majority.
            let known = leases.get(&lease.0).ok_or(Error::LeaseGone)?;
            let at = Standing { cluster: CLUSTER, raft_term: *raft_term, revision: *revision };
            return Ok(KeepAlive { grant: Grant { lease, ttl: known.ttl }, at });
        }
        drop(state);
        self.call(|state| {
            let now = state.now;
            // A lease whose time is up but that no scan has found is not renewed, as in etcd.
            let found = state.leases.get_mut(&lease.0).filter(|found| found.until > now).ok_or(Error::LeaseGone)?;
            found.until = now + found.ttl;
            let ttl = found.ttl;
            Ok(KeepAlive { grant: Grant { lease, ttl }, at: state.standing() })
        })
    }

    async fn look_at_leader(&self) -> Result<LeaderLook> {
        let key = self.keys.leader();
        self.call(|state| {
            let leader = state.keys.get(&key).and_then(|stored| {
                let name = MemberName::new(std::str::from_utf8(&stored.value).ok()?).ok()?;
                Some(Leader { name, lease: LeaseId(stored.lease), term: Term(stored.modified) })
            });
            Ok(LeaderLook { leader, at: state.standing() })
        })
    }

    async fn is_in_use(&self, lease: LeaseId) -> Result<bool> {
        self.call(|state| Ok(state.keys.values().any(|stored| stored.lease == lease.0)))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        self.call(|state| {
            if !state.leases.contains_key(&lease.0) {
                return Err(Error::LeaseGone);
            }
            state.drop_lease(lease.0);
            Ok(())
        })
    }

    async fn write_member(&self, name: &MemberName, member: &Member, lease: LeaseId, judged: Option<i64>) -> Result<()> {
        let key = self.keys.member(name);
        let guard = judged.map(|revision| Guard::Modified(key.clone(), revision)).into_iter().collect();
        self.guarded("the member key", guard, || vec![Write::Put(key.clone(), to_bytes(member), lease)]).map(drop)
    }

    async fn take_leader(&self, name: &MemberName, lease: LeaseId, judged: &Judged) -> Result<Term> {
        let mut when = vec![
            Guard::Modified(self.keys.leader(), if judged.deposes { judged.after.0 } else { 0 }),
            Guard::Modified(self.keys.last_term(), judged.after.0),
            Guard::Modified(self.keys.sync(), judged.sync),
            Guard::Modified(self.keys.config(), judged.config),
            Guard::Modified(self.keys.failover(), judged.failover),
        ];
        when.extend(judged.announcements.iter().map(|(name, revision)| Guard::Modified(self.keys.announcement(name), *revision)));
        let then = || {
            let mut then = vec![self.put_leader(name, lease), self.last_term(name, if judged.deposes { "deposed" } else { "taken" })];
            if let Some(sync) = &judged.sync_becomes {
                then.push(put(self.keys.sync(), to_bytes(sync)));
            }
            if judged.failover != 0 {
                then.push(put(self.keys.failover(), b"{}".to_vec()));
            }
            then
        };
        self.guarded("what the race was judged by", when, then).map(Term)
    }

    async fn hand_over(&self, hand_over: &HandOver) -> Result<Term> {
        let HandOver { from, to, to_lease, sync, failover, status } = hand_over;
        let mut when = vec![self.is_leader(from)];
        when.extend(sync.iter().map(|(_, judged)| Guard::Modified(self.keys.sync(), *judged)));
        when.extend(failover.iter().map(|judged| Guard::Modified(self.keys.failover(), *judged)));
        let then = || {
            let mut then = vec![self.put_leader(to, *to_lease), self.last_term(to, "handed over")];
            then.extend(sync.iter().map(|(state, _)| put(self.keys.sync(), to_bytes(state))));
            then.extend(failover.iter().map(|_| put(self.keys.failover(), b"{}".to_vec())));
            then.extend(status.iter().map(|status| put(self.keys.status(), to_bytes(status))));
            then
        };
        self.guarded("the leader key", when, then).map(Term)
    }

    async fn release_leader(&self, leader: &Leader) -> Result<()> {
        self.guarded("the leader key", vec![self.is_leader(leader)], || vec![Write::Delete(self.keys.leader())]).map(drop)
    }

    async fn note_term(&self, leader: &Leader, judged: i64) -> Result<()> {
        let when = vec![self.is_leader(leader), Guard::Modified(self.keys.last_term(), judged)];
        self.guarded("the leader key", when, || vec![self.last_term(&leader.name, mixed::BY_PATRONI)]).map(drop)
    }

    async fn move_leader(&self, leader: &Leader, member: &Member, lease: LeaseId) -> Result<Term> {
        let then = || {
            vec![
                self.put_leader(&leader.name, lease),
                self.last_term(&leader.name, "moved to another lease"),
                Write::Put(self.keys.member(&leader.name), to_bytes(member), lease),
            ]
        };
        self.guarded("the leader key", vec![self.is_leader(leader)], then).map(Term)
    }

    async fn announce(&self, name: &MemberName, word: &Announcement, lease: LeaseId) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.last_term(), word.after.0)];
        self.guarded("the vacancy", when, || vec![Write::Put(self.keys.announcement(name), to_bytes(word), lease)]).map(drop)
    }

    async fn say(&self, name: &MemberName, said: &Guarded, lease: LeaseId) -> Result<()> {
        let key = self.keys.announcement(name);
        let when = vec![Guard::Modified(self.keys.leader(), said.leader.0), Guard::Modified(key.clone(), said.mine)];
        self.guarded("the leader or this node's own word", when, || vec![Write::Put(key.clone(), to_bytes(&said.word), lease)]).map(drop)
    }

    async fn claim_initialize(&self, _name: &MemberName, lease: LeaseId) -> Result<i64> {
        let key = self.keys.initialize();
        self.call(|state| {
            let own = state.keys.get(&key).filter(|found| found.value.is_empty() && found.lease == lease.0);
            if let Some(claim) = own.map(|found| found.modified) {
                return Ok(claim);
            }
            let claim = vec![Write::Put(key.clone(), Vec::new(), lease)];
            state.commit(&[Guard::Absent(key.clone())], claim)?.ok_or(Error::Lost("the initialize key"))
        })
    }

    async fn unclaim_initialize(&self, claim: i64) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.initialize(), claim)];
        self.guarded("the initialize key", when, || vec![Write::Delete(self.keys.initialize())]).map(drop)
    }

    async fn lead_first(&self, name: &MemberName, lease: LeaseId, claim: i64, first: &FirstKeys) -> Result<Term> {
        let when = vec![Guard::Modified(self.keys.initialize(), claim), Guard::Absent(self.keys.leader())];
        let then = || {
            let mut then = vec![
                put(self.keys.config(), to_bytes(&first.config)),
                put(self.keys.store(), to_bytes(&first.making)),
                self.put_leader(name, lease),
                self.last_term(name, "bootstrapped"),
            ];
            then.extend(first.sync.iter().map(|sync| put(self.keys.sync(), to_bytes(sync))));
            then.extend(first.timeline.iter().map(|timeline| put(self.keys.claimed_timeline(), to_bytes(timeline))));
            then
        };
        self.guarded("the initialize key", when, then).map(Term)
    }

    async fn found(&self, leader: &Leader, claim: i64, system_id: &SystemId) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.initialize(), claim), self.is_leader(leader)];
        self.guarded("the initialize key", when, || vec![put(self.keys.initialize(), system_id.0.as_str().into())]).map(drop)
    }

    async fn write_initialize(&self, system_id: &SystemId, judged: i64, leader: &Leader) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.initialize(), judged), self.is_leader(leader)];
        self.guarded("the initialize key", when, || vec![put(self.keys.initialize(), system_id.0.as_str().into())]).map(drop)
    }

    async fn write_store(&self, making: &Making, leader: &Leader) -> Result<()> {
        let when = vec![Guard::Absent(self.keys.store()), self.is_leader(leader)];
        self.guarded("the store key", when, || vec![put(self.keys.store(), to_bytes(making))]).map(drop)
    }

    async fn write_config(&self, config: &DynamicConfig, judged: i64) -> Result<i64> {
        let when = vec![Guard::Modified(self.keys.config(), judged)];
        self.guarded("the configuration", when, || vec![put(self.keys.config(), to_bytes(&config.0))])
    }

    async fn write_sync(&self, sync: &SyncState, judged: i64, leader: &Leader) -> Result<i64> {
        let when = vec![Guard::Modified(self.keys.sync(), judged), self.is_leader(leader)];
        self.guarded("the sync key", when, || vec![put(self.keys.sync(), to_bytes(sync))])
    }

    async fn write_history(&self, history: &History, judged: i64, leader: &Leader) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.history(), judged), self.is_leader(leader)];
        self.guarded("the history", when, || vec![put(self.keys.history(), to_bytes(&history.to_json()))]).map(drop)
    }

    async fn claim_timeline(&self, timeline: Timeline, judged: i64, leader: &Leader) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.claimed_timeline(), judged), self.is_leader(leader)];
        self.guarded("the claimed timeline", when, || vec![put(self.keys.claimed_timeline(), to_bytes(&timeline))]).map(drop)
    }

    async fn write_failsafe(&self, members: &Members, judged: i64, leader: &Leader) -> Result<()> {
        let when = vec![Guard::Modified(self.keys.failsafe(), judged), self.is_leader(leader)];
        self.guarded("the failsafe key", when, || vec![put(self.keys.failsafe(), to_bytes(members))]).map(drop)
    }

    async fn write_status(&self, status: &Status, leader: &Leader) -> Result<()> {
        let when = vec![self.is_leader(leader)];
        self.guarded("the leader key", when, || vec![put(self.keys.status(), to_bytes(status))]).map(drop)
    }

    async fn write_failover(&self, request: &FailoverRequest, judged: i64) -> Result<i64> {
        let when = vec![Guard::Modified(self.keys.failover(), judged)];
        self.guarded("the failover key", when, || vec![put(self.keys.failover(), to_bytes(request))])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::name::Scope;

    fn memory() -> Memory {
        Memory::new(Keys::new("service", &Scope::new("demo").unwrap()))
    }

    fn name(text: &str) -> MemberName {
        MemberName::new(text).unwrap()
    }

    fn vacancy() -> Judged {
        Judged {
            after: Term(0),
            deposes: false,
            sync: 0,
            config: 0,
            failover: 0,
            announcements: vec![],
            sync_becomes: None,
            position: None,
        }
    }

    fn take(memory: &Memory, who: &str, lease: LeaseId) -> Result<Term> {
        at_once(memory.take_leader(&name(who), lease, &vacancy())).unwrap()
    }

    fn grant(memory: &Memory, seconds: u64) -> Grant {
        at_once(memory.grant(Duration::from_secs(seconds))).unwrap().unwrap()
    }

    #[test]
    fn one_vacancy_has_one_winner_and_an_answer_may_be_lost() {
        let memory = memory();
        let (a, b) = (grant(&memory, 10), grant(&memory, 10));
        memory.next_fate(Fate::AnswerLost);
        assert!(matches!(take(&memory, "a", a.lease), Err(Error::Unreachable(_))));
        assert!(matches!(take(&memory, "b", b.lease), Err(Error::Lost(_))));
        let view = at_once(memory.load_view()).unwrap().unwrap();
        let leader = view.leader.clone().unwrap();
        assert_eq!((leader.name.as_str(), leader.term), ("a", view.last_term()));
        // A client that tries again hears of its own write as of another's.
        at_once(memory.release_leader(&leader)).unwrap().unwrap();
        memory.next_fate(Fate::RequestLost);
        assert!(matches!(at_once(memory.load_view()).unwrap(), Err(Error::Unreachable(_))));
        assert!(at_once(memory.load_view()).unwrap().unwrap().leader.is_none());
    }

    #[test]
    fn leases_have_whole_seconds_and_end_at_a_scan() {
        let memory = memory();
        assert_eq!(at_once(memory.grant(Duration::from_millis(3999))).unwrap().unwrap().ttl, Duration::from_secs(3));
        assert_eq!(grant(&memory, 1).ttl, LEAST_TTL);
        let memory = self::memory();
        memory.set_now(Duration::from_millis(300));
        let lease = grant(&memory, 3).lease;
        take(&memory, "a", lease).unwrap();
        assert_eq!(memory.set_now(Duration::from_millis(3400)), []);
        assert!(at_once(memory.load_view()).unwrap().unwrap().leader.is_some(), "its time is up, but nobody has looked");
        assert_eq!(at_once(memory.keep_alive(lease)).unwrap(), Err(Error::LeaseGone));
        assert_eq!(memory.set_now(Duration::from_millis(3500)), [lease]);
        assert!(at_once(memory.load_view()).unwrap().unwrap().leader.is_none());
    }

    #[test]
    fn a_new_leader_of_etcd_gives_every_lease_its_full_time() {
        let memory = memory();
        let lease = grant(&memory, 10).lease;
        memory.set_now(Duration::from_secs(9));
        memory.change_leader(Duration::from_secs(12));
        assert_eq!(memory.set_now(Duration::from_millis(21_900)), []);
        assert_eq!(memory.set_now(Duration::from_secs(22)), [lease]);
    }

    #[test]
    fn a_deposed_leader_answers_a_keep_alive_and_that_alone_renews_nothing() {
        let memory = memory();
        let lease = grant(&memory, 10).lease;
        take(&memory, "a", lease).unwrap();
        let clock = || cluster::time::Moment::default();
        memory.change_leader(Duration::from_secs(1));
        let kept = memory.asked_of_deposed(|etcd| at_once(etcd.keep_alive(lease)).unwrap()).unwrap();
        let look = at_once(memory.look_at_leader()).unwrap().unwrap();
        assert!(!cluster::lease::counts(kept.at, look.at));
        assert_eq!(memory.lease_until(lease), Some(Duration::from_secs(11)), "it was asked, and nothing came of it");
        assert!(memory.asked_of_deposed(|etcd| at_once(etcd.look_at_leader()).unwrap()).is_err());
        // What is granted now the deposed one does not know: its no is no fact.
        let later = grant(&memory, 10).lease;
        let refused = memory.asked_of_deposed(|etcd| at_once(etcd.keep_alive(later)).unwrap());
        assert_eq!(refused.unwrap_err(), Error::LeaseGone);
        let renewed = at_once(crate::lease::renew(&memory, clock, lease)).unwrap().unwrap();
        assert_eq!(renewed.leader.map(|leader| leader.lease), Some(lease));
    }

    #[test]
    fn a_restored_store_in_the_same_raft_term_proves_no_keep_alive_of_a_member_of_before() {
        let memory = memory();
        let lease = grant(&memory, 10).lease;
        take(&memory, "a", lease).unwrap();
        let saved = memory.save();
        memory.put_by_hand("/x".to_owned(), b"");
        memory.restore(&saved, Duration::from_secs(1));
        let kept = memory.asked_of_deposed(|etcd| at_once(etcd.keep_alive(lease)).unwrap()).unwrap();
        // It counts its terms anew, and happens to be in the one in which that member believes that it leads.
        memory.state().raft_term = kept.at.raft_term;
        let look = at_once(memory.look_at_leader()).unwrap().unwrap();
        assert_eq!((look.leader.map(|leader| leader.lease), look.at.raft_term), (Some(lease), kept.at.raft_term));
        assert!(!cluster::lease::counts(kept.at, look.at), "{:?} {:?}", kept.at, look.at);
    }

    #[test]
    fn what_a_restored_or_an_emptied_store_says_is_not_believed_by_who_remembers() {
        use crate::remember::Remembered;
        use cluster::store::Doubt;
        let memory = memory();
        let remembered = Remembered::default();
        let look = |memory: &Memory| {
            let asked = remembered.memory();
            remembered.believe(&asked, at_once(memory.load_view()).unwrap().unwrap())
        };
        memory.put_by_hand(memory.keys().initialize(), b"7");
        let first = grant(&memory, 10).lease;
        let term = take(&memory, "a", first).unwrap();
        assert_eq!(look(&memory).unwrap().leader.unwrap().term, term);
        let saved = memory.save();
        let leader = Leader { name: name("a"), lease: first, term };
        let second = grant(&memory, 10).lease;
        let to = HandOver { from: leader, to: name("b"), to_lease: second, sync: None, failover: None, status: None };
        at_once(memory.hand_over(&to)).unwrap().unwrap();
        assert_eq!(look(&memory).unwrap().leader.unwrap().name, name("b"));
        memory.restore(&saved, Duration::ZERO);
        assert!(matches!(look(&memory), Err(Error::Doubted { doubt: Doubt::Revision { .. }, .. })));
        memory.put_by_hand("/x".to_owned(), b"");
        assert!(matches!(look(&memory), Err(Error::Doubted { doubt: Doubt::Term { .. }, .. })), "its revision has passed what was known");
        let (why, word) = remembered.word();
        assert!(why.is_some() && word.is_some_and(|word| word.holder == Some(name("b"))));
        memory.lose();
        assert!(matches!(look(&memory), Err(Error::Doubted { doubt: Doubt::Emptied(..), .. })));
        assert_eq!(memory.revision(), 1);
    }

    #[test]
    fn a_write_on_a_lease_that_is_gone_writes_nothing() {
        let memory = memory();
        let lease = grant(&memory, 10).lease;
        at_once(memory.revoke(lease)).unwrap().unwrap();
        let revision = memory.revision();
        assert_eq!(take(&memory, "a", lease), Err(Error::LeaseGone));
        assert_eq!(memory.revision(), revision);
        assert!(at_once(memory.load_view()).unwrap().unwrap().last_term.is_none());
    }
}
