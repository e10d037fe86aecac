//! Empty directories become a cluster.

use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::Etcd;
use stories::http;
use stories::node::Node;
use stories::proxy::Proxy;
use stories::room::Room;
use stories::wait::{self, seconds};

#[tokio::test]
async fn three_empty_nodes_become_a_primary_and_two_streaming_standbys() {
    let mut cluster = Cluster::of(3).planned().await;
    // What a shell that is used for clients may hold: lists of hosts, an option and a kind of server that no walreceiver could use.
    let of_a_client = [
        ("PGHOST", "10.255.255.1,10.255.255.2"),
        ("PGHOSTADDR", "10.255.255.1,10.255.255.2"),
        ("PGPORT", "5433,5434"),
        ("PGTARGETSESSIONATTRS", "read-write"),
        ("PGOPTIONS", "-c work_mem=nonsense"),
        ("PGSERVICE", "nobody"),
        ("PGLOADBALANCEHOSTS", "random"),
    ];
    let of_a_client = of_a_client.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    cluster.nodes = cluster.nodes.into_iter().map(|node| node.with_environment(of_a_client.clone())).collect();
    let started = Instant::now();
    for node in &cluster.nodes {
        cluster.start(node);
    }
    let view = cluster.healthy().await;
    let took = started.elapsed();
    println!("empty directories to three members: {} ms", took.as_millis());
    assert!(took < seconds(30), "three members took {took:?}");

    let leader = cluster.leader().await;
    assert_eq!(leader.one("SELECT pg_is_in_recovery()").await.expect("ask"), "f");
    for standby in cluster.others(leader) {
        let recovers = standby.one("SELECT pg_is_in_recovery()").await;
        assert_eq!(recovers.expect("ask"), "t");
    }
    for node in &cluster.nodes {
        assert!(!node.log().contains("was made again"), "a founding makes the extension for the first time: {}", node.log());
    }
    let identities: BTreeSet<String> = identities(&cluster).await;
    assert_eq!(identities.len(), 1, "one cluster, one system identifier");
    let key = view.key("initialize").expect("the cluster is initialized");
    assert!(identities.contains(key), "initialize is {key}, the servers are {identities:?}");
}

async fn identities(cluster: &Cluster) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for node in &cluster.nodes {
        let identity = node.one("SELECT system_identifier FROM pg_control_system()");
        found.insert(identity.await.expect("ask for the system identifier"));
    }
    found
}

#[tokio::test]
async fn what_is_written_on_the_primary_is_read_on_every_standby_and_nothing_is_written_there() {
    let cluster = Cluster::of(3).start().await;
    let leader = cluster.leader().await;
    leader.query("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n").await.expect("write on the primary");
    for standby in cluster.others(leader) {
        wait::until("the rows on a standby", seconds(20), async || {
            let count = standby.one("SELECT count(*) FROM t").await?;
            anyhow::ensure!(count == "1000", "{count} rows");
            Ok(())
        })
        .await;
        let refused = standby.query("INSERT INTO t VALUES (0)").await;
        let refused = refused.expect_err("a standby takes no writes");
        assert_eq!(stories::node::sqlstate(&refused).as_deref(), Some("25006"));
    }
}

#[tokio::test]
async fn list_rest_and_sql_tell_the_same_roles() {
    let cluster = Cluster::of(3).start().await;
    let leader = cluster.leader().await;

    let rows = cluster.list().await;
    assert_eq!(rows.len(), 3, "{rows:?}");
    for row in &rows {
        let leads = row["Member"] == leader.name();
        let expected = if leads { ("Leader", "running") } else { ("Replica", "streaming") };
        assert_eq!((row["Role"].as_str(), row["State"].as_str()), (Some(expected.0), Some(expected.1)), "{row}");
        assert_eq!(row["TL"], 1, "{row}");
    }

    for node in &cluster.nodes {
        let leads = node.name() == leader.name();
        for (path, wanted) in [("/primary", leads), ("/replica", !leads), ("/health", true), ("/liveness", true), ("/readiness", true)] {
            let what = format!("{path} of {}", node.name());
            wait::until(&what, seconds(10), async || {
                let status = node.get(path).await?.status;
                anyhow::ensure!(status == if wanted { 200 } else { 503 }, "{status}");
                Ok(())
            })
            .await;
        }
    }

    let answer = http::get(leader.rest_port(), "/cluster").await.expect("GET /cluster");
    let document: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    assert_eq!(document["members"].as_array().map(Vec::len), Some(3), "{document}");
    assert_eq!(document["scope"], "story", "{document}");

    for node in &cluster.nodes {
        wait::until("tenure.status() on every node", PATIENCE, async || {
            let rows = node.query("SELECT * FROM tenure.status()").await?;
            anyhow::ensure!(rows.len() == 3, "{rows:?}");
            Ok(())
        })
        .await;
    }
    let lease = leader.query("SELECT * FROM tenure.lease()").await;
    assert_eq!(lease.expect("tenure.lease()").len(), 1);
}

#[tokio::test]
async fn what_acts_is_not_for_everybody() {
    let cluster = Cluster::of(1).start().await;
    let leader = cluster.leader().await;
    leader.query("CREATE ROLE nobody LOGIN").await.expect("make a role");
    for action in ["tenure.switchover('n1')", "tenure.pause()", "tenure.failover('n1')"] {
        let refused = leader.query(&format!("SET ROLE nobody; SELECT {action}")).await.expect_err("a role without tenure_operator acts");
        assert_eq!(stories::node::sqlstate(&refused).as_deref(), Some("42501"), "{action}: {refused:#}");
    }
}

#[tokio::test]
async fn a_founding_that_fails_keeps_its_data_says_why_and_is_tried_ever_later() {
    let cluster = Cluster::of(1).planned().await;
    let node = &cluster.nodes[0];
    cluster.reconfigure(node, |config| config["postgresql"]["parameters"]["shared_preload_libraries"] = "no_such_library".into());
    cluster.start(node);
    node.logged(&["no_such_library", "data.failed"], PATIENCE).await;
    wait::until("check to say why", PATIENCE, async || {
        let said = node.command(&cluster.room).arg("-c").arg(node.config_file()).arg("check").output()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        anyhow::ensure!(
            said.contains("n1 could not found it") && said.contains("no_such_library") && said.contains("tried again in"),
            "{said}"
        );
        Ok(())
    })
    .await;
    let mut failed = node.data_dir().into_os_string();
    failed.push(".failed");
    assert!(std::path::Path::new(&failed).join("PG_VERSION").exists(), "what it left is there to be looked at");
    // Each pause is longer than the one before: a few times in half a minute, and not each second.
    wait::lasting(seconds(12)).await;
    let tried = node.log().matches("founding the cluster story").count();
    assert!((2..=6).contains(&tried), "{tried} times");
    cluster.reconfigure(node, |config| config["postgresql"]["parameters"]["shared_preload_libraries"] = "".into());
    stories::process::signal(node.arbiter_pid().expect("an arbiter"), rustix::process::Signal::HUP);
    cluster.healthy().await;
}

#[tokio::test]
async fn a_cluster_is_not_founded_with_a_dynamic_configuration_that_cant_be_meant() {
    let cluster = Cluster::of(1).planned().await;
    let node = &cluster.nodes[0];
    cluster.reconfigure(node, |config| {
        config["bootstrap"]["dcs"]["synchronus_mode"] = true.into();
        config["bootstrap"]["dcs"]["favourite_colour"] = "green".into();
    });
    let validate = || {
        let said = node.command(&cluster.room).arg("validate").arg(node.config_file()).output().expect("run tenure");
        (said.status.success(), String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned())
    };
    let (valid, said) = validate();
    assert!(!valid && said.contains("synchronus_mode is not a known setting; did you mean synchronous_mode?"), "{said}");
    cluster.start(node);
    node.logged(&["no cluster is founded with this bootstrap.dcs", "synchronus_mode"], PATIENCE).await;
    assert!(!node.data_dir().join("PG_VERSION").exists());
    // What nobody knows does not keep it from being founded, and is not stored.
    cluster.reconfigure(node, |config| drop(config["bootstrap"]["dcs"].as_object_mut().and_then(|dcs| dcs.remove("synchronus_mode"))));
    stories::process::signal(node.arbiter_pid().expect("an arbiter"), rustix::process::Signal::HUP);
    let view = cluster.healthy().await;
    assert!(!format!("{view:?}").contains("favourite_colour"), "{view}");
    node.logged(&["favourite_colour", "it is left out"], seconds(1)).await;
}

#[tokio::test]
async fn a_claim_whose_answer_was_lost_does_not_keep_the_cluster_from_being_founded() {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let proxy = Proxy::before(etcd.hosts(), "/initialize");
    let through = proxy.address();
    let cluster = Cluster::of(1).ttl(20).planned_on(room, etcd, |config| config["etcd3"]["hosts"] = json!(through));
    let only = &cluster.nodes[0];
    cluster.start(only);
    wait::until("the claim to be sent", PATIENCE, async || proxy.swallows().then_some(()).ok_or("not yet")).await;
    // Until the arbiter has given the answer up; the lease, and with it the claim, is there for longer.
    only.logged(&["no answer"], seconds(15)).await;
    proxy.heal();
    cluster.wait_within(seconds(45), "the cluster to be founded", |view| view.leader() == Some("n1")).await;
}

/// The last step of a founding but the write that ends it, made to wait: `bootstrap.post_bootstrap`.
struct LastStep {
    begun: PathBuf,
    may_end: PathBuf,
}

impl LastStep {
    fn of(cluster: &Cluster, node: &Node) -> LastStep {
        let step = LastStep { begun: node.dir().join("begun"), may_end: node.dir().join("may_end") };
        let script = node.dir().join("last_step");
        let (begun, may_end) = (step.begun.display(), step.may_end.display());
        cluster.room.file(&script, &format!("touch {begun}\nwhile ! test -e {may_end}; do sleep 0.05; done\n"));
        cluster.reconfigure(node, |config| config["bootstrap"]["post_bootstrap"] = format!("sh {}", script.display()).into());
        step
    }

    async fn begun(&self) {
        wait::until("the last step of the founding", PATIENCE, async || self.begun.exists().then_some(()).ok_or("not yet")).await;
    }

    fn end(&self) {
        std::fs::write(&self.may_end, "").expect("let the last step end");
    }
}

#[tokio::test]
async fn an_arbiter_that_was_killed_while_it_founded_does_not_wait_for_itself() {
    let cluster = Cluster::of(1).ttl(20).planned().await;
    let only = &cluster.nodes[0];
    let step = LastStep::of(&cluster, only);
    cluster.start(only);
    step.begun().await;
    only.kill_arbiter();
    step.end();
    // The lease of the one before is taken up, and with it the claim: that one is its own.
    cluster.start(only);
    only.logged(&["the cluster story exists"], PATIENCE).await;
    cluster.healthy().await;
}

#[tokio::test]
async fn a_founding_whose_last_answer_was_lost_keeps_the_only_data() {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let proxy = Proxy::before(etcd.hosts(), "no such words");
    let through = proxy.address();
    let cluster = Cluster::of(1).ttl(20).planned_on(room, etcd, |config| config["etcd3"]["hosts"] = json!(through));
    let only = &cluster.nodes[0];
    let step = LastStep::of(&cluster, only);
    cluster.start(only);
    step.begun().await;
    let made = only.one("SELECT system_identifier FROM pg_control_system()").await.expect("ask for the system identifier");
    proxy.swallow();
    step.end();
    only.logged(&["the cluster's identity got no answer"], seconds(15)).await;
    proxy.heal();
    only.logged(&["the cluster story exists"], PATIENCE).await;
    let view = cluster.healthy().await;
    assert_eq!(view.key("initialize"), Some(made.as_str()), "{view}");
    let aside = only.data_dir().with_extension("failed");
    assert!(!aside.exists() && only.data_dir().join("PG_VERSION").exists(), "the data was put aside: {}", only.log());
}
