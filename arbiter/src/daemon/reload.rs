//! SIGHUP, or a reload over REST: the node's file is read again.

use super::Daemon;
use crate::config::NodeConfig;
use crate::daemon::files::{RestFiles, warn_of_tags};
use std::sync::Arc;

impl Daemon {
    /// What can't be changed while the arbiter runs is refused as a whole.
    pub(super) async fn reload(&mut self) {
        tracing::info!("reading {} again", self.path.display());
        let path = self.path.clone();
        let load = move || {
            let config = NodeConfig::load(&path, std::env::vars())?;
            let files = RestFiles::load(&config)?;
            Ok::<_, anyhow::Error>((config, files))
        };
        match tokio::task::spawn_blocking(load).await {
            Ok(Ok((config, files))) => {
                let config = Arc::new(config);
                let fixed = |config: &NodeConfig| {
                    (
                        (config.scope.clone(), config.namespace.clone(), config.name.clone(), config.citus.clone()),
                        (config.postgres.data_dir.clone(), config.postgres.listen.clone(), config.etcd.clone()),
                        (config.rest.listen.clone(), config.rest.connect_address.clone(), config.rest.tls.is_some()),
                    )
                };
                if fixed(&config) != fixed(&self.node.config) {
                    tracing::error!(
                        "scope, namespace, name, citus, etcd3, postgresql.listen, postgresql.data_dir, restapi.listen, restapi.connect_address or whether REST speaks HTTPS changed in {}: they take effect at the next start of the arbiter only; nothing was reloaded",
                        self.path.display()
                    );
                    return;
                }
                if config.tags != self.node.config.tags {
                    warn_of_tags(&config);
                }
                for sql in [&*self.node.sql, &self.node.page.sql] {
                    sql.authenticate_as(&config.postgres.authentication.superuser);
                }
                self.node.lease.reconfigure(config.clone());
                self.node.config = config.clone();
                self.configured.send_replace(config);
                self.node.caller = files.caller;
                self.door.send_replace(Arc::new(files.door));
            }
            Ok(Err(why)) => tracing::error!("{why:#}; going on with the old configuration"),
            Err(why) => tracing::error!("read the configuration: {why}"),
        }
    }
}
