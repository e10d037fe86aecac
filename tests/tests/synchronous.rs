//! Synchronous modes as people run them: whom commits wait for, who may take over, and how that changes while clients write.

use serde_json::{Value, json};
use stories::cluster::{Cluster, PATIENCE, Plan};
use stories::node::Node;
use stories::view::View;
use stories::wait::{self, lasting, seconds};

fn of(count: usize, mode: &str) -> Plan {
    Cluster::of(count).ttl(3).dynamic("synchronous_mode", json!(mode))
}

/// The voters in the key and its quorum.
fn key(view: &View) -> (Vec<String>, Option<u64>) {
    (view.synchronous().map(|(_, names)| names).unwrap_or_default(), view.json("sync")["quorum"].as_u64())
}

/// Waits until the key names so many, under this quorum, with this leader.
async fn key_has(cluster: &Cluster, count: usize, quorum: u64) -> View {
    cluster
        .wait_until(&format!("a sync key with {count} names and quorum {quorum}"), |view| {
            let holder = view.synchronous().map(|(holder, _)| holder);
            key(view).0.len() == count && key(view).1 == Some(quorum) && holder.as_deref() == view.leader()
        })
        .await
}

async fn standby_names(node: &Node) -> String {
    node.one("SHOW synchronous_standby_names").await.expect("ask for the setting")
}

/// Changes the dynamic configuration.
async fn configure(cluster: &Cluster, change: Value) {
    let answer = cluster.nodes[0].patch("/config", &change).await.expect("change the configuration");
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test]
async fn in_quorum_mode_whichever_standby_has_everything_takes_over() {
    let cluster = of(3, "quorum").start().await;
    key_has(&cluster, 2, 1).await;
    let old = cluster.leader().await;
    let (behind, ahead) = (cluster.others(old)[0], cluster.others(old)[1]);
    assert_eq!(standby_names(old).await, format!("ANY 1 ({},{})", behind.name(), ahead.name()));
    for (path, on_standby, on_leader) in [("/quorum", 200, 503), ("/sync", 503, 503), ("/read-only-quorum", 200, 200)] {
        wait::until(&format!("{path} to answer {on_standby}"), PATIENCE, async || {
            let answer = ahead.get(path).await.map_err(|why| format!("{why:#}"))?;
            if answer.status == on_standby { Ok(()) } else { Err(answer.status.to_string()) }
        })
        .await;
        assert_eq!(old.get(path).await.expect("ask").status, on_leader, "{path} on the leader");
    }
    assert!(ahead.get("/patroni").await.expect("ask").body.contains(r#""quorum_standby":true"#));
    assert!(
        ahead
            .get("/metrics")
            .await
            .expect("ask")
            .body
            .lines()
            .any(|line| line.starts_with("patroni_quorum_standby") && line.ends_with(" 1"))
    );
    assert!(ahead.get("/cluster").await.expect("ask").body.contains(r#""role":"quorum_standby""#));
    assert!(cluster.list().await.iter().any(|member| member["Role"] == "Quorum Standby"), "{:?}", cluster.list().await);
    // One of the two sleeps: commits go on with the other alone, which is the only one to have them.
    behind.freeze();
    let writer = cluster.writer().await;
    writer.goes_on(50, PATIENCE).await;
    // What the kernel holds for its receiver is not to be read any more.
    behind.end_receiver();
    old.kill();
    behind.thaw();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("quorum, leader's node killed: {}", ledger.summary());
    let view = cluster.healthy_members(2).await;
    assert!(view.leads_other_than(old.name()), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn in_quorum_mode_a_killed_postmaster_is_followed_by_the_one_that_has_everything() {
    let cluster = of(3, "quorum").start().await;
    key_has(&cluster, 2, 1).await;
    let old = cluster.leader().await;
    let writer = cluster.writer().await;
    old.kill_postmaster();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("quorum, postmaster killed: {}", ledger.summary());
    let view = key_has(&cluster, 2, 1).await;
    assert!(view.leads_other_than(old.name()), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn with_two_nodes_that_confirm_each_of_them_has_everything() {
    let cluster = of(3, "on").dynamic("synchronous_node_count", json!(2)).start().await;
    key_has(&cluster, 2, 0).await;
    let old = cluster.leader().await;
    let others: Vec<&str> = cluster.others(old).iter().map(|node| node.name()).collect();
    assert_eq!(standby_names(old).await, format!("2 ({},{})", others[0], others[1]));
    let writer = cluster.writer().await;
    writer.goes_on(20, PATIENCE).await;
    old.kill();
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("two synchronous standbys, leader's node killed: {}", ledger.summary());
    // As many as there are: one is left.
    let view = key_has(&cluster, 1, 0).await;
    assert_eq!(standby_names(cluster.node(view.leader().expect("a leader"))).await, key(&view).0[0]);
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn in_strict_mode_commits_wait_for_a_standby_to_come_back() {
    let cluster = of(2, "on").dynamic("synchronous_mode_strict", json!(true)).start().await;
    key_has(&cluster, 1, 0).await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let writer = cluster.writer().await;
    writer.goes_on(10, PATIENCE).await;
    standby.kill();
    cluster.wait_until("the standby's key to run out", |view| view.members().len() == 1).await;
    let before = writer.acknowledged();
    wait::throughout("commits to wait without a standby", seconds(3), async || match writer.acknowledged() {
        // One may have been confirmed just before.
        now if now <= before + 1 => Ok(()),
        now => Err(format!("{} were acknowledged", now - before)),
    })
    .await;
    cluster.start(standby);
    writer.goes_on(20, PATIENCE).await;
    let ledger = writer.finish();
    println!("strict, standby away: {}", ledger.summary());
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

/// Waits until the setting is this text, as scripts and watches of the field compare it.
async fn setting_is(node: &Node, wanted: &str) {
    wait::until(&format!("synchronous_standby_names of {} to be {wanted}", node.name()), seconds(10), async || {
        match node.one("SHOW synchronous_standby_names").await.map_err(|why| format!("{why:#}"))? {
            seen if seen == wanted => Ok(()),
            seen => Err(seen),
        }
    })
    .await;
}

/// The text that Patroni 4.1.5 and its successor set in the same places (its acceptance suite: quorum commit, basic replication).
#[tokio::test]
async fn the_setting_is_written_as_the_field_writes_it() {
    let cluster = of(2, "quorum").dynamic("synchronous_mode_strict", json!(true)).planned().await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    cluster.start(first);
    cluster.wait_until("the first to lead", |view| view.leader() == Some(first.name())).await;
    setting_is(first, "ANY 1 (__patroni_strict_sync_replica_placeholder__)").await;
    let told = "No active replication connections from Patroni members and synchronous_mode_strict is requested";
    first.logged(&[told], seconds(5)).await;
    configure(&cluster, json!({"synchronous_mode": true})).await;
    setting_is(first, "__patroni_strict_sync_replica_placeholder__").await;
    cluster.start(second);
    setting_is(first, "n2").await;
    configure(&cluster, json!({"synchronous_mode": "quorum"})).await;
    setting_is(first, "ANY 1 (n2)").await;
    cluster.healthy().await;
    // The leader leaves: commits of the next one wait for it to come back.
    first.stop();
    cluster.wait_until("the second to lead", |view| view.leader() == Some(second.name())).await;
    // Whether the old leader is named depends on whether its key was still there: nobody confirms either way.
    wait::until("a setting that nobody confirms", seconds(10), async || match standby_names(second).await {
        seen if ["ANY 1 (n1)", "ANY 1 (__patroni_strict_sync_replica_placeholder__)"].contains(&seen.as_str()) => Ok(()),
        seen => Err(seen),
    })
    .await;
    second.logged(&[told], seconds(5)).await;
    cluster.start(first);
    cluster.healthy().await;
    setting_is(second, "ANY 1 (n1)").await;
}

#[tokio::test]
async fn a_synchronous_standby_that_lags_too_much_is_replaced() {
    let cluster = of(3, "on").dynamic("maximum_lag_on_syncnode", json!(1_000_000)).start().await;
    let view = key_has(&cluster, 1, 0).await;
    let leader = cluster.leader().await;
    let slow = cluster.node(&key(&view).0[0]);
    slow.freeze_receiver();
    let client = leader.connect().await.expect("connect");
    // Written past the standby, as nobody else could do it.
    let write = "SET synchronous_commit = local; SET tenure.minimum_synchronous_commit = local; CREATE TABLE much AS SELECT repeat('x', 2000) AS text FROM generate_series(1, 3000)";
    stories::node::rows(&client, write).await.expect("write");
    let view = cluster.wait_until("another synchronous standby", |view| key(view).0.iter().any(|name| name != slow.name())).await;
    assert_eq!(key(&view).0.len(), 1, "{view}");
    assert_eq!(standby_names(leader).await, key(&view).0[0]);
    leader.query("CREATE TABLE little(n int)").await.expect("a commit that waits for the new one");
    slow.thaw();
    cluster.healthy().await;
}

#[tokio::test]
async fn a_synchronous_standby_that_is_stopped_is_dropped_first() {
    let cluster = of(3, "on").start().await;
    let view = key_has(&cluster, 1, 0).await;
    let leader = cluster.leader().await;
    let standby = cluster.node(&key(&view).0[0]);
    let writer = cluster.writer().await;
    writer.goes_on(20, PATIENCE).await;
    standby.stop();
    standby.ended(PATIENCE).await;
    let log = standby.log();
    assert!(log.contains("no commit waits for this node any more"), "{log}");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("synchronous standby stopped in a planned way: {}", ledger.summary());
    assert_eq!(ledger.unknown().count() + ledger.refused().count(), 0, "{}", ledger.summary());
    assert_eq!(cluster.leader().await.name(), leader.name());
    cluster.start(standby);
    cluster.healthy().await;
    let member = cluster.view().await.expect("look").member(standby.name());
    assert!(member["tags"]["nosync"].is_null(), "back again, it may be synchronous: {member}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

/// The leader's node dies right after the mode was changed: whatever was acknowledged under synchronous rules is there.
async fn dies_in_a_change(from: &str, to: &str) {
    let cluster = of(3, from).start().await;
    let old = cluster.leader().await;
    let writer = cluster.writer().await;
    writer.goes_on(30, PATIENCE).await;
    configure(&cluster, json!({"synchronous_mode": to})).await;
    // Under `off` nothing more is promised.
    let (writer, ended) = if to == "off" { (None, Some(writer.finish())) } else { (Some(writer), None) };
    lasting(std::time::Duration::from_millis(30)).await;
    old.kill();
    let ledger = match (writer, ended) {
        (Some(writer), _) => {
            writer.goes_on(50, PATIENCE).await;
            writer.finish()
        }
        (_, Some(ledger)) => ledger,
        _ => unreachable!("one of the two"),
    };
    println!("{from} to {to}, leader's node killed meanwhile: {}", ledger.summary());
    // With the mode off nobody is to stand in the sync key.
    let view = cluster.wait_until("two healthy members", |view| view.fault(2, to != "off").is_none()).await;
    assert!(view.leads_other_than(old.name()), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_leader_that_dies_in_the_change_from_on_to_quorum_takes_nothing_along() {
    dies_in_a_change("on", "quorum").await;
}

#[tokio::test]
async fn a_leader_that_dies_in_the_change_from_quorum_to_on_takes_nothing_along() {
    dies_in_a_change("quorum", "on").await;
}

#[tokio::test]
async fn a_leader_that_dies_in_the_change_from_on_to_off_takes_nothing_along() {
    dies_in_a_change("on", "off").await;
}

#[tokio::test]
async fn the_mode_changes_while_clients_write() {
    let cluster = of(3, "off").start().await;
    let writer = cluster.writer().await;
    let leader = cluster.leader().await;
    for (mode, names, quorum, setting) in [("on", 1, 0, "n"), ("quorum", 2, 1, "ANY 1 ("), ("on", 1, 0, "n")] {
        configure(&cluster, json!({"synchronous_mode": mode})).await;
        key_has(&cluster, names, quorum).await;
        let now = standby_names(leader).await;
        assert!(now.starts_with(setting), "{mode}: {now}");
        writer.goes_on(20, PATIENCE).await;
    }
    // Left to the user, the setting is the user's own.
    let own = json!({"synchronous_mode": false, "postgresql": {"parameters": {"synchronous_standby_names": "ANY 1 (*)"}}});
    configure(&cluster, own).await;
    wait::until("the user's own setting", PATIENCE, async || match standby_names(leader).await {
        seen if seen == "ANY 1 (*)" => Ok(()),
        seen => Err(seen),
    })
    .await;
    let view = cluster.view().await.expect("look");
    assert_eq!(view.json("sync")["leader"], Value::Null, "{view}");
    writer.goes_on(20, PATIENCE).await;
    let ledger = writer.finish();
    println!("mode changed four times: {}", ledger.summary());
    assert_eq!(ledger.unknown().count() + ledger.refused().count(), 0, "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

/// What a member says in the race.
fn why_not(view: &View, name: &str) -> String {
    view.json(&format!("tenure/race/{name}"))["why"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_standby_that_is_too_far_behind_does_not_stand_and_says_why() {
    let cluster = Cluster::of(2).ttl(3).dynamic("maximum_lag_on_failover", json!(100_000)).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let optime = |view: &View| view.json("status")["optime"].as_u64().unwrap_or(0);
    let before = optime(&cluster.view().await.expect("look"));
    standby.freeze();
    leader.query("CREATE TABLE much AS SELECT repeat('x', 2000) AS text FROM generate_series(1, 3000)").await.expect("write");
    cluster.wait_until("the leader to tell how far it is", |view| optime(view) > before + 4_000_000).await;
    leader.kill();
    standby.thaw();
    let view = cluster.wait_until("the standby's reason", |view| why_not(view, standby.name()).contains("maximum_lag_on_failover")).await;
    assert_eq!(view.leader(), None, "{view}");
    cluster.start(leader);
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
}

#[tokio::test]
async fn with_check_timeline_a_standby_of_an_older_timeline_does_not_stand() {
    let cluster = Cluster::of(3).ttl(3).dynamic("check_timeline", json!(true)).start().await;
    let old = cluster.leader().await;
    let (candidate, missed) = (cluster.others(old)[0], cluster.others(old)[1]);
    missed.kill();
    cluster.wait_until("its member key to run out", |view| view.members().len() == 2).await;
    cluster.cli_ok(&["switchover", "--leader", old.name(), "--candidate", candidate.name(), "--force"]).await;
    cluster
        .wait_until("the new timeline in the history", |view| view.json("history").as_array().is_some_and(|lines| !lines.is_empty()))
        .await;
    candidate.kill();
    old.kill();
    cluster.wait_until("nobody", |view| view.members().is_empty()).await;
    cluster.start(missed);
    let view = cluster
        .wait_until("its reason", |view| why_not(view, missed.name()).contains("is on timeline 1, the cluster is on timeline 2"))
        .await;
    assert_eq!(view.leader(), None, "{view}");
}

/// n1 and n2 stand in one room, n3 in another; n2 is the one that its priority prefers.
#[tokio::test]
async fn a_commit_is_confirmed_in_another_failure_domain_and_a_delayed_standby_waits_for_nobody() {
    let room = stories::room::Room::new();
    let etcd = stories::etcd::Etcd::start(&room).await;
    let plan = Cluster::of(3).ttl(3).synchronous(true).dynamic("synchronous_domains", json!(1));
    let cluster = plan.planned_on(room, etcd, |config| {
        config["tags"] = match config["name"].as_str() {
            Some("n1") => json!({"failure_domain": "A"}),
            Some("n2") => json!({"failure_domain": "A", "sync_priority": 5}),
            _ => json!({"failure_domain": "B"}),
        };
    });
    let (n1, n2, n3) = (&cluster.nodes[0], &cluster.nodes[1], &cluster.nodes[2]);
    cluster.start(n1);
    cluster.wait_until("n1 to lead", |view| view.leader() == Some("n1")).await;
    cluster.start(n2);
    cluster.start(n3);
    let chosen = |wanted: &'static str| move |view: &View| view.synchronous().is_some_and(|(_, now)| now == [wanted]);
    cluster.wait_until("n3 to be synchronous", chosen("n3")).await;
    cluster.healthy().await;

    // Next door is better than nobody, and it is said.
    let logged = n1.log();
    n3.kill();
    cluster.wait_until("n2 in its place", chosen("n2")).await;
    assert!(n1.log_since(&logged).contains("no synchronous standby is in another failure domain"), "{}", n1.log_since(&logged));
    cluster.start(n3);
    cluster.wait_until("n3 again", chosen("n3")).await;

    // A delay: what is written shows there later, and nothing is asked of it that needs the present.
    cluster.reconfigure(n2, |config| config["tags"] = json!({"failure_domain": "A", "delay": "4s"}));
    cluster.cli_ok(&["reload", "n2", "--force"]).await;
    wait::until("the delay", PATIENCE, async || match n2.one("SHOW recovery_min_apply_delay").await {
        Ok(shown) if shown == "4s" => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    cluster
        .wait_until("the tags that follow from it", |view| {
            let tags = &view.member("n2")["tags"];
            tags["nofailover"] == true && tags["nosync"] == true && tags["noloadbalance"] == true
        })
        .await;
    let began = std::time::Instant::now();
    n1.query("CREATE TABLE late(n int)").await.expect("write");
    let lsn = n1.one("SELECT pg_current_wal_insert_lsn()").await.expect("ask");
    assert_eq!(n2.one(&format!("SELECT tenure.wait_for_lsn('{lsn}', '90 s')")).await.expect("wait"), "t");
    assert!(began.elapsed() >= seconds(3), "replayed after {:?}", began.elapsed());
    assert_eq!(n2.get("/replica").await.expect("GET /replica").status, 503);
    assert_eq!(n3.get("/replica").await.expect("GET /replica").status, 200);
}
