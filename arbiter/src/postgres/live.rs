//! What touches Postgres, tried on a real PostgreSQL: skipped where none is installed. PostgreSQL refuses root, so as root
//! each test runs itself again as the user `postgres`.

use super::conf::{ConfigFiles, Identity, Parameters, Recovery};
use super::controldata::{self, ClusterState};
use super::local::{LocalServer, Way};
use super::marker::Incomplete;
use super::pgpass::Entry;
use super::postmaster::{PidFile, Postmaster, Readiness, StopMode, kill_orphans};
use super::query::{LocalSql, member_conninfo};
use super::rewind::{Options, Rewound, rewind};
use super::{Programs, basebackup, initdb, pgpass, promote};
use crate::ground::secret::Secret;
use crate::node::hba;
use crate::postgres::credentials::{Authentication, Credentials};
use cluster::host::Address;
use cluster::name::Timeline;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The newest PostgreSQL of this machine; `None` also in the outer of the two runs when root.
fn programs(test: &str) -> Option<Programs> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let newest = versions.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))).max()?.1;
    if rustix::process::geteuid().is_root() {
        // A copy: the checkout may lie where that user can't go.
        let room = tempfile::tempdir().unwrap();
        let itself = room.path().join("tests");
        std::fs::copy(std::env::current_exe().unwrap(), &itself).unwrap();
        std::fs::set_permissions(room.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let status = std::process::Command::new("runuser")
            .args(["-u", "postgres", "--"])
            .arg(itself)
            .args(["--exact", &format!("postgres::live::{test}"), "--nocapture"])
            .current_dir("/")
            .env("TMPDIR", "/tmp")
            .status();
        assert!(status.unwrap().success(), "as user postgres");
        return None;
    }
    Some(Programs::new(newest))
}

struct Node {
    programs: Programs,
    room: PathBuf,
    name: &'static str,
    port: u16,
    authentication: Authentication,
}

impl Drop for Node {
    /// A failed test leaves no server.
    fn drop(&mut self) {
        let text = std::fs::read_to_string(self.data_dir().join("postmaster.pid")).unwrap_or_default();
        let pid = PidFile::parse(&text).and_then(|file| rustix::process::Pid::from_raw(file.pid));
        if let Some(pid) = pid.filter(|pid| super::postmaster::is_postgres_of(*pid, &self.data_dir())) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        }
    }
}

impl Node {
    fn new(programs: &Programs, room: &Path, name: &'static str) -> Node {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let role = |username: &str, password| Credentials {
            username: username.to_owned(),
            password: Some(Secret::new(password)),
            connection: Vec::new(),
        };
        let authentication = Authentication {
            superuser: role("boss", "b:o'ss\\"),
            replication: role("replicator", "rep"),
            rewind: Some(role("rewinder", "rew")),
        };
        Node { programs: programs.clone(), room: room.to_owned(), name, port, authentication }
    }
    fn data_dir(&self) -> PathBuf {
        self.room.join(self.name)
    }
    fn files(&self) -> ConfigFiles {
        ConfigFiles { data_dir: self.data_dir(), config_dir: self.data_dir() }
    }
    fn sql(&self) -> LocalSql {
        let server = LocalServer { data_dir: self.data_dir(), port: self.port, ways: vec![Way::Socket] };
        LocalSql::new(server, &self.authentication.superuser, "postgres")
    }
    async fn pgpass(&self) -> String {
        let path = self.room.join("pgpass");
        let roles = [&self.authentication.replication, self.authentication.for_rewind(), &self.authentication.superuser];
        let entries: Vec<Entry<'_>> = roles.into_iter().map(|credentials| Entry { address: None, credentials }).collect();
        pgpass::write(&path, &entries).await.unwrap();
        path.display().to_string()
    }
    /// How others reach it.
    async fn conninfo(&self, who: &Credentials, by: &str, database: Option<&str>) -> String {
        member_conninfo(&Address::new("127.0.0.1", self.port), who, &self.pgpass().await, by, database)
    }
    fn log(&self) -> PathBuf {
        self.data_dir().with_extension("log")
    }
    async fn start(&self, recovery: &Recovery) -> Postmaster {
        let local = BTreeMap::from([
            ("unix_socket_directories".to_owned(), self.room.display().to_string()),
            ("fsync".to_owned(), "off".to_owned()),
            ("log_statement".to_owned(), "all".to_owned()),
        ]);
        let identity = Identity { scope: "live", listen_addresses: "127.0.0.1", port: self.port };
        let mut parameters = Parameters::settle(&identity, &local, &BTreeMap::new());
        // The extension is another crate's business.
        parameters.argv.remove("shared_preload_libraries");
        self.files().write_main(&parameters, recovery).await.unwrap();
        self.files().signal(recovery).await.unwrap();
        // As initdb's rules let the superuser in, with the password.
        let mut lines = vec!["local all all scram-sha-256".to_owned()];
        lines.extend(hba::default_lines(&self.authentication));
        hba::write(&self.files().hba(), &hba::Wanted::Lines(lines)).await.unwrap();
        let postmaster =
            Postmaster::start(&self.programs, &self.data_dir(), &self.files().main(), &parameters.arguments(), &self.log()).await.unwrap();
        let ready = tokio::time::timeout(Duration::from_secs(30), postmaster.ready()).await.unwrap().unwrap();
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        assert_eq!(ready, Readiness::Ready, "{log}");
        postmaster
    }
}

async fn until<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let begin = Instant::now();
    while !check().await {
        assert!(begin.elapsed() < Duration::from_secs(30), "{what} did not come about in 30 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{what} after {:?}", begin.elapsed());
}

#[tokio::test]
async fn a_server_is_made_cloned_promoted_and_rewound() {
    let Some(programs) = programs("a_server_is_made_cloned_promoted_and_rewound") else { return };
    let room = tempfile::tempdir().unwrap();
    let (one, two) = (Node::new(&programs, room.path(), "one"), Node::new(&programs, room.path(), "two"));

    // A new cluster, with roles.
    let begin = Instant::now();
    initdb::initdb(&programs, &one.data_dir(), &one.authentication.superuser, &[]).await.unwrap();
    println!("made after {:?}", begin.elapsed());
    let fresh = controldata::read(&programs, &one.data_dir()).await.unwrap();
    assert_eq!((fresh.state, fresh.timeline, fresh.data_checksums), (ClusterState::ShutDown, Timeline(1), true));
    let first = one.start(&Recovery::None).await;
    let sql = one.sql();
    sql.ensure_roles(&one.authentication).await.unwrap();
    sql.ensure_roles(&one.authentication).await.unwrap();
    let app = Credentials { username: "app".to_owned(), password: Some(Secret::new("apppw")), connection: Vec::new() };
    sql.ensure_role(&app, &["createdb".to_owned(), "login".to_owned()]).await.unwrap();
    let facts = sql.facts().await.unwrap();
    assert!(!facts.in_recovery && facts.current_lsn.is_some() && facts.position().is_valid(), "{facts:?}");
    assert_eq!((facts.timeline, facts.system_id.as_str()), (Timeline(1), fresh.system_id.0.as_str()));
    let log = std::fs::read_to_string(one.log()).unwrap();
    for secret in ["SCRAM-SHA-256$", "apppw", "b:o'ss"] {
        assert!(!log.contains(secret), "{secret} is in the server's log");
    }

    // A slot, and a clone that streams through it.
    assert_eq!(sql.run("SELECT pg_create_physical_replication_slot($1::text::name, true)", &[&"two"]).await.unwrap(), 1);
    let slots = sql.facts().await.unwrap().slots;
    assert!(slots.len() == 1 && slots[0].is_physical() && slots[0].restart_lsn.is_some() && !slots[0].active, "{slots:?}");
    let conninfo = one.conninfo(&one.authentication.replication, "two", None).await;
    let begin = Instant::now();
    let mut percents = Vec::new();
    basebackup::basebackup(&programs, &two.data_dir(), &conninfo, &[], "clone from one", |percent| percents.push(percent)).await.unwrap();
    println!("cloned after {:?}", begin.elapsed());
    assert_eq!(percents.last(), Some(&100));
    assert_eq!(Incomplete::of(&two.data_dir()).read().await.unwrap(), None);
    let follow = |conninfo: String, slot: Option<&str>| Recovery::Standby {
        primary_conninfo: Some(conninfo),
        primary_slot_name: slot.map(str::to_owned),
        extra: BTreeMap::new(),
    };
    let second = two.start(&follow(conninfo, Some("two"))).await;
    let standby = two.sql();
    until("streaming", async || standby.facts().await.unwrap().receiver.is_some_and(|receiver| receiver.is_streaming())).await;
    let facts = standby.facts().await.unwrap();
    let receiver = facts.receiver.unwrap();
    assert_eq!((facts.in_recovery, receiver.host.as_deref(), receiver.port), (true, Some("127.0.0.1"), Some(one.port)));
    let senders = sql.facts().await.unwrap().replication;
    assert_eq!((senders.len(), senders[0].application_name.as_str(), senders[0].state.as_deref()), (1, "two", Some("streaming")));

    let begin = Instant::now();
    for _ in 0..100 {
        standby.facts().await.unwrap();
    }
    println!("100 looks took {:?}", begin.elapsed());

    // Promotion, while the old primary goes on alone: histories fork.
    sql.checkpoint().await.unwrap();
    let begin = Instant::now();
    promote::promote(&second, &two.data_dir()).await.unwrap();
    until("promotion", async || !standby.facts().await.unwrap().in_recovery).await;
    println!("promoted after {:?}", begin.elapsed());
    assert_eq!(standby.facts().await.unwrap().timeline, Timeline(2));
    sql.execute("CREATE TABLE public.lost AS SELECT generate_series(1, 1000)").await.unwrap();
    standby.execute("CREATE TABLE public.kept AS SELECT generate_series(1, 1000)").await.unwrap();
    standby.checkpoint().await.unwrap();

    // The old one crashes, is adopted by nobody, is rewound and follows.
    let adopted = Postmaster::adopt(&one.data_dir()).await.unwrap().unwrap();
    assert_eq!((adopted.pid(), adopted.is_alive()), (first.pid(), true));
    assert!(kill_orphans(&one.data_dir()).await.is_err());
    first.signal(rustix::process::Signal::KILL).unwrap();
    adopted.exited().await;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&first.exit_status().await.unwrap()), Some(9));
    assert!(!adopted.is_alive() && adopted.stop(StopMode::Fast).is_ok());
    println!("{} orphans", kill_orphans(&one.data_dir()).await.unwrap());
    assert!(sql.facts().await.is_err());
    assert!(Postmaster::adopt(&one.data_dir()).await.unwrap().is_none());
    let crashed = controldata::read(&programs, &one.data_dir()).await.unwrap();
    assert_eq!(crashed.state, ClusterState::InProduction);
    let gone = member_conninfo(&Address::new("127.0.0.1", 1), one.authentication.for_rewind(), "/nowhere", "one", Some("postgres"));
    let error =
        rewind(&programs, &one.data_dir(), &one.files().main(), &gone, Options { user: &[], restore_target_wal: false }).await.unwrap_err();
    assert!(format!("{error:#}").contains("connection to server"), "{error:#}");
    assert_eq!(Incomplete::of(&one.data_dir()).read().await.unwrap(), None);
    let source = two.conninfo(two.authentication.for_rewind(), "one", Some("postgres")).await;
    let begin = Instant::now();
    assert_eq!(
        rewind(&programs, &one.data_dir(), &one.files().main(), &source, Options { user: &[], restore_target_wal: false }).await.unwrap(),
        Rewound::Done
    );
    println!("rewound after {:?}", begin.elapsed());
    let conninfo = two.conninfo(&two.authentication.replication, "one", None).await;
    let begin = Instant::now();
    let third = one.start(&follow(conninfo, None)).await;
    println!("started after {:?}", begin.elapsed());
    until("streaming", async || sql.facts().await.is_ok_and(|facts| facts.receiver.is_some_and(|receiver| receiver.is_streaming()))).await;
    assert_eq!(sql.facts().await.unwrap().timeline, Timeline(2));

    // Planned stops are clean.
    let begin = Instant::now();
    for (node, server) in [(&one, third), (&two, second)] {
        server.stop(StopMode::Fast).unwrap();
        assert!(server.exit_status().await.unwrap().success());
        assert!(controldata::read(&programs, &node.data_dir()).await.unwrap().state.is_clean());
        assert_eq!(PidFile::read(&node.data_dir()).await.unwrap(), None);
    }
    println!("stopped after {:?}", begin.elapsed());

    // A foreign system can't be rewound, and the directory is untouched.
    let other = Node::new(&programs, room.path(), "other");
    initdb::initdb(&programs, &other.data_dir(), &other.authentication.superuser, &[]).await.unwrap();
    let running = other.start(&Recovery::None).await;
    let source = other.conninfo(&other.authentication.superuser, "one", Some("postgres")).await;
    let verdict =
        rewind(&programs, &one.data_dir(), &one.files().main(), &source, Options { user: &[], restore_target_wal: false }).await.unwrap();
    assert!(matches!(&verdict, Rewound::NotPossible { why, half_done: false } if why.contains("different systems")), "{verdict:?}");
    running.stop(StopMode::Immediate).unwrap();
    running.exited().await;
}

#[tokio::test]
async fn what_is_there_is_not_wiped_by_mistake() {
    let Some(programs) = programs("what_is_there_is_not_wiped_by_mistake") else { return };
    let room = tempfile::tempdir().unwrap();
    let node = Node::new(&programs, room.path(), "one");
    std::fs::create_dir(node.data_dir()).unwrap();
    std::fs::write(node.data_dir().join("precious"), "x").unwrap();
    let error = initdb::initdb(&programs, &node.data_dir(), &node.authentication.superuser, &[]).await.unwrap_err();
    assert!(error.to_string().contains("is not empty") && node.data_dir().join("precious").exists(), "{error}");
    // Half of a clone is nothing to rewind, and nothing worth keeping.
    Incomplete::of(&node.data_dir()).set("clone from db1").await.unwrap();
    let verdict =
        rewind(&programs, &node.data_dir(), &node.files().main(), "host=nowhere", Options { user: &[], restore_target_wal: false })
            .await
            .unwrap();
    assert!(matches!(&verdict, Rewound::NotPossible { why, half_done: true } if why.contains("clone from db1")), "{verdict:?}");
    initdb::initdb(&programs, &node.data_dir(), &node.authentication.superuser, &[]).await.unwrap();
    assert_eq!(Incomplete::of(&node.data_dir()).read().await.unwrap(), None);
    let server = node.start(&Recovery::None).await;
    let error = basebackup::basebackup(&programs, &node.data_dir(), "host=nowhere", &[], "clone", |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("stop it before"), "{error}");
    server.stop(StopMode::Fast).unwrap();
    server.exited().await;
}

#[tokio::test]
async fn failures_leave_an_empty_directory_and_say_why() {
    let Some(programs) = programs("failures_leave_an_empty_directory_and_say_why") else { return };
    let room = tempfile::tempdir().unwrap();
    let node = Node::new(&programs, room.path(), "one");
    let odd = [("encoding".to_owned(), Some("KLINGON".to_owned()))];
    let error = format!("{:#}", initdb::initdb(&programs, &node.data_dir(), &node.authentication.superuser, &odd).await.unwrap_err());
    assert!(error.contains("KLINGON"), "{error}");
    let conninfo = member_conninfo(&Address::new("127.0.0.1", 1), &node.authentication.replication, "/nowhere", "one", None);
    let error = basebackup::basebackup(&programs, &node.data_dir(), &conninfo, &[], "clone from nobody", |_| {}).await.unwrap_err();
    assert!(format!("{error:#}").contains("connection to server"), "{error:#}");
    assert!(super::is_empty_directory(&node.data_dir()).await.unwrap());
    assert_eq!(Incomplete::of(&node.data_dir()).read().await.unwrap(), None);
    // Nothing is left beside it either: no password file, no mark.
    assert_eq!(std::fs::read_dir(room.path()).unwrap().filter(|entry| entry.as_ref().unwrap().path() != node.data_dir()).count(), 0);
    assert!(node.sql().facts().await.is_err());
}

#[tokio::test]
async fn root_is_refused_with_a_sentence() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let room = tempfile::tempdir().unwrap();
    let programs = Programs::new("/nowhere");
    let error =
        Postmaster::start(&programs, room.path(), &room.path().join("postgresql.conf"), &[], &room.path().join("log")).await.unwrap_err();
    assert!(error.to_string().starts_with("running as root, which PostgreSQL refuses"), "{error}");
}
