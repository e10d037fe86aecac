//! What the clients of a storm share: how they reach the cluster, how long they wait, and the ledger of what they were told.

use crate::node::PASSWORD;
use crate::workload::Outcome;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, NoTls};

/// Between two two-phase commits of one client, which are three statements each.
pub const EVERY_PREPARED: Duration = Duration::from_millis(50);

/// After an error, before the next address.
pub const AGAIN_AFTER: Duration = Duration::from_millis(5);

/// libpq's `connect_timeout`, for one address.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a client waits for an answer before it gives the connection up: some less, some more than `tenure.fence_wait` (5 s),
/// so that waiting commits are both abandoned and refused.
pub const PATIENCE: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(8)];

/// Ids of one client.
pub const CLIENT: u64 = 1_000_000_000;

/// A list as somebody saw it: how long, and a number made of all its elements in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Which list.
    pub list: u64,
    /// How many elements.
    pub length: usize,
    /// Of all elements in order.
    pub hash: u64,
}

/// One statement.
#[derive(Debug, Clone)]
pub struct Act {
    /// Never used again; a list holds it, or the table.
    pub id: u64,
    /// When it was sent.
    pub sent: Instant,
    /// When the outcome was known.
    pub known: Instant,
    /// What came of it.
    pub outcome: Outcome,
    /// The number of the server, from 0.
    pub server: usize,
    /// The term in which it was done, as the server said with the answer.
    pub term: Option<u64>,
    /// Which list, where it was an append.
    pub list: Option<u64>,
    /// The list that came back.
    pub seen: Option<Seen>,
}

/// How a prepared transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// COMMIT PREPARED.
    Commit,
    /// ROLLBACK PREPARED.
    Rollback,
}

/// One of them, and what became of it.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// The row, and what came of PREPARE TRANSACTION.
    pub prepare: Act,
    /// What was asked for; never both, and Commit only where the PREPARE was acknowledged.
    pub asked: Option<End>,
    /// That end was acknowledged.
    pub ended: bool,
    /// It was still there when the storm was over.
    pub found: bool,
    /// When something was last heard of it.
    pub last: Instant,
}

/// Everything the clients did and saw.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// One statement, or one transaction, each.
    pub acts: Vec<Act>,
    /// Of readers only.
    pub reads: Vec<Seen>,
    /// Two-phase commits.
    pub transactions: Vec<Transaction>,
}

/// Shared between the storm and its clients.
#[derive(Default)]
pub struct Shared {
    /// The clients shall end.
    pub stop: AtomicBool,
    /// Acknowledged statements of writers.
    pub acknowledged: AtomicU64,
    pub(super) appends: AtomicU64,
    /// What they did.
    pub ledger: Mutex<Ledger>,
    /// What is copied: a file that every server can read.
    pub(super) lines: PathBuf,
}

/// A row and the term that acknowledges it.
pub fn insert(id: u64) -> String {
    format!("INSERT INTO written(id) VALUES ({id}) RETURNING (SELECT fencing_token FROM tenure.lease())")
}

/// The first address that gives a session fit for writing, as libpq looks for it.
pub async fn connect(servers: &[(String, u16)]) -> Option<(usize, Client)> {
    for (number, (host, port)) in servers.iter().enumerate() {
        let mut config = tokio_postgres::Config::new();
        config.host(host).port(*port).user("postgres").password(PASSWORD).dbname("postgres").application_name("storm");
        config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        if let Ok(Ok((client, connection))) = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls)).await {
            tokio::spawn(connection);
            return Some((number, client));
        }
    }
    None
}

impl Seen {
    /// From an array as Postgres prints it.
    pub fn of(list: u64, text: &str) -> Seen {
        let elements = elements(text);
        Seen { list, length: elements.len(), hash: hash(&elements) }
    }
}

/// The numbers of an array as Postgres prints it.
pub fn elements(text: &str) -> Vec<u64> {
    text.trim_matches(['{', '}']).split(',').filter_map(|word| word.parse().ok()).collect()
}

/// FNV-1a over the numbers.
pub fn hash(elements: &[u64]) -> u64 {
    elements.iter().fold(0xcbf2_9ce4_8422_2325, |hash, element| step(hash, *element))
}

/// The hash with one element more.
pub fn step(hash: u64, element: u64) -> u64 {
    element.to_le_bytes().iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
