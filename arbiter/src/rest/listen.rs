//! Connections with bounds: how many at once, and how long one may stay silent in the middle of a request.

use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

/// A request must have come whole within this time of the connection's start or of the last answer:
/// whoever feeds a header byte by byte is cut off.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);
/// Load balancers and monitors of a large installation, several times over; each costs about 20 KiB.
const MOST_CONNECTIONS: usize = 128;

/// A listener that keeps to the bounds.
pub struct Bounded {
    listener: TcpListener,
    free: Arc<Semaphore>,
}

impl Bounded {
    /// Over a bound socket.
    pub fn new(listener: TcpListener) -> Bounded {
        Bounded { listener, free: Arc::new(Semaphore::new(MOST_CONNECTIONS)) }
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
                    let busy = Arc::new(AtomicBool::new(false));
                    let limit = Box::pin(tokio::time::sleep(REQUEST_WITHIN));
                    return (Connection { stream, limit, busy, _place: place }, address);
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

/// One connection.
pub struct Connection {
    stream: TcpStream,
    limit: Pin<Box<Sleep>>,
    busy: Arc<AtomicBool>,
    _place: OwnedSemaphorePermit,
}

/// What a request knows of its connection.
#[derive(Clone)]
pub struct Peer {
    busy: Arc<AtomicBool>,
}

/// While it lives, the connection may be silent: the answer is being made.
pub struct Answering(Arc<AtomicBool>);

impl Peer {
    /// A peer of no connection, for tests of what comes after.
    #[cfg(test)]
    pub fn none() -> Peer {
        Peer { busy: Arc::default() }
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
        Peer { busy: stream.io().busy.clone() }
    }
}

impl Connection {
    fn begin_anew(&mut self) {
        self.limit.as_mut().reset(Instant::now() + REQUEST_WITHIN);
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.limit.as_mut().poll(context).is_ready() {
            if !self.busy.load(Ordering::Relaxed) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.begin_anew();
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.begin_anew();
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.begin_anew();
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
