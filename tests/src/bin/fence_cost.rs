//! What the fence costs: `pgbench -N` on one server with the extension and on one without, by turns.
//!
//! `fence_cost [rounds] [seconds]`, 6 and 20 unless said. fsync is off, so that it is the processor that is measured
//! and not the disk, and statements are prepared, so that little else is done than what the fence adds to.
//! A third server, again without the extension, shows how far two equal servers differ here. The order changes
//! with every round. Besides transactions per second it takes the processor time that the whole server used per
//! transaction, its lease worker included: that says something on a busy machine too, where the first is noise.
//! Only ratios travel to other machines.

use std::process::{ExitCode, Stdio};
use stories::alone::{Alone, Server};
use stories::programs;
use stories::room::Room;

const SETTINGS: [(&str, &str); 4] = [("fsync", "off"), ("shared_buffers", "256MB"), ("max_wal_size", "4GB"), ("checkpoint_timeout", "1h")];

/// Runs pgbench; gives what it prints.
fn pgbench(room: &Room, port: u16, arguments: &[&str]) -> String {
    let output = room
        .command(programs::postgres_bin().join("pgbench"), room.path())
        .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port.to_string()])
        .args(arguments)
        .arg("postgres")
        .stderr(Stdio::piped())
        .output()
        .expect("run pgbench");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "pgbench: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// One measurement.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Transactions per second.
    tps: f64,
    /// Processor time of the server per transaction, in microseconds.
    cpu_us: f64,
}

async fn measure(room: &Room, server: &Server, seconds: &str) -> Seen {
    let before = server.processor_time().await;
    let text = pgbench(room, server.port(), &["-n", "-N", "-M", "prepared", "-c", "4", "-j", "1", "-T", seconds]);
    let used = server.processor_time().await.saturating_sub(before);
    let number =
        |name: &str| -> Option<f64> { text.lines().find_map(|line| line.strip_prefix(name)?.split([' ', '/']).next()?.parse().ok()) };
    let found = number("tps = ").zip(number("number of transactions actually processed: "));
    let (tps, transactions) = found.unwrap_or_else(|| panic!("no numbers in {text}"));
    Seen { tps, cpu_us: used.as_secs_f64() * 1e6 / transactions }
}

/// Least, median and greatest.
fn spread(ratios: &mut [f64]) -> String {
    ratios.sort_by(f64::total_cmp);
    let middle = ratios.len() / 2;
    let median = if ratios.len().is_multiple_of(2) { f64::midpoint(ratios[middle - 1], ratios[middle]) } else { ratios[middle] };
    format!("min {:.4}  median {median:.4}  max {:.4}", ratios[0], ratios[ratios.len() - 1])
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(6).max(1);
    let seconds = arguments.next().unwrap_or_else(|| "20".to_owned());
    let fenced = Alone::start(&SETTINGS).await;
    let plain = Server::plain(&fenced.room, "plain", &SETTINGS).await;
    let control = Server::plain(&fenced.room, "control", &SETTINGS).await;
    let servers: [&Server; 3] = [&plain, &fenced, &control];
    for server in servers {
        pgbench(&fenced.room, server.port(), &["-q", "-i", "-s", "10"]);
        measure(&fenced.room, server, "3").await; // warms the caches
    }
    let mut ratios: [Vec<f64>; 4] = Default::default();
    for round in 1..=rounds {
        let mut seen = [Seen::default(); 3];
        for step in 0..3 {
            let which = (step + round) % 3;
            seen[which] = measure(&fenced.room, servers[which], &seconds).await;
        }
        let [plain, fenced, control] = seen;
        let line = |seen: Seen| format!("{:.0} tps, {:.1} us", seen.tps, seen.cpu_us);
        println!("round {round}: plain {}; fenced {}; control {}", line(plain), line(fenced), line(control));
        ratios[0].push(fenced.cpu_us / plain.cpu_us);
        ratios[1].push(control.cpu_us / plain.cpu_us);
        ratios[2].push(fenced.tps / plain.tps);
        ratios[3].push(control.tps / plain.tps);
    }
    let names = ["processor time, fenced / plain ", "processor time, control / plain", "tps, fenced / plain ", "tps, control / plain"];
    for (name, ratios) in names.iter().zip(&mut ratios) {
        println!("{name}: {}", spread(ratios));
    }
    assert_eq!(fenced.count("commits_refused").await + fenced.count("commits_cut").await, 0, "the lease ran all the time");
    ExitCode::SUCCESS
}
