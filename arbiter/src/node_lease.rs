//! The node's lease in the arbiter's hands: while no lease worker runs (no server yet, a planned stop,
//! a restart, a crash), so that the node keeps its member key, and its leadership where it has it.
//!
//! Never while the server serves: a server whose lease worker hangs must lose its lease.

use crate::config::NodeConfig;
use crate::settings;
use cluster::described::Described;
use cluster::leader::LeaseId;
use cluster::lease;
use cluster::member::{Member, MemberRole, MemberState, TenureFacts};
use cluster::name::MemberName;
use cluster::view::ClusterView;
use dcs::{Dcs, Error, Etcd, Grant};
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

/// The lease as the arbiter knows it.
#[derive(Debug, Clone, Copy)]
struct Held {
    grant: Grant,
    until: Instant,
}

/// Keeps the lease while told to.
pub struct NodeLease {
    etcd: Arc<Etcd>,
    config: Mutex<Arc<NodeConfig>>,
    held: Mutex<Option<Held>>,
    wanted: watch::Sender<Option<Word>>,
    described: Mutex<Described>,
    changed: Arc<Notify>,
}

/// The name is taken by another node.
#[derive(Debug, thiserror::Error)]
#[error(
    "the name {name} is in use by the node at {other}: give this node another name; if that node is gone, its key runs out within its TTL"
)]
pub struct NameClash {
    name: MemberName,
    other: String,
}

impl NodeLease {
    /// Holds nothing and keeps nothing yet. `changed` is notified when the lease was got or lost.
    pub fn new(etcd: Arc<Etcd>, config: Arc<NodeConfig>, changed: Arc<Notify>) -> NodeLease {
        NodeLease {
            etcd,
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
        self.current().map(|held| held.until)
    }

    fn current(&self) -> Option<Held> {
        let held = *self.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        held.filter(|held| Instant::now() < held.until)
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

    /// Is the name in use by another node, as this view shows?
    pub fn clash(&self, view: &ClusterView) -> Result<(), NameClash> {
        let Some(entry) = view.members.get(&self.config().name) else { return Ok(()) };
        if entry.member.conn_url == self.member(None).conn_url {
            return Ok(());
        }
        Err(NameClash { name: self.config().name.clone(), other: entry.member.conn_url.clone() })
    }

    fn member(&self, word: Option<&Word>) -> Member {
        let mut member: Member = match serde_json::from_value(settings::member(&self.config())) {
            Ok(member) => member,
            Err(why) => unreachable!("settings::member() writes every field that a member needs: {why}"),
        };
        if let Some(word) = word {
            member.state = word.state.clone();
            member.role = word.role.clone();
            member.tenure = Some(TenureFacts {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                arbiter: true,
                progress_percent: word.progress_percent,
                reason: word.reason.clone(),
                ..TenureFacts::default()
            });
            self.described.lock().unwrap_or_else(std::sync::PoisonError::into_inner).put_into(&mut member);
        }
        member
    }

    /// Renews once, now, and says whether the lease counts: what a promotion rests on.
    pub async fn confirm(&self, view: &ClusterView) -> bool {
        let Some(lease) = view.lease_of(&self.config().name) else { return false };
        match self.adopt(lease).await {
            Ok(held) => {
                self.hold(Some(held));
                true
            }
            Err(_) => false,
        }
    }

    async fn adopt(&self, lease: LeaseId) -> Result<Held, Error> {
        let known = self.current().filter(|held| held.grant.lease == lease).map(|held| held.grant);
        let grant = match known {
            Some(grant) => grant,
            None => self.etcd.find_lease(lease).await?,
        };
        let sent = Instant::now();
        self.etcd.renew(lease).await?;
        Ok(Held { grant, until: sent + grant.ttl.saturating_sub(lease::drift_margin(grant.ttl)) })
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
    async fn tend(&self, word: &Word, said: &mut Option<(Member, LeaseId)>) -> Result<Duration, Error> {
        let held = match self.current() {
            Some(held) => self.adopt(held.grant.lease).await,
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
        if said.as_ref() != Some(&(member.clone(), held.grant.lease)) {
            self.etcd.write_member(&self.config().name, &member, held.grant.lease, None).await?;
            *said = Some((member, held.grant.lease));
        }
        Ok(held.grant.ttl)
    }

    /// The lease under our name, or a new one with the member key on it.
    async fn acquire(&self, word: &Word, said: &mut Option<(Member, LeaseId)>) -> Result<Held, Error> {
        let view = self.etcd.load_view().await?;
        if let Err(why) = self.clash(&view) {
            return Err(Error::Refused(why.to_string()));
        }
        let entry = view.members.get(&self.config().name);
        if let Some(entry) = entry.filter(|entry| entry.lease != LeaseId::NONE) {
            match self.adopt(entry.lease).await {
                Err(Error::LeaseGone) => {}
                other => return other,
            }
        }
        let sent = Instant::now();
        let ttl = if view.config.is_some() { view.config().timing().ttl } else { self.first_ttl() };
        let grant = self.etcd.grant(ttl).await?;
        let judged = entry.map_or(0, |entry| entry.revision);
        let member = self.member(Some(word));
        if let Err(why) = self.etcd.write_member(&self.config().name, &member, grant.lease, Some(judged)).await {
            let _ = self.etcd.revoke(grant.lease).await;
            return Err(why);
        }
        *said = Some((member, grant.lease));
        Ok(Held { grant, until: sent + grant.ttl.saturating_sub(lease::drift_margin(grant.ttl)) })
    }

    /// Before there is a configuration in etcd: the one this node would found the cluster with.
    fn first_ttl(&self) -> Duration {
        cluster::config::DynamicConfig(self.config().bootstrap.dcs.clone()).timing().ttl
    }
}
