//! What operators see and touch of a Citus cluster: SQL on the coordinator, commands.

use stories::citus::{self, CitusCluster};
use stories::cluster::PATIENCE;
use stories::node::Node;
use stories::wait;

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
    let cluster = CitusCluster::planned(1, &[2, 2], |_, config| citus::fail_over_quickly(config)).await;
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

/// What a command is told, and what it says or why it refuses; on standard output or standard error.
struct Line {
    words: &'static [&'static str],
    succeeds: bool,
    says: &'static [&'static str],
}

fn says(words: &'static [&'static str], says: &'static [&'static str]) -> Line {
    Line { words, succeeds: true, says }
}

fn refuses(words: &'static [&'static str], says: &'static [&'static str]) -> Line {
    Line { words, succeeds: false, says }
}

/// All with the file of the coordinator c1.
fn table() -> Vec<Line> {
    const NAMES_GROUPS: &str = "can be about groups 0, 1, 2 of story";
    vec![
        // Reading: all groups, or the one named.
        says(&["list", "-f", "tsv"], &["story\t0\tc1\t", "story\t1\tw1a\t", "story\t2\tw2b\t"]),
        says(&["list", "--group", "1"], &["Citus cluster: story (group: 1, ", "w1a", "w1b"]),
        refuses(&["list", "--group", "7"], &["there is no cluster story"]),
        says(&["topology"], &["Citus cluster: story", "c1", "+ w1b", "+ w2b"]),
        says(&["check"], &["cluster does not have members except leader (Citus group 0)"]),
        says(&["check", "--group", "2"], &["story: no faults"]),
        refuses(&["check", "--group", "7"], &["has no group 7", "its groups are 0, 1, 2"]),
        says(&["version"], &["c1: pg_tenure", "w1a: pg_tenure", "w2b: pg_tenure"]),
        says(&["explain", "w2b"], &["w2b:"]),
        refuses(&["explain", "w7"], &["w7 is not a member"]),
        says(&["dsn", "-m", "w1b"], &["host=127.0.0.1 port="]),
        says(&["query", "-m", "w1b", "-C", "SELECT current_setting('tenure.name')"], &["w1b"]),
        says(&["query", "-C", "SELECT current_setting('tenure.name')"], &["c1"]),
        says(&["query", "--group", "2", "-C", "SELECT current_setting('tenure.group')"], &["2"]),
        // The own group by the file, all, or the one named.
        says(&["show-config"], &["ttl: 3"]),
        says(&["show-config", "--all-groups"], &["# Citus group: 0", "# Citus group: 2", "ttl: 3"]),
        says(&["history", "--all-groups", "-f", "tsv"], &["Group\tTL\tLSN"]),
        says(&["edit-config", "--group", "2", "-s", "postgresql.parameters.work_mem=5MB", "--force"], &["Configuration changed"]),
        says(&["show-config", "--group", "2"], &["work_mem: 5MB"]),
        says(&["pause", "--group", "1", "--wait"], &["Success: cluster management is paused"]),
        says(&["list"], &["Citus group: 1, Maintenance mode: on"]),
        says(&["pause", "--all-groups"], &["Citus group: 0", "It is already paused", "Success: cluster management is paused"]),
        refuses(&["pause"], &["Cluster is already paused"]),
        says(&["resume", "--all-groups", "--wait"], &["Citus group: 2", "Success: cluster management is resumed"]),
        // What changes one group is to be told which.
        refuses(&["switchover", "--force"], &["a switchover", NAMES_GROUPS]),
        refuses(&["failover", "--force"], &["a failover", NAMES_GROUPS]),
        refuses(&["remove", "story"], &["a removal", NAMES_GROUPS]),
        refuses(&["switchover", "--group", "7", "--force"], &["has no group 7"]),
        refuses(&["switchover", "--group", "0", "--force"], &["No candidates found to switchover to"]),
        // A member's name says it, too.
        says(&["reload", "w1b", "--force"], &["Reload request received for member w1b"]),
        says(&["reload", "--force"], &["for member c1", "for member w1a", "for member w2b"]),
        says(&["restart", "w2b", "--force"], &["Success: restart on member w2b"]),
        refuses(&["restart", "w7", "--force"], &["w7 is not a member of any group"]),
        says(&["restart", "--group", "1", "-r", "replica", "--force"], &["Success: restart on member w1b"]),
        refuses(&["reinit", "--force"], &["no member to reinitialize is named"]),
        says(&["reinit", "w1b", "--force", "--wait"], &["Reinitialize is completed on: w1b"]),
        says(&["switchover", "--candidate", "w2b", "--force"], &["(group: 2, ", "Successfully switched over to \"w2b\""]),
        says(&["failover", "--candidate", "w2a", "--force"], &["Successfully failed over to \"w2a\""]),
        says(&["flush", "--group", "2", "switchover", "--force"], &["No pending scheduled switchover"]),
        says(&["history", "--group", "2", "-f", "tsv"], &["\tw2b", "\tw2a"]),
    ]
}

#[tokio::test]
async fn commands_are_about_one_group_or_all_and_say_which() {
    if !citus::is_installed() {
        return;
    }
    let cluster = CitusCluster::planned(1, &[2, 2], |_, config| citus::fail_over_quickly(config)).await;
    // The first of each group leads.
    for group in &cluster.groups {
        group[0].start(&cluster.room);
    }
    for group in 0..3 {
        cluster.leader(group).await;
    }
    cluster.groups.iter().flat_map(|group| &group[1..]).for_each(|node| node.start(&cluster.room));
    cluster.healthy().await;
    for line in table() {
        let output = cluster.cli_of(cluster.node("c1"), line.words).await;
        let text = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
        let words = line.words.join(" ");
        assert_eq!(output.status.success(), line.succeeds, "`tenure {words}`:\n{text}");
        for wanted in line.says {
            assert!(text.contains(wanted), "`tenure {words}` does not say {wanted:?}:\n{text}");
        }
        if line.words.first().is_some_and(|word| matches!(*word, "restart" | "reinit" | "switchover" | "failover")) {
            cluster.healthy_group(1, 2).await;
            cluster.healthy_group(2, 2).await;
        }
    }
}
