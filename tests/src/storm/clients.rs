//! The clients of a storm: writers that insert, append to lists, copy megabytes or are cancelled, each with the term that acknowledged.

use crate::room::Room;
use crate::storm::prepared;
use crate::storm::shared::{AGAIN_AFTER, Act, CLIENT, CONNECT_TIMEOUT, EVERY_PREPARED, Ledger, PATIENCE, Seen, Shared, connect, insert};
use crate::workload::{Outcome, judge};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Between two statements of one client.
const EVERY: Duration = Duration::from_millis(20);
/// The same for those that others suffer from.
const EVERY_COPY: Duration = Duration::from_secs(4);
const EVERY_CANCELLED: Duration = Duration::from_millis(500);
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
