//! pg_auto_failover in place of ours: its monitor and three nodes by `pg_autoctl`, its own switchover, the same faults under the same writer.

use super::act::{APART, CLIENTS_PATIENCE};
use super::rounds::{AUTO_FAILOVER_FAST, Event, Round, calm_ms};
use super::seen::Seen;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use stories::node::{self, PASSWORD};
use stories::open_loop;
use stories::ports::Port;
use stories::process::{self, Pid, Signal};
use stories::programs;
use stories::room::Room;
use stories::verdict::Verdict;
use stories::wait;
use stories::workload::{Ledger, Targets};

/// By its defaults a lost node costs 20 s until it is taken for unhealthy and 30 s until its demotion is: with a busy machine beside that.
const PATIENCE: Duration = Duration::from_secs(240);

/// What is set for [`AUTO_FAILOVER_FAST`], in milliseconds: everything by which its manual says that the time of a failover is decided.
///
/// Any number from 1 is taken. Keepers report once a second, which can't be set: what waits for reports or for a demotion that is reported waits so long.
/// The monitor's own looks come four times as often, and it tries once again, which is the least.
pub const FAST: [(&str, u64); 7] = [
    ("health_check_period", 250),
    ("health_check_timeout", 1000),
    ("health_check_max_retries", 1),
    ("health_check_retry_delay", 250),
    ("node_considered_unhealthy_timeout", 1000),
    ("primary_demote_timeout", 1000),
    ("startup_grace_period", 1000),
];

/// A directory with a server and its `pg_autoctl`: the monitor or a node.
struct Keeper {
    name: String,
    dir: PathBuf,
    port: Port,
    agent: Mutex<Option<Child>>,
}

/// What the monitor knows of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    name: String,
    reported: String,
    goal: String,
    healthy: bool,
}

/// A monitor, and three nodes.
struct Formation {
    monitor: Keeper,
    nodes: Vec<Keeper>,
    program: PathBuf,
    room: Room,
}

/// All of it.
pub async fn round(run: usize, round: Round, program: PathBuf) -> Result<Vec<Seen>> {
    let room = Room::new();
    let keeper = |name: &str| Keeper { name: name.to_owned(), dir: room.directory(name), port: Port::free(), agent: Mutex::new(None) };
    let (monitor, nodes) = (keeper("monitor"), ["n1", "n2", "n3"].map(keeper).into());
    let formation = Formation { monitor, nodes, program, room };
    let began = Instant::now();
    formation.start(round.contender == AUTO_FAILOVER_FAST).await?;
    let start = began.elapsed();
    formation.make_table().await;
    let mut seen = Vec::new();
    for (number, event) in (1..).zip(&round.events) {
        let one = Seen::nothing(*event, &round);
        if *event == Event::ColdStart {
            seen.push(Seen { pause: start, ..one });
            continue;
        }
        wait::lasting(Duration::from_millis(calm_ms(&round.contender, *event, run))).await;
        let (ledger, verdict) = formation.suffer(*event, number * APART).await?;
        seen.push(one.with(&ledger, &verdict));
    }
    formation.end().await;
    Ok(seen)
}

impl Formation {
    /// The monitor, then the first node, which makes the database, then the other two at once; waits until all are whole.
    async fn start(&self, fast: bool) -> Result<()> {
        let create = ["create", "monitor", "--hostname", "127.0.0.1", "--auth", "trust", "--no-ssl", "--run"];
        self.run(&self.monitor, &create);
        wait::until("pg_auto_failover's monitor", PATIENCE, async || self.known().await.map_err(|error| format!("{error:#}"))).await;
        if fast {
            for (name, milliseconds) in FAST {
                self.monitor.query("pg_auto_failover", &format!("ALTER SYSTEM SET pgautofailover.{name} = {milliseconds}")).await?;
            }
            self.monitor.query("pg_auto_failover", "SELECT pg_reload_conf()").await?;
        }
        let uri = format!("postgres://autoctl_node@127.0.0.1:{}/pg_auto_failover?sslmode=prefer", self.monitor.port.number());
        for node in &self.nodes {
            let create = ["create", "postgres", "--hostname", "127.0.0.1", "--name", &node.name, "--monitor", &uri];
            self.run(node, &[&create[..], &["--auth", "trust", "--no-ssl", "--run"]].concat());
            if node.name == self.nodes[0].name {
                wait::until("pg_auto_failover's first node", PATIENCE, async || {
                    let known = self.known().await.map_err(|error| format!("{error:#}"))?;
                    if known.iter().any(|one| one.reported == "single") { Ok(()) } else { Err(format!("{known:?}")) }
                })
                .await;
            }
        }
        self.whole().await;
        if fast {
            // Of a primary that is alone: as short as what the others wait for it.
            for node in &self.nodes {
                self.tool(node, &["config", "set", "timeout.network_partition_timeout", "1"]).await?;
                self.tool(node, &["reload"]).await?;
            }
        }
        Ok(())
    }

    fn command(&self, keeper: &Keeper, arguments: &[&str]) -> std::process::Command {
        let mut command = self.room.command(&self.program, &keeper.dir);
        // Its own files and its servers' sockets, too, are in the keeper's directory.
        for name in ["HOME", "XDG_RUNTIME_DIR", "PG_REGRESS_SOCK_DIR", "PGHOST"] {
            command.env(name, &keeper.dir);
        }
        command.args(arguments).arg("--pgdata").arg(keeper.data());
        command
    }

    /// Starts a keeper that stays.
    fn run(&self, keeper: &Keeper, create: &[&str]) {
        let log = self.room.log(&keeper.dir.join("pg_autoctl.log"));
        let mut command = self.command(keeper, create);
        command.arg("--pgport").arg(keeper.port.number().to_string()).arg("--pgctl").arg(programs::postgres_bin().join("pg_ctl"));
        command.stdout(log.try_clone().expect("share the log")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        *keeper.agent.lock().expect("nobody panicked with the lock") = Some(child);
    }

    /// Runs one of its commands to its end.
    async fn tool(&self, keeper: &Keeper, arguments: &[&str]) -> Result<()> {
        let mut command = tokio::process::Command::from(self.command(keeper, arguments));
        let said = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await;
        let said = said.with_context(|| format!("pg_autoctl {arguments:?} does not end"))?.context("run pg_autoctl")?;
        if !said.status.success() {
            bail!("pg_autoctl {arguments:?}: {said:?}");
        }
        Ok(())
    }

    async fn known(&self) -> Result<Vec<Known>> {
        let sql = "SELECT nodename, reportedstate, goalstate, health = 1 FROM pgautofailover.node ORDER BY nodename";
        let known = |row: Vec<String>| match <[String; 4]>::try_from(row) {
            Ok([name, reported, goal, healthy]) => Ok(Known { name, reported, goal, healthy: healthy == "t" }),
            Err(row) => bail!("four columns, not {row:?}"),
        };
        self.monitor.query("pg_auto_failover", sql).await?.into_iter().map(known).collect()
    }

    /// The node that is a primary, and is to be one.
    async fn leader(&self) -> &Keeper {
        wait::until("pg_auto_failover's primary", PATIENCE, async || {
            let known = self.known().await.map_err(|error| format!("{error:#}"))?;
            let is_primary = |one: &&Known| one.reported == one.goal && ["primary", "wait_primary"].contains(&one.goal.as_str());
            let leader = known.iter().find(is_primary).and_then(|one| self.nodes.iter().find(|node| node.name == one.name));
            leader.ok_or_else(|| format!("{known:?}"))
        })
        .await
    }

    /// One primary, two secondaries, and all as they should be.
    async fn whole(&self) {
        wait::until("pg_auto_failover's formation", PATIENCE, async || {
            let known = self.known().await.map_err(|error| format!("{error:#}"))?;
            let count = |state: &str| known.iter().filter(|one| one.healthy && one.reported == state && one.goal == state).count();
            if (count("primary"), count("secondary")) == (1, 2) { Ok(()) } else { Err(format!("{known:?}")) }
        })
        .await;
    }

    async fn make_table(&self) {
        wait::until("the writer's table", PATIENCE, async || {
            let made = self.leader().await.query("postgres", "CREATE TABLE IF NOT EXISTS written(id bigint, at timestamptz DEFAULT now())");
            made.await.map_err(|error| format!("{error:#}"))
        })
        .await;
    }

    async fn suffer(&self, event: Event, first_id: u64) -> Result<(Ledger, Verdict)> {
        let leader = self.leader().await;
        let targets = Targets::on_loopback(self.nodes.iter().map(|node| node.port.number()).collect());
        let writer = open_loop::start(targets.first_id(first_id).patience(CLIENTS_PATIENCE));
        writer.goes_on(100, PATIENCE).await;
        match event {
            Event::Switchover => self.tool(leader, &["perform", "switchover"]).await?,
            Event::PostmasterKilled => process::signal(leader.postmaster().context("no postmaster to kill")?, Signal::KILL),
            Event::NodeKilled => leader.kill(),
            other => bail!("{other} is not done to pg_auto_failover"),
        }
        writer.goes_on(50, PATIENCE).await;
        if !event.ends_a_node() {
            self.whole().await;
        }
        writer.goes_on(50, PATIENCE).await;
        let ledger = tokio::task::spawn_blocking(|| writer.finish()).await.context("the writer's ledger")?;
        if event == Event::Switchover && self.leader().await.name == leader.name {
            bail!("{} leads on after a switchover", leader.name);
        }
        let verdict = wait::until("the verdict", PATIENCE, async || {
            let rows = self.leader().await.query("postgres", "SELECT id, count(*) FROM written GROUP BY id").await;
            rows.and_then(|rows| Verdict::of_rows(rows, &ledger)).map_err(|error| format!("{error:#}"))
        })
        .await;
        Ok((ledger, verdict))
    }

    /// Asks all of them to end, so that their servers take their shared memory with them; what does not is killed with the room.
    async fn end(&self) {
        for keeper in self.nodes.iter().chain([&self.monitor]) {
            if let Some(child) = &*keeper.agent.lock().expect("nobody panicked with the lock") {
                process::signal(Pid::from_child(child), Signal::TERM);
            }
        }
        let until = Instant::now() + Duration::from_secs(15);
        while Instant::now() < until && !process::below(self.room.path()).is_empty() {
            wait::lasting(Duration::from_millis(100)).await;
        }
    }
}

impl Keeper {
    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// All processes here, the agent first so that it can't react.
    fn kill(&self) {
        if let Some(mut child) = self.agent.lock().expect("nobody panicked with the lock").take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        process::kill_below(&self.dir);
    }

    fn postmaster(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        Pid::from_raw(text.lines().next()?.trim().parse().ok()?)
    }

    async fn query(&self, database: &str, sql: &str) -> Result<Vec<Vec<String>>> {
        let client = node::connect_in(database, "127.0.0.1", self.port.number(), "postgres", PASSWORD, Duration::from_secs(3)).await?;
        node::rows(&client, sql).await
    }
}

/// Both packages of it: the program, and the monitor's extension for this PostgreSQL.
pub fn installed() -> Option<PathBuf> {
    let extension = programs::postgres_bin().join("../lib/pgautofailover.so");
    programs::pg_autoctl().filter(|_| Path::new(&extension).exists())
}
