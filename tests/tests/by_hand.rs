//! Servers that somebody else than the arbiter starts on a member's data.

use stories::cluster::{Cluster, PATIENCE};
use stories::node::Node;
use stories::programs;
use stories::wait::{self, seconds};

/// `pg_ctl start`, as a distribution's unit does, with these options for the server.
fn pg_ctl_start(cluster: &Cluster, node: &Node, options: &str) {
    // As after a reboot: a killed server's process id may look alive for as long as nobody has reaped it.
    let _ = std::fs::remove_file(node.data_dir().join("postmaster.pid"));
    let _ = std::fs::remove_file(node.dir().join(format!(".s.PGSQL.{}.lock", node.port())));
    let mut command = cluster.room.command(programs::postgres_bin().join("pg_ctl"), cluster.room.path());
    let log = cluster.room.path().join("by_hand.log");
    command.arg("-D").arg(node.data_dir()).args(["start", "-w", "-s", "-o", options, "-l"]).arg(log);
    let status = command.stdout(std::process::Stdio::null()).status().expect("run pg_ctl");
    assert!(status.success(), "pg_ctl: {status}");
}

async fn pg_ctl_stop(cluster: &Cluster, node: &Node) {
    let mut command = cluster.room.command(programs::postgres_bin().join("pg_ctl"), cluster.room.path());
    let status = command.arg("-D").arg(node.data_dir()).args(["stop", "-m", "fast", "-w", "-s"]).status().expect("run pg_ctl");
    assert!(status.success(), "pg_ctl: {status}");
    // The arbiter clears up after the server now: one that is started in the same moment would be taken for what is left of it.
    wait::lasting(seconds(3)).await;
}

async fn refused(node: &Node) {
    let answer = node.query("CREATE TABLE IF NOT EXISTS zombie(n int)").await;
    let code = answer.as_ref().err().and_then(stories::node::sqlstate);
    assert_eq!(code.as_deref(), Some("25006"), "{answer:?}");
}

#[tokio::test]
async fn a_deposed_leader_that_is_started_by_hand_acknowledges_nothing() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let old = cluster.leader().await;
    let writer = cluster.writer().await;
    writer.goes_on(20, PATIENCE).await;
    old.kill();
    cluster.wait_until("another leader", |view| view.leads_other_than(old.name())).await;
    writer.goes_on(20, PATIENCE).await;
    // As it is, and with settings that name no cluster: the data knows.
    for options in ["", "-c tenure.scope="] {
        pg_ctl_start(&cluster, old, options);
        refused(old).await;
        old.kill();
    }
    pg_ctl_start(&cluster, old, "-c tenure.scope=");
    cluster.start(old);
    old.logged(&["the server that runs here is not this node's own"], PATIENCE).await;
    cluster.healthy().await;
    writer.goes_on(20, PATIENCE).await;
    let ledger = writer.finish();
    println!("a deposed leader started by hand: {}", ledger.summary());
    // In asynchronous mode what died with its host before is lost; what was tried on it afterwards was refused.
    cluster.verdict(&ledger).await.nothing_doubled();
}

#[tokio::test]
async fn a_cluster_becomes_plain_servers_in_three_commands() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    leader.query("CREATE TABLE kept AS SELECT 1 AS n").await.expect("write");
    let leave = async |node: &Node| {
        let mut command = tokio::process::Command::from(node.command(&cluster.room));
        command.arg("leave").arg(node.config_file()).output().await.expect("run tenure")
    };
    let refused = leave(standby).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("not in maintenance mode"), "{said}");
    assert!(standby.arbiter_runs() && standby.one("SELECT 1").await.is_ok(), "what is refused changes nothing");

    cluster.cli_ok(&["pause", "--wait"]).await;
    for node in [standby, leader] {
        let left = leave(node).await;
        assert!(left.status.success(), "{}{}", String::from_utf8_lossy(&left.stdout), String::from_utf8_lossy(&left.stderr));
        assert!(!node.arbiter_runs(), "an arbiter is left");
    }
    cluster.etcd.kill();
    for node in [leader, standby] {
        pg_ctl_start(&cluster, node, "");
        assert_eq!(node.one("SHOW shared_preload_libraries").await.expect("ask"), "");
    }
    leader.query("INSERT INTO kept VALUES (2)").await.expect("a plain primary writes");
    wait::until("the row on the standby", PATIENCE, async || match standby.one("SELECT count(*) FROM kept").await {
        Ok(count) if count == "2" => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    leader.query("DROP EXTENSION pg_tenure").await.expect("drop the extension");
    leader.query("DROP ROLE tenure_admin, tenure_operator").await.expect("drop its roles");
}

#[tokio::test]
async fn a_server_without_the_library_is_stopped_by_the_arbiter_that_finds_it() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let leader = cluster.leader().await;
    cluster.cli_ok(&["pause", "--wait"]).await;
    pg_ctl_stop(&cluster, leader).await;
    pg_ctl_start(&cluster, leader, "-c shared_preload_libraries=");
    leader.query("CREATE TABLE unfenced(n int)").await.expect("in maintenance mode it is left alone");
    wait::until("the member key to say so", PATIENCE, async || {
        let view = cluster.view().await.map_err(|why| why.to_string())?;
        let member = view.member(leader.name());
        if member["state"] == "running unfenced" { Ok(()) } else { Err(member.to_string()) }
    })
    .await;
    let check = cluster.cli(&["check"]).await;
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(said.contains("is not loaded"), "{said}");
    let metrics = leader.get("/metrics").await.expect("ask").body;
    let metric = metrics.lines().find(|line| line.starts_with("tenure_foreign_server{")).unwrap_or_default();
    assert!(metric.ends_with(" 1"), "{metric}");
    cluster.cli_ok(&["resume"]).await;
    leader.logged(&["the server that runs here is not this node's own"], PATIENCE).await;
    cluster.healthy().await;
    let writer = cluster.writer().await;
    writer.goes_on(20, seconds(30)).await;
    let ledger = writer.finish();
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_stop_and_start_by_hand_in_maintenance_mode_keeps_the_fence() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    writer.goes_on(20, PATIENCE).await;
    cluster.cli_ok(&["pause", "--wait"]).await;
    // Not `pg_ctl restart`, which remembers the command line.
    pg_ctl_stop(&cluster, leader).await;
    pg_ctl_start(&cluster, leader, "");
    writer.goes_on(20, PATIENCE).await;
    cluster.cli_ok(&["resume"]).await;
    writer.goes_on(20, PATIENCE).await;
    assert!(!leader.log().contains("is not this node's own"), "{}", leader.log());
    leader.freeze();
    cluster.wait_until("another leader", |view| view.leads_other_than(leader.name())).await;
    writer.goes_on(20, PATIENCE).await;
    leader.thaw();
    cluster.healthy().await;
    let ledger = writer.finish();
    println!("restarted by hand, then frozen: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_doubled();
}
