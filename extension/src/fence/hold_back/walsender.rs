//! Between a logical walsender and its socket: a change waits here until those who are awaited have it.

use super::confirmed::{confirmed, decodes, pause};
use crate::ground::error;
use pgrx::pg_sys;
use std::cell::Cell;
use std::ffi::{c_char, c_void};
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

static ORIGINAL: AtomicPtr<Methods> = AtomicPtr::new(std::ptr::null_mut());

thread_local! {
    /// What the standbys were last seen to have.
    static CONFIRMED: Cell<u64> = const { Cell::new(0) };
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
            error::held_back(position);
        }
        // Standbys answer within a round trip; nothing of theirs wakes a logical walsender before PostgreSQL 17.
        let pause_ms = if began.elapsed() < Duration::from_millis(20) { 1 } else { 10 };
        pause(pause_ms);
        pgrx::check_for_interrupts!();
    }
}
