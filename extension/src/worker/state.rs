//! What the process of the lease worker holds: its store, its name, what wakes its loops, and what it saw last.

use super::hear::Places;
use crate::shmem::page;
use cluster::citus::Groups;
use cluster::health::Vitals;
use cluster::name::{MemberName, Scope};
use cluster::time::Moment;
use dcs::Etcd;
use keeper::Host;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::{Mutex, Notify};

/// The worker's loops over etcd, in this process.
pub type Worker = keeper::Worker<Arc<Etcd>, Here>;

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
    pub(super) lease_wanted: Notify,
    /// Wakes the listener, and how many receivers' ends it knows.
    pub(super) listen: Notify,
    receiver_ends: Cell<u32>,
    /// A bond, or that this server has spoken, is being written or taken away: what lies with the data is not known to this process.
    pub(super) keeping: AtomicBool,
    /// Where the leader is.
    pub(super) places: Places,
    /// What was wrong with the snapshot or the other groups, so that only changes are told.
    told: RefCell<String>,
}

impl Here {
    /// The host of a worker with these settings.
    pub fn new(etcd: Arc<Etcd>, name: MemberName, scope: Scope) -> Here {
        let (others, told, vitals) = (RefCell::default(), RefCell::default(), RefCell::default());
        let (wake, lease_wanted, listen, receiver_ends) =
            (Arc::new(Notify::new()), Notify::new(), Notify::new(), Cell::new(page().presence.receiver_ends()));
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
        let ends = page().presence.receiver_ends();
        if self.receiver_ends.replace(ends) != ends {
            self.listen.notify_one();
        }
    }

    /// A file beside the data was being changed when the task that waited for it was interrupted.
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
