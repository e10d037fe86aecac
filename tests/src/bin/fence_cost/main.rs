//! What the fence costs: `pgbench` on one server with the extension, leading a cluster with its fence open, on one without,
//! and on a third, again without, as a control; by turns, in one run.
//!
//! `fence_cost [rounds] [seconds]`, 30 and 2 unless said, for the timed part. fsync and autovacuum are off and statements are
//! prepared, so that little else is done than what the fence adds to.
//!
//! 1. Instructions that the backends execute per transaction (`instructions.rs`): repeatable, so it decides on a busy
//!    machine too. It says nothing of caches and of the kernel.
//! 2. Time and processor time in many short rounds (`timed.rs`): says everything, where the machine is quiet enough.
//!
//! Ends with 1 where either part shows that the fence costs more than 1 %, with 2 where nothing could be counted.

mod instructions;
mod timed;

use std::process::{ExitCode, Stdio};
use stories::programs;
use stories::room::Room;

/// The most that the fence may add.
const LIMIT: f64 = 0.01;

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

fn percent(ratio: f64) -> String {
    format!("{:+.3} %", (ratio - 1.0) * 100.0)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let rounds: usize = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(30).max(6);
    let seconds = arguments.next().unwrap_or_else(|| "2".to_owned());
    if let Err(error) = std::process::Command::new("valgrind").arg("--version").output() {
        println!("valgrind can't be run: {error}; hint: apt-get install valgrind");
        return ExitCode::from(2);
    }
    let counted = instructions::measure().await;
    let timed = timed::measure(rounds, &seconds).await;
    println!("\nverdict by instructions: {}", counted.sentence());
    println!("verdict by time: {}", timed.sentence());
    if counted.is_too_much() || timed.is_too_much() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
