//! What this node's Postgres is configured to: Patroni's parameters, and the `tenure.*` settings for
//! the extension.

use crate::config::NodeConfig;
use crate::config::ServerRole;
use crate::postgres::conf::{Identity, Parameters, parameters_of};
use crate::postgres::query::ServerFacts;
use cluster::config::DynamicConfig;
use cluster::pending::{self, Pending};
use cluster::quorum::Setting;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where a path that belongs to this data directory but must not lie in it (it would be cloned or
/// rewound with it) is.
fn beside(config: &NodeConfig, tail: &str) -> PathBuf {
    let mut path = config.postgres.data_dir.components().as_path().as_os_str().to_owned();
    path.push(tail);
    PathBuf::from(path)
}

/// The datagram socket by which the extension wakes the arbiter.
pub fn wake_socket(config: &NodeConfig) -> PathBuf {
    beside(config, ".tenure-wake")
}

/// The file that holds etcd's password for the extension.
pub fn etcd_password_file(config: &NodeConfig) -> PathBuf {
    beside(config, ".tenure-etcd-password")
}

/// The file that says which copies of logical slots here were shown to be safe.
pub fn trusted_slots_file(config: &NodeConfig) -> PathBuf {
    beside(config, ".tenure-slots")
}

/// Settings by which Postgres runs a program or loads a library: write access to the dynamic
/// configuration must not be a way to run code on every node.
const RUNS_CODE: [&str; 11] = [
    "archive_command",
    "archive_library",
    "archive_cleanup_command",
    "restore_command",
    "recovery_end_command",
    "ssl_passphrase_command",
    "shared_preload_libraries",
    "session_preload_libraries",
    "local_preload_libraries",
    "dynamic_library_path",
    "jit_provider",
];

/// By this setting Postgres runs a program or loads a library.
pub fn runs_code(name: &str) -> bool {
    RUNS_CODE.contains(&name)
}

/// The dynamic parameters in this section (`parameters`, or one of a role) that count here, and the names of
/// those that do not: one that runs code counts only where this node's own file says the same, in
/// `postgresql.parameters`, in the same section of the role, or in its `bootstrap.dcs`.
fn admitted(
    config: &NodeConfig,
    dynamic: &DynamicConfig,
    section: &str,
    local: &BTreeMap<String, String>,
) -> (BTreeMap<String, String>, Vec<&'static str>) {
    let of = |document: &DynamicConfig, section: &str| {
        let section = document.postgresql().and_then(|map| map.get(section)).and_then(Value::as_object);
        section.map(parameters_of).unwrap_or_default()
    };
    let mut parameters = of(dynamic, section);
    let own = DynamicConfig(config.bootstrap.dcs.clone());
    let said = [config.postgres.parameters.clone(), local.clone(), of(&own, "parameters"), of(&own, section)];
    let foreign = |name: &&'static str| {
        let given = parameters.get(*name);
        given.is_some() && !said.iter().any(|said| said.get(*name) == given)
    };
    let refused: Vec<&'static str> = RUNS_CODE.into_iter().filter(foreign).collect();
    parameters.retain(|name, _| !refused.contains(&name.as_str()));
    (parameters, refused)
}

/// The dynamic settings that are left out here because they would run code that this node's file does not name.
pub fn refused(config: &NodeConfig, dynamic: &DynamicConfig) -> Vec<String> {
    let postgres = &config.postgres;
    let mut refused: Vec<String> = Vec::new();
    let mut note = |section: &str, local: &BTreeMap<String, String>| {
        refused.extend(admitted(config, dynamic, section, local).1.into_iter().map(|name| format!("postgresql.{section}.{name}")));
    };
    note("parameters", &postgres.parameters);
    for role in ServerRole::ALL {
        note(&format!("parameters_{role}"), postgres.parameters_by_role.of(role));
    }
    refused.extend(crate::recovery::refused(config, dynamic));
    refused
}

/// The settings of this node's server in this role under this dynamic configuration, with these synchronous standbys.
pub fn parameters(config: &NodeConfig, dynamic: &DynamicConfig, role: ServerRole, synchronous: Option<&Setting>) -> Parameters {
    let addresses = config.postgres.listen.addresses();
    let identity = Identity { scope: config.scope.as_str(), listen_addresses: &addresses, port: config.postgres.listen.port };
    let postgres = &config.postgres;
    let mut parameters =
        Parameters::settle(&identity, &postgres.parameters, &admitted(config, dynamic, "parameters", &postgres.parameters).0);
    let of_role = postgres.parameters_by_role.of(role);
    parameters.overlay(admitted(config, dynamic, &format!("parameters_{role}"), of_role).0);
    parameters.overlay(of_role.clone());
    if let Some(setting) = synchronous {
        parameters.file.insert("synchronous_standby_names".to_owned(), setting.to_string());
    }
    // Without the primary a standby asks again every 5 s by default; a new primary should not wait that long for its standbys.
    parameters.file.entry("wal_retrieve_retry_interval".to_owned()).or_insert_with(|| "1s".to_owned());
    tenure(config, dynamic, &mut parameters);
    crate::citus::settings::adjust(config, &mut parameters);
    parameters
}

/// The settings that the running server has otherwise than its next start would.
pub fn pending(config: &NodeConfig, dynamic: &DynamicConfig, facts: &ServerFacts) -> Pending {
    let mut pending = Pending::new();
    for setting in &facts.pending_restart {
        pending::note(&mut pending, &setting.name, &setting.value, setting.wanted.as_deref().unwrap_or(""));
    }
    // The command line is the same in every role.
    for (name, wanted) in &parameters(config, dynamic, ServerRole::Primary, None).argv {
        if let Some(running) = facts.on_command_line.get(name) {
            pending::note(&mut pending, name, running, wanted);
        }
    }
    pending
}

fn tenure(config: &NodeConfig, dynamic: &DynamicConfig, parameters: &mut Parameters) {
    let text = |path: &std::path::Path| path.display().to_string();
    for (name, value) in [
        ("tenure.scope", config.scope.to_string()),
        ("tenure.namespace", config.namespace.clone()),
        ("tenure.name", config.name.to_string()),
    ] {
        parameters.argv.insert(name.to_owned(), value);
    }
    let mut set = |name: &str, value: String| parameters.file.insert(name.to_owned(), value);
    set("tenure.etcd_endpoints", config.etcd.endpoints.join(","));
    set("tenure.member", member(config).to_string());
    set("tenure.wake_socket", text(&wake_socket(config)));
    set("tenure.ttl", format!("{}s", dynamic.timing().ttl.as_secs()));
    if let Some(cacert) = &config.etcd.cacert {
        set("tenure.etcd_cacert", text(cacert));
    }
    if let Some((certificate, key)) = &config.etcd.client_certificate {
        set("tenure.etcd_cert", text(certificate));
        set("tenure.etcd_key", text(key));
    }
    if let Some(user) = &config.etcd.username {
        set("tenure.etcd_username", user.clone());
        set("tenure.etcd_password_file", text(&etcd_password_file(config)));
    }
}

/// The addresses and tags that stand in this node's member key.
pub fn member(config: &NodeConfig) -> Value {
    let mut member = json!({
        "conn_url": format!("postgres://{}/{}", config.postgres.connect_address, config.postgres.database),
        "api_url": format!("{}/patroni", config.rest.url()),
        "version": dcs::SURFACE_VERSION,
        "state": "stopped",
        "role": "uninitialized",
    });
    if let Some(fields) = member.as_object_mut() {
        if !config.tags.is_empty() {
            fields.insert("tags".to_owned(), Value::Object(config.tags.clone()));
        }
        if let Some(proxy) = &config.postgres.proxy_address {
            fields.insert("proxy_url".to_owned(), json!(format!("postgres://{proxy}/{}", config.postgres.database)));
        }
    }
    member
}

/// As [`member`], on its way out: not to be a synchronous standby any more.
pub fn member_leaving(config: &NodeConfig) -> Value {
    let mut member = member(config);
    member["tags"]["nosync"] = json!(true);
    member["tags"]["sync_priority"] = json!(0);
    member
}

/// Host and port in a conninfo of ours.
pub fn address_in(conninfo: &str) -> Option<(String, u16)> {
    let value = |keyword: &str| {
        conninfo
            .split_whitespace()
            .find_map(|pair| pair.strip_prefix(keyword)?.strip_prefix('='))
            .map(|value| value.trim_matches('\'').to_owned())
    };
    Some((value("host")?, value("port").and_then(|port| port.parse().ok()).unwrap_or(5432)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_code_counts_only_where_the_nodes_own_file_says_the_same() {
        let room = tempfile::tempdir().unwrap();
        let file = room.path().join("node.yml");
        std::fs::write(room.path().join("postgres"), "").unwrap();
        let own = "scope: s\nname: n1\nrestapi: {listen: 127.0.0.1:1, connect_address: 127.0.0.1:1}\netcd3: {host: 127.0.0.1:2}\n\
            bootstrap: {dcs: {postgresql: {parameters: {archive_command: own}}}}\n\
            postgresql: {listen: 127.0.0.1:3, connect_address: 127.0.0.1:3, data_dir: /nowhere/data, bin_dir: ROOM,\n\
            \x20 authentication: {superuser: {username: p}, replication: {username: r}}}\n";
        std::fs::write(&file, own.replace("ROOM", room.path().to_str().unwrap())).unwrap();
        let config = NodeConfig::load(&file, std::iter::empty()).unwrap();
        for (archive_command, counts) in [("own", true), ("foreign", false)] {
            let parameters = json!({"archive_command": archive_command, "restore_command": "foreign", "work_mem": "8MB"});
            let document = json!({"postgresql": {"parameters": parameters}});
            let dynamic = DynamicConfig(document.as_object().unwrap().clone());
            let settled = super::parameters(&config, &dynamic, ServerRole::Primary, None).file;
            assert_eq!(settled.get("archive_command").map(String::as_str), counts.then_some("own"));
            assert!(!settled.contains_key("restore_command"));
            assert_eq!(settled.get("work_mem").map(String::as_str), Some("8MB"));
            assert_eq!(refused(&config, &dynamic).contains(&"postgresql.parameters.archive_command".to_owned()), !counts);
        }
    }

    #[test]
    fn an_upstream_is_found_in_a_conninfo_of_ours() {
        assert_eq!(address_in("host='10.0.0.1' port='5433' user='r'"), Some(("10.0.0.1".to_owned(), 5433)));
        assert_eq!(address_in("host=h user=r"), Some(("h".to_owned(), 5432)));
        assert_eq!(address_in(""), None);
    }
}
