//! A planned change of the leader: clients see a short pause, and the old primary comes back by itself.

use serde_json::json;
use std::time::Duration;
use stories::cluster::{Cluster, PATIENCE};
use stories::node::Node;
use stories::workload::Ledger;

/// No pause of a planned switchover may come near a failover's (the median is `make bench`'s business).
const PAUSE_AT_MOST: Duration = Duration::from_millis(2500);

/// What every switchover story ends with: the new leader leads, the old one follows without a rewind, one timeline on.
async fn comes_to(cluster: &Cluster, old: &Node, logged_before: &str, ledger: &Ledger) {
    println!("switchover: {}", ledger.summary());
    let view = cluster.healthy().await;
    assert!(view.leads_other_than(old.name()), "{view}");
    assert_eq!(view.leader_timeline(), Some(2), "one switchover, one timeline: {view}");
    let logged = old.log_since(logged_before).to_lowercase();
    assert!(!logged.contains("rewind"), "the old primary was rewound:\n{logged}");
    let verdict = cluster.verdict(ledger).await;
    verdict.nothing_lost_or_doubled();
    assert!(ledger.longest_pause() < PAUSE_AT_MOST, "{}", ledger.summary());
}

#[tokio::test]
async fn to_a_named_candidate_by_the_command_line() {
    let cluster = Cluster::of(3).start().await;
    let old = cluster.leader().await;
    let logged = old.log();
    let candidate = cluster.others(old)[1].name();
    let writer = cluster.writer().await;
    cluster.cli_ok(&["switchover", "--leader", old.name(), "--candidate", candidate, "--force"]).await;
    let view = cluster.view().await.expect("look");
    assert_eq!(view.leader(), Some(candidate), "the command returns when it is done: {view}");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    comes_to(&cluster, old, &logged, &ledger).await;
}

#[tokio::test]
async fn to_any_candidate_by_the_command_line() {
    let cluster = Cluster::of(3).start().await;
    let old = cluster.leader().await;
    let logged = old.log();
    let writer = cluster.writer().await;
    cluster.cli_ok(&["switchover", "--force"]).await;
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    comes_to(&cluster, old, &logged, &ledger).await;
}

#[tokio::test]
async fn by_rest() {
    let cluster = Cluster::of(3).start().await;
    let old = cluster.leader().await;
    let logged = old.log();
    let candidate = cluster.others(old)[0].name();
    let writer = cluster.writer().await;
    let answer = old.post("/switchover", &json!({"leader": old.name(), "candidate": candidate})).await.expect("POST /switchover");
    assert_eq!(answer.status, 200, "{answer:?}");
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    comes_to(&cluster, old, &logged, &ledger).await;
    assert_eq!(cluster.leader().await.name(), candidate);
}

#[tokio::test]
async fn by_sql_on_any_node() {
    let cluster = Cluster::of(3).start().await;
    let old = cluster.leader().await;
    let logged = old.log();
    let others = cluster.others(old);
    let (candidate, asked) = (others[0].name(), others[1]);
    let writer = cluster.writer().await;
    asked.query(&format!("SELECT tenure.switchover('{candidate}')")).await.expect("SELECT tenure.switchover on a standby");
    cluster.wait_until("the candidate to lead", |view| view.leader() == Some(candidate)).await;
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    comes_to(&cluster, old, &logged, &ledger).await;
}

#[tokio::test]
async fn with_synchronous_standbys_nothing_is_refused_for_long() {
    let cluster = Cluster::of(3).synchronous(true).start().await;
    let old = cluster.leader().await;
    let logged = old.log();
    let writer = cluster.writer().await;
    cluster.cli_ok(&["switchover", "--force"]).await;
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    comes_to(&cluster, old, &logged, &ledger).await;
}

#[tokio::test]
async fn there_and_back_again() {
    let cluster = Cluster::of(2).start().await;
    let first = cluster.leader().await;
    let second = cluster.others(first)[0];
    let writer = cluster.writer().await;
    for (from, to) in [(first, second), (second, first), (first, second)] {
        cluster.cli_ok(&["switchover", "--leader", from.name(), "--candidate", to.name(), "--force"]).await;
        writer.goes_on(20, PATIENCE).await;
        cluster.healthy().await;
    }
    let ledger = writer.finish();
    println!("three switchovers: {}", ledger.summary());
    let view = cluster.healthy().await;
    assert_eq!(view.leader_timeline(), Some(4), "{view}");
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn to_a_member_that_does_not_exist_is_refused_with_the_reason() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let output = cluster.cli(&["switchover", "--leader", leader.name(), "--candidate", "n9", "--force"]).await;
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("n9"), "{said}");
    let answer = leader.post("/switchover", &json!({"leader": leader.name(), "candidate": "n9"})).await.expect("POST /switchover");
    assert_eq!(answer.status, 412, "{answer:?}");
    assert_eq!(cluster.leader().await.name(), leader.name());
}
