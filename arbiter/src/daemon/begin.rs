//! From the node's file to the running loop: what can be refused is refused here, before anything is touched.

use super::Daemon;
use super::files::{RestFiles, warn_of_tags};
use crate::config::NodeConfig;
use crate::daemon::sockets::listen;
use crate::ground::{capabilities, logging};
use crate::node::Node;
use crate::node::store;
use crate::postgres;
use anyhow::{Context, Result};
use dcs::Etcd;
use dcs::remember::Remembered;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::Notify;

/// Runs the arbiter with the node's file until it is told to end. The exit code tells why.
pub async fn run(path: &Path) -> Result<ExitCode> {
    let config = NodeConfig::load(path, std::env::vars())?;
    let whose = logging::Whose { scope: config.scope.as_str(), member: config.name.as_str() };
    logging::start(config.log.level, config.log.json, Some(whose));
    postgres::refuse_root()?;
    capabilities::keep_to_ourselves()?;
    for line in &config.not_served {
        tracing::warn!("{}: {line}", path.display());
    }
    warn_of_tags(&config);
    let files = RestFiles::load(&config)?;
    if config.rest.tls.is_some() && config.ctl.tls.authority.is_none() {
        tracing::warn!("other members' certificates are not checked: there is neither ctl.cacert nor restapi.cafile");
    }
    if let Some(parent) = config.postgres.data_dir.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    let listener = listen(&config.rest.listen)
        .await
        .with_context(|| format!("listen for REST on {} (restapi.listen): is another arbiter running here?", config.rest.listen))?;
    let remembered = Arc::new(Remembered::default());
    let etcd = Arc::new(Etcd::new(config.keys(), store::settings(&config)?).remembering(remembered));
    let config = Arc::new(config);
    let wake = Arc::new(Notify::new());
    let node = Node::new(config.clone(), files.caller, etcd, wake);
    tracing::info!("arbiter of {} in {} begins, version {}", config.name, config.scope, env!("CARGO_PKG_VERSION"));
    Daemon::new(node, path.to_owned(), files.door).run(listener).await
}
