//! Instructions per transaction, under callgrind, by turns: plain, fenced, control.

use super::{LIMIT, SETTINGS, percent, pgbench};
use std::time::Duration;
use stories::alone::{Alone, PATIENCE, Server};
use stories::callgrind::{self, Count};
use stories::room::Room;
use stories::wait;

/// Rounds of the three servers.
const ROUNDS: usize = 3;
/// Transactions of a short and of a long run. What a connection costs is in both, so their difference is that of transactions.
const SHORT: u32 = 100;
const LONG: u32 = 1100;

/// pgbench's scripts: with a write in each transaction, and a single read.
const SCRIPTS: [(&str, &str); 2] = [("-N", "UPDATE, SELECT, INSERT, COMMIT"), ("-S", "one SELECT")];

/// Instructions per transaction.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    all: f64,
    own: f64,
    called: f64,
}

/// The medians of one script.
struct Script {
    name: &'static str,
    plain: Cost,
    fenced: Cost,
    control: Cost,
}

impl Script {
    fn ratio(&self) -> f64 {
        self.fenced.all / self.plain.all
    }
}

/// What was counted.
pub struct Counted(Vec<Script>);

impl Counted {
    /// The fence costs more than it may, in transactions that write.
    pub fn is_too_much(&self) -> bool {
        self.0[0].ratio() >= 1.0 + LIMIT
    }

    /// The result in words.
    pub fn sentence(&self) -> String {
        let of = |script: &Script| {
            format!("pgbench {} {} (control {})", script.name, percent(script.ratio()), percent(script.control.all / script.plain.all))
        };
        let what = if self.is_too_much() { "the fence costs more than 1 %" } else { "the fence costs less than 1 %" };
        format!("{what}: {}", self.0.iter().map(of).collect::<Vec<_>>().join(", "))
    }
}

/// Runs pgbench and adds up what the backends executed that it used, once they have ended.
async fn count(room: &Room, server: &Server, script: &str, transactions: u32) -> Count {
    let profiles = server.profiles().expect("a server under callgrind");
    let before = quiet(server).await;
    callgrind::take(profiles).expect("forget what others did");
    pgbench(room, server.port(), &["-n", script, "-M", "prepared", "-c", "1", "-t", &transactions.to_string()]);
    wait::until("pgbench's backends to end", PATIENCE, async || match server.processes() {
        now if now <= before => Ok(()),
        now => Err(format!("{now} processes, {before} before")),
    })
    .await;
    callgrind::take(profiles).expect("read the profiles")
}

/// Waits until the server's processes no longer become fewer; gives their number.
async fn quiet(server: &Server) -> usize {
    let mut last = usize::MAX;
    wait::until("the server to be quiet", PATIENCE, async || {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = server.processes();
        if std::mem::replace(&mut last, now) == now { Ok(now) } else { Err(now.to_string()) }
    })
    .await
}

async fn cost(room: &Room, server: &Server, script: &str) -> Cost {
    let (short, long) = (count(room, server, script, SHORT).await, count(room, server, script, LONG).await);
    let each = |short: u64, long: u64| (long as f64 - short as f64) / f64::from(LONG - SHORT);
    Cost { all: each(short.all, long.all), own: each(short.own, long.own), called: each(short.called, long.called) }
}

fn median(mut costs: Vec<Cost>) -> Cost {
    costs.sort_by(|a, b| a.all.total_cmp(&b.all));
    costs[costs.len() / 2]
}

/// Counts.
pub async fn measure() -> Counted {
    let mut settings = SETTINGS.to_vec();
    // So slow a server must not look dead to those who time it.
    settings.extend([("wal_writer_delay", "10s"), ("bgwriter_delay", "10s"), ("authentication_timeout", "600s")]);
    let fenced = Alone::start_counted(&settings).await;
    let plain = Server::plain_counted(&fenced.room, "plain", &settings).await;
    let control = Server::plain_counted(&fenced.room, "control", &settings).await;
    fenced.fence_is("open").await;
    let servers: [&Server; 3] = [&plain, &fenced, &control];
    for server in servers {
        // Rows made by the server itself: pgbench would send them one by one.
        pgbench(&fenced.room, server.port(), &["-q", "-i", "-I", "dtGvp", "-s", "1"]);
    }
    let mut scripts = Vec::new();
    for (name, what) in SCRIPTS {
        let mut seen: [Vec<Cost>; 3] = Default::default();
        for server in servers {
            cost(&fenced.room, server, name).await; // fills caches and catalogs
        }
        for round in 0..ROUNDS {
            for step in 0..3 {
                let which = (step + round) % 3;
                seen[which].push(cost(&fenced.room, servers[which], name).await);
            }
            let [plain, fenced, control] = seen.each_ref().map(|costs| costs[round].all);
            println!("pgbench {name}, instructions per transaction: plain {plain:.0}, fenced {fenced:.0}, control {control:.0}");
        }
        let [plain, fenced, control] = seen.map(median);
        let share = |part: f64| part / fenced.all * 100.0;
        println!(
            "pgbench {name} ({what}): fenced / plain {}, control / plain {}; the fence's own code {:.0} instructions ({:.3} %), what it calls {:.0} ({:.3} %)",
            percent(fenced.all / plain.all),
            percent(control.all / plain.all),
            fenced.own,
            share(fenced.own),
            fenced.called,
            share(fenced.called),
        );
        scripts.push(Script { name, plain, fenced, control });
    }
    assert_eq!(fenced.count("commits_refused").await + fenced.count("commits_cut").await, 0, "the lease ran all the time");
    assert_eq!(fenced.fence().await, "open", "the lease ran all the time");
    Counted(scripts)
}
