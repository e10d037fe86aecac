//! A node whose data is not what the leader's history says: it comes back by itself, or says in one sentence what to do.

use serde_json::json;
use stories::cluster::{Cluster, PATIENCE};
use stories::node::{Node, SCOPE};
use stories::process::{self, Signal};
use stories::wait::{self, seconds};

/// `n1` leads; the others follow. `change` has the last word on each node's file.
async fn led_by_the_first(
    count: usize,
    dynamic: &[(&str, serde_json::Value)],
    change: impl Fn(&Node, &mut stories::node::Config),
) -> Cluster {
    let mut plan = Cluster::of(count).ttl(3);
    for (key, value) in dynamic {
        plan = plan.dynamic(key, value.clone());
    }
    let cluster = plan.planned().await;
    for node in &cluster.nodes {
        cluster.reconfigure(node, |config| change(node, config));
    }
    cluster.start(cluster.node("n1"));
    cluster.healthy_members(1).await;
    for node in &cluster.nodes[1..] {
        cluster.start(node);
    }
    cluster.healthy().await;
    cluster.node("n1").query("CREATE TABLE t(n int)").await.expect("write");
    for node in &cluster.nodes[1..] {
        same_rows(cluster.node("n1"), node).await;
    }
    cluster
}

/// The leader dies with rows that nobody else has. Those given sleep meanwhile.
async fn dies_alone(old: &Node, asleep: &[&Node]) {
    for node in asleep {
        node.freeze();
    }
    for n in 0..20 {
        old.query(&format!("INSERT INTO t VALUES ({n})")).await.expect("write what nobody else has");
    }
    for node in asleep {
        // What the kernel holds for its receiver is not to be read any more.
        node.end_receiver();
    }
    old.kill();
}

async fn same_rows(one: &Node, other: &Node) {
    wait::until("the same rows on both", PATIENCE, async || {
        let ask = "SELECT count(*) || ' ' || coalesce(sum(n), 0) FROM t";
        let (one, other) = (one.one(ask).await?, other.one(ask).await?);
        anyhow::ensure!(one == other, "{one} and {other}");
        Ok(())
    })
    .await;
}

/// A file that a rewind copies whole, so that there is a midway. It takes no room where it is made.
fn ballast(cluster: &Cluster, node: &Node) -> std::path::PathBuf {
    let path = node.data_dir().join("ballast");
    cluster.room.file(&path, "");
    std::fs::File::options().write(true).open(&path).and_then(|file| file.set_len(4 << 30)).expect("make a large sparse file");
    path
}

/// Waits until the first megabytes of the ballast have come.
async fn midway(node: &Node) {
    let path = node.data_dir().join("ballast");
    wait::until("the rewind to be midway", PATIENCE, async || {
        let length = std::fs::metadata(&path).map_err(|error| error.to_string())?.len();
        if length > 0 { Ok(()) } else { Err("nothing has come yet".to_owned()) }
    })
    .await;
}

/// What was half made was replaced before anything was started on it.
fn replaced_before_started(log: &str) {
    let made = log.find("the replica was made by").unwrap_or_else(|| panic!("no copy was made:\n{log}"));
    let before = &log[..made];
    let started = ["start as", "Postgres is starting", "streams from"].into_iter().find(|word| before.contains(word));
    assert_eq!(started, None, "a server was started on half of the data:\n{log}");
}

#[tokio::test]
async fn a_rewind_whose_source_dies_midway_ends_in_a_copy_of_the_next_leader() {
    let cluster = led_by_the_first(3, &[], |node, config| {
        // The third does not lead before it is asked to: the source is known.
        if node.name() == "n3" {
            config["tags"] = json!({"failover_priority": 1});
        } else {
            config["tags"] = json!({"failover_priority": 2});
        }
    })
    .await;
    let (old, source, third) = (cluster.node("n1"), cluster.node("n2"), cluster.node("n3"));
    dies_alone(old, &[source, third]).await;
    source.thaw();
    cluster.wait_until("the second to lead", |view| view.leader() == Some("n2")).await;
    third.thaw();
    cluster.healthy_members(2).await;
    ballast(&cluster, source);
    let before = old.log();
    cluster.start(old);
    midway(old).await;
    source.kill();
    old.logged(&["pg_rewind failed", "rewind was interrupted here"], PATIENCE).await;
    let view = cluster.healthy_members(2).await;
    assert_eq!(view.leader(), Some("n3"), "{view}");
    replaced_before_started(&old.log_since(&before));
    std::fs::remove_file(source.data_dir().join("ballast")).expect("remove the ballast");
    cluster.start(source);
    cluster.healthy().await;
    same_rows(old, third).await;
    same_rows(source, third).await;
}

#[tokio::test]
async fn a_node_that_dies_midway_in_its_rewind_never_starts_what_is_half_made() {
    let cluster = led_by_the_first(2, &[], |_, _| ()).await;
    let (old, source) = (cluster.node("n1"), cluster.node("n2"));
    dies_alone(old, &[source]).await;
    source.thaw();
    cluster.wait_until("the other to lead", |view| view.leader() == Some("n2")).await;
    cluster.healthy_members(1).await;
    let ballast = ballast(&cluster, source);
    cluster.start(old);
    midway(old).await;
    old.kill();
    std::fs::remove_file(&ballast).expect("remove the ballast");
    let before = old.log();
    cluster.start(old);
    cluster.healthy().await;
    let log = old.log_since(&before);
    assert!(log.contains("rewind was interrupted here"), "{log}");
    replaced_before_started(&log);
    same_rows(old, source).await;
}

#[tokio::test]
async fn a_node_that_dies_midway_in_its_copy_waits_for_a_leader_and_starts_nothing() {
    let cluster = Cluster::of(2).ttl(3).planned().await;
    let (first, second) = (cluster.node("n1"), cluster.node("n2"));
    // Some 30 MB: slow enough to be met midway.
    cluster.reconfigure(second, |config| config["postgresql"]["basebackup"] = json!([{"max-rate": "4M"}]));
    cluster.start(first);
    cluster.healthy_members(1).await;
    first.query("CREATE TABLE t AS SELECT generate_series(1, 100) AS n").await.expect("write");
    cluster.start(second);
    wait::until("the copy to be midway", PATIENCE, async || {
        if second.data_dir().join("base").exists() { Ok(()) } else { Err("nothing is there yet") }
    })
    .await;
    second.kill();
    first.stop();
    first.ended(PATIENCE).await;
    let before = second.log();
    cluster.start(second);
    let why = |view: &stories::view::View| view.member("n2")["tenure"]["reason"].as_str().unwrap_or_default().to_owned();
    cluster.wait_until("its reason in the member key", |view| why(view).contains("nobody to clone from")).await;
    wait::throughout("no server on half of a copy", seconds(3), async || match second.postmaster() {
        None => Ok(()),
        Some(pid) => Err(format!("{pid:?}")),
    })
    .await;
    cluster.start(first);
    cluster.healthy().await;
    let log = second.log_since(&before);
    assert!(log.contains("clone from n1 was interrupted here"), "{log}");
    replaced_before_started(&log);
    same_rows(first, second).await;
}

#[tokio::test]
async fn a_standby_that_received_more_than_the_next_leader_is_rewound() {
    let cluster = led_by_the_first(3, &[], |node, config| {
        if node.name() == "n3" {
            config["tags"] = json!({"nofailover": true});
        }
    })
    .await;
    let (old, next, further) = (cluster.node("n1"), cluster.node("n2"), cluster.node("n3"));
    next.freeze();
    for n in 0..20 {
        old.query(&format!("INSERT INTO t VALUES ({n})")).await.expect("write what the next leader has not");
    }
    same_rows(old, further).await;
    next.end_receiver();
    old.kill();
    next.thaw();
    cluster.wait_until("the second to lead", |view| view.leader() == Some("n2")).await;
    cluster.healthy_members(2).await;
    further.logged(&["rewind to n2: the history forked", "rewinding to the history of n2"], seconds(5)).await;
    assert_eq!(next.one("SELECT count(*) FROM t").await.expect("ask"), "0", "the rows were lost with the first leader, as they may");
    same_rows(next, further).await;
    cluster.start(old);
    cluster.healthy().await;
    same_rows(next, old).await;
}

#[tokio::test]
async fn nobody_is_rewound_before_the_new_primarys_first_checkpoint() {
    let cluster = led_by_the_first(2, &[], |_, _| ()).await;
    let (old, next) = (cluster.node("n1"), cluster.node("n2"));
    dies_alone(old, &[next]).await;
    let title = |word: &str| process::below(&next.data_dir()).into_iter().find(|pid| process::title(*pid).contains(word));
    let checkpointer = title("checkpointer").expect("a checkpointer");
    for pid in process::below(next.dir()).into_iter().filter(|pid| *pid != checkpointer) {
        process::signal(pid, Signal::CONT);
    }
    cluster
        .wait_until("a primary without its first checkpoint", |view| {
            view.leader() == Some("n2") && view.member("n2")["checkpoint_after_promote"] == false
        })
        .await;
    let before = old.log();
    cluster.start(old);
    old.logged(&["n2 has not completed its first checkpoint as primary yet"], PATIENCE).await;
    wait::throughout("no rewind", seconds(2), async || {
        let log = old.log_since(&before);
        if log.contains("rewinding to") { Err(log) } else { Ok(()) }
    })
    .await;
    process::signal(checkpointer, Signal::CONT);
    cluster.healthy().await;
    assert!(old.log_since(&before).contains("rewinding to"), "{}", old.log_since(&before));
    same_rows(old, next).await;
}

/// Removes the segments that come before this one.
fn remove_log_before(node: &Node, segment: &str) {
    let wal = node.data_dir().join("pg_wal");
    for entry in std::fs::read_dir(&wal).expect("list pg_wal").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.len() == segment.len() && name.as_str() < segment {
            std::fs::remove_file(wal.join(&name)).expect("remove a segment");
        }
    }
}

fn allow_clones(cluster: &Cluster, node: &Node) {
    cluster.reconfigure(node, |config| config["postgresql"]["remove_data_directory_on_rewind_failure"] = json!(true));
}

#[tokio::test]
async fn an_old_primary_without_the_log_around_the_fork_says_what_to_do_and_is_copied_where_that_is_allowed() {
    let cluster = led_by_the_first(2, &[("maximum_lag_on_failover", json!(1_u64 << 30))], |_, _| ()).await;
    let (old, next) = (cluster.node("n1"), cluster.node("n2"));
    next.freeze();
    for _ in 0..3 {
        old.one("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'story', 'more')").await.expect("begin a segment");
    }
    old.query("CHECKPOINT").await.expect("a checkpoint");
    let segment = old.one("SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()").await.expect("ask");
    next.end_receiver();
    old.kill();
    next.thaw();
    remove_log_before(old, &segment);
    cluster.wait_until("the other to lead", |view| view.leader() == Some("n2")).await;
    cluster.healthy_members(1).await;
    cluster.start(old);
    let words = ["pg_rewind failed", "does not allow the data to be replaced; `tenure reinit` makes a new copy"];
    old.logged(&words, PATIENCE).await;
    let why = |view: &stories::view::View| view.member("n1")["tenure"]["reason"].as_str().unwrap_or_default().to_owned();
    cluster.wait_until("the reason in the member key", |view| why(view).contains("`tenure reinit` makes a new copy")).await;
    allow_clones(&cluster, old);
    cluster.cli_ok(&["reload", "story", "n1", "--force"]).await;
    cluster.healthy().await;
    old.logged(&["the configuration allows the data to be replaced by a clone"], seconds(5)).await;
    same_rows(old, next).await;
}

/// Found by a storm: the old primary's own checkpoints had removed the WAL between the last checkpoint before the fork and the fork.
#[tokio::test]
async fn an_old_primary_that_went_on_for_long_fetches_the_wal_before_the_fork_and_is_rewound() {
    let lag = ("maximum_lag_on_failover", json!(1_u64 << 30));
    let cluster = led_by_the_first(2, &[lag], |_, config| {
        config["postgresql"]["parameters"]["wal_keep_size"] = json!("0");
        config["postgresql"]["parameters"]["min_wal_size"] = json!("32MB");
    })
    .await;
    let (old, next) = (cluster.node("n1"), cluster.node("n2"));
    let more = async || {
        for _ in 0..3 {
            old.one("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'story', 'more')").await.expect("begin a segment");
        }
    };
    old.query("CHECKPOINT").await.expect("the last checkpoint before the fork");
    let wanted = old.one("SELECT pg_walfile_name(redo_lsn) FROM pg_control_checkpoint()").await.expect("ask");
    more().await;
    old.query("INSERT INTO t VALUES (1)").await.expect("write");
    same_rows(old, next).await;
    next.freeze();
    more().await;
    old.query("INSERT INTO t VALUES (2)").await.expect("write what nobody else has");
    next.end_receiver();
    let gone = old.data_dir().join("pg_wal").join(wanted);
    wait::until("the old leader's checkpoints to remove what its standby has", PATIENCE, async || {
        old.query("CHECKPOINT").await.map_err(|why| why.to_string())?;
        if gone.exists() { Err("it is there".to_owned()) } else { Ok(()) }
    })
    .await;
    old.kill();
    next.thaw();
    cluster.wait_until("the other to lead", |view| view.leader() == Some("n2")).await;
    cluster.healthy_members(1).await;
    let before = old.log();
    cluster.start(old);
    cluster.healthy().await;
    let log = old.log_since(&before);
    assert!(log.contains("; the source had it") && log.contains("rewound"), "{log}");
    assert_eq!(next.one("SELECT sum(n) FROM t").await.expect("ask"), "1", "the last row was lost with the first leader, as it may");
    same_rows(next, old).await;
}

#[tokio::test]
async fn an_old_primary_that_can_not_recover_says_what_to_do_and_is_copied_where_that_is_allowed() {
    let cluster = led_by_the_first(2, &[], |_, _| ()).await;
    let (old, next) = (cluster.node("n1"), cluster.node("n2"));
    dies_alone(old, &[next]).await;
    next.thaw();
    remove_log_before(old, "ffffffffffffffffffffffff");
    cluster.wait_until("the other to lead", |view| view.leader() == Some("n2")).await;
    cluster.healthy_members(1).await;
    cluster.start(old);
    let words = ["could not locate a valid checkpoint record", "`tenure reinit` makes a new copy"];
    let why = |view: &stories::view::View| view.member("n1")["tenure"]["reason"].as_str().unwrap_or_default().to_owned();
    cluster.wait_until("the reason in the member key", |view| words.iter().all(|word| why(view).contains(word))).await;
    allow_clones(&cluster, old);
    cluster.cli_ok(&["reload", "story", "n1", "--force"]).await;
    cluster.healthy().await;
    same_rows(old, next).await;
}

#[tokio::test]
async fn a_standby_whose_log_is_gone_everywhere_says_what_to_do_and_is_copied_where_that_is_allowed() {
    let cluster = led_by_the_first(2, &[], |_, config| {
        config["bootstrap"]["dcs"]["postgresql"]["use_slots"] = json!(false);
        config["postgresql"]["parameters"]["wal_keep_size"] = json!("0");
        config["postgresql"]["parameters"]["min_wal_size"] = json!("32MB");
        config["postgresql"]["parameters"]["max_wal_size"] = json!("32MB");
    })
    .await;
    let (leader, standby) = (cluster.node("n1"), cluster.node("n2"));
    standby.stop();
    standby.ended(PATIENCE).await;
    for _ in 0..6 {
        leader.one("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'story', 'more')").await.expect("begin a segment");
    }
    leader.query("CHECKPOINT").await.expect("a checkpoint");
    cluster.start(standby);
    let why = |view: &stories::view::View| view.member("n2")["tenure"]["reason"].as_str().unwrap_or_default().to_owned();
    cluster.wait_until("the reason in the member key", |view| why(view).contains("`tenure reinit` makes a new copy")).await;
    let said = String::from_utf8_lossy(&cluster.cli(&["check", "story"]).await.stdout).into_owned();
    assert!(said.contains("is gone at n1"), "{said}");
    allow_clones(&cluster, standby);
    cluster.cli_ok(&["reload", "story", "n2", "--force"]).await;
    cluster.healthy().await;
    same_rows(leader, standby).await;
}

#[tokio::test]
async fn a_standby_that_died_before_its_promotion_began_a_timeline_starts_again() {
    let cluster = led_by_the_first(2, &[], |_, _| ()).await;
    let standby = cluster.node("n2");
    standby.kill();
    // As a second try to promote leaves it that passed over the number of the first one, if the server dies then (a full disk, say).
    let left = standby.data_dir().join("pg_wal/00000002.history");
    cluster.room.file(&left, "1\t0/0\tthis number was used or claimed by another promotion\n");
    cluster.start(standby);
    wait::until("what is left of the promotion to go", PATIENCE, async || if left.exists() { Err("it is there") } else { Ok(()) }).await;
    cluster.healthy().await;
    same_rows(cluster.node("n1"), standby).await;
}

/// The end of a timeline is in the next one's first segment, too, and PostgreSQL replays it from there; a transaction that was prepared in it is read once
/// more from the file of its own timeline.
#[tokio::test]
async fn a_standby_that_was_away_when_a_transaction_was_prepared_and_the_leader_changed_replays_it() {
    let cluster = led_by_the_first(3, &[], |_, config| config["postgresql"]["parameters"]["max_prepared_transactions"] = 10.into()).await;
    let (old, next, away) = (cluster.node("n1"), cluster.node("n2"), cluster.node("n3"));
    assert_eq!(old.one("SHOW max_prepared_transactions").await.expect("SHOW"), "10");
    away.kill();
    old.query("BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'open'").await.expect("prepare");
    old.query("INSERT INTO t VALUES (2)").await.expect("write");
    cluster.cli_ok(&["switchover", "--leader", old.name(), "--candidate", next.name(), "--force"]).await;
    cluster.wait_until("n2 to lead on timeline 2", |view| view.leader() == Some("n2") && view.leader_timeline() == Some(2)).await;
    wait::until("the history of timeline 2", PATIENCE, async || {
        let keys = cluster.etcd.keys(&format!("/service/{SCOPE}/history")).await?;
        anyhow::ensure!(keys.values().any(|text| text.contains("[1,")), "{keys:?}");
        Ok(())
    })
    .await;
    cluster.start(away);
    cluster.healthy().await;
    next.query("COMMIT PREPARED 'open'").await.expect("commit what was prepared");
    same_rows(next, away).await;
    same_rows(next, old).await;
    away.logged(&["timeline 2 begins at", "its first segment is in pg_wal"], seconds(5)).await;
    assert!(!std::fs::read_to_string(away.server_log()).expect("its log").contains("could not read two-phase state"));
}
