//! Who follows whom and how: tags, cascading, the archive, and settings that depend on the role.

use rustix::process::Signal;
use serde_json::{Value, json};
use stories::cluster::{Cluster, PATIENCE};
use stories::node::Node;
use stories::process;
use stories::wait;

/// Writes a node's file with these changes, on top of what every story has.
fn configure(cluster: &Cluster, node: &Node, change: impl Fn(&mut Value)) {
    let mut config = node.default_config(&cluster.etcd.hosts());
    for (key, value) in [("ttl", 3), ("loop_wait", 1), ("retry_timeout", 1)] {
        config["bootstrap"]["dcs"][key] = value.into();
    }
    change(&mut config);
    node.configure(&cluster.room, &config);
}

/// The arbiter reads its file again.
fn reload(node: &Node) {
    process::signal(node.arbiter_pid().expect("an arbiter"), Signal::HUP);
}

/// Waits until the first column of the first row is this.
async fn says(node: &Node, sql: &str, expected: &str) {
    wait::until(&format!("{} to answer {expected} to {sql}", node.name()), PATIENCE, async || {
        let seen = node.query(sql).await?.into_iter().next().and_then(|row| row.into_iter().next()).unwrap_or_else(|| "no row".to_owned());
        anyhow::ensure!(seen == expected, "{seen}");
        Ok(())
    })
    .await;
}

/// Waits until a node streams from that one.
async fn streams_from(node: &Node, upstream: &Node) {
    says(node, "SELECT sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming'", &upstream.port().to_string()).await;
}

/// Archives into a directory of the room, and fetches from there.
fn archives(cluster: &Cluster, config: &mut Value) {
    let archive = cluster.room.path().join("archive");
    let archive = archive.display();
    config["postgresql"]["parameters"]["archive_mode"] = "on".into();
    config["postgresql"]["parameters"]["archive_command"] = format!("test -f {archive}/%f || cp %p {archive}/%f").into();
    config["postgresql"]["recovery_conf"] = json!({"restore_command": format!("cp {archive}/%f %p")});
}

#[tokio::test]
async fn a_nostream_node_follows_by_the_archive_and_tags_change_with_a_reload() {
    let cluster = Cluster::of(2).planned().await;
    cluster.room.directory("archive");
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    configure(&cluster, first, |config| archives(&cluster, config));
    let tagged = |tags: Value| {
        configure(&cluster, second, |config| {
            archives(&cluster, config);
            config["tags"] = tags.clone();
        });
    };
    tagged(json!({"nostream": true}));
    cluster.start(first);
    cluster.wait_until("the first node to lead", |view| view.member("n1")["role"] == "primary").await;
    cluster.start(second);
    let from_archive = |view: &stories::view::View| view.member("n2")["replication_state"] == "in archive recovery";
    cluster.wait_until("the other to follow by the archive", from_archive).await;
    first.query("CREATE TABLE t AS SELECT generate_series(1, 10) AS id").await.expect("write");
    first.query("SELECT pg_switch_wal()").await.expect("switch");
    says(second, "SELECT count(*) FROM t", "10").await;
    assert_eq!(second.one("SHOW primary_conninfo").await.expect("ask"), "");
    assert_eq!(first.one("SELECT count(*) FROM pg_stat_replication").await.expect("ask"), "0");

    tagged(json!({"noloadbalance": true, "datacenter": "east"}));
    reload(second);
    streams_from(second, first).await;
    cluster
        .wait_until("the tags in the member key", |view| view.member("n2")["tags"] == json!({"noloadbalance": true, "datacenter": "east"}))
        .await;
    assert_eq!(second.get("/replica").await.expect("ask").status, 503, "noloadbalance");
    assert_eq!(second.get("/read-only").await.expect("ask").status, 503, "noloadbalance");

    tagged(json!({"nostream": true, "nofailover": true}));
    reload(second);
    says(second, "SELECT count(*) FROM pg_stat_wal_receiver", "0").await;
    cluster.wait_until("the other to follow by the archive again", from_archive).await;
    let said = cluster.cli(&["switchover", "--candidate", "n2", "--force"]).await;
    assert!(!said.status.success(), "nofailover");
    assert_eq!(second.get("/replica").await.expect("ask").status, 200);
}

#[tokio::test]
async fn a_cascading_standby_falls_back_to_the_leader_and_returns() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let leader = cluster.leader().await;
    let others = cluster.others(leader);
    let (upstream, cascading) = (others[0], others[1]);
    let follows = |node: &Node, whom: &Node| configure(&cluster, node, |config| config["tags"] = json!({"replicatefrom": whom.name()}));
    follows(cascading, upstream);
    reload(cascading);
    streams_from(cascading, upstream).await;
    upstream.kill();
    streams_from(cascading, leader).await;
    cluster.start(upstream);
    streams_from(upstream, leader).await;
    streams_from(cascading, upstream).await;
    // In a circle nobody would stream from the leader.
    follows(upstream, cascading);
    reload(upstream);
    cluster.wait_until("both tags", |view| view.member(upstream.name())["tags"]["replicatefrom"] == cascading.name()).await;
    streams_from(cascading, leader).await;
    streams_from(upstream, leader).await;
    assert_eq!(cluster.leader().await.name(), leader.name());
}

#[tokio::test]
async fn a_standby_whose_log_is_gone_from_the_primary_catches_up_from_the_archive() {
    let cluster = Cluster::of(2).planned().await;
    cluster.room.directory("archive");
    for node in &cluster.nodes {
        configure(&cluster, node, |config| {
            archives(&cluster, config);
            let dynamic = &mut config["bootstrap"]["dcs"]["postgresql"];
            dynamic["use_slots"] = false.into();
            dynamic["parameters"] = json!({"wal_keep_size": "0", "min_wal_size": "32MB"});
        });
        cluster.start(node);
    }
    cluster.healthy().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    standby.stop();
    standby.ended(PATIENCE).await;
    let logged = standby.log();
    const OLDEST: &str = "SELECT min(name) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$'";
    let before = leader.one("SELECT pg_walfile_name(pg_current_wal_lsn())").await.expect("ask");
    leader.query("CREATE TABLE t(id int)").await.expect("write");
    wait::until("the primary to have removed what the standby needs", PATIENCE, async || {
        leader.query("INSERT INTO t SELECT generate_series(1, 10)").await?;
        leader.query("SELECT pg_switch_wal()").await?;
        leader.query("CHECKPOINT").await?;
        let oldest = leader.one(OLDEST).await?;
        anyhow::ensure!(oldest > before, "{oldest} is there, {before} was current");
        Ok(())
    })
    .await;
    cluster.start(standby);
    cluster.healthy().await;
    let rows = leader.one("SELECT count(*) FROM t").await.expect("count");
    says(standby, "SELECT count(*) FROM t", &rows).await;
    let log = standby.log_since(&logged);
    assert!(!log.contains("cloning"), "{log}");
}

#[tokio::test]
async fn settings_and_access_lists_follow_the_role() {
    let cluster = Cluster::of(2).planned().await;
    for node in &cluster.nodes {
        configure(&cluster, node, |config| {
            config["bootstrap"]["dcs"]["postgresql"]["parameters_replica"] = json!({"work_mem": "1MB", "maintenance_work_mem": "12MB"});
            let postgresql = &mut config["postgresql"];
            postgresql["parameters"]["work_mem"] = "9MB".into();
            postgresql["parameters_primary"] = json!({"work_mem": "11MB", "max_connections": 77});
            postgresql["parameters_replica"] = json!({"work_mem": "12MB"});
            let mut lines = postgresql["pg_hba"].as_array().cloned().expect("lines");
            lines.push("host all nobody 127.0.0.1/32 reject".into());
            postgresql["pg_hba_replica"] = lines.into();
            postgresql["pg_ident_primary"] = json!(["m a b"]);
        });
        cluster.start(node);
    }
    cluster.healthy().await;
    for _ in 0..2 {
        let primary = cluster.leader().await;
        let replica = cluster.others(primary)[0];
        says(primary, "SHOW work_mem", "11MB").await;
        says(replica, "SHOW work_mem", "12MB").await;
        says(primary, "SHOW maintenance_work_mem", "64MB").await;
        says(replica, "SHOW maintenance_work_mem", "12MB").await;
        const REJECTED: &str = "SELECT count(*) FROM pg_hba_file_rules WHERE auth_method = 'reject'";
        says(primary, REJECTED, "0").await;
        says(replica, REJECTED, "1").await;
        // What every member must have alike is no matter of the role.
        says(primary, "SHOW max_connections", "50").await;
        let ident = |node: &Node| std::fs::read_to_string(node.data_dir().join("pg_ident.conf")).expect("read");
        assert_eq!((ident(primary).contains("m a b"), ident(replica).contains("m a b")), (true, false));
        cluster.cli_ok(&["switchover", "--force"]).await;
        cluster.healthy().await;
    }
}
