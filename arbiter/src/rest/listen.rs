//! Connections with bounds: how many at once, and how long each phase of one may take; in plain or in TLS, and HTTP/1 only.
//!
//! A connection is in one of three phases: its request is awaited, its answer is made, its answer is read. The first and the last depend
//! on the other side, so each has a deadline that no byte moves. The second has the bound of its route.

use super::access::{addresses, host};
use super::door::{Door, Shared};
use super::page::live;
use super::peer::{PHASE_WITHIN, Peer, Phase};
use super::places::{Place, Places, Waits};
use crate::node::snapshot::Snapshot;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// A head of a request that is larger is refused. Hyper's least is 8 KiB.
const HEAD_MOST: usize = 32 * 1024;
/// So much of an answer lies in the kernel at most (it doubles that). By itself it takes megabytes for each connection, and a client that never reads
/// would be answered hundreds of times before anything waits for it.
const SEND_BUFFER: usize = 32 * 1024;
/// Names of members are looked up again after this time.
const LOOK_UP_EVERY: Duration = Duration::from_secs(60);

/// Takes connections until the socket fails.
pub async fn keep_listening<A, F>(listener: TcpListener, shared: Arc<Shared>, answer: A) -> io::Result<()>
where
    A: Fn(Arc<Shared>, Peer, Request) -> F + Clone + Send + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    let places = Arc::new(Places::default());
    // Dropped with this future, and every connection with it.
    let mut tasks = JoinSet::new();
    tasks.spawn(know_members(shared.node.snapshot.clone(), places.clone()));
    tasks.spawn(live::keep(shared.live.clone(), shared.node.clone()));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                // Without a place it is closed at once: left in the queue it would keep all after it waiting.
                Ok((stream, address)) => drop(begin(stream, address, &shared, &places, answer.clone()).map(|conversation| tasks.spawn(conversation))),
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
fn begin<A, F>(
    stream: TcpStream,
    address: SocketAddr,
    shared: &Arc<Shared>,
    places: &Arc<Places>,
    answer: A,
) -> Option<impl Future<Output = ()> + use<A, F>>
where
    A: Fn(Arc<Shared>, Peer, Request) -> F,
    F: Future<Output = Response>,
{
    let waits = Waits::from_now();
    let place = places.take(address.ip().to_canonical(), &waits)?;
    // The kernel's own bound is no reason not to answer.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER);
    let door: Arc<Door> = shared.door.borrow().clone();
    let stream = match &door.tls {
        None => Stream::Plain(stream),
        Some(tls) => Stream::Greeting(Box::new(TlsAcceptor::from(tls.clone()).accept(stream))),
    };
    let peer = Peer { address: address.ip().to_canonical(), phase: Phase { waits, reads: Arc::default() }, certificate: Arc::default() };
    let connection = Connection { stream, limit: Box::pin(tokio::time::sleep(PHASE_WITHIN)), peer: peer.clone() };
    Some(converse(connection, peer, shared.clone(), place, answer))
}

async fn converse<A, F>(connection: Connection, peer: Peer, shared: Arc<Shared>, place: Place, answer: A)
where
    A: Fn(Arc<Shared>, Peer, Request) -> F,
    F: Future<Output = Response>,
{
    let service = hyper::service::service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let answered = answer(shared.clone(), peer.clone(), request.map(Body::new));
        async move { Ok::<_, Infallible>(answered.await) }
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

/// One connection.
struct Connection {
    stream: Stream,
    limit: Pin<Box<Sleep>>,
    peer: Peer,
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
