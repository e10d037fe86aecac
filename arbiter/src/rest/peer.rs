//! What a request knows of its connection: where it comes from, which phase it is in, and whether a certificate was shown.

use super::places::Waits;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A request must have come whole within this time of the connection's start or of the last answer's end, and an answer must have
/// been read whole within this time: a client that feeds a header byte by byte, or reads that way, is cut off.
pub const PHASE_WITHIN: Duration = Duration::from_secs(10);

/// Who has to do something next.
#[derive(Clone)]
pub(super) struct Phase {
    pub(super) waits: Waits,
    /// An answer is being read by the other side; otherwise a request is awaited from it.
    pub(super) reads: Arc<AtomicBool>,
}

/// What a request knows of its connection.
#[derive(Clone)]
pub struct Peer {
    pub(super) address: IpAddr,
    pub(super) phase: Phase,
    pub(super) certificate: Arc<AtomicBool>,
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
