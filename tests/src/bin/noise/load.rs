//! Clients as fast as they go: pgbench, a minute at a time, started again where some of its clients gave up.

use crate::ground::Ground;
use anyhow::{Context, Result, bail};
use std::process::Stdio;
use std::time::{Duration, Instant};
use stories::node::PASSWORD;
use stories::programs;

/// How many sessions.
const CLIENTS: &str = "12";
/// 300 MB, more than the shared buffers.
const SCALE: &str = "20";
/// For the last transactions of a minute; a client whose server is gone without a word waits for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// What all of it came to.
#[derive(Debug, Default)]
pub struct Load {
    /// Done.
    pub transactions: u64,
    /// What each client said that gave up.
    pub failed: Vec<String>,
}

fn pgbench(ground: &Ground, arguments: &[&str]) -> tokio::process::Command {
    let cluster = &ground.cluster;
    let of = |part: &dyn Fn(&stories::node::Node) -> String| cluster.nodes.iter().map(part).collect::<Vec<_>>().join(",");
    let mut command = cluster.room.command(programs::postgres_bin().join("pgbench"), cluster.room.path());
    command
        .args(["-h", &of(&|node| node.host().to_owned()), "-p", &of(&|node| node.port().to_string()), "-U", "postgres"])
        .args(arguments)
        .arg("postgres")
        .envs([("PGPASSWORD", PASSWORD), ("PGTARGETSESSIONATTRS", "read-write"), ("PGCONNECT_TIMEOUT", "5")])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    command
}

/// Makes the tables.
pub async fn fill(ground: &Ground) -> Result<()> {
    let output = pgbench(ground, &["-i", "-q", "-s", SCALE]).output().await.context("run pgbench")?;
    if !output.status.success() {
        bail!("pgbench -i: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// Goes on until the end.
pub async fn run(ground: &Ground, began: Instant, lasts: Duration) -> Load {
    let mut load = Load::default();
    loop {
        let left = lasts.saturating_sub(began.elapsed()).as_secs();
        if left < 2 {
            return load;
        }
        let seconds = left.min(60).to_string();
        let mut command = pgbench(ground, &["-n", "-c", CLIENTS, "-j", "2", "-T", &seconds]);
        let at = began.elapsed().as_secs();
        let output = match tokio::time::timeout(Duration::from_secs(left.min(60)) + PATIENCE, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => {
                load.failed.push(error.to_string());
                return load;
            }
            Err(_) => {
                load.failed.push(format!("{at} s: a client of this minute has no answer after {PATIENCE:?} more"));
                continue;
            }
        };
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let done = out.lines().find_map(|line| line.strip_prefix("number of transactions actually processed: "));
        load.transactions += done.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
        let failed = err.lines().filter(|line| line.contains("pgbench: error:") && !line.contains("Run was aborted"));
        load.failed.extend(failed.map(|line| format!("{at} s: {line}")));
        if done.is_none() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
