//! What REST needs of the node's files, at the start and at each reload.

use crate::config::NodeConfig;
use crate::ground::member_rest::Caller;
use crate::rest::Door;
use anyhow::{Context, Result};
use cluster::member::Tags;

/// What REST needs from files, on both sides.
pub struct RestFiles {
    /// How other members are asked.
    pub caller: Caller,
    /// Who may ask this one for what.
    pub door: Door,
}

impl RestFiles {
    /// Reads certificates. Blocks.
    pub fn load(config: &NodeConfig) -> Result<RestFiles> {
        let tls = config.ctl.tls.load().context("set up TLS for other members' REST (section ctl)")?;
        let door = Door::load(&config.rest).context("set up the REST interface (section restapi)")?;
        if config.rest.is_open_to_everybody() {
            tracing::warn!(
                "anybody who reaches REST on {} may switch over, restart, reinitialize and change the configuration; hint: set restapi.authentication, restapi.allowlist or restapi.verify_client, or listen on 127.0.0.1",
                config.rest.listen
            );
        }
        Ok(RestFiles { caller: Caller::new(config.ctl.authentication.clone(), Some(tls)).only_over_tls(config.ctl.tls.is_set()), door })
    }
}

/// Tags that contradict each other.
pub fn warn_of_tags(config: &NodeConfig) {
    for conflict in Tags(config.tags.clone()).conflicts() {
        tracing::warn!("{conflict}");
    }
}
