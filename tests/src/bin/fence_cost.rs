//! What the fence costs: `pgbench -N` on one server with the extension and on one without, by turns.
//!
//! `fence_cost [rounds] [seconds]`, 6 and 20 unless said. fsync is off, so that it is the processor that is measured
//! and not the disk, and statements are prepared, so that little else is done than what the fence adds to.
//! A third server, again without the extension, shows how far two equal servers differ here. The order changes
//! with every round. Only ratios travel to other machines; a busy machine shows in the control's spread.

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

fn tps(room: &Room, port: u16, seconds: &str) -> f64 {
    let text = pgbench(room, port, &["-n", "-N", "-M", "prepared", "-c", "4", "-j", "1", "-T", seconds]);
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.unwrap_or_else(|| panic!("no tps in {text}"))
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
    let ports = [plain.port(), fenced.port(), control.port()];
    for port in ports {
        pgbench(&fenced.room, port, &["-q", "-i", "-s", "10"]);
        tps(&fenced.room, port, "3"); // warms the caches
    }
    let (mut cost, mut noise) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut seen = [0.0; 3];
        for step in 0..3 {
            let which = (step + round) % 3;
            seen[which] = tps(&fenced.room, ports[which], &seconds);
        }
        let [plain, fenced, control] = seen;
        println!("round {}: plain {plain:.0}, fenced {fenced:.0}, control {control:.0} transactions per second", round + 1);
        cost.push(fenced / plain);
        noise.push(control / plain);
    }
    println!("fenced / plain:  {}", spread(&mut cost));
    println!("control / plain: {}", spread(&mut noise));
    assert_eq!(fenced.count("commits_refused").await + fenced.count("commits_cut").await, 0, "the lease ran all the time");
    ExitCode::SUCCESS
}
