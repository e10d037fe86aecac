//! What operators see and touch of a Citus cluster: SQL on the coordinator.

use serde_json::json;
use stories::citus::{self, CitusCluster};
use stories::cluster::PATIENCE;
use stories::node::{Config, Node};
use stories::wait;

/// Quick to fail over.
fn quick(config: &mut Config) {
    config["bootstrap"]["dcs"]["ttl"] = json!(3);
    config["bootstrap"]["dcs"]["loop_wait"] = json!(1);
    config["bootstrap"]["dcs"]["retry_timeout"] = json!(1);
}

/// `group member role state lag` of every member that this node's SQL shows.
async fn status(node: &Node) -> Result<Vec<String>, String> {
    let sql = "SELECT concat_ws(' ', citus_group, member, role, state, replay_lag) FROM tenure.status() ORDER BY citus_group, member";
    let rows = node.query(sql).await.map_err(|error| format!("{error:#}"))?;
    Ok(rows.into_iter().map(|row| row.concat()).collect())
}

async fn shows(node: &Node, wanted: &[String]) {
    wait::until("tenure.status() to show it", PATIENCE, async || match status(node).await? {
        rows if rows == wanted => Ok(()),
        rows => Err(format!("{rows:#?}, wanted {wanted:#?}")),
    })
    .await;
}

/// The rows of a group of two whose standby lags by nothing.
fn pair(group: u32, leader: &str, standby: &str) -> Vec<String> {
    let mut rows = vec![format!("{group} {leader} Leader running"), format!("{group} {standby} Replica streaming 0")];
    rows.sort_by_key(|row| row.split(' ').nth(1).map(str::to_owned));
    rows
}

fn other(name: &str) -> &'static str {
    match name {
        "w1a" => "w1b",
        "w1b" => "w1a",
        "w2a" => "w2b",
        _ => "w2a",
    }
}

#[tokio::test]
async fn one_statement_on_the_coordinator_shows_all_groups_and_switches_one_over() {
    if !citus::is_installed() {
        return;
    }
    let cluster = CitusCluster::planned(1, &[2, 2], |_, config| quick(config)).await;
    cluster.start_all();
    cluster.healthy().await;
    let coordinator = cluster.leader(0).await;
    let [mut first, second] = [cluster.leader(1).await.name(), cluster.leader(2).await.name()];
    let all = |first: &str| [vec!["0 c1 Leader running".to_owned()], pair(1, first, other(first)), pair(2, second, other(second))].concat();
    shows(coordinator, &all(first)).await;
    // A worker's server shows its own group alone, and speaks for no other.
    shows(cluster.leader(2).await, &pair(2, second, other(second))).await;
    let refused = cluster.leader(2).await.one("SELECT tenure.pause(citus_group => 1)").await.expect_err("a worker speaks for itself");
    assert!(format!("{refused:#}").contains("this server is of group 2"), "{refused:#}");
    let refused = coordinator.one("SELECT tenure.pause(citus_group => 7)").await.expect_err("no such group");
    assert!(format!("{refused:#}").contains("there is no group 7"), "{refused:#}");
    let health = coordinator.one("SELECT leader || ' ' || members FROM tenure.health").await.expect("its own group in numbers");
    assert_eq!(health, "c1 1");

    // A planned change of another group by SQL.
    let said = coordinator.one("SELECT tenure.switchover(citus_group => 1)").await.expect("a switchover");
    assert!(said.contains(other(first)), "{said}");
    first = other(first);
    shows(coordinator, &all(first)).await;
    for (function, paused) in [("pause", "true"), ("resume", "false")] {
        coordinator.one(&format!("SELECT tenure.{function}(citus_group => 2)")).await.expect("maintenance mode of a group");
        let config = cluster.view(2).await.expect("a view").json("config");
        assert_eq!(config["pause"].as_bool().unwrap_or(false).to_string(), paused, "{config}");
        let own = coordinator.one("SELECT paused FROM tenure.health").await.expect("its own group");
        assert_eq!(own, "f");
    }

    // A worker's node dies: its successor is shown.
    cluster.node(first).kill();
    let dead = first;
    first = other(first);
    shows(coordinator, &all(first).into_iter().filter(|row| !row.contains(dead)).collect::<Vec<_>>()).await;
    cluster.node(dead).start(&cluster.room);
    shows(coordinator, &all(first)).await;
}
