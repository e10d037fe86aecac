//! One try to hear the leader: its WAL first, which costs nothing; else its arbiter, and its Postgres where that says nothing.
//!
//! What is asked for is a sign of life, not an answer that is understood: a server that closes the connection lives as much as one that answers, whether it
//! speaks TLS or not. A process that is frozen gives none, although its kernel takes the connection.

use super::observe;
use cluster::hearing::{Answer, PERIODS};
use cluster::host::Address;
use cluster::member::Member;
use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant as Deadline, timeout, timeout_at};

/// To the arbiter, for nothing but a reaction.
const ASK_ARBITER: &[u8] = b"GET /liveness HTTP/1.0\r\n\r\n";
/// To Postgres: may this be encrypted? It answers anybody in one byte, and forgets a client that goes then.
const ASK_POSTGRES: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];

/// For how long the addresses of a host name are taken for the present ones.
const ADDRESSES_LAST: Duration = Duration::from_secs(10);

/// Addresses by host name, and when they were looked up.
type Known = HashMap<String, (Vec<IpAddr>, Instant)>;

/// A sign of life: whose, by the address of its arbiter, and when it came.
type Sign = Option<(String, Instant)>;

/// What host names stand for, and who gave a sign of life. One name is looked up at a time, and what is known serves until the answer comes: a name service that hangs
/// takes one thread of this process, not the one that a renewal needs.
#[derive(Clone)]
pub struct Places {
    known: Arc<Mutex<Known>>,
    asking: Arc<AtomicBool>,
    signs: watch::Sender<Sign>,
}

impl Default for Places {
    fn default() -> Places {
        Places { known: Arc::default(), asking: Arc::default(), signs: watch::Sender::new(None) }
    }
}

impl Places {
    fn known(&self, host: &str) -> Option<(Vec<IpAddr>, Instant)> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }

    async fn of(&self, Address { host, port }: &Address) -> Vec<SocketAddr> {
        if let Ok(address) = host.parse() {
            return vec![SocketAddr::new(address, *port)];
        }
        let before = self.known(host);
        let fresh = before.as_ref().is_some_and(|(_, since)| since.elapsed() < ADDRESSES_LAST);
        if !fresh && !self.asking.swap(true, Ordering::SeqCst) {
            let (host, port, known, asking) = (host.clone(), *port, self.known.clone(), self.asking.clone());
            let asked = tokio::task::spawn_blocking(move || {
                if let Ok(found) = (host.as_str(), port).to_socket_addrs() {
                    let found = found.map(|place| place.ip()).collect();
                    known.lock().unwrap_or_else(PoisonError::into_inner).insert(host, (found, Instant::now()));
                }
                asking.store(false, Ordering::SeqCst);
            });
            if before.is_none() {
                // A try that waits no longer leaves the answer to the next try.
                let _ = asked.await;
            }
        }
        let (addresses, _) = self.known(host).unwrap_or_else(|| (Vec::new(), Instant::now()));
        addresses.into_iter().map(|address| SocketAddr::new(address, *port)).collect()
    }

    async fn reaction(&self, url: &str, ask: &[u8]) -> Answer {
        let Some(address) = Address::of_url(url) else { return Answer::Silent };
        let mut stream = match TcpStream::connect(&*self.of(&address).await).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return Answer::Refused,
            Err(_) => return Answer::Silent,
        };
        // Whatever comes of these, it came from a process: an end, too.
        let _ = stream.write_all(ask).await;
        let _ = stream.read(&mut [0]).await;
        Answer::Heard(Duration::ZERO)
    }

    /// Asks both, and goes on listening for an answer when the try is over that asked: a network that is slow, or a host that is busy, answers late and lives.
    /// Tells whether both refused, which takes no time.
    fn ask(&self, leader: &Member, patience: Duration) -> oneshot::Receiver<bool> {
        let (tell, told) = oneshot::channel();
        let (places, leader) = (self.clone(), (leader.api_url.clone(), leader.conn_url.clone()));
        tokio::spawn(async move {
            let until = Deadline::now() + patience * PERIODS;
            let (api_url, conn_url) = leader;
            let sign = |answer: Answer| {
                if matches!(answer, Answer::Heard(_)) {
                    places.signs.send_replace(Some((api_url.clone(), Instant::now())));
                }
                answer
            };
            let mut arbiter =
                Box::pin(async { sign(timeout_at(until, places.reaction(&api_url, ASK_ARBITER)).await.unwrap_or(Answer::Silent)) });
            // Postgres starts a process for who asks: only where the arbiter is slow.
            let soon = timeout(patience / 2, &mut arbiter).await;
            if matches!(soon, Ok(Answer::Heard(_))) {
                return;
            }
            let postgres = async { sign(timeout_at(until, places.reaction(&conn_url, ASK_POSTGRES)).await.unwrap_or(Answer::Silent)) };
            let both = match soon {
                Ok(arbiter) => (arbiter, postgres.await),
                Err(_) => tokio::join!(arbiter, postgres),
            };
            let _ = tell.send(both == (Answer::Refused, Answer::Refused));
        });
        told
    }

    /// One try; it takes `patience` where nothing is heard.
    pub async fn hear(&self, leader: &Member, patience: Duration) -> Answer {
        let wal = || leader.address().and_then(|from| observe::receiver_heard(&from));
        // WAL that came earlier is no answer to a question that was asked now.
        if let Some(ago) = wal().filter(|ago| *ago < patience / 4) {
            return Answer::Heard(ago);
        }
        let began = Instant::now();
        let mut signs = self.signs.subscribe();
        let refused = self.ask(leader, patience);
        let reacted = signs.wait_for(|sign| sign.as_ref().is_some_and(|(whose, at)| *whose == leader.api_url && *at >= began));
        let answered = async {
            tokio::select! {
                Ok(_) = reacted => Answer::Heard(Duration::ZERO),
                Ok(true) = refused => Answer::Refused,
                // A host that can't be reached says so at once, and again each time.
                else => std::future::pending().await,
            }
        };
        match timeout(patience, answered).await {
            Ok(answer) => answer,
            Err(_) => wal().filter(|ago| *ago <= began.elapsed()).map_or(Answer::Silent, Answer::Heard),
        }
    }
}
