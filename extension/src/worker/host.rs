//! `keeper`'s host: this process of Postgres, its shared memory, its settings.

use super::state::Here;
use super::{observe, publish, requests};
use crate::fence::{bond, kept, recovered};
use crate::ground::server::data_directory;
use crate::shmem::{self, page};
use cluster::citus;
use cluster::described::Described;
use cluster::failsafe::{SPOKEN_FILE, Spoken};
use cluster::hearing::Answer;
use cluster::member::Member;
use cluster::name::{SystemId, Timeline};
use cluster::slots::Publication;
use cluster::standing::Bond;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::remember::Remembered;
use keeper::{Host, OwnServer, Tenure};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Here {
    /// Changes a file beside the data in a thread of its own: a disk that hangs must not hold up the renewals.
    async fn keep(&self, change: impl FnOnce(&Path) -> Result<(), String> + Send + 'static) -> Result<(), String> {
        let directory = data_directory().ok_or("there is no data directory")?;
        self.keeping.store(true, Ordering::SeqCst);
        let kept = tokio::task::spawn_blocking(move || change(&directory)).await;
        self.keeping.store(false, Ordering::SeqCst);
        kept.unwrap_or_else(|error| Err(error.to_string()))
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

    fn server(&self) -> OwnServer {
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
        let bond = bond.cloned();
        self.keep(move |directory| bond::keep(directory, bond.as_ref())).await
    }

    async fn keep_word(&self, spoken: Option<Spoken>) -> Result<(), String> {
        self.keep(move |directory| kept::write(directory, SPOKEN_FILE, spoken.as_ref())).await
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
        page().presence.arbiter_attends(now, patience)
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
        let said: Described = page().described.read().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        Described { paused: said.paused && page().presence.arbiter_pid().is_some(), ..said }.put_into(member);
    }

    fn slots(&self) -> Option<Publication> {
        page().slots.read().and_then(|(json, _)| serde_json::from_slice(&json).ok())
    }

    fn remembered(&self) -> Option<&Remembered> {
        self.etcd.remembered().map(std::convert::AsRef::as_ref)
    }

    fn record(&self, kind: &str, text: &str, cause: &str, line: &str) {
        pgrx::log!("pg_tenure {line}");
        page().events.record(kind, text, cause, page().term());
    }

    fn note(&self, why: &str) {
        page().note.write(why);
    }

    fn turn_begins(&self) {
        page().presence.worker_seen(shmem::boottime());
        recovered::look(page());
    }

    fn etcd_answered(&self) {
        page().presence.etcd_seen(shmem::boottime());
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
        requests::serve(self, view).await;
    }

    fn decline_requests(&self, why: &str) {
        requests::decline(why);
    }

    fn renewal_took(&self, span: Duration) {
        page().timings.lease_renewal.observe(span);
    }

    fn race_took(&self, span: Duration) {
        page().timings.race.observe(span);
    }
}
