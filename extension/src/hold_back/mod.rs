//! A logical walsender does not run ahead of those who may take over: a change leaves for its subscriber once the standbys have
//! it. Otherwise a subscriber could know of commits that the next primary has never seen, and would then pass over what is
//! committed there at the same positions, without a word.
//!
//! PostgreSQL 17 can be told so by name (`synchronized_standby_slots`, all of which it then awaits, dead or alive). Here it is
//! the synchronous standbys, where commits wait for any; else, where `hold_back_logical` is on, every member that may take over
//! and streams at this moment. Where it is off, nobody.
//!
//! [`by_sql`] does the same for slots that are read by SQL, [`upstream`] for what subscriptions of this server confirm.

mod by_sql;
mod upstream;

pub use by_sql::register;
pub use upstream::before_transactions_of_a_subscription;

use crate::fence::flushed_by_standbys;
use crate::shmem::page_if_any;
use cluster::config::HoldBack;
use cluster::slots::Publication;
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::ffi::{CString, c_char, c_int, c_long, c_void};
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// `PQcommMethods` of libpq/libpq.h: these six are all there are since PostgreSQL 14.
#[repr(C)]
#[derive(Clone, Copy)]
struct Methods {
    others: [*const c_void; 5],
    putmessage_noblock: Option<unsafe extern "C-unwind" fn(kind: c_char, text: *const c_char, length: usize)>,
}

unsafe extern "C-unwind" {
    /// How this backend talks to its client.
    static mut PqCommMethods: *const Methods;
}

/// The subscriber is let go after this long, and connects again: a shutdown must not wait for a standby that is gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Whom to await is read again this often.
const LIST_AGE_MAX: Duration = Duration::from_millis(200);

static ORIGINAL: AtomicPtr<Methods> = AtomicPtr::new(std::ptr::null_mut());

thread_local! {
    /// What the standbys were last seen to have.
    static CONFIRMED: Cell<u64> = const { Cell::new(0) };
    static AWAITED: RefCell<Awaited> = const { RefCell::new(Awaited { whom: HoldBack::WhereCommitsWait, members: Vec::new(), read: None }) };
}

/// Whom to await, as the arbiter said last.
struct Awaited {
    whom: HoldBack,
    /// The slots of the members that may take over.
    members: Vec<CString>,
    read: Option<Instant>,
}

/// Puts itself between this walsender and its socket. Once, after authentication.
pub fn install() {
    // SAFETY: our own process, before it sends anything but the handshake; the copy lives as long as the process. The field
    // that is replaced stands at the same place in all releases.
    unsafe {
        let now = PqCommMethods;
        if now.is_null() || !ORIGINAL.load(Relaxed).is_null() {
            return;
        }
        ORIGINAL.store(now.cast_mut(), Relaxed);
        let ours = Methods { putmessage_noblock: Some(put), ..*now };
        PqCommMethods = Box::leak(Box::new(ours));
    }
}

/// A message on its way to the subscriber: `w` in CopyData is WAL data, with its position in the first eight bytes.
#[pgrx::pg_guard]
unsafe extern "C-unwind" fn put(kind: c_char, text: *const c_char, length: usize) {
    // SAFETY: the caller's message, `length` bytes of it; and the method that was there before.
    unsafe {
        if kind == b'd' as c_char && length > 9 && *text == b'w' as c_char && decodes() {
            let mut position = [0; 8];
            position.copy_from_slice(std::slice::from_raw_parts(text.cast::<u8>().add(1), 8));
            hold_until_confirmed(u64::from_be_bytes(position));
        }
        if let Some(original) = ORIGINAL.load(Relaxed).as_ref().and_then(|methods| methods.putmessage_noblock) {
            pg_sys::ffi::pg_guard_ffi_boundary(|| original(kind, text, length));
        }
    }
}

/// A walsender with a database may stream physically too, and then to one of those who are awaited here.
fn decodes() -> bool {
    // SAFETY: the slot that this process owns; its database is set once.
    unsafe { pg_sys::MyReplicationSlot.as_ref() }.is_some_and(|slot| slot.data.database != pg_sys::InvalidOid)
}

fn hold_until_confirmed(position: u64) {
    // SAFETY: reads shared memory.
    if position <= CONFIRMED.get() || unsafe { pg_sys::RecoveryInProgress() } {
        return;
    }
    let began = Instant::now();
    loop {
        // Nobody to await now is no promise for the next change.
        let Some(confirmed) = confirmed() else { return };
        if confirmed >= position {
            return CONFIRMED.set(confirmed);
        }
        if began.elapsed() > PATIENCE {
            crate::error::held_back(position);
        }
        // Standbys answer within a round trip; nothing of theirs wakes a logical walsender before PostgreSQL 17.
        let pause_ms = if began.elapsed() < Duration::from_millis(20) { 1 } else { 10 };
        pause(pause_ms);
        pgrx::check_for_interrupts!();
    }
}

/// Sleeps, or until something wants this process.
fn pause(milliseconds: c_long) {
    // SAFETY: the process' own latch.
    unsafe {
        let events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
        pg_sys::WaitLatch(pg_sys::MyLatch, events as c_int, milliseconds, pg_sys::PG_WAIT_EXTENSION);
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

/// What everybody has who is awaited; None where nobody is.
fn confirmed() -> Option<u64> {
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
        let said = page_if_any().and_then(|page| page.read_slots());
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
