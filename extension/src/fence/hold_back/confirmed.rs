//! What everybody has who is awaited before a change of a logical slot is shown: the synchronous standbys, or the members that may take over.

use crate::fence::standbys::flushed_by_standbys;
use crate::shmem::page_if_any;
use cluster::config::HoldBack;
use cluster::slots::Publication;
use pgrx::pg_sys;
use std::cell::RefCell;
use std::ffi::{CString, c_int, c_long};
use std::time::{Duration, Instant};

/// Whom to await is read again this often.
const LIST_AGE_MAX: Duration = Duration::from_millis(200);

thread_local! {
    static AWAITED: RefCell<Awaited> = const { RefCell::new(Awaited { whom: HoldBack::WhereCommitsWait, members: Vec::new(), read: None }) };
}

/// Whom to await, as the arbiter said last.
struct Awaited {
    whom: HoldBack,
    /// The slots of the members that may take over.
    members: Vec<CString>,
    read: Option<Instant>,
}

/// What everybody has who is awaited; None where nobody is.
pub(super) fn confirmed() -> Option<u64> {
    AWAITED.with_borrow_mut(|awaited| {
        if awaited.read.is_none_or(|at| at.elapsed() > LIST_AGE_MAX) {
            awaited.read_again();
        }
        match (awaited.whom, flushed_by_standbys()) {
            (HoldBack::Never, _) | (HoldBack::WhereCommitsWait, None) => None,
            (HoldBack::WhereCommitsWait | HoldBack::Always, Some(confirmed)) => Some(confirmed),
            (HoldBack::Always, None) => received_by(&awaited.members),
        }
    })
}

impl Awaited {
    fn read_again(&mut self) {
        self.read = Some(Instant::now());
        let said = page_if_any().and_then(|page| page.slots.read()).map(|(json, _)| json);
        let said: Option<Publication> = said.and_then(|json| serde_json::from_slice(&json).ok());
        if let Some(said) = said {
            self.whom = said.hold_back;
            self.members = said.successors.into_iter().filter_map(|name| CString::new(name).ok()).collect();
        }
    }
}

/// What every one of these members that streams now has flushed; None where none does.
fn received_by(members: &[CString]) -> Option<u64> {
    let positions = members.iter().filter_map(|name| {
        // SAFETY: a slot's memory stays where it is; its fields are words that are read whole, and one that is just being
        // dropped or made is seen as it was or as it will be.
        unsafe {
            let slot = pg_sys::SearchNamedReplicationSlot(name.as_ptr(), true);
            if slot.is_null() || (&raw const (*slot).active_pid).read_volatile() == 0 {
                return None;
            }
            Some((&raw const (*slot).data.restart_lsn).read_volatile())
        }
    });
    positions.min()
}

/// A walsender with a database may stream physically too, and then to one of those who are awaited here.
pub(super) fn decodes() -> bool {
    // SAFETY: the slot that this process owns; its database is set once.
    unsafe { pg_sys::MyReplicationSlot.as_ref() }.is_some_and(|slot| slot.data.database != pg_sys::InvalidOid)
}

/// Sleeps, or until something wants this process.
pub(super) fn pause(milliseconds: c_long) {
    // SAFETY: the process' own latch.
    unsafe {
        let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, milliseconds, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}
