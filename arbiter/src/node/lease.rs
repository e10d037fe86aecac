//! What `steward`'s node lease needs of this process: etcd, the node's file, a clock, and what the member key is to say.

use crate::config::NodeConfig;
use crate::ground::clock::boottime;
use crate::node::settings;
use cluster::described::Described;
use cluster::instance::{self, InUse, Instance};
use cluster::leader::LeaseId;
use cluster::member::{Member, TenureFacts};
use cluster::name::MemberName;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::Etcd;
use std::fmt::Arguments;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use steward::lease::Keeper;
pub use steward::lease::Word;
use steward::{Host, Tone};
use tokio::sync::Notify;

/// Writes a sentence of the procedures into this process's log.
pub fn tell(tone: Tone, text: Arguments<'_>) {
    match tone {
        Tone::Debug => tracing::debug!("{text}"),
        Tone::Info => tracing::info!("{text}"),
        Tone::Warning => tracing::warn!("{text}"),
        Tone::Error => tracing::error!("{text}"),
    }
}

/// Keeps the lease while told to.
pub struct NodeLease(steward::lease::NodeLease<Here>);

/// This process, for the lease.
struct Here {
    etcd: Arc<Etcd>,
    name: MemberName,
    config: Mutex<Arc<NodeConfig>>,
    described: Mutex<Described>,
    changed: Arc<Notify>,
    word_changed: Notify,
    /// Which instance goes by the node's name here.
    instance: Option<Instance>,
}

impl Here {
    fn config(&self) -> Arc<NodeConfig> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Host for Here {
    type Store = Etcd;

    fn store(&self) -> &Etcd {
        &self.etcd
    }

    fn name(&self) -> &MemberName {
        &self.name
    }

    fn clock(&self) -> Moment {
        boottime()
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn tell(&self, tone: Tone, text: Arguments<'_>) {
        tell(tone, text);
    }
}

impl Keeper for Here {
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
            self.described.lock().unwrap_or_else(PoisonError::into_inner).put_into(&mut member);
        }
        member
    }

    fn first_ttl(&self) -> Duration {
        cluster::config::DynamicConfig(self.config().bootstrap.dcs.clone()).timing().ttl
    }

    fn doubts(&self) -> bool {
        self.etcd.remembered().is_some_and(|remembered| remembered.doubt().is_some())
    }

    fn got_lease(&self) {
        self.changed.notify_one();
    }

    fn word_changed(&self) {
        self.word_changed.notify_one();
    }

    async fn word_change(&self) {
        self.word_changed.notified().await;
    }
}

impl NodeLease {
    /// Holds nothing and keeps nothing yet. `changed` is notified when the lease was got or lost.
    pub fn new(etcd: Arc<Etcd>, config: Arc<NodeConfig>, changed: Arc<Notify>) -> NodeLease {
        NodeLease(steward::lease::NodeLease::new(Here {
            etcd,
            name: config.name.clone(),
            instance: dcs::instance::here(&config.postgres.data_dir),
            config: Mutex::new(config),
            described: Mutex::default(),
            changed,
            word_changed: Notify::new(),
        }))
    }

    /// The node's file was read again: what the member key says of it is written at once where it is ours to write.
    pub fn reconfigure(&self, config: Arc<NodeConfig>) {
        *self.0.keeper.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        self.0.keeper.word_changed();
    }

    /// The lease, if it counts now.
    pub fn lease(&self) -> Option<LeaseId> {
        self.0.lease()
    }

    /// Until when the lease counts.
    pub fn until(&self) -> Option<Instant> {
        self.0.current().map(|held| Instant::now() + held.deadline.since(boottime()))
    }

    /// From now on the arbiter keeps the lease, and says this in the member key.
    pub fn take_over(&self, word: Word) {
        self.0.take_over(word);
    }

    /// From now on the lease worker keeps the lease and speaks for the node.
    pub fn hand_to_worker(&self) {
        self.0.hand_to_worker();
    }

    /// What the member key is to say besides, while it is ours to write.
    pub fn describe(&self, described: &Described) {
        let mut last = self.0.keeper.described.lock().unwrap_or_else(PoisonError::into_inner);
        if *last != *described {
            *last = described.clone();
            drop(last);
            // Written at once where it is ours to write.
            self.0.keeper.word_changed();
        }
    }

    /// The arbiter keeps the lease now.
    pub fn keeps(&self) -> bool {
        self.0.keeps()
    }

    /// Is the name in use by another instance, as this view shows?
    pub fn in_use(&self, view: &ClusterView) -> Option<InUse> {
        instance::in_use(view, &self.0.keeper.name, &self.0.keeper.member(None), self.lease())
    }

    /// Another instance goes by the name: what is held is not counted on, and nothing is written.
    pub fn keep_out(&self) {
        self.0.keep_out();
    }

    /// Renews once, now, and says whether the lease counts: what a promotion rests on.
    pub async fn confirm(&self, view: &ClusterView) -> bool {
        self.0.confirm(view).await
    }

    /// Keeps the lease for as long as the future is polled.
    pub async fn keep(&self) {
        match self.0.keep().await {}
    }
}
