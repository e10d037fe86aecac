//! Settings that wait for a restart, and restarts: in which order, when, and how they are taken back.

use serde_json::Value;
use stories::cluster::{Cluster, PATIENCE};
use stories::wait;

/// Waits until `tenure list` says of each member which settings wait, as `old->new`.
async fn pending(cluster: &Cluster, expected: &str) {
    wait::until(&format!("\"{expected}\" to wait on every member"), PATIENCE, async || {
        let rows = cluster.list().await;
        let seen: Vec<&str> = rows.iter().map(|row| row["Pending restart reason"].as_str().unwrap_or("")).collect();
        let starred = rows.iter().all(|row| (row["Pending restart"] == "*") != expected.is_empty());
        if seen.iter().all(|reason| *reason == expected) && starred { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
}

/// The members in the order in which their restart was reported.
fn order(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| line.strip_prefix("Success: restart on member ")).map(str::to_owned).collect()
}

#[tokio::test]
async fn settings_wait_for_a_restart_in_the_right_order() {
    let cluster = Cluster::of(3).start().await;
    let leader = cluster.leader().await;
    let connections = async |node: &stories::node::Node| node.one("SHOW max_connections").await.unwrap_or_else(|why| format!("{why:#}"));
    let before = connections(leader).await;

    // Raised: standbys first.
    cluster.cli_ok(&["edit-config", "-p", "max_connections=60", "--force"]).await;
    pending(&cluster, &format!("max_connections: {before}->60")).await;
    let shown = cluster.cli_ok(&["list"]).await;
    assert!(shown.contains("(standbys first)"), "{shown}");
    let told =
        leader.one("SELECT count(*) FROM tenure.status() WHERE pending_restart AND pending_restart_reason ? 'max_connections'").await;
    assert_eq!(told.expect("ask"), "3");
    let restarted = order(&cluster.cli_ok(&["restart", "--pending", "--force"]).await);
    assert_eq!((restarted.len(), restarted.last().map(String::as_str)), (3, Some(leader.name())), "{restarted:?}");
    pending(&cluster, "").await;
    for node in &cluster.nodes {
        assert_eq!(connections(node).await, "60", "{}", node.name());
    }

    // Lowered: the primary first, and a standby then has the lower value too.
    cluster.healthy().await;
    cluster.cli_ok(&["edit-config", "-p", "max_connections=40", "--force"]).await;
    pending(&cluster, "max_connections: 60->40").await;
    let restarted = order(&cluster.cli_ok(&["restart", "--force"]).await);
    assert_eq!((restarted.len(), restarted.first().map(String::as_str)), (3, Some(leader.name())), "{restarted:?}");
    pending(&cluster, "").await;
    for node in &cluster.nodes {
        assert_eq!(connections(node).await, "40", "{}", node.name());
    }
    assert_eq!(cluster.healthy().await.leader(), Some(leader.name()));
}

#[tokio::test]
async fn a_rolling_restart_costs_clients_one_switchover() {
    let cluster = Cluster::of(3).start().await;
    let old = cluster.leader().await;
    let before: Vec<_> = cluster.nodes.iter().map(|node| node.postmaster()).collect();
    let writer = cluster.writer().await;
    let said = cluster.cli_ok(&["restart", "--rolling", "--force"]).await;
    let restarted = order(&said);
    assert_eq!((restarted.len(), restarted.last().map(String::as_str)), (3, Some(old.name())), "{said}");
    assert!(said.contains(&format!("Success: switchover on member {}", old.name())), "{said}");
    let view = cluster.healthy().await;
    assert!(view.leads_other_than(old.name()), "{view}");
    for (node, before) in cluster.nodes.iter().zip(before) {
        assert_ne!(node.postmaster(), before, "{} runs a new server", node.name());
    }
    let ledger = writer.finish();
    println!("{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_setting_of_the_file_waits_until_it_is_taken_back() {
    let cluster = Cluster::of(1).start().await;
    cluster.cli_ok(&["edit-config", "-p", "max_files_per_process=900", "--force"]).await;
    pending(&cluster, "max_files_per_process: 1000->900").await;
    cluster.cli_ok(&["edit-config", "-p", "max_files_per_process=null", "--force"]).await;
    pending(&cluster, "").await;
    let output = cluster.cli_ok(&["restart", "--pending", "--force"]).await;
    assert!(output.contains("No member waits for a restart"), "{output}");
}

#[tokio::test]
async fn a_restart_is_planned_shown_taken_back_and_done() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let planned = async || {
        let rows = cluster.list().await;
        let row = rows.into_iter().find(|row| row["Member"] == standby.name()).expect("it is listed");
        row.get("Scheduled restart").and_then(Value::as_str).unwrap_or("").to_owned()
    };
    let shows = async |what: &str, wanted: fn(&str) -> bool| {
        wait::until(what, PATIENCE, async || {
            let seen = planned().await;
            if wanted(&seen) { Ok(()) } else { Err(seen) }
        })
        .await;
    };
    let started = standby.one("SELECT pg_postmaster_start_time()").await.expect("ask");
    let output = cluster.cli_ok(&["restart", standby.name(), "--scheduled", "2999-01-01T00:00:00+00:00", "--force"]).await;
    assert!(output.contains(&format!("Success: restart scheduled on member {}", standby.name())), "{output}");
    shows("the plan in the list", |at| at.starts_with("2999-01-01T00:00:00")).await;

    // Nobody else's plan replaces it, and it outlives its arbiter.
    let again = cluster.cli(&["restart", standby.name(), "--scheduled", "2998-01-01T00:00:00+00:00", "--force"]).await;
    let text = String::from_utf8_lossy(&again.stdout).into_owned();
    assert!(!again.status.success() && text.contains("409"), "{text}");
    standby.kill_arbiter();
    cluster.start(standby);
    cluster.healthy().await;
    shows("the plan after the arbiter's restart", |at| at.starts_with("2999-01-01T00:00:00")).await;
    // An arbiter that has just begun says so until it has read etcd.
    wait::until("the plan to be taken back", PATIENCE, async || {
        let flushed = cluster.cli(&["flush", standby.name(), "restart", "--force"]).await;
        let text = String::from_utf8_lossy(&flushed.stdout).into_owned();
        if flushed.status.success() && text.contains("Success: flush scheduled restart") { Ok(()) } else { Err(text) }
    })
    .await;
    shows("no plan", str::is_empty).await;
    assert_eq!(standby.one("SELECT pg_postmaster_start_time()").await.expect("ask"), started);

    // Due in a moment.
    let at = standby
        .one("SELECT to_char((now() + interval '2 s') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"+00:00\"')")
        .await
        .expect("ask");
    cluster.cli_ok(&["restart", standby.name(), "--scheduled", &at, "--force"]).await;
    wait::until("another start of the server", PATIENCE, async || match standby.one("SELECT pg_postmaster_start_time()").await {
        Ok(now) if now != started => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    cluster.healthy().await;
    shows("no plan any more", str::is_empty).await;
}
