//! The door of REST, and what every connection finds there: access, certificates and headers by the node's file, and answers that are shared.

use super::access::Access;
use super::page::live::Live;
use super::reply::Reply;
use super::shared::Joint;
use crate::config::RestConfig;
use crate::ground::tls;
use crate::node::snapshot::NodeHandle;
use axum::http::{HeaderName, HeaderValue};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

/// `/patroni` is asked each second by many, and every few milliseconds by a leader that is about to hand over.
const STATUS_KEEPS: Duration = Duration::from_millis(20);
/// Nobody scrapes more often than once in a second.
const METRICS_KEEP: Duration = Duration::from_millis(200);

/// Who comes in, and how: from `restapi`, made again when the node's file is read again.
pub struct Door {
    pub(super) access: Access,
    pub(super) tls: Option<Arc<ServerConfig>>,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

impl Door {
    /// Reads the certificates. Blocks.
    pub fn load(config: &RestConfig) -> anyhow::Result<Door> {
        let header = |(name, value): &(String, String)| Ok((HeaderName::try_from(name)?, HeaderValue::try_from(value)?));
        Ok(Door {
            access: Access::new(config),
            tls: config.tls.as_ref().map(tls::ServerTls::load).transpose()?,
            headers: config.extra_headers.iter().map(header).collect::<anyhow::Result<_>>()?,
        })
    }
}

/// What every connection needs of its node.
pub(super) struct Shared {
    pub(super) node: NodeHandle,
    pub(super) door: watch::Receiver<Arc<Door>>,
    pub(super) status: Joint<Reply>,
    pub(super) metrics: Joint<Reply>,
    pub(super) live: Arc<Live>,
}

impl Shared {
    pub(super) fn new(node: NodeHandle, door: watch::Receiver<Arc<Door>>) -> Shared {
        Shared { node, door, status: Joint::new(STATUS_KEEPS), metrics: Joint::new(METRICS_KEEP), live: Arc::default() }
    }
}
