//! The writer: one insert every ten milliseconds over the multi-host addresses, each id written once and never again.
//!
//! It does what an application with libpq's `host=a,b,c target_session_attrs=read-write connect_timeout=1` does, and
//! keeps a ledger: which ids were acknowledged, refused (the server said no) or are unknown (the connection was
//! lost before an answer). Nothing unknown is tried again, so that a doubled row can only be the server's doing.
//! It runs on a thread of its own: nothing the story does delays it.

use crate::wait;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio_postgres::config::TargetSessionAttrs;
use tokio_postgres::error::{DbError, Severity, SqlState};
use tokio_postgres::{Client, NoTls};

/// Password of the user `postgres` where nothing else is said: the one of every story.
pub const PASSWORD: &str = "story";
/// Between two inserts.
pub(crate) const EVERY: Duration = Duration::from_millis(10);
/// After an error, before the next address.
const AGAIN_AFTER: Duration = Duration::from_millis(2);
/// libpq's `connect_timeout`, for one address.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where the writer writes, and as whom.
#[derive(Debug, Clone)]
pub struct Targets {
    pub(crate) servers: Vec<(String, u16)>,
    user: String,
    password: String,
    database: String,
    pub(crate) patience: Duration,
    again_after: Duration,
    pub(crate) first_id: u64,
    read_write: bool,
    reads: Option<String>,
}

impl Targets {
    /// Servers on loopback, asked in this order.
    pub fn on_loopback(ports: Vec<u16>) -> Targets {
        Targets::at(ports.into_iter().map(|port| ("127.0.0.1".to_owned(), port)).collect())
    }

    /// Servers by address and port, asked in this order.
    pub fn at(servers: Vec<(String, u16)>) -> Targets {
        Targets {
            servers,
            user: "postgres".to_owned(),
            password: PASSWORD.to_owned(),
            database: "postgres".to_owned(),
            patience: Duration::from_secs(20),
            again_after: AGAIN_AFTER,
            first_id: 1,
            read_write: true,
            reads: None,
        }
    }

    /// Ids begin here, so that several writers share a table.
    pub fn first_id(mut self, first_id: u64) -> Targets {
        self.first_id = first_id;
        self
    }

    /// A reader: runs this in place of the insert; its ledger tells of answers.
    pub fn reads(mut self, query: &str) -> Targets {
        self.reads = Some(query.to_owned());
        self
    }

    /// A witness: takes any session, also one that starts read-only, and does not hurry after a refusal. Its ids begin here.
    pub fn witness(mut self, first_id: u64) -> Targets {
        self.read_write = false;
        self.again_after = Duration::from_millis(100);
        self.first_id = first_id;
        self
    }

    /// In this database.
    pub fn database(mut self, name: &str) -> Targets {
        name.clone_into(&mut self.database);
        self
    }

    /// As this user.
    pub fn user(mut self, user: &str, password: &str) -> Targets {
        user.clone_into(&mut self.user);
        password.clone_into(&mut self.password);
        self
    }

    /// How a session at one of the servers is asked for.
    pub(crate) fn session_at(&self, (host, port): &(String, u16)) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config.host(host).port(*port).user(&self.user).password(&self.password).dbname(&self.database).application_name("writer");
        if self.read_write {
            config.target_session_attrs(TargetSessionAttrs::ReadWrite);
        }
        config
    }

    /// How long an insert may take before the client gives the connection up.
    pub fn patience(mut self, patience: Duration) -> Targets {
        self.patience = patience;
        self
    }
}

/// What the client knows of one id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The server said it is done.
    Acknowledged,
    /// The server said it is not done: SQLSTATE and message.
    Refused(String),
    /// No answer.
    Unknown(String),
}

/// One insert.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// The id, never used again.
    pub id: u64,
    /// When it was to be sent; the same as `sent` where each insert waits for the one before.
    pub due: Instant,
    /// When it was sent.
    pub sent: Instant,
    /// When the outcome was known.
    pub known: Instant,
    /// What came of it.
    pub outcome: Outcome,
}

/// Everything the writer did.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// Every id, in order.
    pub attempts: Vec<Attempt>,
    /// When the writer ended.
    pub ended: Instant,
}

/// A running writer.
pub struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    thread: Option<JoinHandle<Ledger>>,
}

impl Writer {
    /// Starts writing; the table is there already.
    pub fn start(targets: Targets) -> Writer {
        Writer::run(async move |stop: &AtomicBool, count: &AtomicU64| write(targets, stop, count).await)
    }

    /// On a thread of its own, whatever the loop.
    pub(crate) fn run(write: impl AsyncFnOnce(&AtomicBool, &AtomicU64) -> Ledger + Send + 'static) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (stop.clone(), acknowledged.clone());
        let thread = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("make the writer's runtime")
                .block_on(write(&stopped, &count))
        });
        Writer { stop, acknowledged, thread: Some(thread) }
    }

    /// How many commits were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Waits until so many more commits are acknowledged.
    pub async fn goes_on(&self, more: u64, bound: Duration) {
        let before = self.acknowledged();
        wait::until("the writer to go on", bound, async || {
            let now = self.acknowledged();
            if now >= before + more { Ok(()) } else { Err(format!("{} of {more} more commits", now - before)) }
        })
        .await;
    }

    /// Stops writing and gives the ledger.
    pub fn finish(mut self) -> Ledger {
        self.stop.store(true, Ordering::Release);
        let thread = self.thread.take().expect("a writer is finished once");
        thread.join().expect("the writer does not panic")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

async fn write(targets: Targets, stop: &AtomicBool, acknowledged: &AtomicU64) -> Ledger {
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut session: Option<Client> = None;
    let mut tick = tokio::time::interval(EVERY);
    // A pause is not made up for: after it, one insert every ten milliseconds again.
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !stop.load(Ordering::Acquire) {
        let Some(client) = session.as_ref().filter(|client| !client.is_closed()) else {
            session = connect_to_any(&targets).await;
            if session.is_none() {
                tokio::time::sleep(targets.again_after).await;
            }
            continue;
        };
        let id = attempts.len() as u64 + targets.first_id;
        let sql = targets.reads.clone().unwrap_or_else(|| format!("INSERT INTO written(id) VALUES ({id})"));
        let sent = Instant::now();
        let outcome = match tokio::time::timeout(targets.patience, client.simple_query(&sql)).await {
            Ok(Ok(_)) => Outcome::Acknowledged,
            Ok(Err(error)) => judge(&error),
            Err(_) => Outcome::Unknown(format!("no answer within {:?}", targets.patience)),
        };
        let went_well = outcome == Outcome::Acknowledged;
        attempts.push(Attempt { id, due: sent, sent, known: Instant::now(), outcome });
        if went_well {
            acknowledged.fetch_add(1, Ordering::AcqRel);
            tick.tick().await;
        } else {
            session = None;
            tokio::time::sleep(targets.again_after).await;
        }
    }
    Ledger { attempts, ended: Instant::now() }
}

/// How a backend of a Citus coordinator ends that waits for a worker while its own server dies.
const DIED_WAITING: &str = "postmaster was shut down";

/// An ERROR says that the insert is undone; anything that ends the session (FATAL, a lost connection) says nothing. Nor does an
/// ERROR of a Citus coordinator whose session at a worker was lost, or that died waiting for it: the shard's commit may have been made.
pub fn judge(error: &tokio_postgres::Error) -> Outcome {
    let lost_a_worker = |said: &DbError| {
        let code = said.code();
        code.code().starts_with("08")
            || [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN].contains(code)
            || said.message().starts_with(DIED_WAITING)
    };
    match error.as_db_error() {
        Some(said) if said.parsed_severity() == Some(Severity::Error) && !lost_a_worker(said) => {
            Outcome::Refused(format!("{}: {}", said.code().code(), said.message()))
        }
        Some(said) => Outcome::Unknown(format!("{}: {}", said.code().code(), said.message())),
        None => Outcome::Unknown(error.to_string()),
    }
}

/// The first address that gives a session fit for writing, as libpq looks for it.
async fn connect_to_any(targets: &Targets) -> Option<Client> {
    for server in &targets.servers {
        let config = targets.session_at(server);
        if let Ok(Ok((client, connection))) = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls)).await {
            tokio::spawn(connection);
            return Some(client);
        }
    }
    None
}

impl Ledger {
    /// The acknowledged ids.
    pub fn acknowledged(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| attempt.outcome == Outcome::Acknowledged)
    }

    /// The refused ids.
    pub fn refused(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| matches!(attempt.outcome, Outcome::Refused(_)))
    }

    /// The ids with no answer.
    pub fn unknown(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| matches!(attempt.outcome, Outcome::Unknown(_)))
    }

    /// The longest time without an acknowledged commit, the end included.
    pub fn longest_pause(&self) -> Duration {
        let mut known = self.acknowledged().map(|attempt| attempt.known);
        let Some(mut last) = known.next() else {
            return self.attempts.first().map_or(Duration::ZERO, |first| self.ended - first.sent);
        };
        let mut longest = Duration::ZERO;
        for now in known.chain([self.ended]) {
            longest = longest.max(now.saturating_duration_since(last));
            last = now;
        }
        longest
    }

    /// One line for people: counts, pause, and what clients were told.
    pub fn summary(&self) -> String {
        let mut said: Vec<String> = Vec::new();
        for attempt in &self.attempts {
            let (Outcome::Refused(words) | Outcome::Unknown(words)) = &attempt.outcome else {
                continue;
            };
            if !said.contains(words) && said.len() < 5 {
                said.push(words.clone());
            }
        }
        format!(
            "{} acknowledged, {} refused, {} unknown, longest pause {} ms{}{}",
            self.acknowledged().count(),
            self.refused().count(),
            self.unknown().count(),
            self.longest_pause().as_millis(),
            if said.is_empty() { "" } else { "; said: " },
            said.join(" | ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_lies_between_acknowledged_commits() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let attempt = |id, known, outcome| Attempt { id, due: at(known), sent: at(known), known: at(known), outcome };
        let ledger = Ledger {
            attempts: vec![
                attempt(1, 0, Outcome::Acknowledged),
                attempt(2, 10, Outcome::Acknowledged),
                attempt(3, 200, Outcome::Unknown("cut".to_owned())),
                attempt(4, 300, Outcome::Refused("25006: no".to_owned())),
                attempt(5, 410, Outcome::Acknowledged),
            ],
            ended: at(420),
        };
        assert_eq!(ledger.longest_pause(), Duration::from_millis(400));
        assert_eq!(ledger.summary(), "3 acknowledged, 1 refused, 1 unknown, longest pause 400 ms; said: cut | 25006: no");
    }
}
