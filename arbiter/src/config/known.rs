//! Every key of Patroni's schema: which are served, which are known but not served yet, and what an unknown one may have meant.

use serde_json::{Map, Value};

/// What the survey of a file found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Sentences about keys that nobody knows and that may not be passed over.
    pub unknown: Vec<String>,
    /// Keys without effect, known ones and unknown ones, each with half a sentence.
    pub not_served: Vec<String>,
}

/// What is said of a key that is nobody's.
const UNHEARD: &str = "is not a known setting";

impl Survey {
    /// Those of the keys without effect that nobody knows.
    pub fn unheard(&self) -> impl Iterator<Item = &str> {
        self.not_served.iter().map(String::as_str).filter(|line| line.contains(UNHEARD))
    }
}

#[derive(Clone, Copy)]
enum Kind {
    /// Read by `validate`.
    Served,
    /// Read, and whatever is below is the user's.
    Free,
    /// Accepted, without effect: why.
    NotServed(&'static str),
}

use Kind::{Free, NotServed, Served};

const OTHER_STORE: Kind = NotServed("etcd is the one store that is served");
const LOG: Kind = NotServed("our log goes to standard error, one line per event; journald or the container keeps it");
const RESTAPI: Kind = NotServed("the REST interface has its own server, with no such setting");
const DYNAMIC: Kind = NotServed("this setting belongs in the dynamic configuration (bootstrap.dcs or `tenure edit-config`)");

/// Dotted keys. What is not listed but begins one of these is a section.
const KEYS: &[(&str, Kind)] = &[
    ("scope", Served),
    ("name", Served),
    ("postgresql.name", Served),
    ("postgresql.cluster_name", NotServed("the scope is the cluster's name, also in cluster_name")),
    ("postgresql.watchdog", NotServed("the section watchdog stands at the top of the file")),
    ("postgresql.maximum_lag_on_failover", DYNAMIC),
    ("namespace", Served),
    ("tags", Free),
    ("vip.primary", Served),
    ("vip.replica", Served),
    ("vip.interface", Served),
    ("watchdog.mode", Served),
    ("watchdog.device", Served),
    ("watchdog.safety_margin", Served),
    ("watchdog.driver", NotServed("the device is spoken to as Linux has it, and in no other way")),
    ("citus.group", Served),
    ("citus.database", Served),
    ("citus.databases", Served),
    ("citus.lock_cooldown", Served),
    ("citus.end_sessions_at_promotion", Served),
    ("citus.hold_reads", Served),
    ("citus.grace", Served),
    ("citus.prefer", Served),
    ("ctl", Free),
    ("pgbouncer", Free),
    ("consul", OTHER_STORE),
    ("zookeeper", OTHER_STORE),
    ("exhibitor", OTHER_STORE),
    ("kubernetes", OTHER_STORE),
    ("raft", OTHER_STORE),
    ("thread_pool_size", NotServed("there are no thread pools here")),
    ("thread_stack_size", NotServed("there are no thread pools here")),
    ("ttl", DYNAMIC),
    ("loop_wait", DYNAMIC),
    ("retry_timeout", DYNAMIC),
    ("maximum_lag_on_failover", DYNAMIC),
    ("synchronous_mode", DYNAMIC),
    ("standby_cluster", DYNAMIC),
    ("slots", DYNAMIC),
    ("restapi.listen", Served),
    ("restapi.connect_address", Served),
    ("restapi.authentication.username", Served),
    ("restapi.authentication.password", Served),
    ("restapi.auth", Served),
    ("restapi.certfile", Served),
    ("restapi.keyfile", Served),
    ("restapi.keyfile_password", Served),
    ("restapi.cafile", Served),
    ("restapi.ciphers", NotServed("rustls offers TLS 1.2 and 1.3 with sound ciphers only, and nothing else")),
    ("restapi.verify_client", Served),
    ("restapi.allowlist", Served),
    ("restapi.allowlist_include_members", Served),
    ("restapi.http_extra_headers", Free),
    ("restapi.https_extra_headers", Free),
    ("restapi.request_queue_size", RESTAPI),
    ("restapi.server_tokens", RESTAPI),
    ("restapi.thread_pool_size", RESTAPI),
    ("etcd3.host", Served),
    ("etcd3.hosts", Served),
    ("etcd3.url", Served),
    ("etcd3.protocol", Served),
    ("etcd3.username", Served),
    ("etcd3.password", Served),
    ("etcd3.cacert", Served),
    ("etcd3.cert", Served),
    ("etcd3.key", Served),
    ("etcd3.srv", NotServed("endpoints are not looked up in DNS; list etcd3.hosts")),
    ("etcd3.srv_suffix", NotServed("endpoints are not looked up in DNS; list etcd3.hosts")),
    ("etcd3.proxy", NotServed("list etcd3.hosts instead of a proxy")),
    ("etcd3.use_proxies", NotServed("endpoints are used as they are listed")),
    ("etcd3.version", NotServed("it is always etcd's API version 3")),
    ("bootstrap.dcs", Free),
    ("bootstrap.initdb", Free),
    ("bootstrap.pg_hba", Served),
    ("bootstrap.users", Free),
    ("bootstrap.post_bootstrap", Served),
    ("bootstrap.post_init", Served),
    ("bootstrap.method", Served),
    ("postgresql.listen", Served),
    ("postgresql.connect_address", Served),
    ("postgresql.proxy_address", Served),
    ("postgresql.data_dir", Served),
    ("postgresql.config_dir", Served),
    ("postgresql.bin_dir", Served),
    ("postgresql.bin_name", NotServed("PostgreSQL's programs are called by their own names")),
    ("postgresql.config_base_name", NotServed("the server's file is always postgresql.conf")),
    ("postgresql.custom_conf", NotServed("postgresql.base.conf is included")),
    ("postgresql.database", Served),
    ("postgresql.pgpass", Served),
    ("postgresql.server_log", Served),
    ("postgresql.krbsrvname", NotServed("Kerberos is not used for our connections")),
    ("postgresql.parameters", Free),
    ("postgresql.parameters_primary", Free),
    ("postgresql.parameters_replica", Free),
    ("postgresql.parameters_standby_leader", Free),
    ("postgresql.pg_hba", Served),
    ("postgresql.pg_hba_primary", Served),
    ("postgresql.pg_hba_replica", Served),
    ("postgresql.pg_hba_standby_leader", Served),
    ("postgresql.pg_ident", Served),
    ("postgresql.pg_ident_primary", Served),
    ("postgresql.pg_ident_replica", Served),
    ("postgresql.pg_ident_standby_leader", Served),
    ("postgresql.basebackup", Free),
    ("postgresql.rewind", Free),
    ("postgresql.use_unix_socket", Served),
    ("postgresql.use_unix_socket_repl", NotServed("the arbiter makes no replication connection to its own server")),
    ("postgresql.use_slots", Served),
    ("postgresql.use_pg_rewind", Served),
    ("postgresql.remove_data_directory_on_rewind_failure", Served),
    ("postgresql.remove_data_directory_on_diverged_timelines", Served),
    ("postgresql.pg_ctl_timeout", Served),
    ("postgresql.callbacks.on_reload", Served),
    ("postgresql.callbacks.on_restart", Served),
    ("postgresql.callbacks.on_role_change", Served),
    ("postgresql.callbacks.on_start", Served),
    ("postgresql.callbacks.on_stop", Served),
    ("postgresql.pre_promote", Served),
    ("postgresql.before_stop", Served),
    ("postgresql.create_replica_methods", Served),
    ("postgresql.create_replica_method", Served),
    ("postgresql.recovery_conf", Free),
    ("log.level", Served),
    ("log.type", Served),
    ("log.dir", LOG),
    ("log.format", LOG),
    ("log.dateformat", LOG),
    ("log.static_fields", LOG),
    ("log.traceback_level", LOG),
    ("log.loggers", LOG),
    ("log.max_queue_size", LOG),
    ("log.file_num", LOG),
    ("log.file_size", LOG),
    ("log.mode", LOG),
    ("log.deduplicate_heartbeat_logs", LOG),
];

/// Keys below `postgresql.authentication.<role>`.
pub const CREDENTIALS: [&str; 13] = [
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
    // Ours: libpq has it since PostgreSQL 16.
    "require_auth",
];
/// Roles below `postgresql.authentication`.
pub const ROLES: [&str; 3] = ["superuser", "replication", "rewind"];

/// Walks the tree and tells the known from the unknown.
pub fn survey(root: &Map<String, Value>) -> Survey {
    let mut known: Vec<(String, Kind)> = KEYS.iter().map(|(key, kind)| ((*key).to_owned(), *kind)).collect();
    // `etcd` takes what `etcd3` takes.
    known.extend(KEYS.iter().filter_map(|(key, kind)| Some((format!("etcd.{}", key.strip_prefix("etcd3.")?), *kind))));
    for role in ROLES {
        known.extend(CREDENTIALS.map(|key| (format!("postgresql.authentication.{role}.{key}"), Served)));
    }
    // A section named by the list of methods belongs to that method.
    for method in methods(root) {
        known.push((format!("postgresql.{method}"), Free));
    }
    if let Some(method) =
        root.get("bootstrap").and_then(|section| section.get("method")).and_then(Value::as_str).filter(|method| *method != "initdb")
    {
        known.push((format!("bootstrap.{method}"), Free));
    }
    let mut survey = Survey::default();
    walk(root, "", &known, &mut survey);
    survey
}

/// The replica methods beside basebackup.
fn methods(root: &Map<String, Value>) -> Vec<String> {
    let postgresql = root.get("postgresql");
    let lists = ["create_replica_methods", "create_replica_method"].iter().filter_map(|key| postgresql?.get(key)?.as_array());
    lists.flatten().filter_map(Value::as_str).filter(|method| *method != "basebackup").map(str::to_owned).collect()
}

fn walk(section: &Map<String, Value>, path: &str, known: &[(String, Kind)], survey: &mut Survey) {
    for (name, value) in section {
        let key = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let below = format!("{key}.");
        match known.iter().find(|(known, _)| *known == key) {
            Some((_, Served | Free)) => {}
            Some((_, NotServed(why))) => survey.not_served.push(format!("{key}: {why}")),
            None if known.iter().any(|(known, _)| known.starts_with(&below)) => {
                if let Value::Object(section) = value {
                    walk(section, &key, known, survey);
                } else if !value.is_null() {
                    survey.unknown.push(format!("{key}: found {}, expected a map", super::tree::described(value)));
                }
            }
            None => match nearest(&key, known) {
                Some(near) if matters(&near) => survey.unknown.push(format!(
                    "{key} is not a known setting; did you mean {near}? It is not passed over: this node would be more open, or another's, than its file says"
                )),
                Some(near) => survey.not_served.push(format!("{key}: {UNHEARD}; did you mean {near}?")),
                None => survey.not_served.push(format!("{key}: {UNHEARD}")),
            },
        }
    }
}

/// Settings, or the beginnings of settings, that say who may come in, how it is proved, or whose data and which cluster this is. Where one
/// of them was probably meant, going on without it would be worse than an end that names it.
const MATTERS: [&str; 15] = [
    "scope",
    "namespace",
    "restapi",
    "ctl",
    "etcd",
    "citus",
    "bootstrap.dcs",
    "bootstrap.method",
    "bootstrap.pg_hba",
    "postgresql.authentication",
    "postgresql.config_dir",
    "postgresql.data_dir",
    "postgresql.pg_hba",
    "postgresql.pg_ident",
    "postgresql.recovery_conf",
];

fn matters(near: &str) -> bool {
    MATTERS.iter().any(|setting| near.starts_with(setting))
}

/// The nearest known key or section: the whole dotted key counts, as does its last word (a setting in the wrong section).
fn nearest(key: &str, known: &[(String, Kind)]) -> Option<String> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let word = last(key);
    let mut candidates: Vec<String> = Vec::new();
    for (known, _) in known {
        candidates.push(known.clone());
        candidates.extend(known.match_indices('.').map(|(dot, _)| known[..dot].to_owned()));
    }
    let section = |key: &str| key.rsplit_once('.').map(|(section, _)| section.to_owned());
    let distance = |candidate: &String| {
        let whole = strsim::damerau_levenshtein(key, candidate);
        let moved = strsim::damerau_levenshtein(&word, &last(candidate)) + 2;
        // `user` for `username`: one word begins the other, in the same section.
        let begun = word.len() >= 3 && section(key) == section(candidate) && candidate.starts_with(key);
        if begun { 1 } else { whole.min(moved) }
    };
    let near = candidates.into_iter().min_by_key(|candidate| (distance(candidate), strsim::damerau_levenshtein(key, candidate)))?;
    (distance(&near) <= 2.max(word.len() / 3) + 1).then_some(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey_of(yaml: &str) -> Survey {
        survey(&super::super::tree::parse(yaml).unwrap())
    }

    #[test]
    fn an_unknown_key_is_named_with_the_nearest_known_one() {
        for (yaml, sentence) in [
            ("postgresql: {datadir: /x}", "postgresql.datadir is not a known setting; did you mean postgresql.data_dir?"),
            ("scop: x", "scop is not a known setting; did you mean scope?"),
            ("restapi: {listn: x}", "restapi.listn is not a known setting; did you mean restapi.listen?"),
            ("restapi: {alowlist: x}", "restapi.alowlist is not a known setting; did you mean restapi.allowlist?"),
            ("postgresql: {pg_hba_primry: x}", "postgresql.pg_hba_primry is not a known setting; did you mean postgresql.pg_hba_primary?"),
            ("data_dir: /x", "data_dir is not a known setting; did you mean postgresql.data_dir?"),
            ("etcd3: {cacrt: x}", "etcd3.cacrt is not a known setting; did you mean etcd3.cacert?"),
            (
                "postgresql: {authentication: {replication: {user: x}}}",
                "postgresql.authentication.replication.user is not a known setting; did you mean postgresql.authentication.replication.username?",
            ),
        ] {
            let said = survey_of(yaml);
            assert!(said.unknown.len() == 1 && said.unknown[0].starts_with(sentence), "{said:?}");
            assert!(said.not_served.is_empty(), "{said:?}");
        }
    }

    #[test]
    fn what_nobody_serves_is_passed_over_with_a_word_where_that_is_safe() {
        for (yaml, sentence) in [
            ("frobnicate: 1", "frobnicate: is not a known setting"),
            ("postgresql: {parametres: {}}", "postgresql.parametres: is not a known setting; did you mean postgresql.parameters?"),
            ("bootstrap: {initb: []}", "bootstrap.initb: is not a known setting; did you mean bootstrap.initdb?"),
            ("postgresql: {cluster_name: x}", "postgresql.cluster_name: the scope is the cluster's name, also in cluster_name"),
        ] {
            let said = survey_of(yaml);
            assert_eq!((said.unknown.as_slice(), said.not_served.as_slice()), (&[][..], &[sentence.to_owned()][..]));
        }
    }

    #[test]
    fn free_sections_take_anything_and_methods_name_their_own() {
        let survey = survey_of(
            "tags: {anything: 1}\npostgresql: {parameters: {x.y: 1}, create_replica_methods: [pgbackrest, basebackup], pgbackrest: {command: x}}\nbootstrap: {dcs: {odd: 1}, method: wal_e, wal_e: {command: y}}",
        );
        assert_eq!(survey.unknown, Vec::<String>::new());
        assert_eq!(survey.not_served, Vec::<String>::new());
    }

    #[test]
    fn a_section_that_is_no_map_is_said() {
        assert_eq!(survey_of("restapi: 5").unknown, ["restapi: found a number, expected a map"]);
    }
}
