//! The arbiter dies, freezes, is asked to stop, and comes back; Postgres is not its hostage.

use std::time::Duration;
use stories::cluster::{Cluster, PATIENCE};
use stories::process;
use stories::wait::{self, seconds};

#[tokio::test]
async fn a_killed_arbiter_leaves_a_serving_primary_and_adopts_it_when_it_is_back() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let leader = cluster.leader().await;
    let postmaster = leader.postmaster();
    let writer = cluster.writer().await;
    leader.kill_arbiter();
    // Two leases' time: they are renewed from inside.
    wait::lasting(seconds(6)).await;
    assert_eq!(cluster.leader().await.name(), leader.name());
    cluster.start(leader);
    wait::until("the arbiter to answer again", PATIENCE, async || {
        let answer = leader.get("/primary").await?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
    .await;
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("arbiter killed and back: {}", ledger.summary());
    assert_eq!(leader.postmaster(), postmaster, "adopted, not restarted");
    assert_eq!(ledger.unknown().count() + ledger.refused().count(), 0, "{}", ledger.summary());
    assert!(ledger.longest_pause() < Duration::from_secs(1), "{}", ledger.summary());
    let view = cluster.healthy().await;
    assert_eq!(view.leader_timeline(), Some(1), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    // It has its hands back: a switchover goes through it.
    cluster.cli_ok(&["switchover", "--force"]).await;
    let view = cluster.healthy().await;
    assert!(view.leads_other_than(leader.name()), "{view}");
}

#[tokio::test]
async fn an_arbiter_that_is_restarted_leaves_the_server_to_the_next() {
    let cluster = Cluster::of(1).ttl(3).start().await;
    let leader = cluster.leader().await;
    let postmaster = leader.postmaster();
    let writer = cluster.writer().await;
    assert_eq!(leader.leave_arbiter(), Some(0), "it ended by itself, and well");
    cluster.start(leader);
    leader.logged(&["adopting the server"], PATIENCE).await;
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("arbiter restarted: {}", ledger.summary());
    assert_eq!(leader.postmaster(), postmaster, "adopted, not restarted");
    assert_eq!(ledger.unknown().count() + ledger.refused().count(), 0, "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn an_arbiter_frozen_for_ten_seconds_costs_nobody_a_write() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    leader.freeze_arbiter();
    wait::lasting(seconds(10)).await;
    leader.thaw_arbiter();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("arbiter frozen for ten seconds: {}", ledger.summary());
    assert_eq!(cluster.leader().await.name(), leader.name());
    assert_eq!(ledger.unknown().count() + ledger.refused().count(), 0, "{}", ledger.summary());
    assert!(ledger.longest_pause() < Duration::from_secs(1), "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_leader_asked_to_stop_hands_over_first() {
    let cluster = Cluster::of(3).start().await;
    let old = cluster.leader().await;
    let logged = old.log();
    let writer = cluster.writer().await;
    old.stop();
    let status = old.ended(PATIENCE).await;
    assert!(status.success(), "{status}");
    assert_eq!(old.postmaster(), None, "a planned stop ends Postgres too");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("leader asked to stop: {}", ledger.summary());
    let view = cluster.healthy_members(2).await;
    assert!(view.leads_other_than(old.name()), "{view}");
    assert!(ledger.longest_pause() < seconds(4), "no wait for the lease to run out: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    cluster.start(old);
    cluster.healthy().await;
    let logged = old.log_since(&logged).to_lowercase();
    assert!(!logged.contains("rewind"), "it stopped cleanly and was rewound all the same:\n{logged}");
}

#[tokio::test]
async fn a_standby_asked_to_stop_goes_quietly() {
    let cluster = Cluster::of(3).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let writer = cluster.writer().await;
    standby.stop();
    let status = standby.ended(PATIENCE).await;
    assert!(status.success(), "{status}");
    assert_eq!(standby.postmaster(), None, "a planned stop ends Postgres too");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    assert_eq!(ledger.unknown().count() + ledger.refused().count(), 0, "{}", ledger.summary());
    cluster.start(standby);
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
}

#[tokio::test]
async fn a_cluster_of_one_stops_and_starts() {
    let cluster = Cluster::of(1).start().await;
    let only = cluster.leader().await;
    only.query("CREATE TABLE t(n int)").await.expect("write");
    only.stop();
    let status = only.ended(PATIENCE).await;
    assert!(status.success(), "{status}");
    cluster.start(only);
    cluster.healthy().await;
    only.query("INSERT INTO t VALUES (1)").await.expect("write again");
}

#[tokio::test]
async fn an_arbiter_that_begins_while_etcd_is_away_answers_from_what_the_node_knows() {
    let cluster = Cluster::of(2).ttl(30).dynamic("failsafe_mode", true.into()).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let writer = cluster.writer().await;
    cluster.etcd.freeze();
    for node in &cluster.nodes {
        node.kill_arbiter();
        cluster.start(node);
    }
    // The lease of thirty seconds runs yet, so the leader's own page is open.
    for (node, path, expected) in [
        (leader, "/liveness", 200),
        (leader, "/primary", 200),
        (leader, "/replica", 503),
        (standby, "/liveness", 200),
        (standby, "/primary", 503),
        (standby, "/replica", 200),
        (standby, "/sync", 503),
    ] {
        wait::until(&format!("{path} of {}", node.name()), PATIENCE, async || {
            let answer = node.get(path).await?;
            anyhow::ensure!(answer.status == expected, "{answer:?}");
            Ok(())
        })
        .await;
    }
    let ask = serde_json::json!({"name": leader.name(), "ttl": 30});
    let promise = standby.post("/failsafe", &ask).await.expect("POST /failsafe");
    assert_eq!(promise.status, 503, "nobody promises what it can't judge: {promise:?}");
    let restart = standby.post("/restart", &serde_json::json!({})).await.expect("POST /restart");
    assert_eq!(restart.status, 503, "{restart:?}");
    cluster.etcd.thaw();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("arbiters began without etcd: {}", ledger.summary());
    let view = cluster.healthy().await;
    assert_eq!((view.leader(), view.leader_timeline()), (Some(leader.name()), Some(1)), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn an_arbiter_whose_log_has_no_reader_any_more_ends_in_order() {
    let cluster = Cluster::of(1).planned().await;
    let node = &cluster.nodes[0];
    let reader = node.start_talking_to_a_pipe(&cluster.room);
    cluster.healthy().await;
    // `| head`, `| tee` that was interrupted, a session that was closed.
    drop(reader);
    node.stop();
    let status = node.ended(PATIENCE).await;
    assert!(status.success(), "{status}");
    assert!(node.postmaster().is_none(), "Postgres was left without an arbiter");
}

#[tokio::test]
async fn an_arbiter_whose_log_is_not_read_goes_on() {
    let mut cluster = Cluster::of(1).planned().await;
    let talkative = cluster.nodes.remove(0).with_environment(vec![("TENURE_LOG".to_owned(), "trace".to_owned())]);
    cluster.nodes.push(talkative);
    let node = &cluster.nodes[0];
    // A terminal that is stopped, a collector that hangs: the pipe fills within seconds.
    let _unread = node.start_talking_to_a_pipe(&cluster.room);
    cluster.healthy().await;
    wait::lasting(seconds(10)).await;
    cluster.healthy().await;
    let answer = node.get("/primary").await.expect("REST answers");
    assert_eq!(answer.status, 200, "{answer:?}");
    node.stop();
    let status = node.ended(PATIENCE).await;
    assert!(status.success(), "{status}");
}

/// A command that runs beside a first process which reaps nobody, as in a container without an init.
fn beside(first: rustix::process::Pid, node: &stories::node::Node, program: &std::path::Path) -> std::process::Command {
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(node.dir()).expect("look at the node's directory");
    let log = std::fs::File::options().create(true).append(true).open(node.log_file()).expect("open the log");
    let mut command = std::process::Command::new("nsenter");
    command.args(["--target", &first.as_raw_nonzero().to_string(), "--pid", "--mount", "--", "setpriv"]);
    command.args(["--reuid", &owner.uid().to_string(), "--regid", &owner.gid().to_string(), "--clear-groups", "--"]);
    // A process that enters a mount namespace begins at its root.
    command.args(["env", "-C"]).arg(node.dir()).arg(program).arg("arbiter").arg(node.config_file());
    command.stdin(std::process::Stdio::null()).stdout(log.try_clone().expect("share the log")).stderr(log);
    command
}

#[tokio::test]
async fn a_postmaster_that_nobody_reaps_is_dead_all_the_same() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: namespaces need root");
        return;
    }
    let cluster = Cluster::of(1).ttl(3).planned().await;
    let node = &cluster.nodes[0];
    let program = cluster.room.install(&stories::programs::tenure());
    let mut namespace = std::process::Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child", "sleep", "infinity"])
        .current_dir(node.dir())
        .spawn()
        .expect("start unshare");
    let found = |title: String| process::below(node.dir()).into_iter().find(|pid| process::title(*pid).starts_with(&title)).ok_or(title);
    let first = wait::until("the first process", PATIENCE, async || found("sleep infinity".to_owned())).await;
    let mut killed = beside(first, node, &program).spawn().expect("start the arbiter");
    cluster.healthy().await;
    node.query("CREATE TABLE kept(n int)").await.expect("make a table");

    // The postmaster becomes a child of the first process, which is where it stays once it is dead.
    process::signal(found(format!("{} arbiter", program.display())).expect("the arbiter"), process::Signal::KILL);
    killed.wait().expect("wait for the arbiter");
    let mut second = beside(first, node, &program).spawn().expect("start another arbiter");
    wait::until("the other arbiter to attach", PATIENCE, async || {
        let attached = node.one("SELECT arbiter_attached FROM tenure.lease()").await.map_err(|error| format!("{error:#}"))?;
        if attached == "t" { Ok(()) } else { Err(format!("attached: {attached}")) }
    })
    .await;
    let postmaster = found(format!("{}/postgres -D", stories::programs::postgres_bin().display())).expect("a postmaster");
    process::signal(postmaster, process::Signal::KILL);
    wait::until("a zombie", PATIENCE, async || {
        let state = process::state(postmaster);
        if state == Some('Z') { Ok(()) } else { Err(format!("{state:?}")) }
    })
    .await;
    wait::until("writes to go on", seconds(30), async || node.query("INSERT INTO kept VALUES (1)").await).await;
    assert_eq!(process::state(postmaster), Some('Z'), "nobody has reaped it");
    node.logged(&["nobody has reaped it"], seconds(5)).await;
    process::signal(first, process::Signal::KILL);
    let _ = (second.wait(), namespace.wait());
}
