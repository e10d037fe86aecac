//! How this node reaches etcd.

use crate::config::NodeConfig;
use anyhow::{Context, Result};
use cluster::lease;
use dcs::Settings;
use std::path::PathBuf;

/// How to reach etcd, from the node's file. Reads certificates, so before the loop begins.
pub fn settings(config: &NodeConfig) -> Result<Settings> {
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let ttl = cluster::config::DynamicConfig(config.bootstrap.dcs.clone()).timing().ttl;
    Ok(Settings {
        endpoints: config.etcd.endpoints.clone(),
        user: config
            .etcd
            .username
            .clone()
            .map(|user| (user, config.etcd.password.as_ref().map(|p| p.reveal().to_owned()).unwrap_or_default())),
        ca_certificate: config.etcd.cacert.as_ref().map(read).transpose()?,
        identity: config
            .etcd
            .client_certificate
            .as_ref()
            .map(|(cert, key)| Ok::<_, anyhow::Error>((read(cert)?, read(key)?)))
            .transpose()?,
        try_timeout: lease::try_timeout(ttl, config.etcd.endpoints.len()),
    })
}
