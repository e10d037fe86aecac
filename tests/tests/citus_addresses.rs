//! Citus: how nodes reach each other's groups: through poolers, by names that follow the role, with credentials that change; in several
//! databases.

use anyhow::{Context, Result};
use serde_json::json;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Mutex;
use stories::citus::{self, CitusCluster, DATABASE};
use stories::cluster::PATIENCE;
use stories::node::{Node, PASSWORD, rows};
use stories::ports::Port;
use stories::programs;
use stories::room::Room;
use stories::wait::{self, seconds};
use tokio_postgres::NoTls;

/// A second distributed database.
const REPORTS: &str = "reports";

/// A program beside the cluster; ends with the story.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// PgBouncer beside a node, with a log of who came.
struct Pooler {
    port: u16,
    log: PathBuf,
    _process: Beside,
}

impl Pooler {
    /// It has no use for libpq's options (before 1.20 it refuses them), and so is told to leave them out.
    fn start(room: &Room, program: &std::path::Path, node: &Node, port: &Port) -> Pooler {
        let directory = room.directory(&format!("{}-pooler", node.name()));
        let (file, users, log) = (directory.join("pgbouncer.ini"), directory.join("users"), directory.join("pgbouncer.log"));
        room.file(&users, &format!("\"postgres\" \"{PASSWORD}\"\n"));
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {}\npool_mode = session\nmax_client_conn = 500\ndefault_pool_size = 100\n\
             ignore_startup_parameters = extra_float_digits,options\nserver_login_retry = 0\nlogfile = {}\n",
            node.port(),
            port.number(),
            users.display(),
            log.display(),
        );
        room.file(&file, &settings);
        let process = room.command(program, &directory).arg("-q").arg(&file).spawn().expect("start PgBouncer");
        Pooler { port: port.number(), log, _process: Beside(process) }
    }

    /// How many sessions were begun through it.
    fn logins(&self) -> usize {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter(|line| line.contains("login attempt") && line.contains(DATABASE)).count()
    }

    fn info(&self) -> String {
        format!("host=127.0.0.1 port={}", self.port)
    }
}

/// What a node's `pg_dist_poolinfo` says of a group's primary.
async fn pooler_of(node: &Node, group: u32) -> Result<String, String> {
    let client = citus::session(node).await.map_err(|error| format!("{error:#}"))?;
    let sql =
        format!("SELECT poolinfo FROM pg_dist_poolinfo JOIN pg_dist_node USING (nodeid) WHERE groupid = {group} AND noderole = 'primary'");
    Ok(rows(&client, &sql).await.map_err(|error| format!("{error:#}"))?.concat().concat())
}

#[tokio::test]
async fn nodes_reach_a_group_through_the_pooler_beside_its_primary() {
    if !citus::is_installed() {
        return;
    }
    let Some(program) = programs::pgbouncer() else {
        println!("SKIPPED: no PgBouncer here; `make setup` installs it");
        return;
    };
    let ports = Mutex::new(Vec::new());
    let cluster = CitusCluster::planned(1, &[2, 1], |group, config| {
        citus::fail_over_quickly(config);
        if group == 1 {
            let port = Port::free();
            config["postgresql"]["proxy_address"] = json!(format!("127.0.0.1:{}", port.number()));
            config["bootstrap"]["dcs"]["citus"] = json!({"use_proxy": true});
            ports.lock().expect("no story panics with it").push(port);
        }
    })
    .await;
    let ports = ports.into_inner().expect("no story panics with it");
    let pairs = cluster.groups[1].iter().zip(&ports);
    let poolers: Vec<Pooler> = pairs.map(|(node, port)| Pooler::start(&cluster.room, &program, node, port)).collect();
    let beside = |node: &Node| &poolers[usize::from(node.name() == "w1b")];
    cluster.start_all();
    cluster.healthy().await;
    let says = async |node: &Node, wanted: String| {
        wait::until("pg_dist_poolinfo to name the pooler", PATIENCE, async || match pooler_of(node, 1).await? {
            found if found == wanted => Ok(()),
            found => Err(format!("{}: {found:?}, wanted {wanted:?}", node.name())),
        })
        .await;
    };
    let (coordinator, other) = (cluster.leader(0).await, cluster.leader(2).await);
    let old = cluster.leader(1).await;
    says(coordinator, beside(old).info()).await;
    says(other, beside(old).info()).await;
    let (before, elsewhere) = (beside(old).logins(), pooler_of(coordinator, 2).await);
    assert_eq!(elsewhere, Ok(String::new()), "a group that does not ask for poolers");
    let writer = cluster.writer().await;
    assert!(beside(old).logins() > before, "the writer's rows go through the pooler");

    let said = cluster.cli_ok(&["switchover", "--group", "1", "--force"]).await;
    let new = cluster.leads_other_than(1, old).await;
    let before = beside(new).logins();
    writer.goes_on(100, PATIENCE).await;
    assert!(beside(new).logins() > before, "the pooler beside the new primary has the writer's sessions: {said}");
    says(coordinator, beside(new).info()).await;
    says(other, beside(new).info()).await;
    // A statement that starts on another worker goes the same way.
    let before = beside(new).logins();
    let client = citus::session(other).await.expect("a session on a worker");
    rows(&client, "SELECT count(*) FROM written").await.expect("a query from a worker");
    assert!(beside(new).logins() > before, "the other worker goes through the pooler, too");
    let ledger = writer.finish();
    println!("a worker behind PgBouncer switched over: {}", ledger.summary());
    assert_eq!(ledger.refused().count() + ledger.unknown().count(), 0, "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();

    // Not wanted any more.
    cluster.cli_ok(&["edit-config", "--group", "1", "-s", "citus.use_proxy=false", "--force"]).await;
    says(coordinator, String::new()).await;
    says(other, String::new()).await;
}

/// HAProxy that leads one port to the group's primary and another to its standbys.
fn names(room: &Room, program: &std::path::Path, nodes: &[Node], primary: u16, standbys: u16) -> Beside {
    let server = |node: &Node| format!("    server {} 127.0.0.1:{} check port {}\n", node.name(), node.port(), node.rest_port());
    let servers: String = nodes.iter().map(server).collect();
    let listen = |name: &str, port: u16, path: &str| {
        format!(
            "listen {name}\n    bind 127.0.0.1:{port}\n    option httpchk OPTIONS {path}\n    http-check expect status 200\n    \
             default-server inter 300ms fall 1 rise 1 on-marked-down shutdown-sessions\n{servers}"
        )
    };
    let text = format!(
        "global\n    maxconn 500\ndefaults\n    mode tcp\n    timeout client 30m\n    timeout connect 1s\n    timeout server 30m\n{}{}",
        listen("primary", primary, "/primary"),
        listen("standbys", standbys, "/replica"),
    );
    let directory = room.directory("names");
    let file = directory.join("haproxy.cfg");
    room.file(&file, &text);
    Beside(room.command(program, &directory).arg("-db").arg("-f").arg(&file).spawn().expect("start HAProxy"))
}

#[tokio::test]
async fn names_that_follow_the_role_stand_in_for_a_groups_members() {
    if !citus::is_installed() {
        return;
    }
    let Some(program) = programs::haproxy() else {
        println!("SKIPPED: no HAProxy here; `make setup` installs it");
        return;
    };
    let (primary, standbys) = (Port::free(), Port::free());
    let at = |port: &Port| format!("127.0.0.1:{}", port.number());
    let cluster = CitusCluster::planned(1, &[3], |group, config| {
        citus::fail_over_quickly(config);
        if group == 1 {
            config["bootstrap"]["dcs"]["citus"] = json!({"primary_address": at(&primary), "standby_address": at(&standbys)});
        }
    })
    .await;
    let _names = names(&cluster.room, &program, &cluster.groups[1], primary.number(), standbys.number());
    cluster.start_all();
    for (group, count) in [(0, 1), (1, 3)] {
        cluster.healthy_group(group, count).await;
    }
    let coordinator = cluster.leader(0).await;
    // One row for two standbys.
    let metadata_is = async |standbys: &[&Port]| {
        let own = (0, format!("{}:{}", coordinator.host(), coordinator.port()), "primary".to_owned());
        let standbys = standbys.iter().map(|port| (1, at(port), "secondary".to_owned()));
        let mut wanted: Vec<_> = [own, (1, at(&primary), "primary".to_owned())].into_iter().chain(standbys).collect();
        wanted.sort();
        wait::until("the names in pg_dist_node", PATIENCE, async || match cluster.metadata(coordinator).await {
            Ok(found) if found == wanted => Ok(()),
            seen => Err(format!("{seen:?}, wanted {wanted:?}")),
        })
        .await;
    };
    metadata_is(&[&standbys]).await;
    let writer = cluster.writer().await;

    // A planned change: the hold lasts until the name leads to the new primary.
    let old = cluster.leader(1).await;
    cluster.cli_ok(&["switchover", "--group", "1", "--force"]).await;
    let new = cluster.leads_other_than(1, old).await;
    writer.goes_on(100, PATIENCE).await;
    let ledger = writer.finish();
    println!("a worker behind HAProxy (asked every 300 ms) switched over: {}", ledger.summary());
    assert_eq!(ledger.refused().count() + ledger.unknown().count(), 0, "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    metadata_is(&[&standbys]).await;

    // A failure: nothing is moved, clients follow the name.
    new.kill();
    cluster.leads_other_than(1, new).await;
    wait::until("a row through the name", PATIENCE, async || {
        cluster.query("INSERT INTO written(id) VALUES (1000000000)").await.map(drop).map_err(|error| format!("{error:#}"))
    })
    .await;
    metadata_is(&[&standbys]).await;
    // The last healthy standby goes, and the row with it.
    let left: Vec<&Node> = cluster.groups[1].iter().filter(|node| node.name() != new.name()).collect();
    let leader = cluster.leader(1).await;
    left.iter().filter(|node| node.name() != leader.name()).for_each(|node| node.kill());
    metadata_is(&[]).await;
    new.start(&cluster.room);
    metadata_is(&[&standbys]).await;

    // Back to the members' own addresses, while all run.
    cluster.groups[1].iter().filter(|node| ![leader.name(), new.name()].contains(&node.name())).for_each(|node| node.start(&cluster.room));
    cluster.cli_ok(&["edit-config", "--group", "1", "-s", "citus=null", "--force"]).await;
    cluster.healthy().await;
}

/// A session in a database of a node with a password.
async fn session(node: &Node, database: &str, password: &str) -> Result<tokio_postgres::Client> {
    let mut config = tokio_postgres::Config::new();
    config.host(node.host()).port(node.port()).user("postgres").password(password).dbname(database);
    let (client, connection) = tokio::time::timeout(seconds(5), config.connect(NoTls)).await.context("no session within 5 s")??;
    // Its errors reach the caller through the client.
    tokio::spawn(connection);
    Ok(client)
}

#[tokio::test]
async fn every_database_follows_and_a_changed_password_reaches_every_primary() {
    if !citus::is_installed() {
        return;
    }
    let cluster = CitusCluster::planned(1, &[2], |_, config| {
        citus::fail_over_quickly(config);
        config["citus"]["databases"] = json!([DATABASE, REPORTS]);
        config["postgresql"]["parameters"]["max_worker_processes"] = json!(24);
    })
    .await;
    cluster.start_all();
    cluster.healthy().await;
    let coordinator = cluster.leader(0).await;
    let names_leader = async |password: &str| {
        for database in [DATABASE, REPORTS] {
            wait::until("the metadata of each database to name the leader", PATIENCE, async || {
                let leader = cluster.leader(1).await;
                let client = session(coordinator, database, password).await.map_err(|error| format!("{error:#}"))?;
                let sql = "SELECT nodeport FROM pg_dist_node WHERE groupid = 1 AND noderole = 'primary'";
                let found = rows(&client, sql).await.map_err(|error| format!("{error:#}"))?.concat().concat();
                if found == leader.port().to_string() { Ok(()) } else { Err(format!("{database}: {found}")) }
            })
            .await;
        }
    };
    names_leader(PASSWORD).await;
    for database in [DATABASE, REPORTS] {
        let client = session(coordinator, database, PASSWORD).await.expect("a session");
        rows(&client, "CREATE TABLE t(id bigint); SELECT create_distributed_table('t', 'id')").await.expect("a distributed table");
    }
    let old = cluster.leader(1).await;
    cluster.cli_ok(&["switchover", "--group", "1", "--force"]).await;
    cluster.leads_other_than(1, old).await;
    names_leader(PASSWORD).await;
    for database in [DATABASE, REPORTS] {
        let client = session(coordinator, database, PASSWORD).await.expect("a session");
        rows(&client, "INSERT INTO t SELECT generate_series(1, 100)").await.expect("rows on every shard");
    }

    // The superuser gets another password: on the servers, then in the files.
    const CHANGED: &str = "it's 'another' \\one";
    let primaries = [coordinator, cluster.leader(1).await];
    for node in primaries {
        let client = session(node, "postgres", PASSWORD).await.expect("a session");
        let sql = "SET citus.enable_alter_role_propagation = off; ALTER ROLE postgres PASSWORD $$it's 'another' \\one$$";
        rows(&client, sql).await.expect("another password");
    }
    let client = session(coordinator, DATABASE, CHANGED).await.expect("a session with the new password");
    rows(&client, "INSERT INTO t SELECT generate_series(1, 100)").await.expect_err("the nodes don't know it yet");
    cluster.nodes().for_each(|node| {
        node.reconfigure(&cluster.room, |config| config["postgresql"]["authentication"]["superuser"]["password"] = json!(CHANGED));
    });
    cluster.cli_ok(&["reload", "--force"]).await;
    for node in primaries {
        for database in [DATABASE, REPORTS] {
            wait::until("pg_dist_authinfo to have the new password", PATIENCE, async || {
                let client = session(node, database, CHANGED).await.map_err(|error| format!("{error:#}"))?;
                let found = rows(&client, "SELECT authinfo FROM pg_dist_authinfo").await.map_err(|error| format!("{error:#}"))?;
                if found.concat().concat().contains("another") { Ok(()) } else { Err(format!("{} {database}: {found:?}", node.name())) }
            })
            .await;
        }
    }
    for database in [DATABASE, REPORTS] {
        let client = session(coordinator, database, CHANGED).await.expect("a session");
        rows(&client, "INSERT INTO t SELECT generate_series(1, 100)").await.expect("rows on every shard, with the new password");
    }
}
