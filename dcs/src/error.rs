//! What can go wrong, by what the caller does about it.

use cluster::store::Doubt;
use cluster::view::ClusterView;

/// An error of the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No endpoint gave an answer: nothing is known, not even whether a write happened.
    #[error("etcd can't be reached: {0}")]
    Unreachable(String),
    /// A member of etcd answered, but it may be one that leads no more: nothing is known.
    #[error("etcd's answer does not count: {0}")]
    Unproven(&'static str),
    /// What was judged is no longer so; nothing was written. Read again.
    #[error("{0} changed meanwhile")]
    Lost(&'static str),
    /// etcd says that the lease does not exist (any more).
    #[error("the lease has run out")]
    LeaseGone,
    /// A value can't be understood.
    #[error("{key} holds what can't be understood: {why}")]
    Corrupt {
        /// The key.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is more than a client takes in one answer: nothing was read.
    #[error("more stands below the keys' prefix than fits into one answer of etcd: {0}")]
    TooMuch(String),
    /// etcd answers, and what it says can't be the truth: nothing is known.
    #[error("{doubt}: it is not believed; hint: `tenure check` says more")]
    Doubted {
        /// Why.
        doubt: Doubt,
        /// What it says.
        view: Box<ClusterView>,
    },
    /// etcd answered, and it is not the one that this node remembers: nothing is known.
    #[error("{0}: its answer does not count")]
    WentBack(Doubt),
    /// etcd refuses: wrong credentials, missing rights, or a request it does not take.
    #[error("etcd refuses: {0}")]
    Refused(String),
}

impl Error {
    /// Nothing is known, not even whether what was asked for was done, or will be yet. Never to be acted on as a no.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Error::Unreachable(_) | Error::Unproven(_) | Error::WentBack(_))
    }
}
