//! Planned changes under pgbench through PgBouncer: clients wait and see no error, whichever process dies. `make poolers` is the long form.

use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};
use stories::cluster::{Cluster, PATIENCE};
use stories::node::{Node, connect_in};
use stories::ports::Port;
use stories::room::Room;
use stories::tls::{self, Authority};
use stories::workload::PASSWORD;
use stories::{programs, wait};

/// PgBouncer on the machine of the first node, which keeps its file; the others reach it by its port.
struct Pooler {
    port: Port,
    databases: PathBuf,
    process: Child,
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const ADMIN: &str = "tenure";

/// Longer than a commit on a disk that others keep busy: one fsync of 1.2 s was seen there. Each change takes so long where a session stays.
const PAUSE_WITHIN_S: u64 = 2;

/// That, and the change itself on a busy machine; far below the time after which a pause ends by itself.
const WAIT_AT_MOST: Duration = Duration::from_secs(9);

impl Pooler {
    fn start(room: &Room, port: Port, first: &Node) -> Pooler {
        Pooler::start_with(room, port, first, "")
    }

    /// With more lines of its own section.
    fn start_with(room: &Room, port: Port, first: &Node, more: &str) -> Pooler {
        let directory = room.directory("pooler");
        let (file, users, databases) = (directory.join("pgbouncer.ini"), directory.join("users"), databases(room));
        room.file(&users, &format!("\"postgres\" \"{PASSWORD}\"\n\"{ADMIN}\" \"{PASSWORD}\"\n"));
        let server = format!("host=127.0.0.1 port={}", first.port());
        room.file(
            &databases,
            &format!("[databases]\npostgres = {server} dbname=postgres\nsessions = {server} dbname=postgres pool_mode=session\n"),
        );
        let settings = format!(
            "%include {}\n[pgbouncer]\nlisten_addr = 127.0.0.1,127.0.0.2\nlisten_port = {}\nunix_socket_dir =\nauth_type = scram-sha-256\n\
             auth_file = {}\nadmin_users = {ADMIN}\npool_mode = transaction\ndefault_pool_size = 10\nserver_login_retry = 1\nlogfile = {}\n{more}",
            databases.display(),
            port.number(),
            users.display(),
            directory.join("pgbouncer.log").display(),
        );
        room.file(&file, &settings);
        let program = programs::pgbouncer().expect("its package is installed");
        let process = room.command(program, &directory).arg("-q").arg(&file).spawn().expect("start PgBouncer");
        Pooler { port, databases, process }
    }

    /// `SHOW DATABASES` says of any of them that it is paused.
    async fn is_paused(&self) -> Result<bool, String> {
        let connected = connect_in("pgbouncer", "127.0.0.1", self.port.number(), ADMIN, PASSWORD, Duration::from_secs(2)).await;
        let rows =
            connected.map_err(|error| format!("{error:#}"))?.simple_query("SHOW DATABASES").await.map_err(|error| error.to_string())?;
        let paused = |message: &tokio_postgres::SimpleQueryMessage| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get("paused") == Some("1"),
            _ => false,
        };
        Ok(rows.iter().any(paused))
    }

    async fn comes_to(&self, paused: bool) {
        wait::until(if paused { "a pause" } else { "RESUME" }, PATIENCE, async || match self.is_paused().await {
            Ok(seen) if seen == paused => Ok(()),
            seen => Err(format!("paused: {seen:?}")),
        })
        .await;
    }
}

fn databases(room: &Room) -> PathBuf {
    room.path().join("pooler").join("databases.ini")
}

/// Three nodes that know of one pooler, and pgbench's tables.
async fn cluster() -> (Cluster, Pooler) {
    let (room, port) = (Room::new(), Port::free());
    let etcd = stories::etcd::Etcd::start(&room).await;
    let file = databases(&room);
    let cluster = Cluster::of(3).planned_on(room, etcd, |config| {
        let mut pooler =
            json!({"host": "127.0.0.1", "port": port.number(), "user": ADMIN, "password": PASSWORD, "pause_within": PAUSE_WITHIN_S});
        if config["name"] == "n1" {
            pooler["databases_file"] = json!(file);
        }
        config["pgbouncer"] = json!([pooler]);
    });
    let pooler = Pooler::start(&cluster.room, port, &cluster.nodes[0]);
    cluster.start_all().await;
    let leader = cluster.leader().await;
    let made = cluster
        .room
        .command(programs::postgres_bin().join("pgbench"), cluster.room.path())
        .env("PGPASSWORD", PASSWORD)
        .args(["-i", "-q", "-s", "5", "-h", "127.0.0.1", "-U", "postgres", "-p", &leader.port().to_string(), "postgres"])
        .output()
        .expect("run pgbench -i");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    points_to(&pooler, leader).await;
    (cluster, pooler)
}

async fn points_to(pooler: &Pooler, node: &Node) {
    wait::until("the pooler's file to name the primary", PATIENCE, async || {
        let text = std::fs::read_to_string(&pooler.databases).map_err(|error| error.to_string())?;
        if text.matches(&format!("port={} ", node.port())).count() == 2 { Ok(()) } else { Err(text) }
    })
    .await;
}

/// pgbench under way.
struct Load {
    directory: PathBuf,
    child: Child,
}

/// What its clients saw.
struct Seen {
    transactions: u64,
    longest: Duration,
}

impl Load {
    fn start(cluster: &Cluster, pooler: &Pooler, round: usize, seconds: u64) -> Load {
        let directory = cluster.room.directory(&format!("load-{round}"));
        let output = |name: &str| cluster.room.log(&directory.join(name));
        let child = cluster
            .room
            .command(programs::postgres_bin().join("pgbench"), &directory)
            .env("PGPASSWORD", PASSWORD)
            .args(["-n", "-l", "-c", "4", "-T", &seconds.to_string(), "-h", "127.0.0.1", "-U", "postgres", "-p"])
            .arg(pooler.port.number().to_string())
            .arg("postgres")
            .stdout(output("out"))
            .stderr(output("errors"))
            .spawn()
            .expect("start pgbench");
        Load { directory, child }
    }

    /// Waits for its end. Not one transaction may have failed, and no client may have been lost.
    async fn end(mut self) -> Seen {
        let status = wait::until("pgbench to end", PATIENCE, async || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            seen => Err(format!("{seen:?}")),
        })
        .await;
        let read = |name: &str| std::fs::read_to_string(self.directory.join(name)).unwrap_or_default();
        let (out, errors) = (read("out"), read("errors"));
        assert!(status.success() && !errors.contains("aborted"), "{out}\n{errors}");
        assert!(out.contains("number of failed transactions: 0 "), "{out}\n{errors}");
        let logs = std::fs::read_dir(&self.directory).expect("list the logs").flatten().map(|entry| entry.path());
        let logs = logs.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pgbench_log")));
        let text: String = logs.map(|path| std::fs::read_to_string(path).expect("read a log")).collect();
        let took = text.lines().filter_map(|line| line.split(' ').nth(2)?.parse().ok());
        let (transactions, longest) = took.fold((0, 0), |(count, longest), took: u64| (count + 1, longest.max(took)));
        assert!(transactions > 0, "{out}");
        Seen { transactions, longest: Duration::from_micros(longest) }
    }
}

/// One planned change in the middle of so many seconds of pgbench.
async fn round(cluster: &Cluster, pooler: &Pooler, number: usize, restart: bool) -> Seen {
    let before = cluster.leader().await.name().to_owned();
    let load = Load::start(cluster, pooler, number, 5);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let arguments: &[&str] = if restart { &["restart", &before, "--force"] } else { &["switchover", "--force"] };
    cluster.cli_ok(arguments).await;
    let seen = load.end().await;
    let what = if restart { "restart" } else { "switchover" };
    println!("{number}. {what}: {} transactions, none failed, the longest took {} ms", seen.transactions, seen.longest.as_millis());
    assert!(seen.longest < WAIT_AT_MOST, "waited {:?}", seen.longest);
    pooler.comes_to(false).await;
    let view = cluster.healthy().await;
    assert_eq!(view.leader() == Some(&*before), restart, "{view}");
    is_over(cluster, pooler).await;
    seen
}

/// The cluster is well and nothing is paused, nor said to be.
async fn is_over(cluster: &Cluster, pooler: &Pooler) {
    cluster.healthy().await;
    pooler.comes_to(false).await;
    cluster.wait_until("tenure/poolers to be gone", |view| view.key("tenure/poolers").is_none()).await;
}

/// The arbiter of the leader is killed the moment something is paused, and comes back only after the others have let it go on.
async fn killed_midway(cluster: &Cluster, pooler: &Pooler, number: usize) {
    // The one beside the pooler keeps its file: with its arbiter dead nobody would point the pooler elsewhere.
    if cluster.leader().await.name() == "n1" {
        cluster.cli_ok(&["switchover", "--candidate", "n2", "--force"]).await;
        points_to(pooler, cluster.node(cluster.healthy().await.leader().expect("it leads"))).await;
    }
    let leader = cluster.leader().await;
    let load = Load::start(cluster, pooler, number, 6);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let request = json!({"leader": leader.name()});
    let asked = leader.post("/switchover", &request);
    let killed = async {
        pooler.comes_to(true).await;
        leader.kill_arbiter();
        Instant::now()
    };
    let (_, killed) = tokio::join!(asked, killed);
    pooler.comes_to(false).await;
    let resumed = killed.elapsed();
    let seen = load.end().await;
    println!(
        "{number}. arbiter killed while PgBouncer was paused: RESUME after {} ms; {} transactions, none failed, the longest took {} ms",
        resumed.as_millis(),
        seen.transactions,
        seen.longest.as_millis()
    );
    assert!(resumed < Duration::from_secs(20), "{resumed:?}");
    cluster.start(leader);
    // Where the change had not got far, the request waits, and is served now.
    cluster.wait_until("the request to be over", |view| view.key("failover").is_none_or(|request| request == "{}")).await;
    is_over(cluster, pooler).await;
}

async fn session_that_stays(pooler: &Pooler) -> tokio_postgres::Client {
    let bound = Duration::from_secs(5);
    let idle = connect_in("sessions", "127.0.0.1", pooler.port.number(), "postgres", PASSWORD, bound).await.expect("a session");
    idle.simple_query("SELECT 1").await.expect("it has a server of its own");
    idle
}

/// What befalls the others while a switchover has the pooler paused.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    /// No candidate answers: the switchover is called off, and the old primary starts again.
    CandidatesFrozen,
    /// For less than a TTL.
    EtcdFrozen,
}

async fn in_trouble(cluster: &Cluster, pooler: &Pooler, number: usize, trouble: Trouble) {
    let leader = cluster.leader().await;
    let load = Load::start(cluster, pooler, number, 6);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let request = json!({"leader": leader.name()});
    let asked = leader.post("/switchover", &request);
    let others = cluster.others(leader);
    let troubled = async {
        pooler.comes_to(true).await;
        match trouble {
            Trouble::CandidatesFrozen => others.iter().for_each(|node| node.freeze_arbiter()),
            Trouble::EtcdFrozen => cluster.etcd.freeze(),
        }
        let began = Instant::now();
        match trouble {
            Trouble::CandidatesFrozen => pooler.comes_to(false).await,
            Trouble::EtcdFrozen => tokio::time::sleep(Duration::from_secs(4)).await,
        }
        others.iter().for_each(|node| node.thaw_arbiter());
        cluster.etcd.thaw();
        pooler.comes_to(false).await;
        began.elapsed()
    };
    let (_, resumed) = tokio::join!(asked, troubled);
    let seen = load.end().await;
    println!(
        "{number}. {trouble:?} while PgBouncer was paused: RESUME after {} ms; {} transactions, none failed, the longest took {} ms",
        resumed.as_millis(),
        seen.transactions,
        seen.longest.as_millis()
    );
    is_over(cluster, pooler).await;
}

/// A whole number from the environment.
fn asked_for(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[tokio::test]
async fn through_pgbouncer_a_planned_change_is_a_wait_and_no_error() {
    if programs::pgbouncer().is_none() {
        println!("SKIPPED: no PgBouncer here; `make setup` installs it");
        return;
    }
    let (switchovers, restarts, kill_at) = (asked_for("SWITCHOVERS", 2), asked_for("RESTARTS", 1), asked_for("KILL_AT", 2));
    let (cluster, pooler) = cluster().await;
    // A session that stays: PAUSE of its database waits for it in vain, and the change goes on all the same. The long form measures without.
    let stays = std::env::var_os("SWITCHOVERS").is_none();
    let idle = if stays { Some(session_that_stays(&pooler).await) } else { None };
    let old = cluster.leader().await;
    let mut seen = Vec::new();
    for number in 1..=switchovers {
        if number == kill_at {
            killed_midway(&cluster, &pooler, number).await;
        } else {
            seen.push(round(&cluster, &pooler, number, false).await);
        }
    }
    for number in 1..=restarts {
        seen.push(round(&cluster, &pooler, switchovers + number, true).await);
    }
    if !stays {
        in_trouble(&cluster, &pooler, switchovers + restarts + 1, Trouble::CandidatesFrozen).await;
        in_trouble(&cluster, &pooler, switchovers + restarts + 2, Trouble::EtcdFrozen).await;
    }
    assert!(!stays || old.log().contains("does not pause sessions"), "a session that stays is said:\n{}", old.log());
    drop(idle);
    for node in &cluster.nodes {
        // One that stays does not keep the others' databases from being paused.
        assert!(!node.log().contains("does not pause postgres"), "{}:\n{}", node.name(), node.log());
    }
    let longest = seen.iter().map(|seen| seen.longest).max().unwrap_or_default();
    let transactions: u64 = seen.iter().map(|seen| seen.transactions).sum();
    println!(
        "{switchovers} switchovers, {restarts} restarts: {transactions} transactions, none failed; the longest wait was {} ms",
        longest.as_millis()
    );
}

/// A restart of the leader while the node's file says this of TLS; what is in its log then.
async fn restart_with(cluster: &Cluster, pooler: &Pooler, host: &str, tls: &Value) -> String {
    let node = &cluster.nodes[0];
    cluster.reconfigure(node, |config| {
        let mut entry = json!({"host": host, "port": pooler.port.number(), "user": ADMIN, "password": PASSWORD});
        entry.as_object_mut().expect("a map").extend(tls.as_object().expect("a map").clone());
        config["pgbouncer"] = json!([entry]);
    });
    let before = node.log();
    cluster.cli_ok(&["reload", "story", "n1", "--force"]).await;
    cluster.cli_ok(&["restart", "story", "n1", "--force"]).await;
    cluster.healthy().await;
    cluster.wait_until("tenure/poolers to be gone", |view| view.key("tenure/poolers").is_none()).await;
    node.log_since(&before)
}

/// The console of a pooler that takes TLS only, and only from a client that shows a certificate.
#[tokio::test]
async fn the_console_is_reached_by_tls_and_by_nothing_less_than_was_asked_for() {
    if programs::pgbouncer().is_none() {
        println!("SKIPPED: no PgBouncer here; `make setup` installs it");
        return;
    }
    let cluster = Cluster::of(1).ttl(3).start().await;
    let (authority, other) = (Authority::new(&cluster.room, "authority"), Authority::new(&cluster.room, "other"));
    let (its, ours) = (authority.sign(&cluster.room, "pooler"), authority.sign(&cluster.room, "arbiter"));
    let lines = format!(
        "client_tls_sslmode = verify-ca\nclient_tls_cert_file = {}\nclient_tls_key_file = {}\nclient_tls_ca_file = {}\n",
        tls::text(&its.certificate),
        tls::text(&its.key),
        tls::text(&authority.file)
    );
    let pooler = Pooler::start_with(&cluster.room, Port::free(), &cluster.nodes[0], &lines);
    let shown = |mode: &str, authority: &Authority| json!({"sslmode": mode, "sslrootcert": tls::text(&authority.file), "sslcert": tls::text(&ours.certificate), "sslkey": tls::text(&ours.key)});
    for (host, given) in [("127.0.0.1", shown("verify-full", &authority)), ("127.0.0.2", shown("verify-ca", &authority))] {
        let log = restart_with(&cluster, &pooler, host, &given).await;
        assert!(log.contains("keeps postgres waiting after") && !log.contains("is not paused"), "{given}:\n{log}");
    }
    for (host, given, why) in [
        ("127.0.0.2", shown("verify-full", &authority), "not valid for name"),
        ("127.0.0.1", shown("require", &other), "UnknownIssuer"),
        ("127.0.0.1", json!({"sslmode": "disable"}), "SSL required"),
        ("127.0.0.1", json!({"sslmode": "verify-full", "sslrootcert": "/nowhere.pem"}), "read the certificate /nowhere.pem"),
    ] {
        let log = restart_with(&cluster, &pooler, host, &given).await;
        assert!(log.contains("is not paused, its clients may see errors") && log.contains(why), "{given}, wanted {why}:\n{log}");
    }
}
