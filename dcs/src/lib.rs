//! The cluster in etcd: keys, codecs, guarded writes, watch.
//!
//! What this crate never does: decide. Callers hand in what they judged (a revision, a term), a write
//! happens only if that is still so, and an error is told apart by what the caller does next:
//! [`Error::Lost`] (the world changed: read again), [`Error::Unreachable`] (nothing is known),
//! [`Error::LeaseGone`] (a fact), [`Error::Corrupt`].

mod citus;
pub mod codec;
pub mod error;
pub mod etcd;
pub mod instance;
pub mod key;
pub mod lease;
pub mod memory;
mod poolers;
pub mod remember;
pub mod survey;
mod trouble;
mod verbs;
pub mod watch;

pub use error::Error;
pub use etcd::{Etcd, Settings};
pub use verbs::{Dcs, FirstKeys, Grant, HandOver, KeepAlive, LeaderLook, LocalDcs, Result};

/// The version that we publish in the member key's `version`: the field's tools compare it to decide
/// which keys and endpoints a member understands. Our own version stands in `tenure.version`.
pub const SURFACE_VERSION: &str = "4.1.5";
