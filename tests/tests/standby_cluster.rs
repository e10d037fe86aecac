//! A cluster that follows another one: made as its copy, through failovers on both sides, promoted, demoted, and back.

use serde_json::{Value, json};
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::Etcd;
use stories::node::Node;
use stories::proxy::Proxy;
use stories::room::Room;
use stories::view::View;
use stories::wait::{self, seconds};

/// A cluster of its own, with an etcd of its own, whose bootstrap.dcs names the other one.
async fn following(remote: &Cluster, prefix: &str, count: usize) -> Cluster {
    following_at(section(remote), prefix, count).await
}

async fn following_at(section: Value, prefix: &str, count: usize) -> Cluster {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let hosts = etcd.hosts();
    let planned = |number: usize| {
        // Member names have to differ: they are the names of connections over there.
        Node::planned(&room, &format!("{prefix}{number}"), &hosts, |config| {
            config["bootstrap"]["dcs"]["standby_cluster"] = section.clone();
            for (key, value) in [("ttl", 3), ("loop_wait", 1), ("retry_timeout", 1)] {
                config["bootstrap"]["dcs"][key] = value.into();
            }
        })
    };
    let nodes = (1..=count).map(planned).collect();
    let cluster = Cluster::assembled(nodes, etcd, room, false);
    for node in &cluster.nodes {
        cluster.start(node);
    }
    follows(&cluster).await;
    cluster
}

/// Where the other cluster is: all of its nodes.
fn section(remote: &Cluster) -> Value {
    let list = |text: &dyn Fn(&Node) -> String| remote.nodes.iter().map(text).collect::<Vec<_>>().join(",");
    json!({"host": list(&|node| node.host().to_owned()), "port": list(&|node| node.port().to_string())})
}

/// What keeps this from being a healthy standby cluster of so many members; None if it is one.
fn fault(view: &View, count: usize) -> Option<String> {
    let leader = view.leader()?;
    let of = |name: &str, key: &str| view.member(name)[key].as_str().unwrap_or("nothing").to_owned();
    if view.members().len() != count {
        return Some(format!("{} of {count} members", view.members().len()));
    }
    view.members().into_iter().find_map(|name| {
        let role = if name == leader { "standby_leader" } else { "replica" };
        let seen = [of(name, "role"), of(name, "state"), of(name, "replication_state")];
        (seen != [role, "running", "streaming"]).then(|| format!("{name} is {seen:?}"))
    })
}

/// Waits until one leads in recovery and everybody streams.
async fn follows(cluster: &Cluster) -> View {
    let count = cluster.nodes.len();
    cluster.wait_until("a standby cluster that streams", |view| view.leader().is_some() && fault(view, count).is_none()).await
}

/// Waits until a node has everything that the primary has now.
async fn has_all(node: &Node, primary: &Node) {
    const COUNT: &str = "SELECT count(*) FROM written";
    // It may have begun a moment ago.
    let count = async || anyhow::Ok(primary.one(COUNT).await?.parse::<u64>()?);
    let there = wait::until(&format!("{} to count its rows", primary.name()), PATIENCE, count).await;
    wait::until(&format!("{} to have {there} rows", node.name()), PATIENCE, async || {
        let here: u64 = node.one(COUNT).await?.parse()?;
        anyhow::ensure!(here >= there, "{here} rows");
        Ok(())
    })
    .await;
}

async fn status(node: &Node, path: &str) -> u16 {
    node.get(path).await.expect("ask").status
}

#[tokio::test]
async fn a_standby_cluster_lives_through_failovers_on_both_sides_and_is_promoted() {
    let remote = Cluster::of(2).ttl(3).start().await;
    let writer = remote.writer().await;
    let standby = following(&remote, "s", 2).await;
    let first = standby.leader().await;
    let second = standby.others(first)[0];
    let identity = remote.view().await.expect("look").key("initialize").map(str::to_owned);
    assert_eq!(standby.view().await.expect("look").key("initialize").map(str::to_owned), identity);
    has_all(first, remote.leader().await).await;
    has_all(second, remote.leader().await).await;
    // The leader streams from the other side's primary, the other member from the leader.
    const UPSTREAM: &str = "SELECT sender_port FROM pg_stat_wal_receiver";
    assert_eq!(first.one(UPSTREAM).await.expect("ask"), remote.leader().await.port().to_string());
    assert_eq!(second.one(UPSTREAM).await.expect("ask"), first.port().to_string());
    for (path, at_leader, at_other) in
        [("/standby-leader", 200, 503), ("/leader", 200, 503), ("/primary", 503, 503), ("/replica", 200, 200), ("/read-only", 200, 200)]
    {
        assert_eq!((status(first, path).await, status(second, path).await), (at_leader, at_other), "{path}");
    }
    assert_eq!(serde_json::from_str::<Value>(&first.get("/patroni").await.expect("ask").body).expect("JSON")["role"], "standby_leader");
    let metrics = first.get("/metrics").await.expect("ask").body;
    assert!(metrics.lines().any(|line| line.starts_with("patroni_standby_leader") && line.ends_with(" 1")), "{metrics}");
    let listed = standby.list().await;
    assert!(listed.iter().any(|row| row["Member"] == first.name() && row["Role"] == "Standby Leader"), "{listed:?}");
    assert!(first.query("CREATE TABLE refused()").await.is_err());

    // The other side loses its primary.
    let lost = remote.leader().await;
    lost.kill();
    remote.wait_until("the other node to lead there", |view| view.leads_other_than(lost.name())).await;
    writer.goes_on(20, PATIENCE).await;
    let primary = remote.leader().await;
    has_all(first, primary).await;
    has_all(second, primary).await;
    let view =
        standby.wait_until("the history of the other side", |view| view.json("history").as_array().is_some_and(|h| h.len() == 1)).await;
    assert_eq!(view.leader(), Some(first.name()), "its leader is the same: {view}");

    // This side loses its leader: another follows the other side, and nobody is promoted.
    first.kill();
    standby.wait_until("the other member to lead", |view| view.leader() == Some(second.name())).await;
    writer.goes_on(20, PATIENCE).await;
    has_all(second, primary).await;
    assert_eq!(second.one(UPSTREAM).await.expect("ask"), primary.port().to_string());
    standby.start(first);
    let view = follows(&standby).await;
    assert_eq!(view.leader(), Some(second.name()), "{view}");
    assert_eq!(second.one("SELECT pg_is_in_recovery()").await.expect("ask"), "t");
    standby.cli_ok(&["switchover", "--force"]).await;
    let view = follows(&standby).await;
    assert_eq!(view.leader(), Some(first.name()), "{view}");
    assert_eq!(view.leader_timeline(), Some(2), "nobody was promoted here: {view}");
    has_all(first, primary).await;

    // The disaster: the other side is gone, and this one goes on.
    let ledger = writer.finish();
    println!("standby cluster: {}", ledger.summary());
    has_all(first, primary).await;
    for node in &remote.nodes {
        node.kill();
    }
    let said = standby.cli_ok(&["promote-cluster", "--force"]).await;
    assert!(said.contains("cluster is successfully promoted"), "{said}");
    let view = standby.healthy().await;
    assert_eq!(view.leader_timeline(), Some(3), "{view}");
    // The lease worker says so in the member key first, the arbiter with its next look.
    wait::until("/primary to say so", PATIENCE, async || match status(standby.leader().await, "/primary").await {
        200 => Ok(()),
        other => Err(other),
    })
    .await;
    standby.leader().await.query("INSERT INTO written(id) VALUES (0)").await.expect("write");
    let again = standby.cli(&["promote-cluster", "--force"]).await;
    assert!(!again.status.success(), "there is nothing to promote");
}

#[tokio::test]
async fn a_cluster_is_demoted_the_other_promoted_and_back_without_a_rewind() {
    let here = Cluster::of(2).ttl(3).start().await;
    let writer = here.writer().await;
    let there = following(&here, "s", 1).await;
    let ledger = writer.finish();
    let term = |view: &View| view.json("tenure/term").to_string();
    let before = here.healthy().await;
    let old = here.leader().await;
    let only = &there.nodes[0];

    let (host, port) = (only.host(), only.port().to_string());
    let said = here.cli_ok(&["demote-cluster", "--host", host, "--port", &port, "--force"]).await;
    assert!(said.contains("cluster is successfully demoted"), "{said}");
    let view = here.view().await.expect("look");
    assert_eq!((view.leader(), view.member(old.name())["role"].as_str()), (Some(old.name()), Some("standby_leader")), "{view}");
    assert_ne!(term(&view), term(&before), "a new term began");
    // All of it is there, to the last record.
    has_all(only, old).await;
    let said = there.cli_ok(&["promote-cluster", "--force"]).await;
    assert!(said.contains("cluster is successfully promoted"), "{said}");
    only.query("INSERT INTO written(id) VALUES (100001)").await.expect("write");
    let view = follows(&here).await;
    assert_eq!(view.leader(), Some(old.name()), "{view}");
    for node in &here.nodes {
        has_all(node, only).await;
    }

    // And back.
    let targets = section(&here);
    let (host, port) = (targets["host"].as_str().expect("hosts"), targets["port"].as_str().expect("ports"));
    there.cli_ok(&["demote-cluster", "--host", host, "--port", port, "--force"]).await;
    has_all(old, only).await;
    here.cli_ok(&["promote-cluster", "--force"]).await;
    let view = here.healthy().await;
    assert_eq!(view.leader_timeline(), Some(3), "{view}");
    here.leader().await.query("INSERT INTO written(id) VALUES (100002)").await.expect("write");
    follows(&there).await;
    has_all(only, here.leader().await).await;
    for node in here.nodes.iter().chain(&there.nodes) {
        assert!(!node.log().contains("rewinding"), "{} had nothing to take back:\n{}", node.name(), node.log());
    }
    let verdict = here.verdict(&ledger).await;
    assert!(verdict.lost.is_empty() && verdict.wrongly_refused.is_empty(), "{verdict:?}");
}

#[tokio::test]
async fn a_deposed_cluster_is_wound_back_to_the_one_that_was_promoted_meanwhile() {
    let here = Cluster::of(1).ttl(3).start().await;
    here.writer().await.finish();
    let there = following(&here, "s", 1).await;
    let (old, new) = (&here.nodes[0], &there.nodes[0]);
    has_all(new, old).await;
    // Both go on writing: what was written here after that is given up by the demotion.
    there.cli_ok(&["promote-cluster", "--force"]).await;
    old.query("INSERT INTO written(id) SELECT generate_series(300001, 300100)").await.expect("write");
    new.query("INSERT INTO written(id) SELECT generate_series(400001, 400100)").await.expect("write");
    here.cli_ok(&["demote-cluster", "--host", new.host(), "--port", &new.port().to_string(), "--force"]).await;
    wait::until("the old side to follow the new one", PATIENCE, async || {
        let view = here.view().await.map_err(|error| error.to_string())?;
        match fault(&view, 1) {
            None if view.leader().is_some() => Ok(()),
            seen => Err(format!("{seen:?} ({view})")),
        }
    })
    .await;
    let ids =
        "SELECT count(*) FILTER (WHERE id BETWEEN 300001 AND 300100), count(*) FILTER (WHERE id BETWEEN 400001 AND 400100) FROM written";
    wait::until("its rows to be the new side's", seconds(30), async || {
        let seen = old.query(ids).await.map_err(|error| format!("{error:#}"))?;
        if seen == [["0", "100"]] { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    assert!(old.log().contains("rewinding"), "{}", old.log());
}

#[tokio::test]
async fn a_standby_cluster_follows_another_standby_cluster_and_stays_with_it_when_that_is_promoted() {
    let remote = Cluster::of(1).ttl(3).start().await;
    remote.writer().await.finish();
    // One host each: whatever its role, it is followed.
    let middle = following(&remote, "m", 1).await;
    let last = following(&middle, "l", 1).await;
    let (source, between, end) = (&remote.nodes[0], &middle.nodes[0], &last.nodes[0]);
    source.query("INSERT INTO written(id) SELECT generate_series(500001, 500100)").await.expect("write");
    has_all(end, source).await;
    const UPSTREAM: &str = "SELECT sender_port FROM pg_stat_wal_receiver";
    assert_eq!(end.one(UPSTREAM).await.expect("ask"), between.port().to_string());
    middle.cli_ok(&["promote-cluster", "--force"]).await;
    middle.healthy().await;
    between.query("INSERT INTO written(id) SELECT generate_series(600001, 600100)").await.expect("write");
    has_all(end, between).await;
    follows(&last).await;
    // The rows come before the member key says so.
    last.wait_until("the new timeline in its leader's key", |view| view.leader_timeline() == Some(2)).await;
    assert!(!end.log().contains("rewinding"), "it had nothing to take back:\n{}", end.log());
}

/// Waits until a WAL receiver of this node has connected, or has not, and gets no answer.
async fn hangs(node: &Node, proxy: &Proxy, connected: bool) {
    let ask =
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walreceiver'), (SELECT count(*) FROM pg_stat_wal_receiver)";
    let wanted = [["1", if connected { "1" } else { "0" }]];
    wait::until(&format!("the receiver of {} to hang", node.name()), PATIENCE, async || match node.query(ask).await {
        Ok(seen) if proxy.swallows() && seen == wanted => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_hangs_before_it_streams_is_ended() {
    let remote = Cluster::of(1).ttl(3).start().await;
    remote.writer().await.finish();
    let primary = &remote.nodes[0];
    let address = format!("{}:{}", primary.host(), primary.port());
    // What listens takes every connection, and says nothing to one that connects; or nothing to one that asks who it is.
    let connects = Proxy::before(address.clone(), "no such words");
    let asks = Proxy::before(address, "IDENTIFY_SYSTEM").heedless();
    let behind = async |proxy: &Proxy, prefix: &str| {
        let address = proxy.address();
        let (host, port) = address.split_once(':').expect("host and port");
        let cluster = following_at(json!({"host": host, "port": port}), prefix, 1).await;
        cluster.configure(&json!({"postgresql": {"parameters": {"wal_receiver_timeout": "3s"}}})).await;
        wait::until("its time-out", PATIENCE, async || match cluster.nodes[0].one("SHOW wal_receiver_timeout").await {
            Ok(shown) if shown == "3s" => Ok(()),
            shown => Err(format!("{shown:?}")),
        })
        .await;
        cluster
    };
    let (one, other) = tokio::join!(behind(&connects, "c"), behind(&asks, "a"));
    let nodes = [&one.nodes[0], &other.nodes[0]];
    connects.swallow();
    asks.heed();
    nodes.iter().for_each(|node| node.end_receiver());
    tokio::join!(hangs(nodes[0], &connects, false), hangs(nodes[1], &asks, true));
    // A client that comes now is answered. Those that wait are not, and nothing tells them so.
    connects.answer_others();
    asks.answer_others();
    primary.query("INSERT INTO written(id) VALUES (700001)").await.expect("write");
    for node in nodes {
        has_all(node, primary).await;
        assert!(node.log().contains("it is ended, and Postgres begins another"), "{}", node.log());
    }
}
