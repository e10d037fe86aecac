//! The open loop: an insert is due every ten milliseconds whatever became of those before, and its delay counts from that moment, not from when a session was free to send it.
//!
//! A loop that waits for each answer asks nothing of a server that hangs, and so counts one long delay where a hundred clients
//! would have waited. Here the others are due all the same, wait in the client, and each has its own delay.
//!
//! The client is a good one, so that what is measured is the cluster: without a session it asks all addresses at once, again and again,
//! and takes the first that is fit for writing; a server that leaves it without any answer for as long as its patience lasts is given up, and asked
//! again a second after the others. Nothing is ever sent twice.

use crate::workload::{Attempt, CONNECT_TIMEOUT, EVERY, Ledger, Outcome, Targets, Writer, judge};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

/// So many inserts are on their way in one session at most: those behind them stay in the client, and are not lost with the session.
const ON_THE_WAY: usize = 8;
/// A server that left the client without an answer is asked so much later than the others.
const SHUNNED_FOR: Duration = Duration::from_secs(1);
/// A server that refused a session is asked again after this: often enough for pauses of tenths of a second, and seldom enough that the logins cost a small machine little.
const ASKED_AGAIN_AFTER: Duration = Duration::from_millis(20);
/// After the end, what is due already may take so long yet.
const DRAIN: Duration = Duration::from_secs(60);
/// Where an insert was never sent.
pub(crate) const NEVER_SENT: &str = "never sent";

/// Starts writing; the table is there already.
pub fn start(targets: Targets) -> Writer {
    Writer::run(async move |stop: &AtomicBool, count: &AtomicU64| write(targets, stop, count).await)
}

/// A session fit for writing, and what is on its way there.
struct Session {
    client: Arc<Client>,
    server: usize,
    /// An insert did not go well here: no more is sent, and what is on its way is waited for.
    over: bool,
    /// When something was last heard, or first sent again.
    heard: Instant,
    sent: BTreeMap<u64, (Instant, Instant)>,
    answers: JoinSet<(u64, Outcome)>,
}

/// Writes until it is told to stop and all that was due is known.
async fn write(targets: Targets, stop: &AtomicBool, acknowledged: &AtomicU64) -> Ledger {
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut waiting: VecDeque<(u64, Instant)> = VecDeque::new();
    let (mut id, mut due) = (targets.first_id, Instant::now());
    let mut seeking: JoinSet<Session> = JoinSet::new();
    let mut session: Option<Session> = None;
    let mut shunned = None;
    let mut stopped = None;
    loop {
        let now = Instant::now();
        if stop.load(Ordering::Acquire) {
            let stopped = *stopped.get_or_insert(now);
            let done = waiting.is_empty() && session.as_ref().is_none_or(|session| session.sent.is_empty());
            if done || now > stopped + DRAIN {
                break;
            }
        } else {
            while due <= now {
                waiting.push_back((id, due));
                (id, due) = (id + 1, due + EVERY);
            }
        }
        match &mut session {
            Some(session) => session.send(&mut waiting),
            None if seeking.is_empty() => seek(&mut seeking, &targets, shunned),
            None => {}
        }
        tokio::select! {
            Some(found) = seeking.join_next(), if session.is_none() => {
                session = found.ok();
                seeking = JoinSet::new();
                shunned = None;
            }
            Some(answer) = next_answer(&mut session) => {
                let known = Instant::now();
                if let (Ok((id, outcome)), Some(session)) = (answer, &mut session)
                    && let Some((due, sent)) = session.sent.remove(&id)
                {
                    session.heard = known;
                    session.over |= outcome != Outcome::Acknowledged;
                    if outcome == Outcome::Acknowledged {
                        acknowledged.fetch_add(1, Ordering::AcqRel);
                    }
                    attempts.push(Attempt { id, due, sent, known, outcome });
                }
            }
            () = tokio::time::sleep_until(due.max(now + Duration::from_millis(1)).min(now + EVERY).into()) => {}
        }
        session = session.and_then(|session| session.goes_on(&targets, &mut attempts, &mut shunned));
    }
    let ended = Instant::now();
    let unknown = session.into_iter().flat_map(|session| session.sent);
    attempts.extend(unknown.map(|(id, (due, sent))| unanswered(id, due, sent, ended, DRAIN)));
    // Surely not there: for the client it is an error all the same.
    let never = |(id, due)| Attempt { id, due, sent: ended, known: ended, outcome: Outcome::Refused(NEVER_SENT.to_owned()) };
    attempts.extend(waiting.into_iter().map(never));
    Ledger { attempts, ended }
}

impl Session {
    /// What is due, as far as there is room.
    fn send(&mut self, waiting: &mut VecDeque<(u64, Instant)>) {
        while !self.over && !self.client.is_closed() && self.sent.len() < ON_THE_WAY {
            let Some((id, due)) = waiting.pop_front() else { break };
            let (client, now) = (self.client.clone(), Instant::now());
            if self.sent.is_empty() {
                self.heard = now;
            }
            self.sent.insert(id, (due, now));
            self.answers.spawn(async move {
                let done = client.simple_query(&format!("INSERT INTO written(id) VALUES ({id})")).await;
                (id, done.map_or_else(|error| judge(&error), |_| Outcome::Acknowledged))
            });
        }
    }

    /// None once it is of no more use; what was on its way is then unknown.
    fn goes_on(self, targets: &Targets, attempts: &mut Vec<Attempt>, shunned: &mut Option<usize>) -> Option<Session> {
        if self.sent.is_empty() {
            return (!self.over && !self.client.is_closed()).then_some(self);
        }
        if self.heard.elapsed() <= targets.patience {
            return Some(self);
        }
        let now = Instant::now();
        attempts.extend(self.sent.iter().map(|(id, (due, sent))| unanswered(*id, *due, *sent, now, targets.patience)));
        *shunned = Some(self.server);
        None
    }
}

fn unanswered(id: u64, due: Instant, sent: Instant, known: Instant, patience: Duration) -> Attempt {
    Attempt { id, due, sent, known, outcome: Outcome::Unknown(format!("no answer within {patience:?}")) }
}

/// None where nothing is on its way.
async fn next_answer(session: &mut Option<Session>) -> Option<Result<(u64, Outcome), tokio::task::JoinError>> {
    match session {
        Some(session) => session.answers.join_next().await,
        None => None,
    }
}

/// Asks every server by itself, so that one that hangs keeps no other waiting; the first that is fit ends the search.
fn seek(seeking: &mut JoinSet<Session>, targets: &Targets, shunned: Option<usize>) {
    for (server, address) in targets.servers.iter().enumerate() {
        let config = targets.session_at(address);
        seeking.spawn(async move {
            if shunned == Some(server) {
                tokio::time::sleep(SHUNNED_FOR).await;
            }
            loop {
                if let Ok(Ok((client, connection))) = tokio::time::timeout(CONNECT_TIMEOUT, config.connect(NoTls)).await {
                    tokio::spawn(connection);
                    let (client, heard) = (Arc::new(client), Instant::now());
                    return Session { client, server, over: false, heard, sent: BTreeMap::new(), answers: JoinSet::new() };
                }
                tokio::time::sleep(ASKED_AGAIN_AFTER).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::delays::Delays;
    use crate::workload::Targets;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// A message of PostgreSQL's protocol.
    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("a short message");
        [&[kind][..], &length.to_be_bytes(), body].concat()
    }

    async fn body(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
        let mut body = vec![0; usize::try_from(stream.read_u32().await?).expect("a length") - 4];
        stream.read_exact(&mut body).await?;
        Ok(body)
    }

    /// Takes every insert, and answers nobody for a while after the tenth.
    async fn serve(mut stream: TcpStream, silent_for: Duration) -> std::io::Result<()> {
        body(&mut stream).await?;
        let ready = message(b'Z', b"I");
        stream.write_all(&[message(b'R', &[0; 4]), ready.clone()].concat()).await?;
        let mut inserts = 0;
        loop {
            stream.read_u8().await?;
            if !body(&mut stream).await?.starts_with(b"INSERT") {
                let column = [&[0, 1][..], b"on\0", &[0; 6], &25_u32.to_be_bytes(), &[255; 6], &[0, 0]].concat();
                let row = [message(b'T', &column), message(b'D', &[0, 1, 0, 0, 0, 3, b'o', b'f', b'f']), message(b'C', b"SHOW\0")].concat();
                stream.write_all(&[row, ready.clone()].concat()).await?;
                continue;
            }
            inserts += 1;
            if inserts == 10 {
                tokio::time::sleep(silent_for).await;
            }
            stream.write_all(&[message(b'C', b"INSERT 0 1\0"), ready.clone()].concat()).await?;
        }
    }

    #[tokio::test]
    async fn inserts_that_are_due_while_the_server_is_silent_are_made_up_for_and_each_has_its_own_delay() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Duration::from_millis(500)));
            }
        });
        let writer = super::start(Targets::on_loopback(vec![port]));
        // 10 before the silence, 50 that are due in it, 30 afterwards.
        writer.goes_on(90, Duration::from_secs(30)).await;
        let ledger = tokio::task::spawn_blocking(|| writer.finish()).await.expect("the ledger");
        let delays = Delays::of(&ledger);
        assert_eq!(ledger.acknowledged().count(), ledger.attempts.len(), "{}", ledger.summary());
        assert!(delays.max >= Duration::from_millis(490), "{delays:?}");
        // One after another they waited 500, 490, 480 ... ms: a closed loop would have one such delay.
        let late = ledger.acknowledged().filter(|one| one.known - one.due >= Duration::from_millis(100)).count();
        assert!(late >= 35, "{late} of those that were due in the silence were late: {delays:?}");
        let apart = ledger.attempts[1].due - ledger.attempts[0].due;
        assert_eq!(apart, Duration::from_millis(10));
    }
}
