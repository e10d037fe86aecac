//! Patroni's own tools and files, unchanged.

use serde_json::json;
use std::process::Command;
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::Etcd;
use stories::node::{Node, PASSWORD};
use stories::programs;
use stories::room::Room;
use stories::wait;

/// The configuration patronictl reads.
fn patronictl(cluster: &Cluster, arguments: &[&str]) -> Option<String> {
    let Some(program) = programs::patronictl() else {
        println!("SKIPPED: no patronictl here; `make patroni` installs it");
        return None;
    };
    let config = cluster.room.path().join("patronictl.yml");
    let text = format!("scope: story\nnamespace: /service\nname: ctl\netcd3:\n  hosts: {}\n", cluster.etcd.hosts());
    cluster.room.file(&config, &text);
    let output =
        Command::new(program).arg("-c").arg(&config).args(arguments).current_dir(cluster.room.path()).output().expect("run patronictl");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "patronictl {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Some(said)
}

#[tokio::test]
async fn patronictl_lists_our_cluster_as_we_do() {
    let cluster = Cluster::of(3).start().await;
    let Some(theirs) = patronictl(&cluster, &["list", "story", "--format", "json"]) else {
        return;
    };
    let theirs: Vec<serde_json::Value> = serde_json::from_str(&theirs).expect("patronictl's JSON");
    let ours = cluster.list().await;
    assert_eq!(theirs.len(), 3, "{theirs:?}");
    for (their, our) in theirs.iter().zip(&ours) {
        for column in ["Cluster", "Member", "Host", "Role", "State", "TL"] {
            assert_eq!(their[column], our[column], "{column}: {their} and {our}");
        }
    }
    let lags: Vec<&serde_json::Value> = theirs
        .iter()
        .filter(|row| row["Role"] != "Leader")
        .flat_map(|row| [&row["Receive Lag"], &row["Replay Lag"], &row["Lag in MB"]])
        .filter(|lag| !lag.is_null())
        .collect();
    assert!(!lags.is_empty() && lags.iter().all(|lag| lag.is_number()), "lag is known: {theirs:?}");
}

#[tokio::test]
async fn patronictl_reads_our_configuration_and_history() {
    let cluster = Cluster::of(2).start().await;
    cluster.cli_ok(&["switchover", "--force"]).await;
    cluster.healthy().await;
    let Some(config) = patronictl(&cluster, &["show-config", "story"]) else {
        return;
    };
    assert!(config.contains("ttl: 10"), "{config}");
    let history = patronictl(&cluster, &["history", "story", "--format", "json"]).expect("it is here");
    let history: serde_json::Value = serde_json::from_str(&history).expect("JSON");
    assert_eq!(history[0]["TL"], 1, "{history}");
}

#[tokio::test]
async fn patronictl_switches_our_cluster_over() {
    let cluster = Cluster::of(3).start().await;
    let old = cluster.leader().await;
    let candidate = cluster.others(old)[0].name();
    let arguments = ["switchover", "story", "--leader", old.name(), "--candidate", candidate, "--force"];
    if patronictl(&cluster, &arguments).is_none() {
        return;
    }
    cluster.wait_until("the candidate to lead", |view| view.leader() == Some(candidate)).await;
    cluster.healthy().await;
}

/// As a deployment guide has it, with addresses and paths of this room.
const GUIDE: &str = r#"
scope: postgres-cluster
namespace: /db/
name: postgresql0

log:
  level: INFO
  format: '%(asctime)s %(levelname)s: %(message)s'

restapi:
  listen: 127.0.0.1:@REST@
  connect_address: 127.0.0.1:@REST@
#  certfile: /etc/ssl/certs/ssl-cert-snakeoil.pem
#  authentication:
#    username: username
#    password: password

etcd3:
  hosts:
    - @ETCD@

bootstrap:
  # written into the dynamic configuration once the cluster is initialized
  dcs:
    ttl: 30
    loop_wait: 10
    retry_timeout: 10
    maximum_lag_on_failover: 1048576
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
        wal_level: replica
        hot_standby: "on"
        max_connections: 100
        max_worker_processes: 8
        wal_keep_size: 128MB
        max_wal_senders: 10
        max_replication_slots: 10
        wal_log_hints: "on"
  initdb:
  - encoding: UTF8
  - data-checksums
  pg_hba:
  - host replication replicator 127.0.0.1/32 md5
  - host all all 0.0.0.0/0 md5

postgresql:
  listen: 127.0.0.1:@PG@
  connect_address: 127.0.0.1:@PG@
  data_dir: @DIR@/data
  bin_dir: @BIN@
  pgpass: @DIR@/pgpass0
  authentication:
    replication:
      username: replicator
      password: @PASSWORD@
    superuser:
      username: postgres
      password: @PASSWORD@
    rewind:
      username: rewind_user
      password: @PASSWORD@
  parameters:
    unix_socket_directories: '@DIR@'
  basebackup:
    checkpoint: fast

watchdog:
  mode: automatic
  device: /dev/watchdog
  safety_margin: 5

tags:
  noloadbalance: false
  clonefrom: false
  nosync: false
  nostream: false
"#;

#[tokio::test]
async fn a_patroni_yml_from_a_deployment_guide_starts_a_node_as_it_is() {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let node = Node::bare(&room, "postgresql0");
    let text = GUIDE
        .replace("@REST@", &node.rest_port().to_string())
        .replace("@PG@", &node.port().to_string())
        .replace("@ETCD@", &etcd.hosts())
        .replace("@DIR@", &node.dir().to_string_lossy())
        .replace("@BIN@", &programs::postgres_bin().to_string_lossy())
        .replace("@PASSWORD@", PASSWORD);
    room.file(&node.config_file(), &text);
    node.start(&room);
    wait::until("the node to be primary", PATIENCE, async || {
        let answer = node.get("/primary").await?;
        anyhow::ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })
    .await;
    assert_eq!(node.one("SHOW max_connections").await.expect("ask"), "100");
    assert_eq!(node.one("SHOW data_checksums").await.expect("ask"), "on");
    let keys = etcd.keys("/db/postgres-cluster/").await.expect("look");
    assert_eq!(keys.get("leader").map(String::as_str), Some("postgresql0"), "{keys:?}");
    let unknown = node.log().to_lowercase().contains("unknown key");
    assert!(!unknown, "a key from the guide is unknown:\n{}", node.log());
}

#[tokio::test]
async fn patronictl_changes_restarts_reloads_reinitializes_and_pauses_our_cluster() {
    let cluster = Cluster::of(3).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let Some(tree) = patronictl(&cluster, &["topology", "story"]) else {
        return;
    };
    assert!(tree.contains(leader.name()) && tree.contains(&format!("+ {}", standby.name())), "{tree}");

    let arguments = ["edit-config", "story", "-s", "maximum_lag_on_failover=2097152", "-p", "max_connections=121", "--force"];
    patronictl(&cluster, &arguments);
    let config = patronictl(&cluster, &["show-config", "story"]).expect("it is here");
    assert!(config.contains("2097152") && config.contains("121"), "{config}");

    let standbys: Vec<&str> = cluster.others(leader).iter().map(|node| node.name()).collect();
    for name in standbys.into_iter().chain([leader.name()]) {
        wait::until("a setting to wait for a restart", PATIENCE, async || {
            let pending = cluster.node(name).one("SELECT count(*) FROM pg_settings WHERE pending_restart").await?;
            let raised = cluster.node(name).one("SHOW max_connections").await?;
            anyhow::ensure!(pending != "0" || raised == "121", "{name}: {pending} pending, {raised}");
            Ok(())
        })
        .await;
        let said = patronictl(&cluster, &["restart", "story", name, "--force"]).expect("it is here");
        assert!(said.contains(&format!("Success: restart on member {name}")), "{said}");
    }
    cluster.healthy().await;
    for node in &cluster.nodes {
        assert_eq!(node.one("SHOW max_connections").await.expect("ask"), "121", "{}", node.name());
    }

    let said = patronictl(&cluster, &["reload", "story", standby.name(), "--force"]).expect("it is here");
    assert!(said.contains(&format!("Reload request received for member {}", standby.name())), "{said}");

    let said = patronictl(&cluster, &["reinit", "story", standby.name(), "--force"]).expect("it is here");
    assert!(said.contains(&format!("Success: reinitialize for member {}", standby.name())), "{said}");
    standby.logged(&["clone"], PATIENCE).await;
    cluster.healthy().await;

    for (command, paused) in [("pause", true), ("resume", false)] {
        patronictl(&cluster, &[command, "story"]).expect("it is here");
        wait::until(&format!("the cluster to notice {command}"), PATIENCE, async || {
            let answer: serde_json::Value = serde_json::from_str(&leader.get("/cluster").await?.body)?;
            anyhow::ensure!((answer["pause"] == true) == paused, "{answer}");
            Ok(())
        })
        .await;
    }
    cluster.healthy().await;
}

#[tokio::test]
async fn what_the_tables_say_of_rest_and_of_the_command_line() {
    let cluster = Cluster::of(1).planned().await;
    let node = &cluster.nodes[0];
    cluster.reconfigure(node, |config| {
        config["restapi"]["allowlist"] = json!(["10.99.99.99"]);
        config["restapi"]["http_extra_headers"] = json!({"X-Rack": "r7"});
        config["postgresql"]["custom_conf"] = json!("/nowhere/postgresql.conf");
        config["postgresql"]["pg_ctl_timeout"] = json!(30);
    });
    cluster.start_all().await;
    node.logged(&["postgresql.custom_conf"], PATIENCE).await;

    // The server writes before its arbiter has looked again after the founding.
    wait::until("GET /primary to answer 200 with the header of the file", PATIENCE, async || {
        let looks = node.get("/primary").await?;
        anyhow::ensure!(looks.status == 200 && looks.head.to_lowercase().contains("x-rack: r7"), "{looks:?}");
        Ok(())
    })
    .await;
    let refused = node.post("/reload", &json!({})).await.expect("POST /reload");
    assert_eq!(refused.status, 403, "who is not on the list: {refused:?}");
    cluster.reconfigure(node, |config| config["restapi"]["allowlist"] = json!(["10.99.99.99", "127.0.0.0/8"]));
    stories::process::signal(node.arbiter_pid().expect("an arbiter"), stories::process::Signal::HUP);
    wait::until("the new list", PATIENCE, async || {
        let answer = node.post("/reload", &json!({})).await.map_err(|error| format!("{error:#}"))?;
        if answer.status < 300 { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    for (path, words) in [("/journal", "\"duty\""), ("/parameters?names=work_mem", "\"work_mem\"")] {
        let answer = node.get(path).await.expect("GET");
        assert!(answer.status == 200 && answer.body.contains(words), "{path}: {answer:?}");
    }

    let file = node.config_file().display().to_string();
    let url = format!("etcd3://{}/service", cluster.etcd.hosts());
    for (variable, value, arguments) in [
        ("PATRONICTL_CONFIG_FILE", file.as_str(), &["list"][..]),
        ("TENURE_CONFIG_FILE", &file, &["list"]),
        ("DCS_URL", &url, &["list", "story"]),
        ("HARMLESS", "", &["-d", &url, "list", "story"]),
        ("HARMLESS", "", &["-c", &file, "list"]),
    ] {
        let output = node.command(&cluster.room).env(variable, value).args(arguments).output().expect("run tenure");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("| n1 "), "{variable} {arguments:?}: {said}");
    }
}

#[test]
fn what_shows_each_line_of_the_table_is_there() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tree");
    let table = std::fs::read_to_string(root.join("docs/compatibility.md")).expect("read docs/compatibility.md");
    let (_, shown) = table.split_once("## What shows each line").expect("the section");
    let mut known = String::new();
    let mut directories = vec![root.join("tests/tests"), root.join("arbiter/src"), root.join("cluster")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("look into a directory").flatten() {
            match entry.path() {
                path if path.is_dir() => directories.push(path),
                path if path.extension().is_some_and(|extension| extension == "rs") => {
                    known.push_str(&std::fs::read_to_string(path).expect("read a source file"));
                }
                _ => {}
            }
        }
    }
    // The names of tests are sentences; those of settings have fewer words.
    let names = shown
        .split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| word.matches('_').count() > 3 && !word.ends_with('_'));
    let mut named = 0;
    for name in names {
        assert!(known.contains(&format!("fn {name}(")) || known.contains(&format!("\"{name}\"")), "docs/compatibility.md names {name}");
        named += 1;
    }
    assert!(named > 40, "{named} names");
}
