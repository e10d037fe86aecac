//! What Citus asks of the server's settings.

use crate::config::NodeConfig;
use crate::postgres::conf::{Parameters, Recovery};
use cluster::citus::COORDINATOR;
use cluster::view::ClusterView;

/// Whether a session's queries go to workers' standbys.
const USE_SECONDARY_NODES: &str = "citus.use_secondary_nodes";

/// Citus' library.
const LIBRARY: &str = "citus";

/// The settings that every node of a Citus cluster has, as with Patroni.
pub fn adjust(config: &NodeConfig, parameters: &mut Parameters) {
    let Some(citus) = &config.citus else { return };
    let libraries = parameters.argv.get("shared_preload_libraries").cloned().unwrap_or_default();
    // Citus refuses to be loaded after others; the fence's hooks, loaded last, run first.
    let others = libraries.split(',').filter(|library| !library.is_empty() && *library != LIBRARY);
    let ordered = std::iter::once(LIBRARY).chain(others).collect::<Vec<_>>().join(",");
    parameters.argv.insert("shared_preload_libraries".to_owned(), ordered);
    let number = |name: &str| parameters.argv.get(name).and_then(|value| value.parse::<u64>().ok());
    if number("max_prepared_transactions") == Some(0) {
        // Each client's transaction may be prepared here by the coordinator and by other nodes.
        let twice = number("max_connections").unwrap_or(100) * 2;
        parameters.argv.insert("max_prepared_transactions".to_owned(), twice.to_string());
    }
    if citus.group == COORDINATOR {
        // A row that moved is carried to the other nodes by a daemon that Citus lets try again every 5 s, and look by itself every 60 s:
        // until then statements that start there use the old address.
        for (name, often) in [("citus.metadata_sync_retry_interval", "1s"), ("citus.metadata_sync_interval", "10s")] {
            parameters.file.entry(name.to_owned()).or_insert_with(|| often.to_owned());
        }
    }
    // Shards are moved by logical replication.
    parameters.argv.insert("wal_level".to_owned(), "logical".to_owned());
    parameters.argv.insert("tenure.group".to_owned(), citus.group.to_string());
    let local = if config.postgres.use_unix_socket == Some(true) { "localhost".to_owned() } else { config.postgres.listen.local_host() };
    parameters.file.entry("citus.local_hostname".to_owned()).or_insert(local);
}

/// The settings that follow the server's role: a coordinator's standby sends its reads to the workers' standbys. Who leads is primary, or
/// is being promoted: a session keeps the setting that it began with, and one that began with `always` can't write.
pub fn by_role(config: &NodeConfig, view: &ClusterView, recovery: &Recovery, parameters: &mut Parameters) {
    if config.citus.as_ref().is_none_or(|citus| citus.group != COORDINATOR) {
        return;
    }
    let leads = *recovery == Recovery::None || view.leader_if(&config.name).is_some();
    if parameters.file.contains_key(USE_SECONDARY_NODES) {
        return;
    }
    parameters.own.insert(USE_SECONDARY_NODES.to_owned(), if leads { "never" } else { "always" }.to_owned());
    parameters.own.insert("tenure.sessions_read_only".to_owned(), if leads { "off" } else { "on" }.to_owned());
}
