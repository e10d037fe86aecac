//! Whole files: three from deployment guides, and what is said of wrong ones.

use super::*;
use crate::ground::program::CommandLine;
use std::path::Path;

const MINIMAL: &str = "{scope: s, name: n1, restapi: {listen: '127.0.0.1:8008'}, etcd3: {host: 'e:2379'}, postgresql: {listen: '127.0.0.1:5432', data_dir: /data}}";

/// A PATH on which a `postgres` is found, so that the tests don't depend on what is installed.
fn programs() -> (tempfile::TempDir, (String, String)) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("postgres"), "").unwrap();
    let path = directory.path().display().to_string();
    (directory, ("PATH".to_owned(), path))
}

fn load(yaml: &str, environment: &[(&str, &str)]) -> Result<NodeConfig, ConfigErrors> {
    let (_keep, path) = programs();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("node.yml");
    std::fs::write(&file, yaml).unwrap();
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    NodeConfig::load(&file, environment.chain([path]))
}

fn said(yaml: &str) -> Vec<String> {
    let errors = load(yaml, &[]).unwrap_err();
    errors.unknown.into_iter().chain(errors.wrong).collect()
}

#[test]
fn a_debian_node_starts_as_its_file_is() {
    let config = load(include_str!("../../tests/fixtures/debian-three-nodes.yml"), &[]).unwrap();
    assert_eq!((config.scope.as_str(), config.name.as_str(), config.namespace.as_str()), ("batman", "pg01", "/db"));
    assert_eq!(config.etcd.endpoints, ["https://10.0.0.11:2379", "https://10.0.0.12:2379", "https://10.0.0.13:2379"]);
    assert_eq!(config.etcd.cacert.as_deref(), Some(Path::new("/etc/ssl/etcd/ca.crt")));
    assert!(config.etcd.client_certificate.is_some());
    assert_eq!(config.rest.connect_address.to_string(), "10.0.0.11:8008");
    assert_eq!(config.rest.authentication.as_ref().map(|(name, password)| (name.as_str(), password.reveal())), Some(("patroni", "s3cret")));
    let postgres = &config.postgres;
    assert_eq!(postgres.data_dir, Path::new("/var/lib/postgresql/15/main"));
    assert_eq!(postgres.config_dir, Path::new("/etc/postgresql/15/main"));
    assert_eq!(postgres.parameters["log_checkpoints"], "on");
    assert_eq!(postgres.parameters["random_page_cost"], "1.1");
    assert_eq!(postgres.authentication.superuser.password.as_ref().map(Secret::reveal), Some("super:pass"));
    assert_eq!(postgres.authentication.for_rewind().username, "rewind_user");
    let ssl = [("sslmode".to_owned(), "verify-full".to_owned()), ("sslrootcert".to_owned(), "/etc/ssl/ca.crt".to_owned())];
    assert_eq!(postgres.authentication.replication.connection, ssl);
    let option = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
    assert_eq!(
        config.bootstrap.initdb,
        [option("encoding", Some("UTF8")), option("data-checksums", None), option("locale", Some("en_US.UTF-8"))]
    );
    assert_eq!(config.bootstrap.users[0].options, ["createrole", "createdb"]);
    assert_eq!(config.bootstrap.dcs["ttl"], 30);
    assert_eq!(config.tags["datacenter"], "fra1");
    let keys: Vec<&str> = config.not_served.iter().filter_map(|line| line.split(':').next()).collect();
    assert_eq!(keys, ["log.dir", "log.file_num"]);
    let printed = format!("{config:?}");
    for secret in ["s3cret", "rep-pass", "super:pass", "rewind-pass", "admin%"] {
        assert!(!printed.contains(secret), "{secret} is printed");
    }
}

#[test]
fn a_pgbackrest_node_has_its_methods() {
    let config = load(include_str!("../../tests/fixtures/pgbackrest.yml"), &[]).unwrap();
    assert_eq!(config.etcd.endpoints, ["https://etcd1.example.net:2379", "http://etcd2.example.net:2379", "http://etcd3.example.net:2379"]);
    assert_eq!((config.namespace.as_str(), config.rest.connect_address.to_string()), ("/service", "10.1.0.2:8008".to_owned()));
    assert_eq!(config.etcd.password.as_ref().map(Secret::reveal), Some("0123"));
    let postgres = &config.postgres;
    assert_eq!(
        (postgres.listen.addresses(), postgres.connect_address.to_string()),
        ("10.1.0.2,127.0.0.1".to_owned(), "10.1.0.2:5433".to_owned())
    );
    assert_eq!((postgres.use_unix_socket, postgres.pg_ctl_timeout_s, postgres.use_slots), (Some(true), Some(120), None));
    assert_eq!(postgres.basebackup.len(), 3);
    assert_eq!(postgres.callbacks.on_stop, CommandLine::parse("/etc/patroni/callback.sh").ok());
    assert_eq!(postgres.create_replica_methods.iter().map(ReplicaMethod::name).collect::<Vec<_>>(), ["pgbackrest", "basebackup"]);
    assert!(postgres.recovery_conf["restore_command"].contains("archive-get"));
    assert_eq!(postgres.pgpass, Path::new("/data/pg.pgpass"));
    assert_eq!(
        (postgres.authentication.superuser.username.as_str(), postgres.authentication.replication.username.as_str()),
        ("postgres", "replicator")
    );
    assert_eq!(config.bootstrap.initdb.len(), 2);
    assert_eq!(config.bootstrap.post_bootstrap, CommandLine::parse("/usr/local/bin/after_bootstrap.sh").ok());
    let method = config.bootstrap.method.as_ref().unwrap();
    assert_eq!(method.command.name, "pgbackrest");
    assert_eq!(config.not_served, Vec::<String>::new());
}

#[test]
fn a_container_takes_what_differs_from_its_environment() {
    let environment = [
        ("PATRONI_NAME", "ignored"),
        ("TENURE_NAME", "pod-0"),
        ("PATRONI_RESTAPI_CONNECT_ADDRESS", "10.2.0.5:8008"),
        ("PATRONI_POSTGRESQL_CONNECT_ADDRESS", "10.2.0.5:5432"),
        ("PATRONI_ETCD3_HOSTS", "'e1:2379','e2:2379'"),
        ("PATRONI_SUPERUSER_PASSWORD", "fromenv"),
        ("PATRONI_REWIND_USERNAME", "rw"),
        ("PATRONI_REPLICATION_SSLMODE", "require"),
        ("PATRONI_SCOPE", ""),
    ];
    let config = load(include_str!("../../tests/fixtures/container.yml"), &environment).unwrap();
    assert_eq!((config.scope.as_str(), config.name.as_str()), ("demo", "pod-0"));
    assert_eq!(config.etcd.endpoints, ["http://e1:2379", "http://e2:2379"]);
    let authentication = &config.postgres.authentication;
    assert_eq!(authentication.superuser.password.as_ref().map(Secret::reveal), Some("fromenv"));
    assert_eq!(authentication.rewind.as_ref().map(|rewind| rewind.username.as_str()), Some("rw"));
    assert_eq!(authentication.replication.connection, [("sslmode".to_owned(), "require".to_owned())]);
    assert_eq!((config.log.json, config.log.level), (true, Some("warn")));
    assert_eq!(config.postgres.listen.local_host(), "127.0.0.1");
}

#[test]
fn variables_of_patroni_that_have_no_effect_here_are_said_and_not_passed_over() {
    let environment = [
        ("PATRONI_LOGLEVEL", "ERROR"),
        ("PATRONI_LOG_LEVEL", "DEBUG"),
        ("PATRONI_LOG_FORMAT", "%(message)s"),
        ("PATRONI_ETCD3_SRV", "example.org"),
        ("PATRONI_POSTGRESQL_BIN_PG_CTL", "/opt/pg_ctl"),
        ("PATRONI_THREAD_POOL_SIZE", "7"),
        ("PATRONI_RESTAPI_CIPHERS", "HIGH"),
        ("TENURE_ETCD3_USERNAME", "tenure"),
        ("TENURE_ETCD3_PASSWORD", "fromenv"),
    ];
    let config = load(MINIMAL, &environment).unwrap();
    assert_eq!(config.log.level, Some("debug"), "the newer name counts");
    assert_eq!(config.etcd.username.as_deref(), Some("tenure"));
    assert_eq!(config.etcd.password.as_ref().map(Secret::reveal), Some("fromenv"));
    let mut said: Vec<&str> = config.not_served.iter().filter_map(|line| line.split(':').next()).collect();
    said.sort_unstable();
    assert_eq!(said, ["etcd3.srv", "log.format", "postgresql.bin_name", "restapi.ciphers", "thread_pool_size"]);
}

#[test]
fn the_smallest_file_is_enough() {
    let config = load(MINIMAL, &[]).unwrap();
    assert_eq!((config.not_served.len(), config.postgres.database.as_str()), (0, "postgres"));
}

#[test]
fn everything_wrong_is_said_at_once_and_by_its_key() {
    for (change, to, lines) in [
        ("scope: s,", "", &["scope: is missing, and there is no default"][..]),
        ("name: n1,", "name: 'a/b',", &["name: name \"a/b\" holds the character '/'"]),
        ("name: n1,", "name: 5,", &["name: found a number, expected a text: put it in quotes"]),
        ("data_dir: /data", "data_dir: /", &["postgresql.data_dir: is the root of the file system"]),
        (
            "data_dir: /data",
            "datadir: /data",
            &["postgresql.datadir is not a known setting; did you mean postgresql.data_dir?", "postgresql.data_dir: is missing"],
        ),
        ("data_dir: /data", "data_dir: /data, use_slots: perhaps", &["postgresql.use_slots: found a text, expected true or false"]),
        ("data_dir: /data", "data_dir: /data, pg_hba: local", &["postgresql.pg_hba: found a text, expected a list of texts"]),
        ("data_dir: /data", "data_dir: /data, parameters: [a]", &["postgresql.parameters: found a list, expected a map"]),
        (
            "data_dir: /data",
            "data_dir: /data, basebackup: [pgdata: /x]",
            &["postgresql.basebackup.pgdata: this option is not yours to give"],
        ),
        ("data_dir: /data", "data_dir: /data, bin_dir: /nowhere", &["postgresql.bin_dir: there is no program /nowhere/postgres"]),
        ("'127.0.0.1:5432'", "'0.0.0.0:5432'", &["postgresql.connect_address: is missing, and the listen address is no address"]),
        ("'127.0.0.1:5432'", "'127.0.0.1:port'", &["postgresql.listen: expected host:port"]),
        ("'e:2379'", "'e:x'", &["etcd3: \"e:x\" is no endpoint"]),
        ("etcd3:", "consul:", &["etcd3: is missing: say where etcd is"]),
        ("listen: '127.0.0.1:8008'", "listen: '127.0.0.1:8008', authentication: {username: u}", &["restapi.authentication: needs both"]),
    ] {
        let text = MINIMAL.replace(change, to);
        let said = said(&text);
        assert_eq!(said.len(), lines.len(), "{text}: {said:?}");
        for (line, begin) in said.iter().zip(lines) {
            assert!(line.starts_with(begin), "{line}");
        }
    }
    let errors = load("scope: [", &[]).unwrap_err().to_string();
    assert!(errors.contains("node.yml") && errors.contains("is not understood"), "{errors}");
}

#[test]
fn what_patroni_takes_is_taken() {
    let environment = [("PATRONI_ADMIN_PASSWORD", "a"), ("PATRONI_ADMIN_OPTIONS", "createrole, createdb"), ("TENURE_APP_PASSWORD", "b")];
    let text = MINIMAL
        .replace("name: n1, ", "")
        .replace("listen: '127.0.0.1:8008'", "listen: ':8008', connect_address: '127.0.0.1:8008', auth: 'u:p:q'")
        .replace(
            "data_dir: /data",
            "name: n1, cluster_name: x, data_dir: data/n1, pgpass: pgpass, use_unix_socket_repl: true, parameters: {wal_keep_segments: 10}",
        )
        .replacen('{', "{log: {level: loud, type: xml}, frobnicate: 1, ", 1);
    let config = load(&text, &environment).unwrap();
    let here = std::env::current_dir().unwrap();
    assert_eq!(config.name.as_str(), "n1");
    assert_eq!(config.rest.listen.to_string(), "*:8008");
    assert_eq!(config.rest.authentication.as_ref().map(|(user, password)| (user.as_str(), password.reveal())), Some(("u", "p:q")));
    assert_eq!((config.postgres.data_dir, config.postgres.pgpass), (here.join("data/n1"), here.join("pgpass")));
    assert_eq!(config.postgres.parameters["wal_keep_size"], "160MB");
    assert!(!config.postgres.parameters.contains_key("wal_keep_segments"));
    let users: Vec<(&str, Vec<String>)> =
        config.bootstrap.users.iter().map(|user| (user.credentials.username.as_str(), user.options.clone())).collect();
    assert_eq!(users, [("admin", vec!["createrole".to_owned(), "createdb".to_owned()]), ("app", vec![])]);
    assert_eq!((config.log.level, config.log.json), (None, false));
    let mut said: Vec<&str> = config.not_served.iter().filter_map(|line| line.split(':').next()).collect();
    said.sort_unstable();
    let expected = [
        "frobnicate",
        "log.level",
        "log.type",
        "postgresql.cluster_name",
        "postgresql.parameters.wal_keep_segments",
        "postgresql.use_unix_socket_repl",
    ];
    assert_eq!(said, expected);
}

#[test]
fn the_files_of_a_directory_are_merged_in_order() {
    let (_keep, path) = programs();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("10-base.yml"), MINIMAL).unwrap();
    std::fs::write(directory.path().join("20-local.yaml"), "name: later\npostgresql: {use_slots: false}").unwrap();
    std::fs::write(directory.path().join("30-ignored.txt"), "nonsense: 1").unwrap();
    let config = NodeConfig::load(directory.path(), [path]).unwrap();
    assert_eq!((config.name.as_str(), config.postgres.use_slots, config.scope.as_str()), ("later", Some(false), "s"));
}

#[test]
fn a_methods_section_becomes_its_command() {
    let methods = "create_replica_methods: [wal_e, pgbackrest, bare, basebackup],\n\
        wal_e: {command: 'restore \"a b\"', no_leader: 1, envdir: /e, threshold: 30, dry: false},\n\
        pgbackrest: {command: /usr/bin/pgbackrest --delta restore, keep_data: true, no_params: true, log-level-console: info}, ";
    let config = load(&MINIMAL.replace("postgresql: {", &format!("postgresql: {{{methods}")), &[]).unwrap();
    let ours = [("scope".to_owned(), "s".to_owned())];
    let found: Vec<(String, Vec<String>, bool, bool)> = config
        .postgres
        .create_replica_methods
        .iter()
        .filter_map(|method| match method {
            ReplicaMethod::Basebackup => None,
            ReplicaMethod::Command(command) => {
                let mut arguments = command.arguments(&ours);
                arguments.sort();
                Some((command.name.clone(), arguments, command.no_leader, command.keep_data))
            }
        })
        .collect();
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(
        found,
        [
            ("wal_e".to_owned(), texts(&["--dry=False", "--envdir=/e", "--no_leader=1", "--scope=s", "--threshold=30"]), true, false),
            ("pgbackrest".to_owned(), texts(&["--log-level-console=info"]), false, true),
            ("bare".to_owned(), texts(&["--scope=s"]), false, false),
        ]
    );
    assert_eq!(load(MINIMAL, &[]).unwrap().postgres.create_replica_methods, [ReplicaMethod::Basebackup]);
}
