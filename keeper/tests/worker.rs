//! One worker over an etcd in memory, each of its steps in the test's hand: what a renewal, a look and another session's promise do to the page.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

use cluster::fence::Mode;
use cluster::leader::{LeaseId, Term};
use cluster::lsn::Lsn;
use cluster::member::Member;
use cluster::name::{MemberName, Scope, SystemId, Timeline};
use cluster::slots::Publication;
use cluster::standing::Judged;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::Dcs;
use dcs::key::Keys;
use dcs::memory::{InMemory, at_once};
use dcs::remember::Remembered;
use keeper::{Host, OwnServer, Tenure, Worker};
use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A primary whose worker is asked step by step; another session may come between any two changes of its page.
struct Process {
    clock: Cell<Moment>,
    page: Tenure,
    remembered: Arc<Remembered>,
    looks: Cell<bool>,
    /// So many changes of the page from now on a session asks for a promise; then, whether it was given.
    promise_in: Cell<Option<u32>>,
    promised: Cell<Option<bool>>,
}

impl Host for &Process {
    fn clock(&self) -> Moment {
        self.clock.get()
    }
    fn wall_clock(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }
    async fn sleep(&self, _span: Duration) {
        pending().await
    }
    fn look_again(&self) {
        self.looks.set(true);
    }
    async fn look_wanted(&self) {
        pending().await
    }
    fn want_lease(&self) {}
    async fn lease_wanted(&self) {
        pending().await
    }
    fn wake_arbiter(&self) {}
    fn server(&self) -> OwnServer {
        OwnServer::Primary { timeline: Timeline(1), flushed: Lsn(100), confirmed: None }
    }
    fn system_id(&self) -> SystemId {
        SystemId("7".to_owned())
    }
    fn checkpointed_timeline(&self) -> Option<Timeline> {
        Some(Timeline(1))
    }
    fn receiver_running(&self) -> bool {
        false
    }
    fn stop_receiver(&self) {}
    fn page(&self) -> &Tenure {
        &self.page
    }
    fn change<T>(&self, change: impl FnOnce(&Tenure) -> T) -> T {
        match self.promise_in.get() {
            Some(0) => {
                self.promise_in.set(None);
                let now = self.clock.get();
                self.promised.set(Some(self.page.promise(now + Duration::from_secs(60), now)));
            }
            left => self.promise_in.set(left.map(|left| left - 1)),
        }
        change(&self.page)
    }
    fn before_renewal(&self) -> i64 {
        0
    }
    fn after_renewal(&self, _look: i64) {}
    fn arbiter_attends(&self, _now: Moment, _patience: Duration) -> bool {
        true
    }
    fn configured(&self) -> (Member, Option<String>) {
        let member = serde_json::json!({"conn_url": "postgres://h:1/postgres", "api_url": "", "state": "running", "role": "primary"});
        (serde_json::from_value(member).unwrap(), None)
    }
    fn describe(&self, _member: &mut Member) {}
    fn slots(&self) -> Option<Publication> {
        None
    }
    fn remembered(&self) -> Option<&Remembered> {
        Some(&self.remembered)
    }
    fn record(&self, _kind: &str, _text: &str, _cause: &str, line: &str) {
        println!("{line}");
    }
    fn note(&self, _why: &str) {}
    fn turn_begins(&self) {}
    fn etcd_answered(&self) {}
    fn seen(&self, _view: &ClusterView) {}
    async fn serve_requests(&self, _view: &ClusterView) {}
    fn decline_requests(&self, _why: &str) {}
    fn renewal_took(&self, _span: Duration) {}
    fn race_took(&self, _span: Duration) {}
}

/// The etcd of a cluster that is there, and the process of n1.
fn begun() -> (Rc<InMemory>, Process) {
    let remembered = Arc::new(Remembered::default());
    let etcd = InMemory::new(Keys::new("service", &Scope::new("demo").unwrap())).remembering(remembered.clone());
    etcd.put_by_hand(etcd.keys().initialize(), b"7");
    let process = Process {
        clock: Cell::new(Moment(Duration::from_secs(100))),
        page: Tenure::default(),
        remembered,
        looks: Cell::default(),
        promise_in: Cell::default(),
        promised: Cell::default(),
    };
    process.page.begin(Mode::Closed);
    (Rc::new(etcd), process)
}

/// The worker with a lease; the leader key is in its name, as after a take whose answer was lost.
fn with_the_key<'a>(etcd: &Rc<InMemory>, process: &'a Process) -> Worker<Rc<InMemory>, &'a Process> {
    let name = MemberName::new("n1").unwrap();
    let worker = Worker::new(etcd.clone(), process, name.clone(), None);
    renews(&worker);
    let view = at_once(etcd.load_view()).unwrap().unwrap();
    let judged = Judged {
        after: Term(0),
        deposes: false,
        sync: 0,
        config: 0,
        failover: 0,
        announcements: vec![],
        sync_becomes: None,
        position: None,
    };
    let lease: LeaseId = view.lease_of(&name).unwrap();
    at_once(etcd.take_leader(&name, lease, &judged)).unwrap().unwrap();
    worker
}

/// One turn.
fn looks(worker: &Worker<Rc<InMemory>, &Process>) {
    assert!(at_once(worker.turns()).is_none());
}

/// One round of the keeper.
fn renews(worker: &Worker<Rc<InMemory>, &Process>) {
    assert!(at_once(worker.keep_lease()).is_none());
}

impl Process {
    fn passes(&self, span: Duration) {
        self.clock.set(self.clock.get() + span);
    }

    /// Commits pass at this moment.
    fn is_open(&self) -> bool {
        let fence = self.page.fence();
        fence.mode == Mode::Open && self.clock.get() < fence.deadline
    }
}

#[test]
fn of_a_promise_and_a_page_that_opens_there_is_one_wherever_the_promise_comes_between() {
    let (mut given, mut refused) = (0, 0);
    for changes in 0..6 {
        let (etcd, process) = begun();
        let worker = with_the_key(&etcd, &process);
        process.promise_in.set(Some(changes));
        looks(&worker);
        let Some(promised) = process.promised.get() else { continue };
        assert_ne!(promised, process.is_open(), "asked for after {changes} changes");
        (given, refused) = (given + u32::from(promised), refused + u32::from(!promised));
    }
    assert!(given > 0 && refused > 1, "given {given}, refused {refused}");
}

#[test]
fn a_page_whose_time_is_over_is_opened_by_a_view_and_not_by_a_renewal() {
    let (etcd, process) = begun();
    let worker = with_the_key(&etcd, &process);
    looks(&worker);
    assert!(process.is_open());
    let before = process.page.fence().deadline;
    process.passes(Duration::from_secs(1));
    renews(&worker);
    assert_eq!(process.page.fence().deadline, before + Duration::from_secs(1), "in time a renewal is enough");
    // Cut off for longer than the lease lives, it reaches an etcd that shows the old key on the old lease, in the old term: one that nobody
    // led in since, or one that was restored to before somebody did.
    process.passes(Duration::from_secs(60));
    assert!(!process.is_open());
    process.looks.set(false);
    renews(&worker);
    assert!(!process.is_open() && process.looks.get(), "a view is asked for");
    looks(&worker);
    assert!(process.is_open(), "and tells");
}

#[test]
fn a_renewal_by_an_etcd_that_went_back_moves_no_deadline() {
    let (etcd, process) = begun();
    let worker = with_the_key(&etcd, &process);
    looks(&worker);
    let saved = etcd.save();
    etcd.put_by_hand("/elsewhere".to_owned(), b"");
    looks(&worker);
    let before = process.page.fence().deadline;
    etcd.restore(&saved, Duration::ZERO);
    process.passes(Duration::from_secs(1));
    process.looks.set(false);
    // Before any view of it was read.
    renews(&worker);
    assert_eq!(process.page.fence().deadline, before);
    assert!(process.looks.get(), "a view is asked for");
}
