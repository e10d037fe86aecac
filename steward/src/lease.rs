//! The node's lease kept by the arbiter: while no lease worker runs (no server yet, a planned stop,
//! a restart, a crash), so that the node keeps its member key, and its leadership where it has it.
//!
//! Never while the server serves: a server whose lease worker hangs must lose its lease.

use crate::host::Host;
use cluster::instance::{self, Claim};
use cluster::leader::LeaseId;
use cluster::lease;
use cluster::member::{Member, MemberRole, MemberState};
use cluster::view::ClusterView;
use dcs::lease::{self as leases, HeldLease, NoLease};
use dcs::{Error, LocalDcs};
use futures_util::future::select;
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Pause before etcd is asked again after it gave no answer.
const RETRY: Duration = Duration::from_millis(250);

/// What the arbiter says in the member key while no server runs that could speak for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// The state.
    pub state: MemberState,
    /// The role.
    pub role: MemberRole,
    /// How far a clone is.
    pub progress_percent: Option<u8>,
    /// Why nothing is done, or why the last copy failed.
    pub reason: Option<String>,
}

/// What keeping the lease needs besides.
pub trait Keeper: Host {
    /// The member key as it is to be with this word; without one, what of it says which node and which instance this is.
    fn member(&self, word: Option<&Word>) -> Member;
    /// The TTL before there is a configuration in etcd: the one this node would found the cluster with.
    fn first_ttl(&self) -> Duration;
    /// etcd answers, and it is not believed.
    fn doubts(&self) -> bool;
    /// A lease was found or got.
    fn got_lease(&self);
    /// The word, or what is said besides, is another one: [`NodeLease::keep`] is to look. One permit, kept until it is taken.
    fn word_changed(&self);
    /// Waits for that.
    fn word_change(&self) -> impl Future<Output = ()>;
}

/// Keeps the lease while told to.
pub struct NodeLease<K> {
    /// The process that it runs in.
    pub keeper: K,
    held: Mutex<Option<HeldLease>>,
    wanted: Mutex<Option<Word>>,
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Keeper> NodeLease<K> {
    /// Holds nothing and keeps nothing yet.
    pub fn new(keeper: K) -> NodeLease<K> {
        NodeLease { keeper, held: Mutex::new(None), wanted: Mutex::new(None) }
    }

    /// The lease, if it counts now.
    pub fn current(&self) -> Option<HeldLease> {
        let held = *locked(&self.held);
        held.filter(|held| self.keeper.clock() < held.deadline)
    }

    /// The lease's number, if it counts now.
    pub fn lease(&self) -> Option<LeaseId> {
        self.current().map(|held| held.grant.lease)
    }

    fn set_held(&self, held: Option<HeldLease>) {
        *locked(&self.held) = held;
    }

    /// From now on the arbiter keeps the lease, and says this in the member key.
    pub fn take_over(&self, word: Word) {
        self.want(Some(word));
    }

    /// From now on the lease worker keeps the lease and speaks for the node.
    pub fn hand_to_worker(&self) {
        self.want(None);
    }

    fn want(&self, word: Option<Word>) {
        let mut wanted = locked(&self.wanted);
        if *wanted != word {
            *wanted = word;
            drop(wanted);
            self.keeper.word_changed();
        }
    }

    /// The arbiter keeps the lease now.
    pub fn keeps(&self) -> bool {
        locked(&self.wanted).is_some()
    }

    /// Another instance goes by the name: what is held is not counted on, and nothing is written.
    pub fn keep_out(&self) {
        self.hand_to_worker();
        self.set_held(None);
    }

    /// Renews once, now, and says whether the lease counts: what a promotion rests on.
    pub async fn confirm(&self, view: &ClusterView) -> bool {
        let Ok(Claim::Own { lease, .. }) = instance::claim(view, self.keeper.name(), &self.keeper.member(None)) else { return false };
        match leases::renew(self.keeper.store(), || self.keeper.clock(), lease).await {
            Ok(renewed) => {
                self.set_held(Some(renewed.held));
                renewed.doubt.is_none()
            }
            Err(_) => false,
        }
    }

    /// Keeps the lease for as long as the future is polled.
    pub async fn keep(&self) -> Infallible {
        let mut said: Option<(Member, LeaseId)> = None;
        loop {
            let word = locked(&self.wanted).clone();
            let pause = match &word {
                None => {
                    said = None;
                    Duration::MAX
                }
                Some(word) => match self.keep_once(word, &mut said).await {
                    Ok(ttl) => lease::renew_every(ttl),
                    Err(why) => {
                        self.keeper.debug(format_args!("lease not kept: {why}"));
                        RETRY
                    }
                },
            };
            select(pin!(self.keeper.word_change()), pin!(self.keeper.sleep(pause))).await;
        }
    }

    /// Renews or gets the lease and keeps the word in the member key up to date.
    async fn keep_once(&self, word: &Word, said: &mut Option<(Member, LeaseId)>) -> Result<Duration, NoLease> {
        let held = match self.current() {
            Some(held) => leases::renew(self.keeper.store(), || self.keeper.clock(), held.grant.lease).await.map(|renewed| renewed.held),
            None => Err(Error::LeaseGone),
        };
        let held = match held {
            Err(Error::LeaseGone) => {
                let held = self.acquire(word, said).await?;
                self.keeper.got_lease();
                held
            }
            other => other?,
        };
        self.set_held(Some(held));
        let member = self.keeper.member(Some(word));
        // An etcd that went back may go back once more, and this key with it: what was said then does not stand there any more.
        if self.keeper.doubts() || said.as_ref() != Some(&(member.clone(), held.grant.lease)) {
            self.keeper.store().write_member(self.keeper.name(), &member, held.grant.lease, None).await?;
            *said = Some((member, held.grant.lease));
        }
        Ok(held.grant.ttl)
    }

    /// The lease under our name, or a new one with the member key on it.
    async fn acquire(&self, word: &Word, said: &mut Option<(Member, LeaseId)>) -> Result<HeldLease, NoLease> {
        let member = self.keeper.member(Some(word));
        let ttl = |view: &ClusterView| if view.config.is_some() { view.config().timing().ttl } else { self.keeper.first_ttl() };
        let acquired = leases::acquire(self.keeper.store(), || self.keeper.clock(), self.keeper.name(), &member, ttl).await?;
        if acquired.is_new {
            *said = Some((member, acquired.held.grant.lease));
        }
        Ok(acquired.held)
    }
}
