//! What a procedure works from, and how it ended.

use crate::postgres::query::ServerFacts;
use cluster::local::LocalState;
use cluster::view::ClusterView;
use std::sync::Arc;

/// What a procedure works from: everything that was judged.
#[derive(Clone)]
pub struct Judged {
    /// The cluster.
    pub view: Arc<ClusterView>,
    /// This node.
    pub local: Arc<LocalState>,
    /// Its server's words.
    pub facts: Option<Arc<ServerFacts>>,
}

/// How a procedure ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Look again when something changes.
    Settled,
    /// Look again now.
    LookAgain,
    /// The arbiter ends (Postgres is stopped).
    Stopped,
}
