//! Between a node and its etcd, or a standby and its upstream: bytes pass until certain words went by, and from then on every answer is lost.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

/// Listens on loopback for one server; ends with the process.
pub struct Proxy {
    port: u16,
    swallows: Arc<AtomicBool>,
    fired: Arc<AtomicBool>,
    holds: Arc<AtomicBool>,
}

impl Proxy {
    /// In front of `host:port`. Once a client has sent these words, no answer arrives any more, on any connection, while what
    /// clients send still does.
    pub fn before(server: String, words: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let port = listener.local_addr().expect("its address").port();
        let swallows = Arc::new(AtomicBool::new(false));
        let (flag, words) = (swallows.clone(), words.as_bytes().to_vec());
        let (fired, holds) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let proxy = Proxy { port, swallows, fired: fired.clone(), holds: holds.clone() };
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(upstream) = TcpStream::connect(&server) else { continue };
                let (Ok(client_in), Ok(upstream_out)) = (client.try_clone(), upstream.try_clone()) else { continue };
                let (trigger, words, fired) = (flag.clone(), words.clone(), fired.clone());
                thread::spawn(move || to_server(client_in, upstream_out, (&trigger, &fired), &words));
                let (flag, holds) = (flag.clone(), holds.clone());
                thread::spawn(move || to_client(upstream, client, (&flag, &holds)));
            }
        });
        proxy
    }

    /// The words count from the next [`Proxy::heed`] on only.
    #[must_use]
    pub fn heedless(self) -> Proxy {
        self.fired.store(true, SeqCst);
        self
    }

    /// From now on the words count, once.
    pub fn heed(&self) {
        self.fired.store(false, SeqCst);
    }

    /// `host:port` for the node's file.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The words went by.
    pub fn swallows(&self) -> bool {
        self.swallows.load(SeqCst)
    }

    /// From now on no answer arrives any more, as once the words went by.
    pub fn swallow(&self) {
        self.swallows.store(true, SeqCst);
    }

    /// Answers arrive again on other connections; those that lost some stay open and silent.
    pub fn answer_others(&self) {
        self.holds.store(true, SeqCst);
        self.swallows.store(false, SeqCst);
    }

    /// Answers arrive again; connections that lost some are closed.
    pub fn heal(&self) {
        self.swallows.store(false, SeqCst);
    }
}

/// The words count once, also where a client says them again on another connection.
fn to_server(mut from: TcpStream, mut to: TcpStream, (trigger, fired): (&AtomicBool, &AtomicBool), words: &[u8]) {
    let (mut buffer, mut recent) = (vec![0; 65536], Vec::new());
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 {
            break;
        }
        recent.extend_from_slice(&buffer[..count]);
        if recent.windows(words.len()).any(|window| window == words) && !fired.swap(true, SeqCst) {
            trigger.store(true, SeqCst);
        }
        let keep = recent.len().saturating_sub(words.len());
        recent.drain(..keep);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

fn to_client(mut from: TcpStream, mut to: TcpStream, (swallows, holds): (&AtomicBool, &AtomicBool)) {
    let (mut buffer, mut lost) = (vec![0; 65536], false);
    let _ = from.set_read_timeout(Some(std::time::Duration::from_millis(50)));
    loop {
        if lost && !swallows.load(SeqCst) && !holds.load(SeqCst) {
            break;
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) if lost || swallows.load(SeqCst) => lost = true,
            Ok(count) if to.write_all(&buffer[..count]).is_err() => break,
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
