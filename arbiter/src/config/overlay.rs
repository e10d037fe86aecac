//! The environment over the file: `PATRONI_*`, and `TENURE_*` over that.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Variable (without its prefix) and the key it sets. `*` stands for the part in the variable's place.
const VARIABLES: [(&str, &str); 36] = [
    ("SCOPE", "scope"),
    ("NAME", "name"),
    ("NAMESPACE", "namespace"),
    ("RESTAPI_LISTEN", "restapi.listen"),
    ("RESTAPI_CONNECT_ADDRESS", "restapi.connect_address"),
    ("RESTAPI_USERNAME", "restapi.authentication.username"),
    ("RESTAPI_PASSWORD", "restapi.authentication.password"),
    ("RESTAPI_*", "restapi.*"),
    ("CTL_*", "ctl.*"),
    ("POSTGRESQL_LISTEN", "postgresql.listen"),
    ("POSTGRESQL_CONNECT_ADDRESS", "postgresql.connect_address"),
    ("POSTGRESQL_PROXY_ADDRESS", "postgresql.proxy_address"),
    ("POSTGRESQL_DATA_DIR", "postgresql.data_dir"),
    ("POSTGRESQL_CONFIG_DIR", "postgresql.config_dir"),
    ("POSTGRESQL_BIN_DIR", "postgresql.bin_dir"),
    ("POSTGRESQL_PGPASS", "postgresql.pgpass"),
    ("SUPERUSER_*", "postgresql.authentication.superuser.*"),
    ("REPLICATION_*", "postgresql.authentication.replication.*"),
    ("REWIND_*", "postgresql.authentication.rewind.*"),
    // Names of before; the newer ones, below, count where both are given.
    ("LOGLEVEL", "log.level"),
    ("LOGFORMAT", "log.format"),
    ("LOG_DATEFMT", "log.dateformat"),
    ("LOG_*", "log.*"),
    ("CTL_USERNAME", "ctl.authentication.username"),
    ("CTL_PASSWORD", "ctl.authentication.password"),
    ("POSTGRESQL_BIN_*", "postgresql.bin_name.*"),
    ("THREAD_POOL_SIZE", "thread_pool_size"),
    ("THREAD_STACK_SIZE", "thread_stack_size"),
    ("CITUS_GROUP", "citus.group"),
    // Ours.
    ("VIP_PRIMARY", "vip.primary"),
    ("VIP_REPLICA", "vip.replica"),
    ("VIP_INTERFACE", "vip.interface"),
    ("CITUS_DATABASE", "citus.database"),
    ("PGBOUNCER", "pgbouncer"),
    ("ETCD3_*", "etcd3.*"),
    ("ETCD_*", "etcd.*"),
];

const ETCD: [&str; 13] =
    ["host", "hosts", "url", "protocol", "username", "password", "cacert", "cert", "key", "srv", "srv_suffix", "proxy", "use_proxies"];
const LOG: [&str; 13] = [
    "type",
    "level",
    "traceback_level",
    "format",
    "dateformat",
    "static_fields",
    "max_queue_size",
    "dir",
    "mode",
    "file_size",
    "file_num",
    "loggers",
    "deduplicate_heartbeat_logs",
];
const PROGRAMS: [&str; 7] = ["pg_ctl", "initdb", "pg_controldata", "pg_basebackup", "postgres", "pg_isready", "pg_rewind"];
const RESTAPI: [&str; 10] = [
    "certfile",
    "keyfile",
    "keyfile_password",
    "cafile",
    "verify_client",
    "allowlist",
    "allowlist_include_members",
    "ciphers",
    "request_queue_size",
    "server_tokens",
];
const CTL: [&str; 5] = ["insecure", "cacert", "certfile", "keyfile", "keyfile_password"];
const CREDENTIALS: [&str; 12] = [
    "username",
    "password",
    "sslmode",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "gssencmode",
    "channel_binding",
    "sslnegotiation",
];

/// Puts the variables that are set over the tree. An empty variable counts as not set, as with Patroni.
pub fn apply(root: &mut Map<String, Value>, environment: &BTreeMap<String, String>) {
    for prefix in ["PATRONI_", "TENURE_"] {
        for (variable, key) in VARIABLES {
            for (variable, key) in expanded(variable, key) {
                if let Some(value) = environment.get(&format!("{prefix}{variable}")).filter(|value| !value.is_empty()) {
                    set(root, &key, value);
                }
            }
        }
        for (name, key, value) in roles(prefix, environment) {
            let value = if key == "options" { Value::from_iter(value.split(',').map(str::trim)) } else { Value::String(value) };
            set_value(root, &["bootstrap", "users", &name, key], value);
        }
    }
}

/// `<prefix><role>_PASSWORD` and, beside it, `<prefix><role>_OPTIONS`: roles to make when the cluster is founded, in small letters as with
/// Patroni. What ends so and means something else is not a role.
fn roles(prefix: &str, environment: &BTreeMap<String, String>) -> Vec<(String, &'static str, String)> {
    let taken: Vec<String> = VARIABLES.iter().flat_map(|(variable, key)| expanded(variable, key)).map(|(variable, _)| variable).collect();
    let of_others = |name: &str| ["RAFT", "ETCD3_KEY", "ETCD_KEY", "ZOOKEEPER_KEY", "RESTAPI_KEYFILE", "CTL_KEYFILE"].contains(&name);
    let mut found = Vec::new();
    for (variable, password) in environment {
        let Some(variable) = variable.strip_prefix(prefix).filter(|variable| !taken.iter().any(|taken| taken == variable)) else {
            continue;
        };
        let Some(name) = variable.strip_suffix("_PASSWORD").filter(|name| !name.is_empty() && !of_others(name)) else { continue };
        if password.is_empty() {
            continue;
        }
        found.push((name.to_lowercase(), "password", password.clone()));
        if let Some(options) = environment.get(&format!("{prefix}{name}_OPTIONS")).filter(|options| !options.is_empty()) {
            found.push((name.to_lowercase(), "options", options.trim_matches(['[', ']']).to_owned()));
        }
    }
    found
}

fn expanded(variable: &str, key: &str) -> Vec<(String, String)> {
    let words: &[&str] = match variable {
        _ if !variable.ends_with('*') => return vec![(variable.to_owned(), key.to_owned())],
        _ if variable.starts_with("ETCD") => &ETCD,
        _ if variable.starts_with("RESTAPI") => &RESTAPI,
        _ if variable.starts_with("CTL") => &CTL,
        _ if variable.starts_with("LOG") => &LOG,
        _ if variable.starts_with("POSTGRESQL_BIN") => &PROGRAMS,
        _ => &CREDENTIALS,
    };
    words.iter().map(|word| (variable.replace('*', &word.to_uppercase()), key.replace('*', word))).collect()
}

fn set(root: &mut Map<String, Value>, key: &str, value: &str) {
    set_value(root, &key.split('.').collect::<Vec<_>>(), Value::String(value.to_owned()));
}

fn set_value(section: &mut Map<String, Value>, path: &[&str], value: Value) {
    match path {
        [] => {}
        [key] => {
            section.insert((*key).to_owned(), value);
        }
        [first, rest @ ..] => {
            let below = section.entry(*first).or_insert_with(|| Value::Object(Map::new()));
            // A section that is no map is reported by validation, not replaced here; an empty one is none.
            if below.is_null() {
                *below = Value::Object(Map::new());
            }
            if let Value::Object(below) = below {
                set_value(below, rest, value);
            }
        }
    }
}
