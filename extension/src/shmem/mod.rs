//! The page in shared memory: what backends read before they commit, and what they ask the worker.
//!
//! Nothing here takes a lock that a frozen process could keep from the lease worker: flags and
//! deadlines are atomics, a document has two buffers of which its writer takes the one nobody is
//! sent to, events sit in slots of their own, and the mailbox changes hands by compare-and-swap. The
//! texts are arrays of atomic words, so a torn copy is wrong text that is thrown away, never a race in
//! Rust's sense. Only the three condition variables are Postgres' own; they hold a spinlock for a few
//! instructions, and they are touched after the page itself has been written.

mod attach;
mod clock;
mod condition;
mod described;
mod events;
mod gate;
mod mailbox;
mod note;
mod page;
mod presence;
mod recovered;
mod registration;
mod snapshot;
mod timings;
mod words;

pub use attach::{attach_arbiter, attach_worker, belongs_to_this_session, wake_listener, wake_worker};
pub use clock::{boottime, wall_ahead_ns};
pub use condition::Waited;
pub use events::Event;
pub use gate::{Passed, Work};
pub use keeper::renewal_was_sent_at;
pub use page::{Page, page, page_if_any};
pub use presence::{own_pid, wake_arbiter};
pub use recovered::Recovered;
pub use registration::{ADDIN_SHMEM_INIT_LOCK, Beginning, register};
