//! The hooks that ask the page: may this commit pass, may it be acknowledged, may this be read?
//!
//! | hook | asks | when the answer is no |
//! |---|---|---|
//! | before commit, before prepare | may it pass? | waits `tenure.fence_wait`, then an ERROR; nothing is written |
//! | utility: COMMIT PREPARED, ROLLBACK PREPARED | the same, they have no xid of their own | the same |
//! | utility: what acts outside of its transaction ([`outside`]) | the same, before it acts | the same |
//! | after commit, after prepare | may it be acknowledged? | the connection is cut |
//! | executor start, utility: COPY TO | with `tenure.fence_reads`: may it be read? | waits, then an ERROR |
//! | the same | after a restart: do the standbys have it again? ([`recovered`]) | waits, then an ERROR |
//! | executor start, planner, function call, utility: what reaches other nodes ([`reach`]); on a Citus server | is a planned change of a worker under way? ([`gate`]) | waits until it is over |
//! | authentication | is the fence closed? | the session starts read-only |
//! | before commit, prepare, statements; on a Citus worker | was its coordinator deposed? ([`origin`]) | the session ends |
//!
//! Order: of the statement hooks, ours comes first and then whatever was there before, so that a refused
//! statement has not run anywhere; at authentication we come last. Transaction callbacks run in reverse order of registration, before
//! the commit record is written, and after it is durable and replicated; there we stand alone.
//!
//! The hooks that call onward are two functions each: a plain one, which holds nothing that needs
//! dropping, so that an ERROR from below jumps over it untouched; and a guarded one, which does our part
//! and turns a panic into an ERROR.
//!
//! These are judged: every process under a postmaster whose transaction has an xid, autovacuum and other
//! extensions' background workers included. These are not: parallel workers (their leader commits, and
//! their events have other names), the startup process and walsenders (no xid), single-user mode and
//! initdb (`IsUnderPostmaster` is false), servers without a scope.

pub mod bond;
mod commit;
mod gate;
pub mod hold_back;
mod hooks;
pub mod kept;
pub mod layout;
mod origin;
mod outside;
pub mod page;
mod reach;
pub mod recovered;
pub mod session;
pub mod standbys;
mod statement;
mod subject;

use hooks::{ClientAuthentication_hook, PREVIOUS, Previous};
use pgrx::pg_sys;

/// Puts the hooks in place. Called once, while the postmaster loads the library; backends inherit them.
pub fn register() {
    // SAFETY: single-threaded, and every hook replaced here is called from its replacement.
    unsafe {
        PREVIOUS.set(Previous {
            utility: pg_sys::ProcessUtility_hook,
            executor_start: pg_sys::ExecutorStart_hook,
            authentication: ClientAuthentication_hook,
            planner: None,
            object_access: None,
        });
        pg_sys::ProcessUtility_hook = Some(statement::utility);
        pg_sys::ExecutorStart_hook = Some(statement::executor_start);
        ClientAuthentication_hook = Some(session::authentication);
        pg_sys::RegisterXactCallback(Some(commit::transaction_event), std::ptr::null_mut());
    }
    gate::register();
    hold_back::by_sql::register();
}
