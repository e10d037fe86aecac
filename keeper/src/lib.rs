//! The lease worker without Postgres: wake, observe, decide, apply, sleep.
//!
//! Three loops side by side. The keeper renews the lease whatever the others wait for; the turns read the
//! cluster, ask `cluster::race`, and do what it says; the listener hears whether the leader lives. All are generic over the store ([`dcs::LocalDcs`]) and over
//! the process that they run in ([`Host`]): the extension runs them in a background worker of Postgres, the simulation in a world of its own.
//! There is one copy of each step, so what the simulation tries is what ships.
//!
//! What this crate never does: it reads no clock, starts no thread, touches no file and no server. It asks its host.

mod deposition;
mod host;
mod keep;
mod moving;
mod publish;
mod race;
mod server;
mod tenure;
mod turns;

pub use host::Host;
pub use server::OwnServer;
pub use tenure::{Look, Tenure, renewal_was_sent_at};

use cluster::failsafe::Spoken;
use cluster::hearing::Hearing;
use cluster::instance::Instance;
use cluster::leader::{LeaseId, Term};
use cluster::member::Member;
use cluster::name::MemberName;
use cluster::slots::Retention;
use cluster::standing::Bond;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::LocalDcs;
use dcs::lease::HeldLease;
use futures_util::future::select;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::Deref;
use std::pin::pin;
use std::time::Duration;

/// Pause before an etcd that gave no answer is asked again: recovery within a second of its return.
const RETRY: Duration = Duration::from_millis(250);

/// A node that took the key and was not promoted does not stand for this long, so that another can.
const STAND_DOWN: Duration = Duration::from_secs(60);

/// A move of everything onto a new lease, sent and perhaps done.
#[derive(Debug, Clone, Copy)]
pub struct Moving {
    /// The new lease.
    pub onto: HeldLease,
    /// The term of the leader key that the write compares; none where the member key moves alone.
    judged: Option<Term>,
}

/// What the loops share; one thread, so cells are enough. `S` leads to the store: an `Arc` or `Rc` of it.
pub struct Worker<S, H> {
    /// The cluster's store.
    pub store: S,
    /// The process that the loops run in.
    pub host: H,
    /// This node.
    pub name: MemberName,
    /// Which instance goes by our name here; None where it can't be known.
    pub instance: Option<Instance>,
    /// The lease, while there is one.
    held: Cell<Option<HeldLease>>,
    /// A move onto another lease whose outcome is not known.
    moving: Cell<Option<Moving>>,
    /// The cluster as last read, and when.
    view: RefCell<Option<(ClusterView, Moment)>>,
    /// Since when a worker looks after this server.
    began: Cell<Moment>,
    /// Which vacancy is under way, and since when this node knows of it.
    vacancy: Cell<Option<(Term, Moment)>>,
    /// Since when this node holds the key without being primary.
    unpromoted_since: Cell<Option<Moment>>,
    /// Which leader key is not where its holder keeps it, and since when.
    misplaced_since: Cell<Option<(Term, Moment)>>,
    /// Until when this node does not stand.
    stands_down_until: Cell<Option<Moment>>,
    /// What was heard of the leader.
    hearing: Cell<Hearing>,
    /// Since when the leader is lost to this node.
    lost_since: Cell<Option<Moment>>,
    /// What this server bound itself to, and since when as far as this worker knows.
    bond: RefCell<Option<Bond>>,
    bound_since: Cell<Option<Moment>>,
    /// In which vacancy this server has said a word that counts, and so promises nothing.
    spoken: Cell<Option<Spoken>>,
    /// When a deposition was called off here.
    called_off_at: Cell<Option<Moment>>,
    /// What stands in the member key, and when it was written.
    published: RefCell<Option<(Member, LeaseId, Moment)>>,
    /// When `status` was written.
    status_written: Cell<Option<Moment>>,
    /// Whose slots are kept although their member is gone.
    retention: RefCell<Retention>,
    /// A TTL that etcd raised when it was asked for it: not asked for again.
    ttl_refused: Cell<Option<Duration>>,
    /// The last decision, so that only changes are told.
    told: RefCell<String>,
}

impl<S, H> Worker<S, H>
where
    S: Deref<Target: LocalDcs + Sized>,
    H: Host,
{
    /// A worker that knows nothing yet.
    pub fn new(store: S, host: H, name: MemberName, instance: Option<Instance>) -> Self {
        let began = Cell::new(host.clock());
        Worker {
            store,
            host,
            began,
            name,
            instance,
            held: Cell::new(None),
            moving: Cell::new(None),
            view: RefCell::new(None),
            vacancy: Cell::new(None),
            unpromoted_since: Cell::new(None),
            misplaced_since: Cell::new(None),
            stands_down_until: Cell::new(None),
            hearing: Cell::default(),
            lost_since: Cell::new(None),
            bond: RefCell::default(),
            bound_since: Cell::new(None),
            spoken: Cell::new(None),
            called_off_at: Cell::new(None),
            published: RefCell::new(None),
            status_written: Cell::new(None),
            retention: RefCell::default(),
            ttl_refused: Cell::new(None),
            told: RefCell::new(String::new()),
        }
    }

    /// Goes on for a worker whose settings were other ones: a write that it sent may be carried out yet.
    #[must_use]
    pub fn in_place_of(self, before: &Self) -> Self {
        self.moving.set(before.moving.get());
        self.began.set(before.began.get());
        self.hearing.set(before.hearing.get());
        *self.bond.borrow_mut() = before.bond.borrow().clone();
        self.bound_since.set(before.bound_since.get());
        self.spoken.set(before.spoken.get());
        self.called_off_at.set(before.called_off_at.get());
        self
    }

    /// Looks at the cluster as last read.
    pub fn last_view<T>(&self, look: impl FnOnce(&ClusterView) -> T) -> Option<T> {
        self.view.borrow().as_ref().map(|(view, _)| look(view))
    }

    /// Tells a change once: in the host's log and among its events.
    pub fn tell(&self, kind: &str, text: &str) {
        self.tell_why(kind, text, "");
    }

    /// As [`Worker::tell`], with the reason apart.
    pub fn tell_why(&self, kind: &str, text: &str, cause: &str) {
        let line = if cause.is_empty() { format!("{kind}: {text}") } else { format!("{kind}: {text}: {cause}") };
        // Milliseconds left and the like change with every repetition; the words before them don't.
        let gist = |line: &str| line.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
        if gist(&self.told.borrow()) == gist(&line) {
            return;
        }
        self.host.record(kind, text, cause, &line);
        *self.told.borrow_mut() = line;
    }

    fn clock(&self) -> Moment {
        self.host.clock()
    }
}

/// Waits for the first of two.
async fn first_of(one: impl Future<Output = ()>, other: impl Future<Output = ()>) {
    select(pin!(one), pin!(other)).await;
}
