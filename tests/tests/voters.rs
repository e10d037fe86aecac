//! Who has what: standbys that restart, standbys that are made, and who is given the key.

use serde_json::{Value, json};
use std::time::Instant;
use stories::cluster::{Cluster, PATIENCE, Plan};
use stories::node::Node;
use stories::view::View;
use stories::wait::{self, seconds};

fn of(count: usize, mode: &str) -> Plan {
    Cluster::of(count).ttl(3).dynamic("synchronous_mode", json!(mode))
}

/// Waits until the key names so many with this quorum, and its leader leads.
async fn key_has(cluster: &Cluster, count: usize, quorum: u64) -> View {
    cluster
        .wait_until(&format!("a sync key with {count} names and quorum {quorum}"), |view| {
            let (holder, names) = view.synchronous().unwrap_or_default();
            names.len() == count && view.json("sync")["quorum"] == json!(quorum) && Some(holder.as_str()) == view.leader()
        })
        .await
}

async fn configure(cluster: &Cluster, change: Value) {
    let answer = cluster.nodes[0].patch("/config", &change).await.expect("change the configuration");
    assert_eq!(answer.status, 200, "{}", answer.body);
}

/// Replay takes its time: after a restart most of what is on disk is not replayed.
async fn replay_late(cluster: &Cluster, standbys: &[&Node]) {
    configure(cluster, json!({"postgresql": {"recovery_conf": {"recovery_min_apply_delay": "14s"}}})).await;
    for node in standbys {
        wait::until("the delay", PATIENCE, async || match node.one("SHOW recovery_min_apply_delay").await {
            Ok(seen) if seen == "14s" => Ok(()),
            seen => Err(format!("{seen:?}")),
        })
        .await;
    }
}

/// Waits until this voter has replayed all that there is, and `status` has just been written with that.
async fn quiet_and_told(cluster: &Cluster, old: &Node, voter: &Node) {
    wait::until("what was written so far to be replayed", PATIENCE, async || {
        let replayed = voter.one("SELECT pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn()").await;
        if replayed.as_deref().is_ok_and(|all| all == "t") { Ok(()) } else { Err(format!("{replayed:?}")) }
    })
    .await;
    let reached = |view: &View| view.json("status")["tenure"]["reached"].clone();
    let before = reached(&cluster.view().await.expect("a view"));
    // No commit, so nothing that is replayed late.
    old.one("SELECT pg_logical_emit_message(false, 'story', 'more')").await.expect("write a little");
    cluster.wait_until("status to be written", |view| reached(view) != before).await;
}

/// What is in `status` (`cluster::reached`) also tells such a voter from one that has everything, but it is up to `loop_wait` old: all of this
/// happens between two of its writings.
#[tokio::test]
async fn a_voter_that_restarts_speaks_only_when_it_knows_all_that_it_confirmed() {
    let cluster = Cluster::of(3).dynamic("ttl", json!(8)).dynamic("loop_wait", json!(6)).dynamic("retry_timeout", json!(1));
    let cluster = cluster.dynamic("synchronous_mode", json!("quorum")).start().await;
    key_has(&cluster, 2, 1).await;
    let old = cluster.leader().await;
    let (behind, ahead) = (cluster.others(old)[0], cluster.others(old)[1]);
    old.query("CREATE TABLE kept(n int)").await.expect("a table");
    replay_late(&cluster, &[behind, ahead]).await;
    let session = old.connect().await.expect("a session");
    let commit = async |n: i32| {
        session.simple_query(&format!("INSERT INTO kept VALUES ({n})")).await.expect("a commit");
    };
    quiet_and_told(&cluster, old, ahead).await;
    let began = Instant::now();
    commit(1).await;
    // Commits go on with one of the two alone, which is the only one to have them; then its Postgres crashes.
    behind.freeze();
    commit(2).await;
    commit(3).await;
    behind.end_receiver();
    ahead.kill_postmaster();
    old.kill();
    println!("a voter crashed and the leader's host died, {} ms after status was written", began.elapsed().as_millis());
    behind.thaw();
    cluster.wait_until("a leader that writes", |view| view.leads_other_than(old.name())).await;
    let view = cluster.healthy_members(2).await;
    let leader = cluster.node(view.leader().expect("a leader"));
    assert_eq!(leader.one("SELECT string_agg(n::text, ' ' ORDER BY n) FROM kept").await.expect("ask"), "1 2 3", "{view}");
    assert_eq!(leader.name(), ahead.name(), "{view}");
}

#[tokio::test]
async fn a_copy_that_is_being_made_is_no_standby_that_commits_wait_for() {
    let cluster = of(2, "on").planned().await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    // Some 30 MB.
    cluster.reconfigure(second, |config| config["postgresql"]["basebackup"] = json!([{"max-rate": "2M"}]));
    cluster.start(first);
    cluster.wait_until("a leader", |view| view.leader() == Some("n1")).await;
    let writer = cluster.writer().await;
    writer.goes_on(20, PATIENCE).await;
    cluster.start(second);
    second.logged(&["cloning from n1"], PATIENCE).await;
    writer.goes_on(200, seconds(20)).await;
    cluster.wait_until("the copy to be a synchronous standby", |view| view.synchronous().is_some_and(|(_, names)| names == ["n2"])).await;
    writer.goes_on(20, PATIENCE).await;
    let ledger = writer.finish();
    println!("a standby was made in synchronous mode: {}", ledger.summary());
    assert!(ledger.longest_pause() < seconds(5), "{}", ledger.summary());
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

/// The key goes to nobody whose host is silent; with nobody to give it to the server is started again where it is.
async fn crashes_beside_silent_standbys(mode: &str, count: usize) {
    let cluster = of(count, mode).start().await;
    key_has(&cluster, count - 1, if mode == "quorum" && count > 2 { 1 } else { 0 }).await;
    let old = cluster.leader().await;
    let writer = cluster.writer().await;
    writer.goes_on(30, PATIENCE).await;
    for node in cluster.others(old) {
        node.freeze();
    }
    wait::lasting(seconds(1)).await;
    old.kill_postmaster();
    wait::until("the server to serve again where it is", seconds(30), async || match old.one("SELECT pg_is_in_recovery()").await {
        Ok(seen) if seen == "f" => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    let view = cluster.wait_within(seconds(15), "it to lead", |view| view.leader() == Some(old.name())).await;
    assert_eq!(view.leader_timeline(), Some(1), "{view}");
    writer.goes_on(20, PATIENCE).await;
    for node in cluster.others(old) {
        node.thaw();
    }
    let ledger = writer.finish();
    println!("{mode}: a crash beside silent standbys: {}", ledger.summary());
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn in_synchronous_mode_a_crash_is_not_handed_over_to_a_silent_standby() {
    crashes_beside_silent_standbys("on", 2).await;
}

#[tokio::test]
async fn in_quorum_mode_a_crash_is_not_handed_over_to_silent_voters() {
    crashes_beside_silent_standbys("quorum", 3).await;
}

/// The next leader has the key and dies before it is promoted: the old one, which has every row, takes it up again.
async fn next_leader_dies_unpromoted(mode: &str, count: usize) {
    let cluster = of(count, mode).planned().await;
    for node in &cluster.nodes {
        let note = node.dir().join("asked");
        let line = format!("sh -c 'touch {}; sleep 15'", note.display());
        cluster.reconfigure(node, |config| {
            // The first leader is not promoted; from then on each promotion hangs.
            if node.name() != "n1" {
                config["postgresql"]["pre_promote"] = json!(line);
            }
        });
    }
    cluster.start(cluster.node("n1"));
    cluster.wait_until("n1 to lead", |view| view.leader() == Some("n1")).await;
    for node in &cluster.nodes[1..] {
        cluster.start(node);
    }
    cluster.healthy().await;
    let old = cluster.node("n1");
    key_has(&cluster, count - 1, if count > 2 { 1 } else { 0 }).await;
    let writer = cluster.writer().await;
    writer.goes_on(30, PATIENCE).await;
    old.kill_postmaster();
    let next = wait::until("the next leader to be asked", PATIENCE, async || {
        let asked = cluster.nodes[1..].iter().find(|node| node.dir().join("asked").exists());
        asked.ok_or("nobody was asked")
    })
    .await;
    next.freeze();
    let view = cluster.wait_within(seconds(40), "the old leader to lead again", |view| view.leader() == Some("n1")).await;
    println!("{mode}: {} had the key, was not promoted and died: {view}", next.name());
    wait::until("it to be promoted", PATIENCE, async || match old.one("SELECT pg_is_in_recovery()").await {
        Ok(seen) if seen == "f" => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    next.thaw();
    writer.goes_on(20, PATIENCE).await;
    let ledger = writer.finish();
    println!("{mode}: {}", ledger.summary());
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn in_synchronous_mode_the_old_leader_goes_on_where_the_next_one_died_unpromoted() {
    next_leader_dies_unpromoted("on", 2).await;
}

#[tokio::test]
async fn in_quorum_mode_the_old_leader_goes_on_where_the_next_one_died_unpromoted() {
    next_leader_dies_unpromoted("quorum", 3).await;
}
