//! What a cluster costs that has nothing to do: memory and processor time of what stands beside Postgres, and etcd's part.

use super::rounds::IDLE_S;
use super::seen::Idle;
use anyhow::{Context, Result};
use rustix::process::Pid;
use std::fs;
use std::time::Duration;
use stories::cluster::Cluster;
use stories::wait;

/// Of a second; the kernel's constant for what it tells programs.
const TICKS: u64 = 100;

/// Watches for a while.
pub async fn watch(cluster: &Cluster) -> Result<Idle> {
    let agents: Vec<Pid> = cluster.nodes.iter().filter_map(|node| node.arbiter_pid()).collect();
    let inside: Vec<Pid> = cluster.nodes.iter().filter_map(|node| node.lease_worker()).collect();
    let both = [&agents[..], &inside].concat();
    let (processor, etcd) = (ticks(&both)?, metrics(cluster).await?);
    wait::lasting(Duration::from_secs(IDLE_S)).await;
    let (processor, etcd) = (ticks(&both)? - processor, metrics(cluster).await? - etcd);
    let mean = |pids: &[Pid], names: &[&str]| -> Result<u64> {
        let all: Result<Vec<u64>> = pids.iter().map(|pid| memory_kib(*pid, names)).collect();
        Ok(all?.iter().sum::<u64>() / pids.len().max(1) as u64)
    };
    let a_minute = |of: u64| of * 60 / IDLE_S;
    Ok(Idle {
        agent_resident_kib: mean(&agents, &["Rss"])?,
        agent_proportional_kib: mean(&agents, &["Pss"])?,
        inside_private_kib: mean(&inside, &["Private_Clean", "Private_Dirty"])?,
        processor_ms: a_minute(processor * 1000 / TICKS) / agents.len().max(1) as u64,
        etcd_requests: a_minute(etcd.requests),
        etcd_processor_ms: a_minute(etcd.processor_ms),
    })
}

/// Processor time of all of them.
fn ticks(pids: &[Pid]) -> Result<u64> {
    let of = |pid: &Pid| {
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).context("read processor time")?;
        ticks_in(&stat).with_context(|| format!("no processor time in {stat}"))
    };
    pids.iter().map(of).sum()
}

/// The fields 14 and 15 of proc(5)'s stat; the second one, in brackets, may hold spaces.
fn ticks_in(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

fn memory_kib(pid: Pid, names: &[&str]) -> Result<u64> {
    let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    Ok(text
        .lines()
        .filter(|line| line.split(':').next().is_some_and(|name| names.contains(&name)))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum())
}

/// What etcd counts from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counted {
    requests: u64,
    processor_ms: u64,
}

impl std::ops::Sub for Counted {
    type Output = Counted;

    fn sub(self, before: Counted) -> Counted {
        Counted { requests: self.requests - before.requests, processor_ms: self.processor_ms - before.processor_ms }
    }
}

async fn metrics(cluster: &Cluster) -> Result<Counted> {
    Ok(counted(&cluster.etcd.metrics().await?))
}

/// Every message of every client: a request, or one more on a stream that is open (a renewal is such a one).
fn counted(page: &str) -> Counted {
    let sum = |name: &str| -> f64 {
        let of = |line: &str| line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?.rsplit(' ').next()?.parse::<f64>().ok();
        page.lines().filter_map(of).sum()
    };
    Counted { requests: sum("grpc_server_msg_received_total") as u64, processor_ms: (sum("process_cpu_seconds_total") * 1000.0) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_found_behind_a_name_with_spaces_and_brackets() {
        assert_eq!(ticks_in("7 (a (b) c) S 1 7 7 0 -1 4194560 1 2 3 4 50 25 0 0 20 0 1"), Some(75));
        assert_eq!(ticks_in("7 (a) S"), None);
    }

    #[test]
    fn messages_of_all_kinds_are_added() {
        let page = "# TYPE grpc_server_msg_received_total counter\n\
                    grpc_server_msg_received_total{grpc_method=\"Range\",grpc_type=\"unary\"} 40\n\
                    grpc_server_msg_received_total{grpc_method=\"LeaseKeepAlive\",grpc_type=\"bidi_stream\"} 2\n\
                    grpc_server_msg_sent_total{grpc_method=\"Range\"} 99\n\
                    process_cpu_seconds_total 1.25\n";
        assert_eq!(counted(page), Counted { requests: 42, processor_ms: 1250 });
    }
}
