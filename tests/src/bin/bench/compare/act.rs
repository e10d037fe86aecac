//! One round: a new cluster, and each of its events under a writer with an open loop.

use super::rounds::{Event, Manager, Round, calm_ms};
use super::seen::{Idle, Seen};
use super::{auto_failover, idle};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use stories::cluster::{Cluster, PATIENCE};
use stories::haproxy::Haproxy;
use stories::isolation::{self, Fault, Plan};
use stories::node::Node;
use stories::open_loop;
use stories::storm::network::Network;
use stories::verdict::Verdict;
use stories::wait;
use stories::workload::{Ledger, Targets};

/// A server that leaves a client without any answer for so long is given up.
pub const CLIENTS_PATIENCE: Duration = Duration::from_secs(1);
/// Between the first ids of two writers.
pub const APART: u64 = 1_000_000;

/// What a comparison runs besides what this checkout builds.
#[derive(Debug, Clone)]
pub struct Others {
    /// Patroni's agent.
    pub patroni: PathBuf,
    /// Its tool.
    pub patronictl: PathBuf,
    /// None where it is not installed.
    pub haproxy: Option<PathBuf>,
    /// `pg_autoctl`; the same.
    pub auto_failover: Option<PathBuf>,
}

/// In what is printed.
pub fn name(round: &Round) -> String {
    let events: Vec<&str> = round.events.iter().map(|event| event.key()).collect();
    format!("{}, {} ({})", round.contender.label, round.setting, events.join(", "))
}

/// All of it.
pub async fn round(run: usize, round: Round, others: Others) -> Result<Vec<Seen>> {
    if round.contender.manager == Manager::AutoFailover {
        return auto_failover::round(run, round, others.auto_failover.context("no pg_auto_failover here")?).await;
    }
    let plan = plan(&round, &others.patroni);
    let network = match round.events.contains(&Event::NodeCut) {
        true => Some(isolation::network().context("make a network; hint: as root, with ip(8)")?),
        false => None,
    };
    let cluster = isolation::planned(&plan, network.as_ref()).await;
    let started = Instant::now();
    cluster.nodes.iter().for_each(|node| cluster.start(node));
    isolation::whole(&cluster, &plan).await;
    let start = started.elapsed();
    voters(&cluster, round.setting.quorum).await;
    make_table(&cluster).await;
    let haproxy = match round.setting.haproxy {
        true => Some(Haproxy::before(&cluster, others.haproxy.as_deref().context("no HAProxy here")?)),
        false => None,
    };
    let targets = haproxy.as_ref().map_or_else(|| cluster.targets(), |haproxy| Targets::on_loopback(vec![haproxy.writes.number()]));
    let mut seen = Vec::new();
    for (number, event) in (1..).zip(&round.events) {
        let one = Seen::nothing(*event, &round);
        if *event == Event::ColdStart {
            seen.push(Seen { pause: start, ..one });
            continue;
        }
        wait::lasting(Duration::from_millis(calm_ms(&round.contender, *event, run))).await;
        if *event == Event::Idle {
            let idle: Idle = idle::watch(&cluster).await?;
            seen.push(Seen { idle: Some(idle), ..one });
            continue;
        }
        let (network, patronictl) = (network.as_ref(), others.patronictl.as_path());
        let under = Under { cluster: &cluster, plan: &plan, network, patronictl, targets: &targets, round: &round };
        let (ledger, verdict) = under.suffer(*event, number * APART).await?;
        seen.push(one.with(&ledger, &verdict));
    }
    Ok(seen)
}

fn plan(round: &Round, patroni: &Path) -> Plan {
    let [ttl, loop_wait, retry_timeout] = round.contender.timing;
    let mut dynamic = json!({"loop_wait": loop_wait, "retry_timeout": retry_timeout});
    if round.setting.quorum {
        dynamic["synchronous_mode"] = json!("quorum");
    }
    if round.contender.manager == Manager::PgTenure {
        dynamic["deposition"] = json!(if round.contender.deposition { "on" } else { "off" });
    }
    if round.events.contains(&Event::EtcdStoppedFailsafe) {
        dynamic["failsafe_mode"] = json!(true);
    }
    // The fault says only that no network is needed; who strikes is this file.
    let plan = Plan::of(Fault::NodeKilled, Duration::ZERO, ttl);
    let patroni = (round.contender.manager == Manager::Patroni).then(|| patroni.to_owned());
    let etcds = if round.events.contains(&Event::NodeKilledWithEtcdsLeader) { 3 } else { plan.etcds };
    Plan { synchronous: round.setting.quorum, dynamic, patroni, etcds, ..plan }
}

/// In quorum mode a cluster is whole once both standbys are voters, under either of the two.
async fn voters(cluster: &Cluster, quorum: bool) {
    if quorum {
        cluster.wait_until("two voters", |view| view.synchronous().is_some_and(|(_, voters)| voters.len() == 2)).await;
    }
}

async fn make_table(cluster: &Cluster) {
    wait::until("the writer's table", PATIENCE, async || {
        let leader = cluster.leader().await;
        let made = leader.query("CREATE TABLE IF NOT EXISTS written(id bigint, at timestamptz DEFAULT now())").await;
        made.map_err(|error| format!("{error:#}"))
    })
    .await;
}

/// A cluster under a writer.
struct Under<'a> {
    cluster: &'a Cluster,
    plan: &'a Plan,
    network: Option<&'a Network>,
    patronictl: &'a Path,
    targets: &'a Targets,
    round: &'a Round,
}

impl Under<'_> {
    async fn suffer(&self, event: Event, first_id: u64) -> Result<(Ledger, Verdict)> {
        let leader = self.cluster.leader().await;
        let writer = open_loop::start(self.targets.clone().first_id(first_id).patience(CLIENTS_PATIENCE));
        writer.goes_on(100, PATIENCE).await;
        self.strike(event, leader, true).await?;
        wait::lasting(Duration::from_secs(event.lasts_s(self.plan.ttl))).await;
        self.strike(event, leader, false).await?;
        writer.goes_on(50, PATIENCE).await;
        if !event.ends_a_node() {
            isolation::whole(self.cluster, self.plan).await;
            voters(self.cluster, self.round.setting.quorum).await;
        }
        writer.goes_on(50, PATIENCE).await;
        // Waits for what is due already, which may take seconds: off this thread, which has other work.
        let ledger = tokio::task::spawn_blocking(|| writer.finish()).await.context("the writer's ledger")?;
        let verdict = wait::until("the verdict", PATIENCE, async || {
            let leader = self.cluster.leader().await;
            Verdict::of(leader, &ledger).await.map_err(|error| format!("{error:#}"))
        })
        .await;
        Ok((ledger, verdict))
    }

    async fn strike(&self, event: Event, leader: &Node, begins: bool) -> Result<()> {
        match (event, begins) {
            (Event::Switchover, true) => self.switchover(leader).await?,
            (Event::PostmasterKilled, true) => leader.kill_postmaster(),
            (Event::NodeKilled, true) => leader.kill(),
            (Event::NodeKilledWithEtcdsLeader, true) => {
                // One host: etcd's part first, so that its leader says nothing of what becomes of the node.
                self.cluster.etcd.leader().await.context("etcd has no leader")?.kill();
                leader.kill();
            }
            (Event::NodeFrozen, true) => leader.freeze(),
            (Event::NodeFrozen, false) => leader.thaw(),
            (Event::AgentFrozen, true) => leader.freeze_arbiter(),
            (Event::AgentFrozen, false) => leader.thaw_arbiter(),
            (Event::NodeCut, true) => self.network.context("a cut needs a network")?.unplug(leader.name()),
            (Event::NodeCut, false) => self.network.context("a cut needs a network")?.plug(leader.name()),
            (Event::EtcdStopped | Event::EtcdStoppedFailsafe, true) => self.cluster.etcd.kill(),
            (Event::EtcdStopped | Event::EtcdStoppedFailsafe, false) => self.cluster.etcd.run(&self.cluster.room).await,
            (Event::Switchover | Event::PostmasterKilled | Event::NodeKilled | Event::NodeKilledWithEtcdsLeader, false)
            | (Event::ColdStart | Event::Idle, _) => {}
        }
        Ok(())
    }

    /// By each manager's own tool, and waited for.
    async fn switchover(&self, leader: &Node) -> Result<()> {
        if self.plan.patroni.is_none() {
            self.cluster.cli_ok(&["switchover", "--force"]).await;
        } else {
            let mut command = tokio::process::Command::new(self.patronictl);
            command.arg("-c").arg(leader.config_file()).args(["switchover", "--force"]).kill_on_drop(true);
            let said =
                tokio::time::timeout(PATIENCE, command.output()).await.context("patronictl does not end")?.context("run patronictl")?;
            if !said.status.success() {
                bail!("patronictl switchover: {said:?}");
            }
        }
        let old = leader.name().to_owned();
        self.cluster.wait_until("another leader", |view| view.leads_other_than(&old)).await;
        Ok(())
    }
}
