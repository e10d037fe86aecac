//! Files as the field runs them found a cluster as they are, and the server has the rules that they ask for and no others: an older
//! deployment's, Percona's, Spilo's, Autobase's, Patroni's example and Debian's template. Written from what those files say, with ports
//! and directories of a story's own.

use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use stories::cluster::PATIENCE;
use stories::etcd::Etcd;
use stories::node::{Node, PASSWORD};
use stories::room::Room;
use stories::tls::{Authority, text};
use stories::wait::{self, seconds};
use stories::{process, programs};

/// Where one file is tried.
struct Field {
    room: Room,
    etcd: Etcd,
    node: Node,
}

impl Field {
    async fn new() -> Field {
        let room = Room::new();
        let etcd = Etcd::start(&room).await;
        let node = Node::bare(&room, "n1");
        Field { room, etcd, node }
    }

    fn postgres(&self) -> String {
        format!("127.0.0.1:{}", self.node.port())
    }

    fn rest(&self) -> String {
        format!("127.0.0.1:{}", self.node.rest_port())
    }

    /// A program of the user's, in the node's directory.
    fn script(&self, name: &str, body: &str) -> String {
        let path = self.node.dir().join(name);
        self.room.file(&path, &format!("#!/bin/sh\n{body}\n"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).expect("make it a program");
        text(&path)
    }

    /// Starts the arbiter with this file and waits until it leads.
    async fn found(&self, file: &Value) {
        self.node.configure(&self.room, file);
        self.node.start(&self.room);
        wait::until("the file to found a cluster", PATIENCE, async || {
            let answer = self.node.get("/primary").await?;
            anyhow::ensure!(answer.status == 200, "{answer:?}");
            Ok(())
        })
        .await;
    }

    /// What a superuser reads through the socket, by peer or with the password of every story.
    fn ask(&self, sockets: &Path, question: &str) -> Vec<String> {
        let mut psql = self.room.command(programs::postgres_bin().join("psql"), self.node.dir());
        psql.args(["-XAt", "-U", "postgres", "-d", "postgres", "-p"]).arg(self.node.port().to_string()).arg("-h").arg(sockets);
        let said = psql.env("PGPASSWORD", PASSWORD).args(["-c", question]).output().expect("run psql");
        assert!(said.status.success(), "{}\n{}", String::from_utf8_lossy(&said.stderr), self.node.log());
        String::from_utf8_lossy(&said.stdout).lines().map(str::to_owned).collect()
    }

    /// The rules in force, one line each, as `host replication replicator 127.0.0.1 md5`.
    fn rules(&self, sockets: &Path) -> Vec<String> {
        let rule = "concat_ws(' ', type, array_to_string(database, ','), array_to_string(user_name, ','), address, auth_method, error)";
        self.ask(sockets, &format!("SELECT {rule} FROM pg_hba_file_rules ORDER BY line_number"))
    }
}

/// What initdb writes, with these methods for the socket and for this host.
fn of_initdb(local: &str, host: &str) -> Vec<String> {
    ["all", "replication"]
        .into_iter()
        .flat_map(|what| {
            [format!("local {what} all {local}"), format!("host {what} all 127.0.0.1 {host}"), format!("host {what} all ::1 {host}")]
        })
        .collect()
}

#[tokio::test]
async fn an_older_deployments_file() {
    let field = Field::new().await;
    let file = json!({
        "scope": "older", "namespace": "/db", "name": "n1",
        "restapi": {"listen": field.rest(), "connect_address": field.rest()},
        "etcd": {"host": field.etcd.hosts()},
        "bootstrap": {
            "dcs": {
                "ttl": 30, "loop_wait": 10, "retry_timeout": 10, "maximum_lag_on_failover": 1_048_576, "master_start_timeout": 300,
                "postgresql": {"use_pg_rewind": true, "parameters": {
                    "wal_level": "hot_standby", "hot_standby": "on", "wal_keep_segments": 8, "max_wal_senders": 5, "checkpoint_segments": 32,
                    "max_replication_slots": 5, "wal_log_hints": "on",
                }},
            },
            "initdb": [{"encoding": "UTF8"}, "data-checksums"],
            "pg_hba": ["host replication replicator 127.0.0.1/32 md5", "host all all 0.0.0.0/0 md5"],
            "users": {"admin": {"password": "admin", "options": ["createrole", "createdb"]}},
        },
        "postgresql": {
            "listen": field.postgres(), "connect_address": field.postgres(), "data_dir": field.node.data_dir(),
            "bin_dir": programs::postgres_bin(), "pgpass": field.node.dir().join("pgpass0"),
            "authentication": {
                "replication": {"username": "replicator", "password": PASSWORD},
                "superuser": {"username": "postgres", "password": PASSWORD},
            },
            "parameters": {"unix_socket_directories": "."},
        },
        "tags": {"nofailover": false, "noloadbalance": false, "clonefrom": false, "nosync": false},
    });
    field.found(&file).await;
    let sockets = field.node.data_dir();
    let mut rules = of_initdb("scram-sha-256", "scram-sha-256");
    rules.extend(["host replication replicator 127.0.0.1 md5", "host all all 0.0.0.0 md5"].map(str::to_owned));
    assert_eq!(field.rules(&sockets), rules);
    assert_eq!(field.ask(&sockets, "SHOW wal_keep_size"), ["128MB"]);
    assert_eq!(field.ask(&sockets, "SHOW max_wal_size"), ["1536MB"]);
    assert_eq!(field.ask(&sockets, "SELECT rolcreatedb FROM pg_roles WHERE rolname = 'admin'"), ["t"]);
    field.node.logged(&["wal_keep_segments", "taken as wal_keep_size = 128MB"], seconds(1)).await;
}

#[tokio::test]
async fn perconas_file() {
    let field = Field::new().await;
    let archived = field.room.directory("archived");
    let file = json!({
        "namespace": "percona_lab", "scope": "cluster_1", "name": "n1",
        "restapi": {"listen": field.rest(), "connect_address": field.rest()},
        "etcd3": {"host": field.etcd.hosts()},
        "bootstrap": {
            "dcs": {
                "ttl": 30, "loop_wait": 10, "retry_timeout": 10, "maximum_lag_on_failover": 1_048_576,
                "postgresql": {
                    "use_pg_rewind": true, "use_slots": true,
                    "parameters": {
                        "wal_level": "replica", "hot_standby": "on", "wal_keep_segments": 10, "max_wal_senders": 5, "max_replication_slots": 10,
                        "wal_log_hints": "on", "logging_collector": "on", "max_wal_size": "10GB", "archive_mode": "on", "archive_timeout": "600s",
                        "archive_command": format!("cp -f %p {}/%f", archived.display()),
                    },
                    "pg_hba": [
                        "host replication replicator 127.0.0.1/32 trust", "host replication replicator 0.0.0.0/0 md5",
                        "host all all 0.0.0.0/0 md5", "host all all ::0/0 md5",
                    ],
                    "recovery_conf": {"restore_command": format!("cp {}/%f %p", archived.display())},
                },
            },
            "initdb": [{"encoding": "UTF8"}, "data-checksums"],
        },
        "postgresql": {
            "cluster_name": "cluster_1", "listen": field.postgres(), "connect_address": field.postgres(),
            "data_dir": field.node.data_dir(), "bin_dir": programs::postgres_bin(), "pgpass": field.node.dir().join("pgpass0"),
            "authentication": {
                "replication": {"username": "replicator", "password": PASSWORD},
                "superuser": {"username": "postgres", "password": PASSWORD},
            },
            "parameters": {"unix_socket_directories": field.node.dir()},
            "create_replica_methods": ["basebackup"], "basebackup": {"checkpoint": "fast"},
            "watchdog": {"mode": "required", "device": "/dev/watchdog", "safety_margin": 5},
        },
        "tags": {"nofailover": false, "noloadbalance": false, "clonefrom": false, "nosync": false},
    });
    field.found(&file).await;
    // No rule for the socket: the superuser is asked over TCP.
    let rules = "SELECT concat_ws(' ', type, database[1], user_name[1], address, auth_method) FROM pg_hba_file_rules ORDER BY line_number";
    let rules: Vec<String> = field.node.query(rules).await.expect("read the rules").into_iter().flatten().collect();
    let expected = [
        "host replication replicator 127.0.0.1 trust",
        "host replication replicator 0.0.0.0 md5",
        "host all all 0.0.0.0 md5",
        "host all all :: md5",
    ];
    assert_eq!(rules, expected);
    assert_eq!(field.node.one("SHOW wal_keep_size").await.expect("ask"), "160MB");
    field.node.logged(&["postgresql.cluster_name", "postgresql.watchdog"], seconds(1)).await;
}

#[tokio::test]
async fn spilos_file() {
    let field = Field::new().await;
    let signed = Authority::new(&field.room, "ca").sign(&field.room, "server");
    let hook = field.script("post_init.sh", "echo \"$1 and $2\" | sed 's/password=[^ ]*//' > \"$(dirname \"$0\")/told\"");
    let copy = field.script("basebackup.sh", "exit 1");
    let trusted = "local all all trust";
    let file = json!({
        "bootstrap": {
            "post_init": format!("{hook} \"the people\""),
            "dcs": {
                "ttl": 30, "loop_wait": 10, "retry_timeout": 10, "maximum_lag_on_failover": 33_554_432,
                "postgresql": {"use_pg_rewind": true, "use_slots": true, "parameters": {
                    "archive_mode": "on", "archive_timeout": "1800s", "wal_level": "hot_standby", "wal_log_hints": "on", "max_wal_senders": 10,
                    "max_connections": 50, "max_replication_slots": 10, "hot_standby": "on", "tcp_keepalives_idle": 900,
                    "log_line_prefix": "%t [%p]: [%l-1] %c %x %d %u %a %h ", "log_statement": "ddl", "track_functions": "all",
                    "checkpoint_completion_target": 0.9, "autovacuum_max_workers": 5,
                }},
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
        },
        "scope": "spilo",
        "restapi": {"listen": format!(":{}", field.node.rest_port()), "connect_address": field.rest()},
        "etcd3": {"hosts": field.etcd.hosts()},
        "postgresql": {
            "pgpass": field.node.dir().join("pgpass"), "use_unix_socket": true, "use_unix_socket_repl": true, "name": "n1",
            "listen": format!("*:{}", field.node.port()), "connect_address": field.postgres(), "data_dir": field.node.data_dir(),
            "bin_dir": programs::postgres_bin(),
            "parameters": {
                "archive_command": "/bin/true", "logging_collector": "on", "log_destination": "csvlog", "log_directory": "../pg_log",
                "log_filename": "postgresql-%u.log", "log_file_mode": "0644", "log_rotation_age": "1d", "log_truncate_on_rotation": "on",
                "ssl": "on", "ssl_cert_file": signed.certificate, "ssl_key_file": signed.key, "bg_mon.history_buckets": 120,
                "unix_socket_directories": field.node.dir(),
            },
            "pg_hba": [
                trusted, "hostssl all +people 127.0.0.1/32 pam", "host all all 127.0.0.1/32 md5", "hostssl all +people ::1/128 pam",
                "host all all ::1/128 md5", "local replication standby trust", "hostssl replication standby all md5",
                "hostnossl all all all reject", "hostssl all +people all pam", "hostssl all all all md5",
            ],
            "authentication": {
                "superuser": {"username": "postgres", "password": PASSWORD}, "replication": {"username": "standby", "password": PASSWORD},
            },
            "callbacks": {"on_start": "/bin/true", "on_stop": "/bin/true", "on_role_change": "/bin/true people true"},
            "create_replica_method": ["basebackup_fast_xlog"], "basebackup_fast_xlog": {"command": copy, "retries": 2},
        },
    });
    let environment = [("PATRONI_PEOPLE_PASSWORD", "x"), ("PATRONI_PEOPLE_OPTIONS", "createdb,nologin")];
    let Field { room, etcd, node } = field;
    let node = node.with_environment(environment.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
    let field = Field { room, etcd, node };
    field.found(&file).await;
    let sockets = field.node.dir();
    let rules = [
        trusted,
        "hostssl all +people 127.0.0.1 pam",
        "host all all 127.0.0.1 md5",
        "hostssl all +people ::1 pam",
        "host all all ::1 md5",
        "local replication standby trust",
        "hostssl replication standby all md5",
        "hostnossl all all all reject",
        "hostssl all +people all pam",
        "hostssl all all all md5",
    ];
    assert_eq!(field.rules(sockets), rules);
    assert_eq!(field.ask(sockets, "SELECT rolcreatedb, rolcanlogin FROM pg_roles WHERE rolname = 'people'"), ["t|f"]);
    let told = std::fs::read_to_string(sockets.join("told")).expect("the hook was run");
    assert!(told.starts_with("the people and ") && told.contains("dbname=postgres"), "{told}");
}

#[tokio::test]
async fn autobases_file_and_its_pg_hba_conf_that_is_kept_by_hand() {
    let field = Field::new().await;
    let etc = field.room.directory("etc");
    let file = json!({
        "scope": "autobase", "name": "n1", "namespace": "/service",
        "log": {
            "level": "INFO", "traceback_level": "ERROR", "format": "%(asctime)s %(levelname)s: %(message)s", "dateformat": "", "max_queue_size": 1000,
            "dir": "/var/log/patroni", "file_num": 4, "file_size": 25_000_000, "loggers": {"patroni.postmaster": "WARNING", "urllib3": "WARNING"},
        },
        "restapi": {"listen": field.rest(), "connect_address": field.rest(), "authentication": {"username": "patroni", "password": "x"}},
        "etcd3": {"hosts": field.etcd.hosts()},
        "bootstrap": {
            "method": "initdb",
            "dcs": {
                "ttl": 30, "loop_wait": 10, "retry_timeout": 10, "maximum_lag_on_failover": 1_048_576, "master_start_timeout": 300,
                "synchronous_mode": false, "synchronous_mode_strict": false, "synchronous_node_count": 1,
                "postgresql": {"use_pg_rewind": true, "use_slots": true, "parameters": {
                    "max_connections": "50", "password_encryption": "scram-sha-256", "log_directory": "log", "track_io_timing": "on",
                }},
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
            "pg_hba": ["host replication replicator 127.0.0.1/32 scram-sha-256", "host all all 0.0.0.0/0 scram-sha-256"],
        },
        "postgresql": {
            "listen": field.postgres(), "connect_address": field.postgres(), "use_unix_socket": true, "data_dir": field.node.data_dir(),
            "bin_dir": programs::postgres_bin(), "config_dir": etc, "pgpass": field.node.dir().join(".pgpass_patroni"),
            "authentication": {
                "replication": {"username": "replicator", "password": PASSWORD},
                "superuser": {"username": "postgres", "password": PASSWORD},
            },
            "parameters": {"unix_socket_directories": field.node.dir()},
            "pg_ident": ["ops root postgres"],
            "remove_data_directory_on_rewind_failure": false, "remove_data_directory_on_diverged_timelines": false,
            "create_replica_methods": ["basebackup"], "basebackup": {"max-rate": "100M"},
        },
        "watchdog": {"mode": "automatic", "device": "/dev/watchdog", "safety_margin": 5},
        "tags": {"nosync": false, "noloadbalance": false, "nofailover": false, "clonefrom": false},
    });
    field.found(&file).await;
    let sockets = field.node.dir().to_owned();
    let mut rules = of_initdb("scram-sha-256", "scram-sha-256");
    rules.extend(["host replication replicator 127.0.0.1 scram-sha-256", "host all all 0.0.0.0 scram-sha-256"].map(str::to_owned));
    assert_eq!(field.rules(&sockets), rules);

    // Its playbook writes pg_hba.conf, and it stays through reloads and restarts of the arbiter.
    let by_hand = "# by hand\nlocal all all scram-sha-256\nhost replication replicator 127.0.0.1/32 scram-sha-256\n";
    field.room.file(&etc.join("pg_hba.conf"), by_hand);
    field.ask(&sockets, "SELECT pg_reload_conf()");
    let mut changed = file.clone();
    changed["postgresql"]["parameters"]["work_mem"] = "5MB".into();
    field.node.configure(&field.room, &changed);
    process::signal(field.node.arbiter_pid().expect("an arbiter"), rustix::process::Signal::HUP);
    wait::until("the reload", PATIENCE, async || {
        let said = field.ask(&sockets, "SHOW work_mem");
        anyhow::ensure!(said == ["5MB"], "{said:?}");
        Ok(())
    })
    .await;
    let rules = ["local all all scram-sha-256", "host replication replicator 127.0.0.1 scram-sha-256"];
    assert_eq!(field.rules(&sockets), rules);
    field.node.stop();
    assert!(field.node.ended(PATIENCE).await.success());
    field.found(&changed).await;
    assert_eq!(std::fs::read_to_string(etc.join("pg_hba.conf")).expect("read the file"), by_hand);
    assert_eq!(field.rules(&sockets), rules);
    assert_eq!(field.ask(&sockets, "SELECT map_name FROM pg_ident_file_mappings"), ["ops"]);
}

#[tokio::test]
async fn patronis_example() {
    let field = Field::new().await;
    let file = json!({
        "scope": "batman", "name": "postgresql0",
        "restapi": {"listen": field.rest(), "connect_address": field.rest()},
        "etcd": {"host": field.etcd.hosts()},
        "bootstrap": {
            "dcs": {
                "ttl": 30, "loop_wait": 10, "retry_timeout": 10, "maximum_lag_on_failover": 1_048_576,
                "postgresql": {
                    "use_pg_rewind": true, "pg_hba": ["host replication replicator 127.0.0.1/32 md5", "host all all 0.0.0.0/0 md5"],
                    "parameters": null,
                },
            },
            "initdb": [{"encoding": "UTF8"}, "data-checksums"],
        },
        "postgresql": {
            "listen": field.postgres(), "connect_address": field.postgres(), "data_dir": "data/postgresql0",
            "bin_dir": programs::postgres_bin(), "pgpass": field.node.dir().join("pgpass0"),
            "authentication": {
                "replication": {"username": "replicator", "password": "rep-pass"}, "superuser": {"username": "postgres", "password": PASSWORD},
                "rewind": {"username": "rewind_user", "password": "rewind_password"},
            },
            "parameters": {"unix_socket_directories": ".."},
        },
        "tags": {"noloadbalance": false, "clonefrom": false, "nostream": false},
    });
    field.found(&file).await;
    assert!(field.node.dir().join("data/postgresql0/PG_VERSION").exists(), "below the directory in which it was started");
    assert!(field.node.dir().join("data").join(format!(".s.PGSQL.{}", field.node.port())).exists(), "the socket lies beside the data");
    let rules = "SELECT concat_ws(' ', type, database[1], user_name[1], address, auth_method) FROM pg_hba_file_rules ORDER BY line_number";
    let rules: Vec<String> = field.node.query(rules).await.expect("read the rules").into_iter().flatten().collect();
    assert_eq!(rules, ["host replication replicator 127.0.0.1 md5", "host all all 0.0.0.0 md5"]);
}

#[tokio::test]
async fn debians_template() {
    let field = Field::new().await;
    let etc = field.room.directory("etc");
    let initdb = programs::postgres_bin().join("initdb");
    let make = format!(
        "for word; do case $word in --datadir=*) data=${{word#*=}};; esac; done\n{} -D \"$data\" -U postgres --auth-local peer --auth-host md5 -E UTF8 --locale C >/dev/null",
        initdb.display()
    );
    let create = field.script("pg_createcluster_patroni", &make);
    let clone = field.script("pg_clonecluster_patroni", "exit 1");
    let file = json!({
        "scope": "15-main", "namespace": "/postgresql-common/", "name": "n1",
        "etcd3": {"hosts": field.etcd.hosts()},
        "restapi": {"listen": field.rest(), "connect_address": field.rest()},
        "bootstrap": {
            "method": "pg_createcluster", "pg_createcluster": {"command": create},
            "dcs": {
                "ttl": 30, "loop_wait": 10, "retry_timeout": 10, "maximum_lag_on_failover": 1_048_576, "check_timeline": true,
                "postgresql": {
                    "use_pg_rewind": true, "remove_data_directory_on_rewind_failure": true, "remove_data_directory_on_diverged_timelines": true,
                    "use_slots": true, "parameters": null,
                    "pg_hba": [
                        "local   all             all                                     peer",
                        "host    all             all             127.0.0.1/32            md5",
                        "host    all             all             ::1/128                 md5",
                        "local   replication     all                                     peer",
                        "host    replication     all             127.0.0.1/32            md5",
                        "host    replication     all             ::1/128                 md5",
                        "host    replication     all             10.0.0.0/24             md5",
                    ],
                },
            },
        },
        "postgresql": {
            "create_replica_method": ["pg_clonecluster"], "pg_clonecluster": {"command": clone},
            "listen": format!("*:{}", field.node.port()), "connect_address": field.postgres(), "use_unix_socket": true,
            "data_dir": field.node.data_dir(), "bin_dir": programs::postgres_bin(), "config_dir": etc,
            "pgpass": field.node.dir().join("15-main.pgpass"),
            "authentication": {
                "replication": {"username": "replicator", "password": "rep-pass"}, "superuser": {"username": "postgres", "password": null},
            },
            "parameters": {"unix_socket_directories": field.node.dir(), "logging_collector": "off"},
        },
    });
    field.found(&file).await;
    let sockets = field.node.dir();
    let rules = [
        "local all all peer",
        "host all all 127.0.0.1 md5",
        "host all all ::1 md5",
        "local replication all peer",
        "host replication all 127.0.0.1 md5",
        "host replication all ::1 md5",
        "host replication all 10.0.0.0 md5",
    ];
    assert_eq!(field.rules(sockets), rules);
    // Any user of this machine but the server's own is refused: nothing is trusted.
    let mut psql = std::process::Command::new(programs::postgres_bin().join("psql"));
    psql.args(["-XAt", "-w", "-U", "replicator", "-d", "postgres", "-c", "SELECT 1", "-h"])
        .arg(sockets)
        .arg("-p")
        .arg(field.node.port().to_string());
    let refused = psql.env_remove("PGPASSWORD").output().expect("run psql");
    assert!(!refused.status.success(), "somebody came in without a word: {}", String::from_utf8_lossy(&refused.stdout));
}
