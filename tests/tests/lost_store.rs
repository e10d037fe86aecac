//! etcd that forgot: restored from an older backup, emptied, or with keys that were spoiled. What members know by themselves outlives it.

use serde_json::json;
use stories::alone::Alone;
use stories::cluster::{Cluster, PATIENCE};
use stories::wait::{self, lasting, seconds};

/// Long enough for a process that would act on what etcd says now.
const TEMPTATION: std::time::Duration = std::time::Duration::from_secs(6);

/// n1 led when the backup was made; by now n2 leads and n1 lacks what was committed since.
#[tokio::test]
async fn an_etcd_restored_from_an_older_backup_demotes_promotes_and_rewinds_nobody() {
    let cluster = Cluster::of(3).ttl(5).synchronous(true).start().await;
    let old = cluster.leader().await;
    let saved = cluster.etcd.save(&cluster.room).await;
    let (next, third) = (cluster.others(old)[0], cluster.others(old)[1]);
    cluster.cli_ok(&["failover", "--candidate", next.name(), "--force"]).await;
    cluster.healthy().await;
    // The old leader is not to be the synchronous standby.
    old.freeze_receiver();
    let third_name = third.name().to_owned();
    cluster
        .wait_until("the third to be the synchronous standby", |view| {
            view.synchronous().is_some_and(|(_, names)| names == vec![third_name.clone()])
        })
        .await;
    let writer = cluster.writer().await;
    writer.goes_on(100, PATIENCE).await;
    let timeline = cluster.view().await.expect("look").leader_timeline();
    cluster.etcd.restore(&cluster.room, &saved).await;
    assert_eq!(cluster.view().await.expect("look").leader(), Some(old.name()), "the backup names the old leader");
    lasting(TEMPTATION).await;
    for (node, recovers) in [(old, "t"), (next, "f"), (third, "t")] {
        let is = node.one("SELECT pg_is_in_recovery()").await.expect("it runs on");
        assert_eq!(is, recovers, "{} is what it was", node.name());
    }
    let told = String::from_utf8_lossy(&cluster.cli(&["check"]).await.stdout).into_owned();
    assert!(told.contains("went back") && told.contains("tenure rebuild-keys"), "{told}");
    old.end_receiver();
    println!("{}", cluster.cli_ok(&["rebuild-keys", "--force"]).await);
    let view = cluster.healthy().await;
    assert_eq!((view.leader(), view.leader_timeline()), (Some(next.name()), timeline), "{view}");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("restored: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn after_etcd_was_emptied_a_thawing_old_primary_does_not_found_the_cluster_again() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let old = cluster.leader().await;
    old.freeze();
    let old_name = old.name().to_owned();
    cluster.wait_until("another to lead", |view| view.leads_other_than(&old_name)).await;
    let next = cluster.leader().await;
    let writer = cluster.writer().await;
    writer.goes_on(100, PATIENCE).await;
    let others = cluster.others(old);
    others.iter().for_each(|node| node.freeze());
    cluster.etcd.lose();
    old.thaw();
    cluster.etcd.run(&cluster.room).await;
    lasting(TEMPTATION).await;
    others.iter().for_each(|node| node.thaw());
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(next.name()), "who led last leads on: {view}");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("emptied, the old primary thawed first: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn an_emptied_etcd_gets_its_dynamic_configuration_back_from_the_members() {
    let cluster = Cluster::of(3).ttl(10).start().await;
    cluster.configure(&json!({"synchronous_mode": true, "synchronous_mode_strict": true})).await;
    cluster.wait_until("a synchronous standby", |view| view.synchronous().is_some_and(|(_, names)| names.len() == 1)).await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    cluster.etcd.lose();
    cluster.etcd.run(&cluster.room).await;
    let began = std::time::Instant::now();
    let view = cluster
        .wait_until("the cluster's keys", |view| view.leader().is_some() && view.key("initialize").is_some_and(|id| !id.is_empty()))
        .await;
    println!("founded again after {} ms", began.elapsed().as_millis());
    assert_eq!(view.json("config")["synchronous_mode"], true, "{view}");
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("emptied: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn beside_members_with_data_an_empty_node_founds_nothing() {
    let cluster = Cluster::of(3).ttl(3).planned().await;
    let (first, second, empty) = (&cluster.nodes[0], &cluster.nodes[1], &cluster.nodes[2]);
    cluster.start(first);
    cluster.healthy_members(1).await;
    cluster.start(second);
    cluster.healthy_members(2).await;
    let writer = cluster.writer().await;
    let ledger = writer.finish();
    first.kill();
    cluster.etcd.lose();
    cluster.etcd.run(&cluster.room).await;
    cluster.start(empty);
    lasting(TEMPTATION).await;
    let view = cluster.view().await.expect("look");
    assert!(view.key("initialize").is_none() && view.leader().is_none(), "{view}");
    let told = String::from_utf8_lossy(&cluster.cli(&["check"]).await.stdout).into_owned();
    assert!(told.contains("tenure rebuild-keys") && !told.contains("bootstrap section"), "{told}");
    let began = std::time::Instant::now();
    let refused = cluster.cli(&["failover", "--candidate", second.name(), "--force"]).await;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("tenure rebuild-keys") && began.elapsed() < seconds(10), "{words}");
    let refused = cluster.cli(&["rebuild-keys", "--leader", second.name(), "--force"]).await;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("--accept-loss"), "nobody knows what the last leader acknowledged: {words}");
    println!("{}", cluster.cli_ok(&["rebuild-keys", "--leader", second.name(), "--accept-loss", "--force"]).await);
    let view = cluster.healthy_members(2).await;
    assert_eq!(view.leader(), Some(second.name()), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_configuration_that_is_cut_or_deleted_weakens_nothing_and_is_put_back() {
    let cluster =
        Cluster::of(2).ttl(3).dynamic("synchronous_mode", json!(true)).dynamic("synchronous_mode_strict", json!(true)).start().await;
    let leader = cluster.leader().await;
    let names = leader.one("SHOW synchronous_standby_names").await.expect("ask");
    for spoil in ["cut", "deleted"] {
        let before = cluster.view().await.expect("look").json("config");
        match spoil {
            "cut" => cluster.etcd.put("/service/story/config", &before.to_string()[..30]).await.expect("write"),
            _ => cluster.etcd.delete("/service/story/config").await.expect("delete"),
        }
        wait::throughout("synchronous_standby_names", seconds(4), async || match leader.one("SHOW synchronous_standby_names").await {
            Ok(now) if now == names => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        let view = cluster.wait_until("the configuration to be back", |view| view.json("config") == before).await;
        assert_eq!(view.leader(), Some(leader.name()), "{spoil}: {view}");
    }
}

#[tokio::test]
async fn a_spoiled_initialize_key_ends_no_arbiter() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let before = cluster.view().await.expect("look").key("initialize").map(str::to_owned).expect("it is there");
    let writer = cluster.writer().await;
    cluster.etcd.put("/service/story/initialize", "rubbish").await.expect("write");
    lasting(seconds(2)).await;
    for node in &cluster.nodes {
        assert!(node.arbiter_runs(), "{}'s arbiter ended", node.name());
    }
    cluster.etcd.put("/service/story/initialize", &before).await.expect("write");
    cluster.healthy().await;
    writer.goes_on(50, PATIENCE).await;
    cluster.verdict(&writer.finish()).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn what_is_much_below_the_prefix_blinds_nobody() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let filler = "x".repeat(1_000_000);
    for number in 0..6 {
        cluster.etcd.put(&format!("/service/story/filler{number}"), &filler).await.expect("write");
    }
    let old = cluster.leader().await;
    let writer = cluster.writer().await;
    old.kill();
    let old_name = old.name().to_owned();
    cluster.wait_until("another to lead", |view| view.leads_other_than(&old_name)).await;
    writer.goes_on(50, PATIENCE).await;
    let told = String::from_utf8_lossy(&cluster.cli(&["check"]).await.stdout).into_owned();
    assert!(told.contains("filler"), "{told}");
    cluster.verdict(&writer.finish()).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_leader_key_on_another_members_lease_is_given_up() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let leader = cluster.leader().await;
    let other = cluster.others(leader)[0];
    let lease = cluster.etcd.lease_of(&format!("/service/story/members/{}", other.name())).await.expect("its lease");
    let writer = cluster.writer().await;
    cluster.etcd.put_on("/service/story/leader", leader.name(), lease).await.expect("write");
    cluster.healthy().await;
    writer.goes_on(50, PATIENCE).await;
    cluster.verdict(&writer.finish()).await.nothing_lost_or_doubled();
}

/// The lease of a fence is of the etcd that granted it: one that went back renews it, and keeps nobody else away by that.
#[tokio::test]
async fn a_lease_that_a_restored_etcd_renews_keeps_no_fence_open() {
    let alone = Alone::start(&[]).await;
    let session = alone.session().await;
    session.ok("CREATE TABLE kept(n int)").await;
    let saved = alone.etcd.save(&alone.room).await;
    for _ in 0..200 {
        alone.etcd.put("/service/story/tenure/elsewhere", "x").await.expect("write");
    }
    // Its worker looks at least each second.
    lasting(seconds(3)).await;
    alone.etcd.restore(&alone.room, &saved).await;
    alone.fence_is("expired").await;
    wait::throughout("the fence to stay shut", seconds(4), async || match alone.fence().await {
        fence if fence == "expired" => Ok(()),
        other => Err(other),
    })
    .await;
    session.tell("INSERT INTO kept VALUES (1)").await.refused("25006");
}

/// Of a coordinator whose cluster's keys were made again terms are small again; sessions of the one before are refused still.
#[tokio::test]
async fn a_worker_serves_the_coordinator_of_new_keys_and_refuses_the_one_before() {
    let alone = Alone::start(&[("tenure.group", "1")]).await;
    let session = alone.session().await;
    session.ok("CREATE TABLE kept(n int)").await;
    let before = (1_i64 << 47) | 900_000;
    let now = (2_i64 << 47) | 7;
    let key = "/service/story/1/tenure/coordinator";
    let told = async |term: i64| {
        let word = json!({"leader": "c1", "term": term}).to_string();
        alone.etcd.put(key, &word).await.expect("write");
    };
    let inserts = async |term: i64| {
        let options = format!("-c tenure.coordinator_term={term}");
        let client = stories::node::connect_with(alone.port(), &options, PATIENCE).await?;
        stories::node::rows(&client, "INSERT INTO kept VALUES (1)").await
    };
    told(before).await;
    inserts(before).await.expect("the present coordinator is served");
    told(now).await;
    wait::until("the coordinator before to be refused", PATIENCE, async || match inserts(before).await {
        Err(_) => Ok(()),
        Ok(_) => Err("it is served"),
    })
    .await;
    inserts(now).await.expect("the coordinator of the new keys is served");
}
