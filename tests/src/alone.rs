//! One Postgres under the fence, without an arbiter: the extension, a real etcd, and the real lease worker between them.
//!
//! A primary stands for itself, so the worker takes the leader key and the fence opens; freezing the worker (or
//! etcd) is all it takes to let the deadline pass. The library under test is a copy in the room, found
//! through `dynamic_library_path`: nobody's `make install` changes it meanwhile, and `TENURE_TEST_LIBRARY`
//! says which one it is, so that a library with one guard taken out can be put through the same tests.

use crate::callgrind;
use crate::etcd::Etcd;
use crate::node::SCOPE;
use crate::ports::Port;
use crate::process;
use crate::programs;
use crate::room::Room;
pub use crate::session::{PATIENCE, Pending, Session, Told};
use crate::storm::clock::Clock;
use crate::wait;
use rustix::process::{Pid, Signal};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// Long enough to see that somebody waits.
pub const A_WHILE: Duration = Duration::from_millis(700);

/// A server that the test starts itself, with or without the extension.
pub struct Server {
    dir: PathBuf,
    log: PathBuf,
    port: Port,
    /// Where the instructions that its backends execute are counted to, if they are.
    profiles: Option<PathBuf>,
    environment: Vec<(String, String)>,
    process: Mutex<Option<Child>>,
}

/// The fenced server with its etcd.
pub struct Alone {
    server: Server,
    /// Its etcd.
    pub etcd: Etcd,
    /// The directory of it all; dropped last.
    pub room: Room,
}

impl Server {
    fn planned(room: &Room, name: &str) -> Server {
        let log = room.path().join(format!("{name}.log"));
        Server { dir: room.directory(name), log, port: Port::free(), profiles: None, environment: Vec::new(), process: Mutex::new(None) }
    }

    /// The same, to be run under callgrind.
    fn counted(self, room: &Room) -> Server {
        let name = self.dir.file_name().expect("a data directory has a name").to_string_lossy();
        Server { profiles: Some(room.directory(&format!("{name}.profiles"))), ..self }
    }

    /// A plain primary without the extension.
    pub async fn plain(room: &Room, name: &str, settings: &[(&str, &str)]) -> Server {
        Server::planned(room, name).found(room, settings).await
    }

    /// The same under callgrind, which makes it some fifty times slower: see [`callgrind`].
    pub async fn plain_counted(room: &Room, name: &str, settings: &[(&str, &str)]) -> Server {
        Server::planned(room, name).counted(room).found(room, settings).await
    }

    async fn found(self, room: &Room, settings: &[(&str, &str)]) -> Server {
        self.initdb(room);
        self.configure(room, "", settings);
        self.start(room);
        Session::on(self.port()).await;
        self
    }

    /// A physical standby without the extension, streaming from `port` as `name`.
    async fn standby_of(room: &Room, port: u16, name: &str) -> Server {
        let server = Server::planned(room, name);
        run(room, "pg_basebackup", |command| {
            command.args(["-X", "stream", "-c", "fast", "--no-sync", "-h", "127.0.0.1", "-U", "postgres"]);
            command.args(["-p", &port.to_string()]).arg("-D").arg(&server.dir);
        });
        let conninfo = format!("host=127.0.0.1 port={port} user=postgres application_name={name}");
        let text = fs::read_to_string(server.dir.join("postgresql.conf")).expect("read the copied settings");
        let own = [
            "shared_preload_libraries = ''".to_owned(),
            "synchronous_standby_names = ''".to_owned(),
            format!("primary_conninfo = '{conninfo}'"),
        ];
        let auto = format!("port = {}\n{}\n", server.port(), own.join("\n"));
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("tenure.")).collect();
        room.file(&server.dir.join("postgresql.conf"), &format!("{}\n", kept.join("\n")));
        room.file(&server.dir.join("postgresql.auto.conf"), &auto);
        room.file(&server.dir.join("standby.signal"), "");
        server.start(room);
        Session::on(server.port()).await;
        server
    }

    fn initdb(&self, room: &Room) {
        run(room, "initdb", |command| {
            command.arg("-D").arg(&self.dir).args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]);
        });
    }

    fn configure(&self, room: &Room, more: &str, settings: &[(&str, &str)]) {
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nshared_buffers = 16MB\nmax_connections = 40\n\
             dynamic_shared_memory_type = mmap\nmax_prepared_transactions = 10\nautovacuum = off\nwal_retrieve_retry_interval = 100ms\n\
             log_line_prefix = '%m [%p] %b '\n{more}",
            self.port()
        );
        for (name, value) in settings {
            text.push_str(&format!("{name} = '{value}'\n"));
        }
        room.file(&self.dir.join("postgresql.conf"), &text);
    }

    fn start(&self, room: &Room) {
        let log = room.log(&self.log);
        let postgres = programs::postgres_bin().join("postgres");
        let mut command = match &self.profiles {
            None => room.command(postgres, &self.dir),
            Some(profiles) => {
                let mut command = room.command("valgrind", &self.dir);
                command.args(callgrind::arguments(profiles)).arg(postgres);
                command
            }
        };
        let child = command
            .envs(self.environment.clone())
            .arg("-D")
            .arg(&self.dir)
            .stdout(log.try_clone().expect("share the log"))
            .stderr(log)
            .spawn()
            .expect("start postgres");
        *self.process.lock().expect("nobody panicked with the lock") = Some(child);
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// Where its backends' profiles are written, if it runs under callgrind.
    pub fn profiles(&self) -> Option<&Path> {
        self.profiles.as_deref()
    }

    /// How many processes it has.
    pub fn processes(&self) -> usize {
        process::below(&self.dir).len()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A new session.
    pub async fn session(&self) -> Session {
        Session::on(self.port()).await
    }

    /// SIGINT to the postmaster: a fast shutdown.
    pub fn stop_fast(&self) {
        let process = self.process.lock().expect("nobody panicked with the lock");
        process::signal(Pid::from_child(process.as_ref().expect("a running server")), Signal::INT);
    }

    /// The processor time that all of its processes have used, those that have ended included, once the backends
    /// of sessions that were closed are gone (they end a moment later).
    pub async fn processor_time(&self) -> Duration {
        let is_backend = |pid: &Pid| process::title(*pid).contains("postgres: postgres postgres");
        wait::until("closed sessions to be gone", PATIENCE, async || {
            match process::below(&self.dir).iter().filter(|pid| is_backend(pid)).count() {
                0 => Ok(()),
                count => Err(format!("{count} are there")),
            }
        })
        .await;
        let ticks: u64 = process::below(&self.dir).into_iter().map(processor_ticks).sum();
        // Linux shows user space a hundred ticks a second, whatever the kernel counts in.
        Duration::from_millis(ticks * 10)
    }

    /// Every process alive and silent.
    pub fn freeze(&self) {
        process::freeze_below(&self.dir);
    }

    /// Every process goes on.
    pub fn thaw(&self) {
        process::thaw_below(&self.dir);
    }
}

impl std::ops::Deref for Alone {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.server
    }
}

/// A process that strace holds up; let go when this is dropped. What strace says is kept open, or it would end at its first word.
pub struct Traced(Child, Option<BufReader<ChildStderr>>);

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

impl Alone {
    /// Starts etcd and the server with these settings on top; returns once the fence is open and the SQL surface is there.
    pub async fn start(settings: &[(&str, &str)]) -> Alone {
        Alone::start_as(settings, 3, |_, server| server).await
    }

    /// The same with a lease of a minute and a wall clock of the server's own, which can be stepped.
    pub async fn start_with_clock(settings: &[(&str, &str)]) -> (Alone, Clock) {
        let mut made = None;
        let alone = Alone::start_as(settings, 60, |room, server| {
            let clock = Clock::new(room, "fenced").expect("make a clock");
            let environment = clock.environment();
            made = Some(clock);
            Server { environment, ..server }
        })
        .await;
        (alone, made.expect("it was made"))
    }

    /// The same under callgrind, which makes it some fifty times slower, with a lease that bears that.
    pub async fn start_counted(settings: &[(&str, &str)]) -> Alone {
        Alone::start_as(settings, 60, |room, server| server.counted(room)).await
    }

    async fn start_as(settings: &[(&str, &str)], ttl: u32, plan: impl FnOnce(&Room, Server) -> Server) -> Alone {
        let room = Room::new();
        let etcd = Etcd::start(&room).await;
        let server = plan(&room, Server::planned(&room, "fenced"));
        server.initdb(&room);
        let library = install_library(&room);
        let more = format!(
            "dynamic_library_path = '{}:$libdir'\nshared_preload_libraries = 'pg_tenure'\ntenure.scope = '{SCOPE}'\ntenure.name = 'fenced'\n\
             tenure.etcd_endpoints = 'http://{}'\ntenure.ttl = {ttl}s\ntenure.fence_wait = 300ms\n",
            library.display(),
            etcd.hosts(),
        );
        server.configure(&room, &more, settings);
        // A group of a Citus cluster has a level of its own.
        let group = settings.iter().find(|(name, value)| *name == "tenure.group" && *value != "-1");
        let group = group.map(|(_, group)| format!("{group}/")).unwrap_or_default();
        let key = |name: &str| format!("/service/{SCOPE}/{group}{name}");
        let config = format!(r#"{{"ttl": {ttl}, "loop_wait": 1, "retry_timeout": 1}}"#);
        etcd.put(&key("config"), &config).await.expect("write the dynamic configuration");
        etcd.put(&key("initialize"), &system_id(&room, &server.dir)).await.expect("write the system identifier");
        server.start(&room);
        let alone = Alone { server, etcd, room };
        wait::until("the SQL surface", PATIENCE, async || match alone.session().await.tell(&surface()).await {
            Told::Done(_) => Ok(()),
            other => Err(other),
        })
        .await;
        alone
    }

    /// What `tenure.lease()` says the fence is.
    pub async fn fence(&self) -> String {
        self.session().await.ok("SELECT fence FROM tenure.lease()").await
    }

    /// Waits until the fence is in this state.
    pub async fn fence_is(&self, wanted: &str) {
        let session = self.session().await;
        wait::until(&format!("the fence to be {wanted}"), PATIENCE, async || match session.ok("SELECT fence FROM tenure.lease()").await {
            seen if seen == wanted => Ok(()),
            seen => Err(seen),
        })
        .await;
    }

    /// A counter of `tenure.lease()`.
    pub async fn count(&self, counter: &str) -> u64 {
        let text = self.session().await.ok(&format!("SELECT {counter} FROM tenure.lease()")).await;
        text.parse().expect("a count")
    }

    /// The lease worker is frozen, and the deadline has passed.
    pub async fn let_the_deadline_pass(&self) {
        self.freeze_worker().await;
        self.fence_is("expired").await;
    }

    /// The lease worker is alive and silent.
    pub async fn freeze_worker(&self) {
        process::signal(self.worker().await, Signal::STOP);
    }

    /// The lease worker goes on; nothing is waited for.
    pub async fn thaw_worker(&self) {
        process::signal(self.worker().await, Signal::CONT);
    }

    /// The lease worker goes on, and the fence is open again.
    pub async fn renew(&self) {
        self.thaw_worker().await;
        self.fence_is("open").await;
    }

    async fn worker(&self) -> Pid {
        self.process_called("pg_tenure lease worker").await
    }

    /// The process of its that has this in its title.
    pub async fn process_called(&self, title: &str) -> Pid {
        wait::until(&format!("the process {title}"), PATIENCE, async || {
            process::below(&self.server.dir).into_iter().find(|pid| process::title(*pid).contains(title)).ok_or("none")
        })
        .await
    }

    /// Each signal that the checkpointer sends holds it up for `by`: whom it wakes runs long before it goes on. None, and a line
    /// says so, where it can't be traced.
    pub async fn slow_checkpointer(&self, by: Duration) -> Option<Traced> {
        let checkpointer = self.process_called("checkpointer").await;
        let inject = format!("inject=kill:delay_exit={}", by.as_micros());
        let started = Command::new("strace")
            .args(["-o", "/dev/null", "-e", "trace=kill", "-e", &inject, "-p", &checkpointer.as_raw_nonzero().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut traced = match started {
            Ok(mut child) => {
                let said = child.stderr.take().map(BufReader::new);
                Traced(child, said)
            }
            Err(why) => {
                println!("SKIPPED: strace can't be run: {why}");
                return None;
            }
        };
        let mut said = String::new();
        traced.1.as_mut().expect("it is piped").read_line(&mut said).expect("hear from strace");
        if said.contains("attached") {
            return Some(traced);
        }
        println!("SKIPPED: the checkpointer can't be traced here: {said}");
        None
    }

    /// Waits until this backend waits for that event.
    pub async fn waits_for(&self, pid: i32, event: &str) {
        let session = self.session().await;
        wait::until(&format!("backend {pid} to wait for {event}"), PATIENCE, async || {
            let seen = session.ok(&format!("SELECT coalesce((SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}), 'gone')")).await;
            if seen == event { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    /// Waits until this backend has ended.
    pub async fn ended(&self, pid: i32, bound: Duration) {
        let session = self.session().await;
        wait::until(&format!("backend {pid} to end"), bound, async || {
            let seen = session.ok(&format!("SELECT coalesce((SELECT state FROM pg_stat_activity WHERE pid = {pid}), 'gone')")).await;
            if seen == "gone" { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    /// Waits until the server has stopped, starts it again, and waits until its fence is open.
    pub async fn start_anew(&self) {
        wait::until("the server's end", PATIENCE, async || {
            let mut process = self.process.lock().expect("nobody panicked with the lock");
            match process.as_mut().expect("a started server").try_wait() {
                Ok(Some(_)) => Ok(()),
                still => Err(format!("{still:?}")),
            }
        })
        .await;
        self.server.start(&self.room);
        self.fence_is("open").await;
    }

    /// SIGKILL to the backend of one session: the postmaster restarts the server. Returns when it takes sessions again.
    pub async fn crash_by(&self, victim: Session) {
        let (pid, before) = (victim.pid().await, self.log().len());
        process::signal(Pid::from_raw(pid).expect("a process id"), Signal::KILL);
        wait::until("the restart after the crash", PATIENCE, async || {
            let log = self.log();
            if log.get(before..).is_some_and(|log| log.contains("ready to accept connections")) { Ok(()) } else { Err("not ready") }
        })
        .await;
    }

    /// Makes a standby and names it in `synchronous_standby_names`.
    pub async fn synchronous_standby(&self) -> Server {
        let mut standbys = self.synchronous_standbys(1, "s1", "sync").await;
        standbys.remove(0)
    }

    /// Makes so many standbys, `s1` first, and waits until `setting` makes each of them what `sync_state` says.
    pub async fn synchronous_standbys(&self, count: usize, setting: &str, sync_state: &str) -> Vec<Server> {
        let mut standbys = Vec::new();
        for number in 1..=count {
            standbys.push(Server::standby_of(&self.room, self.port(), &format!("s{number}")).await);
        }
        self.set("synchronous_standby_names", setting).await;
        let session = self.session().await;
        let ask = format!("SELECT count(*) FROM pg_stat_replication WHERE sync_state = '{sync_state}'");
        wait::until("synchronous standbys", PATIENCE, async || match session.ok(&ask).await {
            seen if seen == count.to_string() => Ok(()),
            seen => Err(format!("{seen} of {count} are {sync_state}")),
        })
        .await;
        session.ok("SELECT pg_logical_emit_message(true, 'test', 'the standbys confirm')").await;
        standbys
    }

    /// ALTER SYSTEM and a reload, waited for; works past the deadline too, since it writes no table.
    pub async fn set(&self, name: &str, value: &str) {
        let session = self.session().await;
        session.ok(&format!("ALTER SYSTEM SET {name} = '{value}'")).await;
        session.ok("SELECT pg_reload_conf()").await;
        wait::until(&format!("{name} to be {value}"), PATIENCE, async || match session.ok(&format!("SHOW {name}")).await {
            seen if seen == value => Ok(()),
            seen => Err(seen),
        })
        .await;
        // Whether standbys are awaited is the checkpointer's word in shared memory: now it has reread its settings too.
        session.ok("CHECKPOINT").await;
    }
}

/// `TENURE_TEST_LIBRARY`, else the installed one, copied to where nobody replaces it.
fn install_library(room: &Room) -> PathBuf {
    let installed = || {
        // Debian's is lib/ beside bin/; others have one more directory below.
        let told = Command::new(programs::postgres_bin().join("pg_config")).arg("--pkglibdir").output().expect("ask pg_config");
        PathBuf::from(String::from_utf8_lossy(&told.stdout).trim()).join("pg_tenure.so")
    };
    let from = std::env::var_os("TENURE_TEST_LIBRARY").map_or_else(installed, PathBuf::from);
    let dir = room.path().join("lib");
    fs::create_dir_all(&dir).expect("make the room's lib");
    fs::copy(&from, dir.join("pg_tenure.so")).unwrap_or_else(|error| panic!("copy {}: {error}; hint: `make install`", from.display()));
    dir
}

/// What CREATE EXTENSION would run, bound to the library in the room.
fn surface() -> String {
    let text = include_str!("../../sql/pg_tenure--0.1.0.sql");
    let text: Vec<&str> = text.lines().filter(|line| !line.starts_with('\\')).collect();
    format!("DROP SCHEMA IF EXISTS tenure, tenure_internal CASCADE; {}", text.join("\n").replace("MODULE_PATHNAME", "pg_tenure"))
}

fn system_id(room: &Room, dir: &Path) -> String {
    let program = programs::postgres_bin().join("pg_controldata");
    let output = room.command(program, room.path()).arg("-D").arg(dir).env("LC_ALL", "C").output().expect("run pg_controldata");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix("Database system identifier:"));
    line.expect("a system identifier").trim().to_owned()
}

/// utime, stime, cutime and cstime of `/proc/<pid>/stat`; children count once they have been waited for.
fn processor_ticks(pid: Pid) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    fields.split(' ').skip(11).take(4).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

fn run(room: &Room, program: &str, arguments: impl FnOnce(&mut Command)) {
    let mut command = room.command(programs::postgres_bin().join(program), room.path());
    command.stdout(Stdio::null());
    arguments(&mut command);
    let status = command.status().unwrap_or_else(|error| panic!("run {program}: {error}"));
    assert!(status.success(), "{program} failed: {status}");
}
