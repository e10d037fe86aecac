//! The node's lease kept by the arbiter: while no lease worker runs (no server yet, a planned stop,
//! a restart, a crash), so that the node keeps its member key, and its leadership where it has it.
//!
//! Never while the server serves: a server whose lease worker hangs must lose its lease.

use crate::config::NodeConfig;
use crate::ground::clock::boottime;
use crate::node::settings;
use cluster::described::Described;
use cluster::instance::{self, Claim, InUse, Instance};
use cluster::leader::LeaseId;
use cluster::lease;
use cluster::member::{Member, MemberRole, MemberState, TenureFacts};
use cluster::view::ClusterView;
use dcs::lease::{self as leases, Held, NoLease};
use dcs::{Dcs, Error, Etcd};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

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

/// Keeps the lease while told to.
pub struct NodeLease {
    etcd: Arc<Etcd>,
    config: Mutex<Arc<NodeConfig>>,
    held: Mutex<Option<Held>>,
    wanted: watch::Sender<Option<Word>>,
    described: Mutex<Described>,
    changed: Arc<Notify>,
    /// Which instance goes by the node's name here.
    instance: Option<Instance>,
}

impl NodeLease {
    /// Holds nothing and keeps nothing yet. `changed` is notified when the lease was got or lost.
    pub fn new(etcd: Arc<Etcd>, config: Arc<NodeConfig>, changed: Arc<Notify>) -> NodeLease {
        NodeLease {
            etcd,
            instance: dcs::instance::here(&config.postgres.data_dir),
            config: Mutex::new(config),
            held: Mutex::new(None),
            wanted: watch::Sender::new(None),
            described: Mutex::default(),
            changed,
        }
    }

    /// The node's file was read again: what the member key says of it is written at once where it is ours to write.
    pub fn reconfigure(&self, config: Arc<NodeConfig>) {
        *self.config.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = config;
        self.wanted.send_modify(|_| ());
    }

    fn config(&self) -> Arc<NodeConfig> {
        self.config.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// The lease, if it counts now.
    pub fn lease(&self) -> Option<LeaseId> {
        self.current().map(|held| held.grant.lease)
    }

    /// Until when the lease counts.
    pub fn until(&self) -> Option<Instant> {
        self.current().map(|held| Instant::now() + held.deadline.since(boottime()))
    }

    fn current(&self) -> Option<Held> {
        let held = *self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        held.filter(|held| boottime() < held.deadline)
    }

    fn hold(&self, held: Option<Held>) {
        *self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = held;
    }

    /// From now on the arbiter keeps the lease and speaks for the node; None: the lease worker does.
    pub fn speak(&self, word: Option<Word>) {
        self.wanted.send_if_modified(|wanted| {
            let different = *wanted != word;
            *wanted = word;
            different
        });
    }

    /// What the member key is to say besides, while it is ours to write.
    pub fn describe(&self, described: &Described) {
        let mut last = self.described.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *last != *described {
            *last = described.clone();
            drop(last);
            // Written at once where it is ours to write.
            self.wanted.send_modify(|_| ());
        }
    }

    /// The arbiter keeps the lease now.
    pub fn speaking(&self) -> bool {
        self.wanted.borrow().is_some()
    }

    /// Is the name in use by another instance, as this view shows?
    pub fn in_use(&self, view: &ClusterView) -> Option<InUse> {
        instance::in_use(view, &self.config().name, &self.member(None), self.lease())
    }

    /// Another instance goes by the name: what is held is not counted on, and nothing is written.
    pub fn keep_out(&self) {
        self.speak(None);
        self.hold(None);
    }

    fn member(&self, word: Option<&Word>) -> Member {
        let mut member: Member = match serde_json::from_value(settings::member(&self.config())) {
            Ok(member) => member,
            Err(why) => unreachable!("settings::member() writes every field that a member needs: {why}"),
        };
        member.tenure = Some(TenureFacts { instance: self.instance.clone(), ..TenureFacts::default() });
        if let Some(word) = word {
            member.state = word.state.clone();
            member.role = word.role.clone();
            member.tenure = Some(TenureFacts {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                speech: Some(cluster::speech::OURS),
                instance: self.instance.clone(),
                arbiter: true,
                progress_percent: word.progress_percent,
                reason: word.reason.clone(),
                ..TenureFacts::default()
            });
            if let (Some(facts), Some(remembered)) = (&mut member.tenure, self.etcd.remembered()) {
                (facts.doubt, facts.memory) = remembered.word();
            }
            self.described.lock().unwrap_or_else(std::sync::PoisonError::into_inner).put_into(&mut member);
        }
        member
    }

    /// Renews once, now, and says whether the lease counts: what a promotion rests on.
    pub async fn confirm(&self, view: &ClusterView) -> bool {
        let Ok(Claim::Own { lease, .. }) = instance::claim(view, &self.config().name, &self.member(None)) else { return false };
        match leases::renew(&*self.etcd, boottime, lease).await {
            Ok(renewed) => {
                self.hold(Some(renewed.held));
                true
            }
            Err(_) => false,
        }
    }

    /// Keeps the lease for as long as the future is polled.
    pub async fn keep(&self) {
        let mut wanted = self.wanted.subscribe();
        let mut said: Option<(Member, LeaseId)> = None;
        loop {
            let word = wanted.borrow_and_update().clone();
            let pause = match &word {
                None => {
                    said = None;
                    Duration::MAX
                }
                Some(word) => match self.tend(word, &mut said).await {
                    Ok(ttl) => lease::renew_every(ttl),
                    Err(why) => {
                        tracing::debug!("lease not kept: {why}");
                        RETRY
                    }
                },
            };
            tokio::select! {
                _ = wanted.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Renews or gets the lease and keeps the word in the member key up to date.
    async fn tend(&self, word: &Word, said: &mut Option<(Member, LeaseId)>) -> Result<Duration, NoLease> {
        let held = match self.current() {
            Some(held) => leases::renew(&*self.etcd, boottime, held.grant.lease).await.map(|renewed| renewed.held),
            None => Err(Error::LeaseGone),
        };
        let held = match held {
            Err(Error::LeaseGone) => {
                let held = self.acquire(word, said).await?;
                self.changed.notify_one();
                held
            }
            other => other?,
        };
        self.hold(Some(held));
        let member = self.member(Some(word));
        // An etcd that went back may go back once more, and this key with it: what was said then does not stand there any more.
        let doubts = self.etcd.remembered().is_some_and(|remembered| remembered.doubt().is_some());
        if doubts || said.as_ref() != Some(&(member.clone(), held.grant.lease)) {
            self.etcd.write_member(&self.config().name, &member, held.grant.lease, None).await?;
            *said = Some((member, held.grant.lease));
        }
        Ok(held.grant.ttl)
    }

    /// The lease under our name, or a new one with the member key on it.
    async fn acquire(&self, word: &Word, said: &mut Option<(Member, LeaseId)>) -> Result<Held, NoLease> {
        let member = self.member(Some(word));
        let ttl = |view: &ClusterView| if view.config.is_some() { view.config().timing().ttl } else { self.first_ttl() };
        let acquired = leases::acquire(&*self.etcd, boottime, &self.config().name, &member, ttl).await?;
        if acquired.is_new {
            *said = Some((member, acquired.held.grant.lease));
        }
        Ok(acquired.held)
    }

    /// Before there is a configuration in etcd: the one this node would found the cluster with.
    fn first_ttl(&self) -> Duration {
        cluster::config::DynamicConfig(self.config().bootstrap.dcs.clone()).timing().ttl
    }
}
