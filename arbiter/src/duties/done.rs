//! What a procedure works from, and how it ended.

use crate::postgres::facts::ServerFacts;
use cluster::local::LocalState;
use cluster::view::ClusterView;
use std::sync::Arc;
pub use steward::Done;

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
