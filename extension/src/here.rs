//! `keeper`'s host: this process of Postgres, its shared memory, its settings.

use crate::hear::Places;
use crate::shmem::{self, page};
use crate::{bond, mailbox, observe, publish, recovered};
use cluster::citus::{self, Groups};
use cluster::deposition::{Answer, Bond};
use cluster::described::Described;
use cluster::health::Vitals;
use cluster::member::Member;
use cluster::name::{MemberName, Scope, SystemId, Timeline};
use cluster::slots::Publication;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::Etcd;
use dcs::remember::Remembered;
use keeper::{Host, Server, Tenure};
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, Notify};

/// The process of the lease worker.
pub struct Here {
    /// The cluster's store.
    pub etcd: Arc<Etcd>,
    /// This node.
    pub name: MemberName,
    /// The cluster.
    pub scope: Scope,
    /// On a Citus coordinator: the other groups as last read, and when.
    pub others: RefCell<Option<(Groups, Moment)>>,
    /// How this server is, as last seen.
    pub vitals: RefCell<Option<Vitals>>,
    /// Held while a request of SQL's is served.
    pub serving: Mutex<()>,
    /// Wakes the turns.
    pub wake: Arc<Notify>,
    /// Wakes the keeper.
    lease_wanted: Notify,
    /// Wakes the listener, and how many receivers' ends it knows.
    listen: Notify,
    receiver_ends: Cell<u32>,
    /// A bond is being written or taken away: what lies with the data is not known to this process.
    keeping: AtomicBool,
    /// Where the leader is.
    places: Places,
    /// What was wrong with the snapshot or the other groups, so that only changes are told.
    told: RefCell<String>,
}

impl Here {
    /// The host of a worker with these settings.
    pub fn new(etcd: Arc<Etcd>, name: MemberName, scope: Scope) -> Here {
        let (others, told, vitals) = (RefCell::default(), RefCell::default(), RefCell::default());
        let (wake, lease_wanted, listen, receiver_ends) =
            (Arc::new(Notify::new()), Notify::new(), Notify::new(), Cell::new(page().receiver_ends()));
        let (keeping, places) = (AtomicBool::new(false), Places::default());
        Here {
            etcd,
            name,
            scope,
            others,
            vitals,
            serving: Mutex::new(()),
            wake,
            lease_wanted,
            listen,
            receiver_ends,
            keeping,
            places,
            told,
        }
    }

    /// Somebody woke this process: the listener, too, where a receiver has ended.
    pub fn was_woken(&self) {
        self.wake.notify_one();
        let ends = page().receiver_ends();
        if self.receiver_ends.replace(ends) != ends {
            self.listen.notify_one();
        }
    }

    /// Whoever waited for a bond to be kept was interrupted.
    pub fn is_keeping(&self) -> bool {
        self.keeping.load(Ordering::SeqCst)
    }

    /// Tells what is wrong beside the worker's own decisions, once.
    pub fn tell_fault(&self, kind: &str, text: &str) {
        if *self.told.borrow() != text {
            self.record(kind, text, "", &format!("{kind}: {text}"));
            text.clone_into(&mut self.told.borrow_mut());
        }
    }
}

impl Host for Here {
    fn clock(&self) -> Moment {
        shmem::boottime()
    }

    fn wall_clock(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn look_again(&self) {
        self.wake.notify_one();
    }

    async fn look_wanted(&self) {
        self.wake.notified().await;
    }

    fn want_lease(&self) {
        self.lease_wanted.notify_one();
    }

    async fn lease_wanted(&self) {
        self.lease_wanted.notified().await;
    }

    fn wake_arbiter(&self) {
        shmem::wake_arbiter();
    }

    fn server(&self) -> Server {
        observe::server()
    }

    fn system_id(&self) -> SystemId {
        observe::system_id()
    }

    fn checkpointed_timeline(&self) -> Option<Timeline> {
        observe::checkpointed_timeline()
    }

    fn receiver_running(&self) -> bool {
        observe::receiver_running()
    }

    fn stop_receiver(&self) {
        observe::stop_receiver();
    }

    async fn keep_bond(&self, bond: Option<&Bond>) -> Result<(), String> {
        let directory = observe::data_dir().ok_or("there is no data directory")?;
        let bond = bond.cloned();
        self.keeping.store(true, Ordering::SeqCst);
        // A disk that hangs must not hold up the renewals.
        let kept = tokio::task::spawn_blocking(move || bond::keep(&directory, bond.as_ref())).await;
        self.keeping.store(false, Ordering::SeqCst);
        kept.unwrap_or_else(|error| Err(error.to_string()))
    }

    async fn hear(&self, leader: &Member, patience: Duration) -> Answer {
        self.places.hear(leader, patience).await
    }

    async fn listen_wanted(&self) {
        self.listen.notified().await;
    }

    fn page(&self) -> &Tenure {
        page()
    }

    fn change<T>(&self, change: impl FnOnce(&Tenure) -> T) -> T {
        page().change(change)
    }

    fn before_renewal(&self) -> i64 {
        shmem::wall_ahead_ns()
    }

    fn after_renewal(&self, look: i64) {
        shmem::renewal_was_sent_at(look);
    }

    fn arbiter_attends(&self, now: Moment, patience: Duration) -> bool {
        page().arbiter_attends(now, patience)
    }

    fn configured(&self) -> (Member, Option<String>) {
        publish::configured()
    }

    /// What the arbiter wants to have said outlives the arbiter, as what it tells of does; whether that one would still act in
    /// maintenance mode, nobody knows without it.
    fn describe(&self, member: &mut Member) {
        if let Some(facts) = &mut member.tenure {
            facts.vitals = self.vitals.borrow().clone();
        }
        let said: Described = page().described().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        Described { paused: said.paused && page().arbiter_pid().is_some(), ..said }.put_into(member);
    }

    fn slots(&self) -> Option<Publication> {
        page().read_slots().and_then(|json| serde_json::from_slice(&json).ok())
    }

    fn remembered(&self) -> Option<&Remembered> {
        self.etcd.remembered().map(std::convert::AsRef::as_ref)
    }

    fn record(&self, kind: &str, text: &str, cause: &str, line: &str) {
        pgrx::log!("pg_tenure {line}");
        page().record_event(kind, text, cause, page().term());
    }

    fn note(&self, why: &str) {
        page().note(why);
    }

    fn turn_begins(&self) {
        page().worker_seen(shmem::boottime());
        recovered::look(page());
    }

    fn etcd_answered(&self) {
        page().etcd_seen(shmem::boottime());
    }

    fn seen(&self, view: &ClusterView) {
        // A term is the revision at which a key was made. One from the future would end every session of a coordinator, for ever.
        if let Some(word) = view.coordinator.as_ref().filter(|word| citus::term_of(word.value.term) <= view.revision) {
            page().know_coordinator(word.value.term);
        }
        page().know_generation(view.store_generation());
        publish::snapshot(self, view);
    }

    async fn serve_requests(&self, view: &ClusterView) {
        mailbox::serve(self, view).await;
    }

    fn decline_requests(&self, why: &str) {
        mailbox::decline(why);
    }

    fn renewal_took(&self, span: Duration) {
        page().timings.lease_renewal.observe(span);
    }

    fn race_took(&self, span: Duration) {
        page().timings.race.observe(span);
    }
}
