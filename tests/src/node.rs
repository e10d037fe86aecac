//! One node: its configuration file in Patroni's schema, its arbiter, its Postgres; and what befalls each of them.

use crate::http::{self, Answer};
use crate::place::Place;
use crate::ports::Port;
use crate::process;
use crate::programs;
use crate::room::Room;
use crate::wait;
use anyhow::{Context, Result, anyhow};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// Password of the superuser `postgres` in every story.
pub use writer::workload::PASSWORD;
/// The cluster's name in every story: each has an etcd of its own.
pub const SCOPE: &str = "story";

/// One member of the cluster under test.
pub struct Node {
    name: String,
    dir: PathBuf,
    data: PathBuf,
    place: Place,
    /// Of the arbiter, which Postgres inherits.
    environment: Vec<(String, String)>,
    postgres: Arc<Port>,
    rest: Port,
    /// The daemon's command line, rebuilt at each start.
    program: PathBuf,
    /// The program is Patroni, which takes a file and no verb.
    patroni: bool,
    arbiter: Mutex<Option<Child>>,
}

/// The configuration of one node, as JSON (which is YAML); stories change parts of it before it is written.
pub type Config = Value;

impl Node {
    /// Reserves ports and a directory, and writes the configuration that `change` leaves.
    pub fn planned(room: &Room, name: &str, etcd: &str, change: impl FnOnce(&mut Config)) -> Node {
        let node = Node::bare(room, name);
        let mut config = node.default_config(etcd);
        change(&mut config);
        node.configure(room, &config);
        node
    }

    /// Reserves ports and a directory only: the story writes the configuration file itself.
    pub fn bare(room: &Room, name: &str) -> Node {
        Node::bare_in(room, name, name)
    }

    /// Like [`Node::bare`] in a directory of another name: two nodes of one name need that.
    pub fn bare_in(room: &Room, name: &str, directory: &str) -> Node {
        Node::bare_at(room, name, directory, Place::loopback())
    }

    /// Like [`Node::bare_in`] in a place.
    pub fn bare_at(room: &Room, name: &str, directory: &str, place: Place) -> Node {
        let dir = room.directory(directory);
        Node {
            name: name.to_owned(),
            data: dir.join("data"),
            dir,
            place,
            environment: Vec::new(),
            postgres: Arc::new(Port::free()),
            rest: Port::free(),
            program: room.install(&programs::tenure()),
            patroni: false,
            arbiter: Mutex::new(None),
        }
    }

    /// With its data below another directory, as where a disk is mounted.
    pub fn with_data_in(mut self, directory: &Path) -> Node {
        self.data = directory.join("data");
        self
    }

    /// Its server on the port of this one's: for hosts with addresses of their own, and one that moves between them.
    pub fn on_the_port_of(mut self, other: &Node) -> Node {
        self.postgres = other.postgres.clone();
        self
    }

    /// With variables in the environment of its programs.
    pub fn with_environment(mut self, environment: Vec<(String, String)>) -> Node {
        self.environment = environment;
        self
    }

    /// By this `tenure` instead of the checkout's: a node with an installation of its own, whose program is replaced while it runs.
    pub fn with_program(mut self, tenure: &Path) -> Node {
        tenure.clone_into(&mut self.program);
        self
    }

    /// Run by Patroni instead of our arbiter, from the same file: for comparisons.
    pub fn by_patroni(mut self, patroni: &Path) -> Node {
        patroni.clone_into(&mut self.program);
        self.patroni = true;
        self
    }

    /// What every node of a story has: small, fast to start, durable (fsync stays on).
    pub fn default_config(&self, etcd: &str) -> Config {
        json!({
            "scope": SCOPE,
            "namespace": "/service",
            "name": self.name,
            "restapi": {"listen": self.at(&self.rest), "connect_address": self.at(&self.rest)},
            "etcd3": {"hosts": etcd},
            "bootstrap": {
                "dcs": {
                    "ttl": 10,
                    "loop_wait": 2,
                    "retry_timeout": 2,
                    "postgresql": {"use_pg_rewind": true, "use_slots": true},
                },
                "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "data-checksums"],
            },
            "postgresql": {
                "listen": self.at(&self.postgres),
                "connect_address": self.at(&self.postgres),
                "data_dir": self.data_dir(),
                "bin_dir": programs::postgres_bin(),
                "pgpass": self.dir.join("pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres", "password": PASSWORD},
                    "replication": {"username": "replicator", "password": PASSWORD},
                    "rewind": {"username": "rewinder", "password": PASSWORD},
                },
                "pg_hba": [
                    "local all all trust",
                    "host all all 127.0.0.1/32 scram-sha-256",
                    "host replication all 127.0.0.1/32 scram-sha-256",
                ],
                "parameters": {
                    "unix_socket_directories": self.dir,
                    "shared_buffers": "16MB",
                    "max_connections": 50,
                    // A killed server's segments then vanish with its directory, not in /dev/shm.
                    "dynamic_shared_memory_type": "mmap",
                },
            },
        })
    }

    /// Writes the configuration file.
    pub fn configure(&self, room: &Room, config: &Config) {
        let text = serde_json::to_string_pretty(config).expect("print the configuration");
        room.file(&self.config_file(), &text);
    }

    /// Changes the configuration file that is there; a running arbiter reads it when told to.
    pub fn reconfigure(&self, room: &Room, change: impl FnOnce(&mut Config)) {
        let text = fs::read_to_string(self.config_file()).expect("read the configuration");
        let mut config = serde_json::from_str(&text).expect("the configuration is JSON");
        change(&mut config);
        self.configure(room, &config);
    }

    fn at(&self, port: &Port) -> String {
        format!("{}:{}", self.place.host, port.number())
    }

    /// Where it listens.
    pub fn host(&self) -> &str {
        &self.place.host
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The directory all of its files and processes are in.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// PGDATA.
    pub fn data_dir(&self) -> PathBuf {
        self.data.clone()
    }

    /// What its server says.
    pub fn server_log(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    /// The configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("node.yml")
    }

    /// Postgres' port.
    pub fn port(&self) -> u16 {
        self.postgres.number()
    }

    /// The REST port.
    pub fn rest_port(&self) -> u16 {
        self.rest.number()
    }

    /// Starts the arbiter; what comes of it is waited for by the story.
    pub fn start(&self, room: &Room) {
        let mut command = self.command(room);
        command.args((!self.patroni).then_some("arbiter")).arg(self.config_file());
        self.start_daemon(room, command);
    }

    /// Starts Patroni on this node's file and data: a story in which both kinds take turns.
    pub fn start_patroni(&self, room: &Room, patroni: &Path) {
        let mut command = room.command_at(&self.place, patroni, &self.dir);
        command.arg(self.config_file());
        self.start_daemon(room, command);
    }

    fn start_daemon(&self, room: &Room, mut command: Command) {
        let log = room.log(&self.log_file());
        let child = command
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let mut arbiter = self.arbiter.lock().expect("nobody panicked with the lock");
        if let Some(mut old) = arbiter.replace(child) {
            assert!(matches!(old.try_wait(), Ok(Some(_))), "{} has an arbiter already", self.name);
        }
    }

    /// Starts the arbiter with a pipe in place of its log: what it says goes to the holder of the other end.
    pub fn start_talking_to_a_pipe(&self, room: &Room) -> std::process::ChildStderr {
        let mut child = self
            .command(room)
            .arg("arbiter")
            .arg(self.config_file())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", self.program.display()));
        let reader = child.stderr.take().expect("it was piped");
        *self.arbiter.lock().expect("nobody panicked with the lock") = Some(child);
        reader
    }

    /// `tenure`, run as the node's user in the node's directory.
    pub fn command(&self, room: &Room) -> Command {
        let mut command = room.command_at(&self.place, &self.program, &self.dir);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The arbiter, also one that has ended and was not started again.
    pub fn arbiter_pid(&self) -> Option<Pid> {
        let arbiter = self.arbiter.lock().expect("nobody panicked with the lock");
        arbiter.as_ref().map(Pid::from_child)
    }

    /// True while the arbiter that was started last lives.
    pub fn arbiter_runs(&self) -> bool {
        let mut arbiter = self.arbiter.lock().expect("nobody panicked with the lock");
        arbiter.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// The arbiter's exit status, waited for.
    pub async fn ended(&self, bound: Duration) -> ExitStatus {
        let what = format!("{}'s arbiter to end", self.name);
        wait::until(&what, bound, async || {
            let mut arbiter = self.arbiter.lock().expect("nobody panicked with the lock");
            let child = arbiter.as_mut().ok_or("it was never started")?;
            match child.try_wait() {
                Ok(Some(status)) => Ok(status),
                _ => Err("it still runs"),
            }
        })
        .await
    }

    /// Asks the arbiter to stop (SIGTERM): a planned stop, Postgres included.
    pub fn stop(&self) {
        if let Some(pid) = self.arbiter_pid() {
            process::signal(pid, Signal::TERM);
        }
    }

    /// SIGKILL to the arbiter alone: Postgres goes on.
    pub fn kill_arbiter(&self) {
        let taken = self.arbiter.lock().expect("nobody panicked with the lock").take();
        if let Some(mut child) = taken {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGUSR1 to the arbiter: it ends by itself and leaves Postgres. Gives its exit code.
    pub fn leave_arbiter(&self) -> Option<i32> {
        let mut child = self.arbiter.lock().expect("nobody panicked with the lock").take().expect("an arbiter");
        process::signal(Pid::from_child(&child), Signal::USR1);
        child.wait().expect("wait for the arbiter").code()
    }

    /// SIGKILL to the postmaster alone; its children notice and end.
    pub fn kill_postmaster(&self) {
        let pid = self.postmaster().expect("a postmaster to kill");
        process::signal(pid, Signal::KILL);
    }

    /// SIGKILL to everything, the arbiter first so that it can't react: the host lost its power.
    pub fn kill(&self) {
        self.kill_arbiter();
        process::kill_below(&self.dir);
    }

    /// The arbiter is alive and silent.
    pub fn freeze_arbiter(&self) {
        process::signal(self.arbiter_pid().expect("an arbiter"), Signal::STOP);
    }

    /// The arbiter goes on.
    pub fn thaw_arbiter(&self) {
        process::signal(self.arbiter_pid().expect("an arbiter"), Signal::CONT);
    }

    /// The lease worker is alive and silent, Postgres goes on.
    pub fn freeze_lease_worker(&self) {
        process::signal(self.lease_worker().expect("a lease worker"), Signal::STOP);
    }

    /// The lease worker goes on.
    pub fn thaw_lease_worker(&self) {
        process::signal(self.lease_worker().expect("a lease worker"), Signal::CONT);
    }

    /// The WAL receiver is alive and silent: the standby falls behind and still seems to stream.
    pub fn freeze_receiver(&self) {
        let receiver = process::below(&self.data_dir()).into_iter().find(|pid| process::title(*pid).contains("walreceiver"));
        process::signal(receiver.expect("a WAL receiver"), Signal::STOP);
    }

    /// SIGTERM to the WAL receiver: a frozen one ends when it is thawed, before it reads on.
    pub fn end_receiver(&self) {
        let receiver = process::below(&self.data_dir()).into_iter().find(|pid| process::title(*pid).contains("walreceiver"));
        process::signal(receiver.expect("a WAL receiver"), Signal::TERM);
    }

    /// Everything here is alive and silent: the host was suspended.
    pub fn freeze(&self) {
        process::freeze_below(&self.dir);
    }

    /// Postgres goes on, but not its lease worker, nor the arbiter: nobody here learns what happened meanwhile.
    pub fn thaw_postgres_alone(&self) {
        let worker = self.lease_worker();
        for pid in process::below(&self.data_dir()).into_iter().filter(|pid| Some(*pid) != worker) {
            process::signal(pid, Signal::CONT);
        }
    }

    /// Everything here goes on.
    pub fn thaw(&self) {
        process::thaw_below(&self.dir);
    }

    /// The postmaster, if one lives.
    pub fn postmaster(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.data_dir().join("postmaster.pid")).ok()?;
        let pid = Pid::from_raw(text.lines().next()?.trim().parse().ok()?)?;
        process::is_alive(pid).then_some(pid)
    }

    /// The background worker of the extension, by its title.
    pub fn lease_worker(&self) -> Option<Pid> {
        process::below(&self.data_dir()).into_iter().find(|pid| {
            let title = process::title(*pid);
            title.starts_with("postgres:") && title.contains("tenure")
        })
    }

    /// The arbiter's log.
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("arbiter.log")
    }

    /// What the arbiter has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// What the arbiter has logged since it had logged `before`.
    pub fn log_since(&self, before: &str) -> String {
        self.log().get(before.len()..).unwrap_or_default().to_owned()
    }

    /// Waits until the arbiter's log holds every one of the words (case does not count).
    pub async fn logged(&self, words: &[&str], bound: Duration) {
        let what = format!("{}'s log to say {words:?}", self.name);
        wait::until(&what, bound, async || {
            let log = self.log().to_lowercase();
            match words.iter().find(|word| !log.contains(&word.to_lowercase())) {
                None => Ok(()),
                Some(missing) => Err(format!("no {missing:?} in {} bytes of log", log.len())),
            }
        })
        .await;
    }

    /// GET from its REST interface.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        http::request_to(&self.place.host, self.rest_port(), "GET", path, None).await
    }

    /// POST to its REST interface.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        http::request_to(&self.place.host, self.rest_port(), "POST", path, Some(&body.to_string())).await
    }

    /// PATCH to its REST interface.
    pub async fn patch(&self, path: &str, body: &Value) -> Result<Answer> {
        http::request_to(&self.place.host, self.rest_port(), "PATCH", path, Some(&body.to_string())).await
    }

    /// A session that hears the notifications of one channel.
    pub async fn listen(&self, channel: &str) -> Result<(Client, tokio::sync::mpsc::UnboundedReceiver<String>)> {
        let mut config = tokio_postgres::Config::new();
        config.host(&self.place.host).port(self.port()).user("postgres").password(PASSWORD).dbname("postgres");
        let (client, mut connection) = config.connect(NoTls).await?;
        let (heard, hear) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = std::future::poll_fn(|context| connection.poll_message(context)).await {
                if let tokio_postgres::AsyncMessage::Notification(notification) = message {
                    let _ = heard.send(notification.payload().to_owned());
                }
            }
        });
        client.batch_execute(&format!("LISTEN {channel}")).await?;
        Ok((client, hear))
    }

    /// A session of the superuser on this very server.
    pub async fn connect(&self) -> Result<Client> {
        connect_to(&self.place.host, self.port(), "postgres", PASSWORD, Duration::from_secs(3)).await
    }

    /// Runs SQL in a session of its own; rows as text.
    pub async fn query(&self, sql: &str) -> Result<Vec<Vec<String>>> {
        let client = self.connect().await?;
        rows(&client, sql).await
    }

    /// The first column of the first row.
    pub async fn one(&self, sql: &str) -> Result<String> {
        let rows = self.query(sql).await?;
        let cell = rows.into_iter().next().and_then(|row| row.into_iter().next());
        cell.with_context(|| format!("no row from {sql}"))
    }
}

/// A session of a story's superuser on a port of loopback.
pub async fn connect(port: u16, bound: Duration) -> Result<Client> {
    connect_as(port, "postgres", PASSWORD, bound).await
}

/// A session on a port of loopback; the bound holds for all of the handshake.
pub async fn connect_as(port: u16, user: &str, password: &str, bound: Duration) -> Result<Client> {
    connect_to("127.0.0.1", port, user, password, bound).await
}

/// The same anywhere.
pub async fn connect_to(host: &str, port: u16, user: &str, password: &str, bound: Duration) -> Result<Client> {
    connect_in("postgres", host, port, user, password, bound).await
}

/// A session of a story's superuser on a port of loopback, with these options of libpq's.
pub async fn connect_with(port: u16, options: &str, bound: Duration) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user("postgres").password(PASSWORD).dbname("postgres").options(options);
    let (client, connection) = tokio::time::timeout(bound, config.connect(NoTls)).await??;
    tokio::spawn(connection);
    Ok(client)
}

/// The same in another database.
pub async fn connect_in(database: &str, host: &str, port: u16, user: &str, password: &str, bound: Duration) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host(host).port(port).user(user).password(password).dbname(database).application_name("story");
    let (client, connection) = tokio::time::timeout(bound, config.connect(NoTls))
        .await
        .map_err(|_| anyhow!("port {port}: no session within {bound:?}"))?
        .with_context(|| format!("connect to port {port}"))?;
    // Its errors reach the caller through the client.
    tokio::spawn(connection);
    Ok(client)
}

/// Runs SQL in this session, at most a minute; rows as text, NULL as an empty text.
pub async fn rows(client: &Client, sql: &str) -> Result<Vec<Vec<String>>> {
    let messages = tokio::time::timeout(Duration::from_secs(60), client.simple_query(sql))
        .await
        .map_err(|_| anyhow!("no answer within a minute to {sql}"))?
        .with_context(|| sql.to_owned())?;
    Ok(messages
        .into_iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some((0..row.len()).map(|column| row.get(column).unwrap_or_default().to_owned()).collect()),
            _ => None,
        })
        .collect())
}

/// The SQLSTATE of an error from the server anywhere in the chain, if it is one.
pub fn sqlstate(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        let error: &tokio_postgres::Error = cause.downcast_ref()?;
        Some(error.code()?.code().to_owned())
    })
}
