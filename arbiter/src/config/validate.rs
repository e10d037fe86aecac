//! From the tree to the types: every default, every check, all errors collected.

use super::reach::{host_port, reachable};
use super::tree::{At, described, truth};
use super::{
    Authentication, BootstrapConfig, BootstrapUser, ByRole, Callbacks, Credentials, EtcdConfig, Listen, LogConfig, NodeConfig,
    PostgresConfig,
};
use super::{citus, known, methods, poolers, rest, vip, watchdog};
use crate::ground::program::CommandLine;
use crate::postgres::conf::{parameters_of, setting_text};
use crate::postgres::initdb::{LongOption, refused_option};
use crate::postgres::{basebackup, initdb, rewind};
use cluster::host::Address;
use cluster::member::Tags;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Validates a whole tree. `not_served` comes from the survey.
pub fn node(
    root: &Map<String, Value>,
    environment: &BTreeMap<String, String>,
    mut not_served: Vec<String>,
) -> Result<NodeConfig, Vec<String>> {
    let errors = RefCell::new(Vec::new());
    let at = |name: &str| At::root(root, name, &errors);
    let scope = named(&at("scope"));
    // Files of before named the member beside its server.
    let name =
        if at("name").value.is_none() && at("postgresql").at("name").value.is_some() { at("postgresql").at("name") } else { at("name") };
    let name = named(&name);
    let rest = rest::restapi(&at("restapi"));
    let ctl = rest::ctl(&at("ctl"), &At::root(root, "restapi", &RefCell::default()));
    let etcd = etcd(&at("etcd3"), &at("etcd"));
    let mut bootstrap = bootstrap(&at("bootstrap"));
    let citus = citus::citus(&at("citus"));
    if citus.is_some() {
        citus::default_mode(&mut bootstrap.dcs);
    }
    let poolers = poolers::poolers(&at("pgbouncer"));
    let postgres = postgres(&at("postgresql"), environment);
    let free = |name: &str| at(name).map().cloned();
    let tags = free("tags").unwrap_or_default();
    if let Some(wrong) = Tags(tags.clone()).wrong() {
        errors.borrow_mut().push(format!("tags.{wrong}"));
    }
    let tags = Tags::of_file(tags).0;
    let (vip, watchdog) = (vip::vip(&at("vip")), watchdog::watchdog(&at("watchdog")));
    let log = log(&at("log"), &mut not_served);
    for section in ["parameters", "parameters_primary", "parameters_replica", "parameters_standby_leader"] {
        if let Some(parameters) = at("postgresql").at(section).value.and_then(Value::as_object) {
            not_served.extend(cluster::renamed::notes(&format!("postgresql.{section}"), parameters));
        }
    }
    let namespace = at("namespace").text().unwrap_or_else(|| "service".to_owned());
    let namespace = format!("/{}", namespace.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/"));
    // What is missing has been noted, so all are there where nothing was noted.
    let (Some(scope), Some(name), Some(rest), Some(etcd), Some(postgres), true) =
        (scope, name, rest, etcd, postgres, errors.borrow().is_empty())
    else {
        return Err(errors.into_inner());
    };
    Ok(NodeConfig { scope, namespace, name, rest, ctl, etcd, bootstrap, postgres, tags, citus, poolers, vip, watchdog, log, not_served })
}

/// A checked name. The error's own sentence names what it is.
fn named<T: std::str::FromStr<Err = cluster::name::NameError>>(at: &At<'_>) -> Option<T> {
    let text = at.required(at.text())?;
    text.parse().map_err(|error| at.note(error)).ok()
}

/// `etcd3`, or the section `etcd` of those who used the older protocol; where both are given, `etcd3` counts.
fn etcd(etcd3: &At<'_>, etcd: &At<'_>) -> Option<EtcdConfig> {
    let at = if etcd3.value.is_some() || etcd.value.is_none() { etcd3 } else { etcd };
    if at.value.is_none() {
        at.note("is missing: say where etcd is, as in `etcd3: {hosts: \"10.0.0.1:2379,10.0.0.2:2379\"}`");
        return None;
    }
    at.map()?;
    let protocol = at.at("protocol").text().unwrap_or_else(|| "http".to_owned());
    if !matches!(protocol.as_str(), "http" | "https") {
        at.at("protocol").note(format!("found \"{protocol}\", expected http or https"));
    }
    let endpoints = endpoints(at, &protocol)?;
    let certificate = (at.at("cert").path(), at.at("key").path());
    let client_certificate = match certificate {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        // Patroni takes a certificate and key in one file.
        (Some(both), None) => Some((both.clone(), both)),
        (None, None) => None,
        (None, Some(_)) => {
            at.at("cert").note("is missing beside the key");
            None
        }
    };
    Some(EtcdConfig {
        endpoints,
        cacert: at.at("cacert").path(),
        client_certificate,
        username: at.at("username").text(),
        password: at.at("password").secret(),
    })
}

fn endpoints(at: &At<'_>, protocol: &str) -> Option<Vec<String>> {
    let hosts = at.at("hosts");
    let listed: Vec<String> = match hosts.value {
        Some(Value::Array(_)) => hosts.lines()?,
        Some(Value::String(text)) => text.split(',').map(str::to_owned).collect(),
        Some(other) => {
            hosts.note(format!("found {}, expected a list or a text like \"a:2379,b:2379\"", described(other)));
            return None;
        }
        None => at.at("url").text().or_else(|| at.at("host").text()).into_iter().collect(),
    };
    let listed: Vec<&str> =
        listed.iter().map(|host| host.trim().trim_matches(['"', '\'']).trim()).filter(|host| !host.is_empty()).collect();
    if listed.is_empty() {
        at.note("names no host: give hosts, host or url");
        return None;
    }
    let endpoint = |text: &str| {
        let (protocol, address) = text.split_once("://").unwrap_or((protocol, text));
        let address = address.split('/').next().unwrap_or(address);
        match Address::parse(address, 2379) {
            Ok(address) if matches!(protocol, "http" | "https") => Some(format!("{protocol}://{address}")),
            _ => {
                at.note(format!("\"{text}\" is no endpoint: expected host:port or http(s)://host:port"));
                None
            }
        }
    };
    listed.into_iter().map(endpoint).collect()
}

fn bootstrap(at: &At<'_>) -> BootstrapConfig {
    let hook = if at.at("post_bootstrap").value.is_some() { at.at("post_bootstrap") } else { at.at("post_init") };
    BootstrapConfig {
        dcs: at.at("dcs").map().cloned().unwrap_or_default(),
        initdb: options(&at.at("initdb"), &initdb::FORBIDDEN),
        pg_hba: at.at("pg_hba").lines(),
        users: users(&at.at("users")),
        post_bootstrap: command(&hook),
        method: methods::bootstrap_method(at),
    }
}

fn users(at: &At<'_>) -> Vec<BootstrapUser> {
    let Some(map) = at.map() else { return Vec::new() };
    let user = |name: &String| {
        let section = at.at(name);
        section.map();
        let credentials = Credentials { username: name.clone(), password: section.at("password").secret(), connection: Vec::new() };
        BootstrapUser { credentials, options: section.at("options").lines().unwrap_or_default() }
    };
    map.keys().map(user).collect()
}

/// Long options as Patroni takes them: a map, or a list of texts and maps. `true` and nothing mean: no value; `false`: not given.
fn options(at: &At<'_>, forbidden: &[&'static str]) -> Vec<LongOption> {
    let mut options: Vec<LongOption> = Vec::new();
    let mut pairs = |map: &Map<String, Value>| {
        for (name, value) in map {
            match value {
                Value::Null | Value::Bool(true) => options.push((name.clone(), None)),
                Value::Bool(false) => {}
                value => match setting_text(value) {
                    Some(text) => options.push((name.clone(), Some(text))),
                    None => at.at(name).note(format!("found {}, expected a text or a number", described(value))),
                },
            }
        }
    };
    match at.value {
        None => {}
        Some(Value::Object(map)) => pairs(map),
        Some(Value::Array(list)) => {
            for item in list {
                match item {
                    Value::Object(map) => pairs(map),
                    // Written as on a command line: `name` or `name=value`, with or without the dashes.
                    Value::String(text) => {
                        let bare = text.trim().trim_start_matches("--");
                        let (name, value) = bare.split_once('=').map_or((bare, None), |(name, value)| (name, Some(Value::from(value))));
                        pairs(&Map::from_iter([(name.to_owned(), value.unwrap_or(Value::Null))]));
                    }
                    other => at.note(format!("found {} in the list, expected texts and maps", described(other))),
                }
            }
        }
        Some(other) => at.note(format!("found {}, expected a list or a map of long options", described(other))),
    }
    // From PostgreSQL 15 on a server may compress what it sends, which changes nothing of what is written here.
    let by_server = |(name, value): &LongOption| name == "compress" && value.as_ref().is_some_and(|value| value.starts_with("server"));
    let own: Vec<LongOption> = options.iter().filter(|option| !by_server(option)).cloned().collect();
    if let Some(refused) = refused_option(&own, forbidden) {
        at.at(refused).note("this option is not yours to give: the arbiter gives it, or it would make an unusable data directory");
    }
    options
}

fn postgres(at: &At<'_>, environment: &BTreeMap<String, String>) -> Option<PostgresConfig> {
    at.required(at.value)?;
    at.map()?;
    let listen = match at.at("listen").text() {
        Some(text) => Listen::parse(&text, 5432).map_err(|expected| at.at("listen").note(format!("expected {expected}"))).ok(),
        None => at.at("listen").value.is_none().then(|| Listen { hosts: vec!["localhost".to_owned()], port: 5432 }),
    };
    let connect_address = listen.as_ref().and_then(|listen| {
        let first = Address::new(listen.hosts[0].clone(), listen.port);
        reachable(&at.at("connect_address"), &first)
    });
    let data_dir = absolute(&at.at("data_dir"), at.at("data_dir").required(at.at("data_dir").path()));
    let config_dir = at.at("config_dir").path();
    let config_dir = if config_dir.is_some() { absolute(&at.at("config_dir"), config_dir) } else { data_dir.clone() };
    let bin_dir = bin_dir(&at.at("bin_dir"), environment);
    let authentication = authentication(&at.at("authentication"));
    let settings = |name: &str| at.at(name).map().map(parameters_of).unwrap_or_default();
    let pgpass = absolute(&at.at("pgpass"), at.at("pgpass").path());
    let server_log = at.at("server_log").path();
    let callbacks = at.at("callbacks");
    callbacks.map();
    let callback = |name: &str| command(&callbacks.at(name));
    let config = PostgresConfig {
        proxy_address: host_port(&at.at("proxy_address"), 5432),
        database: at.at("database").text().unwrap_or_else(|| "postgres".to_owned()),
        parameters: settings("parameters"),
        parameters_by_role: ByRole::each(|role| settings(&format!("parameters_{role}"))),
        pg_hba: at.at("pg_hba").lines(),
        pg_hba_by_role: ByRole::each(|role| at.at(&format!("pg_hba_{role}")).lines()),
        pg_ident: at.at("pg_ident").lines(),
        pg_ident_by_role: ByRole::each(|role| at.at(&format!("pg_ident_{role}")).lines()),
        create_replica_methods: methods::replica_methods(at),
        basebackup: options(&at.at("basebackup"), &basebackup::FORBIDDEN),
        rewind: options(&at.at("rewind"), &rewind::FORBIDDEN),
        use_unix_socket: at.at("use_unix_socket").flag(),
        use_slots: at.at("use_slots").flag(),
        use_pg_rewind: at.at("use_pg_rewind").flag(),
        remove_data_directory_on_rewind_failure: at.at("remove_data_directory_on_rewind_failure").flag(),
        remove_data_directory_on_diverged_timelines: at.at("remove_data_directory_on_diverged_timelines").flag(),
        pg_ctl_timeout_s: at.at("pg_ctl_timeout").seconds(),
        callbacks: Callbacks {
            on_start: callback("on_start"),
            on_stop: callback("on_stop"),
            on_restart: callback("on_restart"),
            on_reload: callback("on_reload"),
            on_role_change: callback("on_role_change"),
        },
        pre_promote: command(&at.at("pre_promote")),
        before_stop: command(&at.at("before_stop")),
        recovery_conf: settings("recovery_conf"),
        pgpass: pgpass.unwrap_or_else(|| beside(data_dir.as_deref(), ".pgpass")),
        // Not within the data: a copy or a rewind would bring the source's.
        server_log: server_log.unwrap_or_else(|| beside(data_dir.as_deref(), ".log")),
        listen: listen?,
        connect_address: connect_address?,
        data_dir: data_dir?,
        config_dir: config_dir?,
        bin_dir: bin_dir?,
        authentication: authentication?,
    };
    Some(config)
}

/// A command line.
fn command(at: &At<'_>) -> Option<CommandLine> {
    CommandLine::parse(&at.text()?).map_err(|why| at.note(why)).ok()
}

/// From the root: one that is relative lies below the directory in which this process was started, as with Patroni.
fn absolute(at: &At<'_>, path: Option<PathBuf>) -> Option<PathBuf> {
    let path = match std::path::absolute(path?) {
        Ok(path) => path,
        Err(why) => {
            at.note(format!("can't be made absolute: {why}"));
            return None;
        }
    };
    // Without a trailing slash: files beside the directory are named after it.
    let path = path.components().as_path().to_owned();
    if path.parent().is_none() {
        at.note("is the root of the file system: name a directory of its own");
        return None;
    }
    Some(path)
}

fn beside(data_dir: Option<&Path>, suffix: &str) -> PathBuf {
    let mut path = data_dir.unwrap_or(Path::new("/nonexistent")).as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}

/// As given; else where `postgres` is found on the PATH; else the newest of Debian's directories.
fn bin_dir(at: &At<'_>, environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    if at.value.is_some() {
        let path = absolute(at, at.path())?;
        if !path.join("postgres").is_file() {
            at.note(format!("there is no program {}", path.join("postgres").display()));
            return None;
        }
        return Some(path);
    }
    let path = environment.get("PATH").map(String::as_str).unwrap_or_default();
    let on_path = std::env::split_paths(path).find(|directory| directory.join("postgres").is_file());
    // A link to `postgres` alone (as in /usr/local/bin) leads to where the other programs are.
    let on_path = on_path.map(|directory| {
        let real = std::fs::canonicalize(directory.join("postgres")).ok().and_then(|program| Some(program.parent()?.to_owned()));
        real.filter(|real| !directory.join("pg_controldata").is_file() && real.join("pg_controldata").is_file()).unwrap_or(directory)
    });
    let found = on_path.or_else(|| newest_of(Path::new("/usr/lib/postgresql")));
    if found.is_none() {
        at.note("is missing, and no postgres is on the PATH nor in /usr/lib/postgresql/*/bin");
    }
    found
}

fn newest_of(directory: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(directory).ok()?.flatten().filter_map(|entry| {
        let version: u32 = entry.file_name().to_str()?.parse().ok()?;
        let bin = entry.path().join("bin");
        bin.join("postgres").is_file().then_some((version, bin))
    });
    versions.max().map(|(_, bin)| bin)
}

fn authentication(at: &At<'_>) -> Option<Authentication> {
    at.map();
    let superuser = credentials(&at.at("superuser"), "postgres");
    let replication = credentials(&at.at("replication"), "replicator");
    let rewind = at.at("rewind").value.is_some().then(|| credentials(&at.at("rewind"), "rewind"));
    Some(Authentication { superuser, replication, rewind })
}

fn credentials(at: &At<'_>, default_name: &str) -> Credentials {
    at.map();
    let text = |name: &&str| {
        // `gssencmode: off` and the like are words in libpq and truth values in some YAML.
        let value = at.at(name).value?;
        let text = if truth(value).is_some() { setting_text(value) } else { at.at(name).text() };
        Some(((*name).to_owned(), text?))
    };
    Credentials {
        username: at.at("username").text().unwrap_or_else(|| default_name.to_owned()),
        password: at.at("password").secret(),
        connection: known::CREDENTIALS[2..].iter().filter_map(text).collect(),
    }
}

/// A word of the log that is not known is no reason to leave a server without its arbiter: it is said, and the default counts.
fn log(at: &At<'_>, not_served: &mut Vec<String>) -> LogConfig {
    at.map();
    let word = |name: &str| at.at(name).value.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let level = word("level").and_then(|level| match level.trim().to_uppercase().as_str() {
        "CRITICAL" | "FATAL" | "ERROR" | "50" | "40" => Some("error"),
        "WARNING" | "WARN" | "30" => Some("warn"),
        "INFO" | "20" => Some("info"),
        "DEBUG" | "10" => Some("debug"),
        "NOTSET" | "TRACE" | "0" => Some("trace"),
        _ => {
            not_served.push(format!("log.level: found \"{level}\", expected ERROR, WARNING, INFO, DEBUG or TRACE; INFO is used"));
            None
        }
    });
    let json = word("type").is_some_and(|kind| match kind.to_lowercase().as_str() {
        "json" => true,
        "plain" => false,
        _ => {
            not_served.push(format!("log.type: found \"{kind}\", expected plain or json; plain is used"));
            false
        }
    });
    LogConfig { level, json, dir: at.at("dir").value.and_then(Value::as_str).map(PathBuf::from) }
}
