//! What a procedure works from, and how it ended.

use cluster::local::LocalState;
use cluster::view::ClusterView;

/// What a procedure works from: everything that was judged.
pub struct Judged<'a, Seen> {
    /// The cluster.
    pub view: &'a ClusterView,
    /// This node.
    pub local: &'a LocalState,
    /// Its server's words.
    pub seen: Option<&'a Seen>,
}

impl<Seen> Clone for Judged<'_, Seen> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Seen> Copy for Judged<'_, Seen> {}

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
