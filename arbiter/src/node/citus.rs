//! What Citus adds to the server's settings.

use crate::config::NodeConfig;
use crate::postgres::conf::{Contribution, Parameters};
use cluster::citus::COORDINATOR;

/// Whether a session's queries go to workers' standbys.
const USE_SECONDARY_NODES: &str = "citus.use_secondary_nodes";

/// Citus' library.
const LIBRARY: &str = "citus";

/// What every node of a Citus cluster has, as with Patroni, where these settings are given.
pub fn settings(config: &NodeConfig, given: &Parameters) -> Contribution {
    let mut more = Contribution::default();
    let Some(citus) = &config.citus else { return more };
    let libraries = given.argv.get("shared_preload_libraries").map_or("", String::as_str);
    // Citus refuses to be loaded after others; the fence's hooks, loaded last, run first.
    let others = libraries.split(',').filter(|library| !library.is_empty() && *library != LIBRARY);
    let ordered = std::iter::once(LIBRARY).chain(others).collect::<Vec<_>>().join(",");
    more.argv.insert("shared_preload_libraries", ordered);
    let number = |name: &str| given.argv.get(name).and_then(|value| value.parse::<u64>().ok());
    if number("max_prepared_transactions") == Some(0) {
        // Each client's transaction may be prepared here by the coordinator and by other nodes.
        let twice = number("max_connections").unwrap_or(100) * 2;
        more.argv.insert("max_prepared_transactions", twice.to_string());
    }
    if citus.group == COORDINATOR {
        // A row that moved is carried to the other nodes by a daemon that Citus lets try again every 5 s, and look by itself every 60 s:
        // until then statements that start there use the old address.
        for (name, often) in [("citus.metadata_sync_retry_interval", "1s"), ("citus.metadata_sync_interval", "10s")] {
            more.unless_given.insert(name, often.to_owned());
        }
    }
    // Shards are moved by logical replication.
    more.argv.insert("wal_level", "logical".to_owned());
    more.argv.insert("tenure.group", citus.group.to_string());
    let local = if config.postgres.use_unix_socket == Some(true) { "localhost".to_owned() } else { config.postgres.listen.local_host() };
    more.unless_given.insert("citus.local_hostname", local);
    more
}

/// What follows the server's role: a coordinator's standby sends its reads to the workers' standbys. A session keeps the setting that it
/// began with, and one that began with `always` can't write, so who is about to be promoted counts as leading.
pub fn by_role(config: &NodeConfig, leads: bool, given: &Parameters) -> Contribution {
    let mut more = Contribution::default();
    let coordinates = config.citus.as_ref().is_some_and(|citus| citus.group == COORDINATOR);
    if coordinates && !given.file.contains_key(USE_SECONDARY_NODES) {
        more.own.insert(USE_SECONDARY_NODES, if leads { "never" } else { "always" }.to_owned());
        more.own.insert("tenure.sessions_read_only", if leads { "off" } else { "on" }.to_owned());
    }
    more
}
