//! What the server's page says, as `upkeep/page.rs` reads it between two turns of the loop.

use crate::postgres::query::LocalSql;
use cluster::watchdog::ServerSeen;
use std::time::Instant;
use tokio::sync::Notify;

/// What reads.
pub struct Reader {
    /// A session of its own.
    pub sql: LocalSql,
    /// Look at once: something happened to the server or its page.
    pub changed: Notify,
}

/// One look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// What the server is.
    pub server: ServerSeen,
    /// Until when its page is open, counted from before the question.
    pub open_until: Option<Instant>,
    /// A planned change began: what is new waits.
    pub draining: bool,
    /// When it was asked.
    pub asked: Instant,
}

impl Default for Page {
    /// Nothing was seen.
    fn default() -> Page {
        Page { server: ServerSeen::Silent, open_until: None, draining: false, asked: Instant::now() }
    }
}
