//! Connections with bounds: how many at once, and how long each phase of one may take; in plain or in TLS, and HTTP/1 only.
//!
//! A connection is in one of three phases: its request is awaited, its answer is made, its answer is read. The first and the last depend
//! on the other side, so each has a deadline that no byte moves. The second has the bound of its route.

use super::access::{addresses, host};
use super::places::{Place, Places, Waits};
use super::{Door, Shared};
use crate::node::snapshot::Snapshot;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// A request must have come whole within this time of the connection's start or of the last answer's end, and an answer must have
/// been read whole within this time: a client that feeds a header byte by byte, or reads that way, is cut off.
pub const PHASE_WITHIN: Duration = Duration::from_secs(10);
/// A head of a request that is larger is refused. Hyper's least is 8 KiB.
const HEAD_MOST: usize = 32 * 1024;
/// So much of an answer lies in the kernel at most (it doubles that). By itself it takes megabytes for each connection, and a client that never reads
/// would be answered hundreds of times before anything waits for it.
const SEND_BUFFER: usize = 32 * 1024;
/// Names of members are looked up again after this time.
const LOOK_UP_EVERY: Duration = Duration::from_secs(60);

/// Takes connections until the socket fails.
pub async fn keep_listening(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let places = Arc::new(Places::default());
    // Dropped with this future, and every connection with it.
    let mut tasks = JoinSet::new();
    tasks.spawn(know_members(shared.node.snapshot.clone(), places.clone()));
    tasks.spawn(super::page::live::keep(shared.clone()));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                // Without a place it is closed at once: left in the queue it would keep all after it waiting.
                Ok((stream, address)) => drop(begin(stream, address, &shared, &places).map(|conversation| tasks.spawn(conversation))),
                // Out of files or memory: another try at once would only spin.
                Err(error) => {
                    tracing::warn!("accept a connection to REST: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            },
            Some(ended) = tasks.join_next() => {
                if let Err(panicked) = ended {
                    tracing::error!("serve a connection to REST: {panicked}");
                }
            }
        }
    }
}

/// The whole of one connection, if there is a place for it.
fn begin(stream: TcpStream, address: SocketAddr, shared: &Arc<Shared>, places: &Arc<Places>) -> Option<impl Future<Output = ()> + use<>> {
    let waits = Waits::from_now();
    let place = places.take(address.ip().to_canonical(), &waits)?;
    // The kernel's own bound is no reason not to answer.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
    let gate: Arc<Door> = shared.gate.borrow().clone();
    let stream = match &gate.tls {
        None => Stream::Plain(stream),
        Some(tls) => Stream::Greeting(Box::new(TlsAcceptor::from(tls.clone()).accept(stream))),
    };
    let peer = Peer { address: address.ip().to_canonical(), phase: Phase { waits, reads: Arc::default() }, certificate: Arc::default() };
    let connection = Connection { stream, limit: Box::pin(tokio::time::sleep(PHASE_WITHIN)), peer: peer.clone() };
    Some(converse(connection, peer, shared.clone(), place))
}

async fn converse(connection: Connection, peer: Peer, shared: Arc<Shared>, place: Place) {
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (shared, peer) = (shared.clone(), peer.clone());
        async move { Ok::<_, Infallible>(super::answer(&shared, &peer, request.map(Body::new)).await) }
    });
    let mut http = http1::Builder::new();
    // The time that a head takes is bounded with the phase it is in.
    http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD_MOST);
    tokio::select! {
        ended = http.serve_connection(TokioIo::new(connection), service) => {
            if let Err(error) = ended {
                tracing::debug!("a connection to REST ended: {error}");
            }
        }
        () = place.taken_away() => {}
    }
}

/// Keeps the addresses of the members, for which places are kept.
async fn know_members(mut snapshot: watch::Receiver<Snapshot>, places: Arc<Places>) {
    let hosts = |snapshot: &Snapshot| -> BTreeSet<String> {
        snapshot.view.members.values().filter_map(|entry| host(&entry.member.api_url)).collect()
    };
    loop {
        let known = hosts(&snapshot.borrow_and_update());
        let mut found = BTreeSet::new();
        for host in &known {
            found.extend(addresses(host).await);
        }
        places.know_members(found);
        let changed = snapshot.wait_for(|snapshot| hosts(snapshot) != known);
        if let Ok(Err(_)) = tokio::time::timeout(LOOK_UP_EVERY, changed).await {
            return;
        }
    }
}

/// What a connection goes through.
enum Stream {
    Plain(TcpStream),
    /// The TLS handshake. It is part of the first read, so that a client that does not finish it holds nobody up.
    Greeting(Box<Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Who has to do something next.
#[derive(Clone)]
struct Phase {
    waits: Waits,
    /// An answer is being read by the other side; otherwise a request is awaited from it.
    reads: Arc<AtomicBool>,
}

/// One connection.
struct Connection {
    stream: Stream,
    limit: Pin<Box<Sleep>>,
    peer: Peer,
}

/// What a request knows of its connection.
#[derive(Clone)]
pub struct Peer {
    address: IpAddr,
    phase: Phase,
    certificate: Arc<AtomicBool>,
}

/// While it lives, the connection may be silent: the answer is being made.
pub struct Answering(Phase);

impl Peer {
    /// A peer of no connection, for tests of what comes after.
    #[cfg(test)]
    pub fn from_address(address: &str, certificate: bool) -> Peer {
        let address = address.parse().unwrap();
        let phase = Phase { waits: Waits::from_now(), reads: Arc::default() };
        Peer { address, phase, certificate: Arc::new(AtomicBool::new(certificate)) }
    }

    /// Where it comes from; IPv4 as such, also on a socket for both.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The handshake has seen a certificate of the right authority.
    pub fn showed_certificate(&self) -> bool {
        self.certificate.load(Ordering::Relaxed)
    }

    /// One more part of an answer that goes on: it has to be read in the time of a phase, and the other side is not asked for anything
    /// meanwhile. What was not read yet keeps its deadline.
    pub fn more(&self) {
        if !self.phase.reads.swap(true, Ordering::Relaxed) {
            self.phase.waits.begin();
        }
    }

    /// The request has come; its answer has bounds of its own.
    pub fn answering(&self) -> Answering {
        self.phase.waits.end();
        Answering(self.phase.clone())
    }
}

impl Answering {
    /// Something is being changed: the connection is not ended for another's sake.
    pub fn keep(&self) {
        self.0.waits.keep();
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.reads.store(true, Ordering::Relaxed);
        self.0.waits.begin();
    }
}

impl Connection {
    /// An error where the other side has taken more time for this phase than it has. Wakes the task when that comes.
    fn poll_limit(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let Some(since) = self.peer.phase.waits.since() else { return Ok(()) };
        let until = Instant::from_std(since + PHASE_WITHIN);
        if self.limit.deadline() != until {
            self.limit.as_mut().reset(until);
        }
        if self.limit.as_mut().poll(context).is_ready() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }

    /// All that was to be written is written: the next request is awaited.
    fn sent(&self) {
        if self.peer.phase.waits.since().is_some() && self.peer.phase.reads.swap(false, Ordering::Relaxed) {
            self.peer.phase.waits.begin();
        }
    }

    /// The stream to read from and write to, once the handshake is over.
    fn poll_stream(&mut self, context: &mut Context<'_>) -> Poll<io::Result<&mut Stream>> {
        self.poll_limit(context)?;
        if let Stream::Greeting(greeting) = &mut self.stream {
            let stream = ready!(Pin::new(greeting).poll(context))?;
            let shown = stream.get_ref().1.peer_certificates().is_some_and(|chain| !chain.is_empty());
            self.peer.certificate.store(shown, Ordering::Relaxed);
            self.stream = Stream::Tls(Box::new(stream));
        }
        Poll::Ready(Ok(&mut self.stream))
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match ready!(self.poll_stream(context))? {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Greeting(_) => Poll::Pending,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match ready!(self.poll_stream(context))? {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Greeting(_) => Poll::Pending,
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match ready!(self.poll_stream(context))? {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Stream::Greeting(_) => Poll::Pending,
        }
    }

    fn is_write_vectored(&self) -> bool {
        // Both kinds of stream do it.
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_limit(context)?;
        ready!(match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
            Stream::Greeting(_) => Poll::Ready(Ok(())),
        })?;
        self.sent();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_limit(context)?;
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Greeting(_) => Poll::Ready(Ok(())),
        }
    }
}
