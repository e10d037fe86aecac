//! PgBouncer around a planned change: paused before the drain, resumed by the node that finds that the change is over.
//!
//! The arbiter that pauses may be killed right after, and a pooler stays paused when the session that paused it is gone. So what is about to be
//! paused is written to etcd first, and every arbiter with the pooler in its file lets it go on: the new primary's as soon as it writes
//! and the pooler leads to it, the old one's where the change was called off or was a restart, and any after a time that is in the
//! record. `cluster::poolers` judges; this room does it.

mod console;
mod keep;
mod pause;
mod record;

pub use keep::keep;
pub use pause::pause;
