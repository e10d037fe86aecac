//! Where the worker's own server is.

use cluster::lsn::Lsn;
use cluster::name::Timeline;

/// Where this server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnServer {
    /// Out of recovery.
    Primary {
        /// Its timeline.
        timeline: Timeline,
        /// Flushed so far.
        flushed: Lsn,
        /// What its synchronous standbys have confirmed; None where there are none.
        confirmed: Option<Lsn>,
    },
    /// In recovery.
    Standby {
        /// The newest timeline received or replayed.
        timeline: Timeline,
        /// Received and flushed so far; invalid where nothing was received since the start.
        received: Lsn,
        /// Replayed so far.
        replayed: Lsn,
        /// The WAL receiver is connected and streams.
        streaming: bool,
        /// The end of the WAL on disk is known: [`Server::position`] is all that this server ever confirmed.
        end_known: bool,
    },
}

impl OwnServer {
    /// Out of recovery.
    pub fn is_primary(self) -> bool {
        matches!(self, OwnServer::Primary { .. })
    }

    /// The newest timeline here.
    pub fn timeline(self) -> Timeline {
        match self {
            OwnServer::Primary { timeline, .. } | OwnServer::Standby { timeline, .. } => timeline,
        }
    }

    /// The end of the WAL here is known. Before that [`Server::position`] is only what was replayed so far.
    pub fn end_known(self) -> bool {
        matches!(self, OwnServer::Primary { .. } | OwnServer::Standby { end_known: true, .. })
    }

    /// The furthest position here.
    pub fn position(self) -> Lsn {
        match self {
            OwnServer::Primary { flushed, .. } => flushed,
            OwnServer::Standby { received, replayed, .. } => received.max(replayed),
        }
    }

    /// The WAL receiver is connected and streams.
    pub fn streaming(self) -> bool {
        matches!(self, OwnServer::Standby { streaming: true, .. })
    }
}
