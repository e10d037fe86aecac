//! The clients of a storm: writers that insert, append to lists, copy megabytes or are cancelled, each with the term that acknowledged.

use crate::node::PASSWORD;
use crate::room::Room;
use crate::storm::prepared::{self, Transaction};
use crate::workload::{Outcome, judge};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Between two statements of one client.
const EVERY: Duration = Duration::from_millis(20);
/// The same for two-phase commits, which are three statements each.
pub const EVERY_PREPARED: Duration = Duration::from_millis(50);
/// The same for those that others suffer from.
const EVERY_COPY: Duration = Duration::from_secs(4);
const EVERY_CANCELLED: Duration = Duration::from_millis(500);
/// After an error, before the next address.
pub const AGAIN_AFTER: Duration = Duration::from_millis(5);
/// libpq's `connect_timeout`, for one address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a client waits for an answer before it gives the connection up: some less, some more than `tenure.fence_wait` (5 s),
/// so that waiting commits are both abandoned and refused.
pub const PATIENCE: [Duration; 2] = [Duration::from_secs(3), Duration::from_secs(8)];
/// Ids of one client.
pub const CLIENT: u64 = 1_000_000_000;
/// Lists in use at a time.
const LISTS: u64 = 4;
/// After so many appends new lists are begun: an answer carries its whole list.
const APPENDS: u64 = 400;

/// The tables.
pub const TABLES: &str = "CREATE TABLE IF NOT EXISTS written(id bigint, at timestamptz DEFAULT now()); \
                          CREATE TABLE IF NOT EXISTS lists(k bigint PRIMARY KEY, v bigint[] NOT NULL); \
                          CREATE TABLE IF NOT EXISTS heaps(id bigint DEFAULT current_setting('storm.id')::bigint, filler text)";
/// Lines of one COPY, of [`LINE`] bytes each: two megabytes.
pub const LINES: u64 = 20_000;
/// Bytes of a line.
const LINE: usize = 100;

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

/// What one client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Rows of their own.
    Insert,
    /// Appends to lists that others append to as well.
    Append,
    /// Reads lists where one may write.
    Read,
    /// Two-phase commits.
    Prepare,
    /// A COPY of megabytes and a row of its own in one transaction.
    Copy,
    /// Rows of its own, each cancelled: by the client's cancel request, or as any commit that waits for a standby.
    Cancelled,
}

impl Kind {
    fn every(self) -> Duration {
        match self {
            Kind::Insert | Kind::Append | Kind::Read => EVERY,
            Kind::Prepare => EVERY_PREPARED,
            Kind::Copy => EVERY_COPY,
            Kind::Cancelled => EVERY_CANCELLED,
        }
    }
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
    appends: AtomicU64,
    /// What they did.
    pub ledger: Mutex<Ledger>,
    /// What is copied: a file that every server can read.
    lines: PathBuf,
}

/// The running clients.
pub struct Clients {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// Starts them, each on a thread of its own: nothing the storm does delays them.
    pub fn start(servers: &[(String, u16)], kinds: &[Kind], room: &Room) -> Clients {
        let shared = Arc::new(Shared { lines: room.path().join("lines"), ..Shared::default() });
        room.file(&shared.lines, &format!("{}\n", "7".repeat(LINE - 1)).repeat(LINES as usize));
        let threads = (1..)
            .zip(kinds)
            .map(|(number, kind)| {
                let (shared, servers, kind) = (shared.clone(), servers.to_vec(), *kind);
                std::thread::spawn(move || {
                    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("make a client's runtime").block_on(async {
                        match kind {
                            Kind::Prepare => prepared::work(number, &servers, &shared).await,
                            _ => work(number, kind, &servers, &shared).await,
                        }
                    });
                })
            })
            .collect();
        Clients { shared, threads }
    }

    /// How many statements were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Acquire)
    }

    /// The longest time without an acknowledgement to anybody, between two moments.
    pub fn longest_pause(&self, from: Instant, to: Instant) -> Duration {
        let ledger = self.shared.ledger.lock().expect("no client panicked");
        let recent = ledger.acts.iter().rev().take_while(|act| act.known + PATIENCE[1] * 2 > from);
        let mut known: Vec<Instant> =
            recent.filter(|act| act.outcome == Outcome::Acknowledged && act.known > from && act.known < to).map(|act| act.known).collect();
        known.push(to);
        known.sort();
        let mut last = from;
        let mut longest = Duration::ZERO;
        for now in known {
            longest = longest.max(now - last);
            last = now;
        }
        longest
    }

    /// Ends them, and gives all they did and saw.
    pub fn finish(self) -> Ledger {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().expect("no client panics");
        }
        std::mem::take(&mut *self.shared.ledger.lock().expect("no client panicked"))
    }
}

async fn work(number: u64, kind: Kind, servers: &[(String, u16)], shared: &Shared) {
    let mut session: Option<(usize, Client)> = None;
    let mut count = 0;
    let mut tick = tokio::time::interval(kind.every());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !shared.stop.load(Ordering::Acquire) {
        let Some((server, client)) = &session else {
            session = connect(servers).await;
            if session.is_none() {
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            continue;
        };
        let done = if kind == Kind::Read {
            read(client, shared).await
        } else {
            count += 1;
            let id = number * CLIENT + count;
            let act = match kind {
                Kind::Cancelled => Box::pin(cancelled(id, *server, client, servers, shared)).await,
                _ => act(id, kind, *server, client, shared).await,
            };
            let done = act.outcome == Outcome::Acknowledged;
            shared.ledger.lock().expect("no client panicked").acts.push(act);
            done
        };
        if done {
            shared.acknowledged.fetch_add(u64::from(kind != Kind::Read), Ordering::AcqRel);
            tick.tick().await;
        } else {
            session = None;
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}

async fn act(id: u64, kind: Kind, server: usize, client: &Client, shared: &Shared) -> Act {
    let list = (kind == Kind::Append).then(|| {
        let appends = shared.appends.fetch_add(1, Ordering::AcqRel);
        appends / APPENDS * LISTS + appends % LISTS
    });
    let sql = match list {
        None if kind == Kind::Copy => format!(
            "BEGIN; SET LOCAL storm.id = {id}; COPY heaps(filler) FROM '{}'; DELETE FROM heaps WHERE id < {id}; {}; COMMIT",
            shared.lines.display(),
            insert(id)
        ),
        None => insert(id),
        Some(list) => format!(
            "INSERT INTO lists(k, v) VALUES ({list}, ARRAY[{id}::bigint]) ON CONFLICT (k) DO UPDATE SET v = lists.v || EXCLUDED.v \
             RETURNING (SELECT fencing_token FROM tenure.lease()), v"
        ),
    };
    let patience = PATIENCE[usize::from((id / CLIENT).is_multiple_of(2))];
    let sent = Instant::now();
    let answer = tokio::time::timeout(patience, client.simple_query(&sql)).await;
    let known = Instant::now();
    let mut act = Act { id, sent, known, outcome: Outcome::Acknowledged, server, term: None, list, seen: None };
    match answer {
        Ok(Ok(messages)) => {
            let row = messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            });
            act.term = row.and_then(|row| row.get(0)?.parse().ok());
            act.seen = list.and_then(|list| Some(Seen::of(list, row?.get(1)?)));
        }
        Ok(Err(error)) => act.outcome = judge(&error),
        Err(_) => act.outcome = Outcome::Unknown(format!("no answer within {patience:?}")),
    }
    act
}

/// A row and the term that acknowledges it.
pub fn insert(id: u64) -> String {
    format!("INSERT INTO written(id) VALUES ({id}) RETURNING (SELECT fencing_token FROM tenure.lease())")
}

/// An insert that somebody cancels meanwhile, in turns by a cancel request and by `pg_cancel_backend` on commits that wait.
async fn cancelled(id: u64, server: usize, client: &Client, servers: &[(String, u16)], shared: &Shared) -> Act {
    let insert = act(id, Kind::Cancelled, server, client, shared);
    let cancel = async {
        if id.is_multiple_of(2) {
            tokio::time::sleep(Duration::from_millis(id / 2 % 8)).await;
            let _ = tokio::time::timeout(CONNECT_TIMEOUT, client.cancel_token().cancel_query(NoTls)).await;
        } else if let Some((_, other)) = connect(&servers[server..=server]).await {
            for _ in 0..3 {
                let sql =
                    "SELECT pg_cancel_backend((SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' ORDER BY random() LIMIT 1))";
                let _ = tokio::time::timeout(CONNECT_TIMEOUT, other.simple_query(sql)).await;
            }
        }
    };
    tokio::join!(insert, cancel).0
}

async fn read(client: &Client, shared: &Shared) -> bool {
    let list = shared.appends.load(Ordering::Acquire) / APPENDS * LISTS;
    let sql = format!("SELECT k, v FROM lists WHERE k >= {list} AND k < {}", list + LISTS);
    let Ok(Ok(messages)) = tokio::time::timeout(PATIENCE[0], client.simple_query(&sql)).await else {
        return false;
    };
    let mut ledger = shared.ledger.lock().expect("no client panicked");
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message
            && let (Some(Ok(list)), Some(text)) = (row.get(0).map(str::parse), row.get(1))
        {
            ledger.reads.push(Seen::of(list, text));
        }
    }
    true
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
