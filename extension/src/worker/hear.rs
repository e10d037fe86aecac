//! One try to hear the leader: its WAL first, which costs nothing; else its arbiter, and its Postgres where that says nothing.
//!
//! What is asked for is a sign of life, not an answer that is understood: a server that closes the connection lives as much as one that answers, whether it
//! speaks TLS or not. A process that is frozen gives none, although its kernel takes the connection.

use super::observe;
use cluster::hearing::Answer;
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
use tokio::time::{sleep_until, timeout_at};

/// To the arbiter, for nothing but a reaction.
const ASK_ARBITER: &[u8] = b"GET /liveness HTTP/1.0\r\n\r\n";
/// To Postgres: may this be encrypted? It answers anybody in one byte, and forgets a client that goes then.
const ASK_POSTGRES: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];

/// For how long the addresses of a host name are taken for the present ones.
const ADDRESSES_LAST: Duration = Duration::from_secs(10);

/// Addresses by host name, and when they were looked up.
type Known = HashMap<String, (Vec<IpAddr>, Instant)>;

/// What host names stand for. One is looked up at a time, and what is known serves until the answer comes: a name service that hangs
/// takes one thread of this process, not the one that a renewal needs.
#[derive(Default)]
pub struct Places {
    known: Arc<Mutex<Known>>,
    asking: Arc<AtomicBool>,
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
        Answer::Heard
    }

    /// One try; it takes `patience` where nothing is heard.
    pub async fn hear(&self, leader: &Member, patience: Duration) -> Answer {
        // WAL that came earlier is no answer to a question that was asked now: it would put off the moment at which a silent leader is lost by as much.
        if leader.address().and_then(|from| observe::receiver_heard(&from)).is_some_and(|ago| ago < patience / 4) {
            return Answer::Heard;
        }
        let until = tokio::time::Instant::now() + patience;
        let arbiter = timeout_at(until - patience / 2, self.reaction(&leader.api_url, ASK_ARBITER)).await.unwrap_or(Answer::Silent);
        if arbiter == Answer::Heard {
            return arbiter;
        }
        let postgres = timeout_at(until, self.reaction(&leader.conn_url, ASK_POSTGRES)).await.unwrap_or(Answer::Silent);
        match (arbiter, postgres) {
            (_, Answer::Heard) => Answer::Heard,
            (Answer::Refused, Answer::Refused) => Answer::Refused,
            _ => {
                // A host that can't be reached says so at once, and again each time.
                sleep_until(until).await;
                Answer::Silent
            }
        }
    }
}
