//! Connections with bounds: how many at once, and how long one may stay silent in the middle of a request; in plain or in TLS.

use super::Gate;
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
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
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

/// A request must have come whole within this time of the connection's start or of the last answer:
/// whoever feeds a header byte by byte is cut off.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// Load balancers and monitors of a large installation, several times over; each costs about 20 KiB.
const MOST_CONNECTIONS: usize = 128;

/// A listener that keeps to the bounds.
pub struct Bounded {
    listener: TcpListener,
    free: Arc<Semaphore>,
    gate: watch::Receiver<Arc<Gate>>,
}

impl Bounded {
    /// Over a bound socket; each connection speaks TLS where the gate has it at that moment.
    pub fn new(listener: TcpListener, gate: watch::Receiver<Arc<Gate>>) -> Bounded {
        Bounded { listener, free: Arc::new(Semaphore::new(MOST_CONNECTIONS)), gate }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            // The semaphore is never closed.
            let Ok(place) = self.free.clone().acquire_owned().await else { continue };
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    let stream = match &self.gate.borrow().tls {
                        None => Stream::Plain(stream),
                        Some(tls) => Stream::Greeting(Box::new(TlsAcceptor::from(tls.clone()).accept(stream))),
                    };
                    let peer = Peer { address: address.ip().to_canonical(), busy: Arc::default(), certificate: Arc::default() };
                    let limit = Box::pin(tokio::time::sleep(REQUEST_WITHIN));
                    return (Connection { stream, limit, peer, _place: place }, address);
                }
                // Out of files or memory: another try at once would only spin.
                Err(error) => {
                    tracing::warn!("accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What a connection goes through.
enum Stream {
    Plain(TcpStream),
    /// The TLS handshake. It is part of the first read, so that whoever does not finish it holds nobody up.
    Greeting(Box<Accept<TcpStream>>),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One connection.
pub struct Connection {
    stream: Stream,
    limit: Pin<Box<Sleep>>,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

/// What a request knows of its connection.
#[derive(Clone)]
pub struct Peer {
    address: IpAddr,
    busy: Arc<AtomicBool>,
    certificate: Arc<AtomicBool>,
}

/// While it lives, the connection may be silent: the answer is being made.
pub struct Answering(Arc<AtomicBool>);

impl Peer {
    /// A peer of no connection, for tests of what comes after.
    #[cfg(test)]
    pub fn from_address(address: &str, certificate: bool) -> Peer {
        let address = address.parse().unwrap();
        Peer { address, busy: Arc::default(), certificate: Arc::new(AtomicBool::new(certificate)) }
    }

    /// Where it comes from; IPv4 as such, also on a socket for both.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The handshake has seen a certificate of the right authority.
    pub fn showed_certificate(&self) -> bool {
        self.certificate.load(Ordering::Relaxed)
    }

    /// The request has come; its answer has bounds of its own.
    pub fn answering(&self) -> Answering {
        self.busy.store(true, Ordering::Relaxed);
        Answering(self.busy.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Connected<IncomingStream<'_, Bounded>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Peer {
        stream.io().peer.clone()
    }
}

impl Connection {
    fn begin_anew(&mut self) {
        self.limit.as_mut().reset(Instant::now() + REQUEST_WITHIN);
    }

    /// The stream to read from and write to, once the handshake is over.
    fn poll_stream(&mut self, context: &mut Context<'_>) -> Poll<io::Result<&mut Stream>> {
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
        while self.limit.as_mut().poll(context).is_ready() {
            if !self.peer.busy.load(Ordering::Relaxed) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.begin_anew();
        }
        match ready!(self.poll_stream(context))? {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Greeting(_) => Poll::Pending,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.begin_anew();
        match ready!(self.poll_stream(context))? {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Greeting(_) => Poll::Pending,
        }
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.begin_anew();
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
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
            Stream::Greeting(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Greeting(_) => Poll::Ready(Ok(())),
        }
    }
}
