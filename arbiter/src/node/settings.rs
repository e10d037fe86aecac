//! What this node's Postgres is configured to: Patroni's parameters, and the `tenure.*` settings for
//! the extension.

use crate::config::NodeConfig;
use crate::config::ServerRole;
use crate::node::known::{Known, LeftOut};
use crate::node::paths::{etcd_password_file, wake_socket};
use crate::postgres::conf::{self, Parameters, parameters_of};
use crate::postgres::query::ServerFacts;
use cluster::admission::{Admission, Section, admission, is_name};
use cluster::config::DynamicConfig;
use cluster::mark::Identity;
use cluster::pending::{self, Pending};
use cluster::quorum::Setting;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The parameters of a section of a document, in small letters.
fn section_of(document: &DynamicConfig, section: &str) -> BTreeMap<String, String> {
    let section = document.postgresql().and_then(|map| map.get(section)).and_then(Value::as_object);
    section.map(parameters_of).unwrap_or_default()
}

/// The dynamic parameters in this section (`parameters`, or one of a role) that count here. What could be more than a value counts only
/// where this node's own file says the same: in `postgresql.parameters`, in the same section of the role, or in its `bootstrap.dcs`.
fn admitted(
    config: &NodeConfig,
    dynamic: &DynamicConfig,
    known: &Known,
    section: &str,
    local: &BTreeMap<String, String>,
    left_out: &mut LeftOut,
) -> BTreeMap<String, String> {
    let own = DynamicConfig(config.bootstrap.dcs.clone());
    let said = [config.postgres.parameters.clone(), local.clone(), section_of(&own, "parameters"), section_of(&own, section)];
    let judged = |name: &String, value: &String| {
        let said = || said.iter().any(|said| said.get(name) == Some(value));
        match admission(Section::Parameters, name, value, &known.catalogue) {
            Admission::Counts => None,
            Admission::OwnFile(_) if said() => None,
            other => Some(other.to_string()),
        }
    };
    let mut parameters = section_of(dynamic, section);
    parameters.retain(|name, value| match judged(name, value).or_else(|| refusal(known, name, value)) {
        None => true,
        Some(why) => {
            left_out.insert(format!("postgresql.{section}.{}", shown(name)), why);
            false
        }
    });
    parameters
}

/// From PostgreSQL 18 on it would take away the slots of members that are away, and a setting of the server can't spare some slots.
const IDLE_SLOTS: &str = "idle_replication_slot_timeout";

/// What the server said to exactly this before, or why it is not asked.
fn refusal(known: &Known, name: &str, value: &str) -> Option<String> {
    if name == IDLE_SLOTS && value.trim_start_matches('0').chars().next().is_some_and(|c| c.is_ascii_digit() || c == '.') {
        return Some("it would take the slots away of members that are down; member_slots_ttl says how long these are kept".to_owned());
    }
    let said = known.refused.get(&(name.to_owned(), value.to_owned()))?;
    Some(format!("the server would refuse it: {said}"))
}

/// A name that is none must not end the line that complains of it.
fn shown(name: &str) -> String {
    name.escape_default().to_string()
}

/// The file's own parameters but for those that the server would not take.
fn taken(known: &Known, section: &str, local: &BTreeMap<String, String>, left_out: &mut LeftOut) -> BTreeMap<String, String> {
    let mut parameters = local.clone();
    parameters.retain(|name, value| {
        let why = match is_name(name) {
            true => refusal(known, name, value),
            false => Some("that is no name of a PostgreSQL parameter".to_owned()),
        };
        if let Some(why) = &why {
            left_out.insert(format!("postgresql.{section}.{} of this node's file", shown(name)), why.clone());
        }
        why.is_none()
    });
    parameters
}

/// What is left out here, of every role's sections and of recovery's.
pub fn left_out(config: &NodeConfig, dynamic: &DynamicConfig, known: &Known) -> LeftOut {
    let postgres = &config.postgres;
    let mut left_out = crate::node::recovery::left_out(config, dynamic, known);
    let sections = std::iter::once(("parameters".to_owned(), &postgres.parameters))
        .chain(ServerRole::ALL.map(|role| (format!("parameters_{role}"), postgres.parameters_by_role.of(role))));
    for (section, local) in sections {
        admitted(config, dynamic, known, &section, local, &mut left_out);
        taken(known, &section, local, &mut left_out);
    }
    left_out
}

/// The settings of this node's server in this role under this dynamic configuration, with these synchronous standbys.
pub fn parameters(
    config: &NodeConfig,
    dynamic: &DynamicConfig,
    known: &Known,
    role: ServerRole,
    synchronous: Option<&Setting>,
) -> Parameters {
    let addresses = config.postgres.listen.addresses();
    let identity = conf::Identity { scope: config.scope.as_str(), listen_addresses: &addresses, port: config.postgres.listen.port };
    let postgres = &config.postgres;
    // Told where all of it is asked for: `left_out`.
    let told = &mut LeftOut::new();
    let mut parameters = Parameters::settle(
        &identity,
        &taken(known, "parameters", &postgres.parameters, told),
        &admitted(config, dynamic, known, "parameters", &postgres.parameters, told),
    );
    let of_role = postgres.parameters_by_role.of(role);
    let section = format!("parameters_{role}");
    parameters.overlay(admitted(config, dynamic, known, &section, of_role, told));
    parameters.overlay(taken(known, &section, of_role, told));
    if let Some(setting) = synchronous {
        parameters.own.insert("synchronous_standby_names".to_owned(), setting.to_string());
    }
    // Without the primary a standby asks again every 5 s by default; a new primary should not wait that long for its standbys.
    parameters.file.entry("wal_retrieve_retry_interval".to_owned()).or_insert_with(|| "1s".to_owned());
    tenure(config, dynamic, &mut parameters);
    crate::node::citus::adjust(config, &mut parameters);
    parameters
}

/// The settings that the running server has otherwise than its next start would.
pub fn pending(config: &NodeConfig, dynamic: &DynamicConfig, known: &Known, facts: &ServerFacts) -> Pending {
    let mut pending = Pending::new();
    for setting in &facts.pending_restart {
        pending::note(&mut pending, &setting.name, &setting.value, setting.wanted.as_deref().unwrap_or(""));
    }
    // The command line is the same in every role.
    for (name, wanted) in &parameters(config, dynamic, known, ServerRole::Primary, None).argv {
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
    let mut set = |name: &str, value: String| parameters.own.insert(name.to_owned(), value);
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

/// Who this node is.
pub fn identity(config: &NodeConfig) -> Identity {
    Identity {
        scope: config.scope.to_string(),
        namespace: config.namespace.clone(),
        name: config.name.to_string(),
        group: config.citus.as_ref().map(|citus| citus.group),
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

#[cfg(test)]
mod tests {
    use super::*;
    use cluster::parameter::Catalogue;

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
        let text = "archive_command\tsighup\tx\tSTRING\nrestore_command\tsighup\tx\tSTRING\nwork_mem\tuser\tx\tINTEGER\n";
        let known = Known { catalogue: Catalogue::described(text).into(), ..Known::default() };
        for (archive_command, counts) in [("own", true), ("foreign", false)] {
            let parameters = json!({"archive_command": archive_command, "restore_command": "foreign", "work_mem": "8MB"});
            let document = json!({"postgresql": {"parameters": parameters}});
            let dynamic = DynamicConfig(document.as_object().unwrap().clone());
            let settled = super::parameters(&config, &dynamic, &known, ServerRole::Primary, None).file;
            assert_eq!(settled.get("archive_command").map(String::as_str), counts.then_some("own"));
            assert!(!settled.contains_key("restore_command"));
            assert_eq!(settled.get("work_mem").map(String::as_str), Some("8MB"));
            assert_eq!(left_out(&config, &dynamic, &known).contains_key("postgresql.parameters.archive_command"), !counts);
        }
    }

    #[test]
    fn the_server_lets_no_slot_go_for_being_idle() {
        for (value, left_out) in [("0", false), ("0s", false), ("1d", true), ("90", true), ("0.5h", true), ("-1", false)] {
            assert_eq!(refusal(&Known::default(), "idle_replication_slot_timeout", value).is_some(), left_out, "{value}");
        }
    }
}
