//! A new major version: what stands in its way is named beforehand, and the upgrade in place loses nothing, also where it is interrupted.

use serde_json::{Value, json};
use std::path::PathBuf;
use stories::cluster::{Cluster, PATIENCE};
use stories::majors::{from, later};
use stories::node::Node;
use stories::wait::{self, seconds};

const ONE_OF_EACH: [&str; 13] = [
    "CREATE TABLE no_identity (a int)",
    "CREATE UNLOGGED TABLE unlogged (a int PRIMARY KEY)",
    "SELECT lo_create(0)",
    "CREATE TABLE identities (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY)",
    "CREATE TABLE numbers (id int PRIMARY KEY, is_of regproc)",
    "CREATE MATERIALIZED VIEW seen AS SELECT 1 AS one",
    "CREATE PUBLICATION told FOR TABLE identities",
    "CREATE SUBSCRIPTION heard CONNECTION 'host=127.0.0.1 port=1 dbname=x' PUBLICATION p WITH (connect = false)",
    "CREATE FUNCTION nothing() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
    "CREATE EVENT TRIGGER of_mine ON ddl_command_end EXECUTE FUNCTION nothing()",
    "CREATE DATABASE anything ENCODING 'SQL_ASCII' TEMPLATE template0",
    "CREATE DATABASE closed ALLOW_CONNECTIONS false",
    "SELECT pg_create_physical_replication_slot('others')",
];

#[tokio::test]
async fn each_obstacle_to_a_major_upgrade_is_named_with_its_cure() {
    let parameters =
        json!({"use_pg_rewind": true, "use_slots": true, "parameters": {"max_prepared_transactions": 5, "wal_level": "replica"}});
    let ignored = json!([{"name": "others", "type": "physical"}]);
    let cluster = Cluster::of(1).dynamic("postgresql", parameters).dynamic("ignore_slots", ignored).planned().await;
    cluster.start(cluster.node("n1"));
    cluster.healthy_members(1).await;
    let leader = cluster.node("n1");
    for statement in ONE_OF_EACH {
        leader.query(statement).await.unwrap_or_else(|why| panic!("{statement}: {why:#}"));
    }
    leader.query("BEGIN; INSERT INTO no_identity VALUES (1); PREPARE TRANSACTION 'in_doubt'").await.expect("prepare a transaction");
    let to = later().unwrap_or(18);
    let said = cluster.cli(&["upgrade", "--to", &to.to_string(), "--check", "--format", "json"]).await;
    assert!(!said.status.success(), "an obstacle that stops is an exit code");
    let found: Vec<Value> =
        serde_json::from_slice(&said.stdout).unwrap_or_else(|why| panic!("{why}: {}", String::from_utf8_lossy(&said.stdout)));
    let mut expected = vec![
        ("prepared_transactions", "in_doubt"),
        ("replication_slots", "others"),
        ("closed_databases", "closed"),
        ("wal_level", "replica"),
        ("subscriptions", "heard"),
        ("reg_columns", "numbers.is_of"),
        ("replica_identity", "no_identity"),
        ("unlogged_tables", "unlogged"),
        ("materialized_views", "seen"),
        ("large_objects", "1 large objects"),
        ("sequences", "1 sequences"),
        ("identity_columns", "1 columns"),
        ("publications", "told"),
        ("event_triggers", "of_mine"),
        ("encoding", "anything"),
    ];
    // Without a later version its absence is the last obstacle; with one, its own check finds the first that it looks for.
    expected.push(if later().is_some() { ("pg_upgrade", "pg_upgrade --check") } else { ("programs", "lacks") });
    for (kind, words) in expected {
        let named = found.iter().find(|one| one["kind"] == kind && one["what"].as_str().is_some_and(|what| what.contains(words)));
        let named = named.unwrap_or_else(|| panic!("{kind} ({words}) in {found:#?}"));
        assert!(named["cure"].as_str().is_some_and(|cure| !cure.is_empty()), "{named}");
    }
    let text = cluster.cli(&["upgrade", "--to", "13", "--check"]).await;
    let said = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(!text.status.success() && said.contains("a major upgrade leads to a later version"), "{said}");
}

/// Programs of PostgreSQL are slow beside other stories.
const UPGRADED_WITHIN: std::time::Duration = std::time::Duration::from_secs(240);

const SUM: &str = "SELECT count(*) || ' ' || md5(string_agg(text, ',' ORDER BY n)) FROM sums";

/// Three members with a table that is compared, and its sum.
async fn with_rows() -> (Cluster, String) {
    let cluster = Cluster::of(3).start().await;
    let leader = cluster.leader().await;
    leader.query("CREATE TABLE sums AS SELECT n, md5(n::text) AS text FROM generate_series(1, 20000) n").await.expect("make rows");
    let sum = leader.one(SUM).await.expect("sum");
    cluster.healthy().await;
    (cluster, sum)
}

/// `tenure upgrade --in-place`, begun.
fn begin(cluster: &Cluster, to: u32) -> tokio::process::Child {
    let first = &cluster.nodes[0];
    let mut command = tokio::process::Command::from(first.command(&cluster.room));
    command.arg("-c").arg(first.config_file()).args(["upgrade", "--to", &to.to_string(), "--in-place", "--force"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).kill_on_drop(true).spawn().expect("run tenure")
}

/// Every member is healthy, of this version, and has the rows.
async fn all_have(cluster: &Cluster, major: u32, sum: &str) {
    let version = format!("{major}");
    wait::until("the version and the rows on every member", UPGRADED_WITHIN, async || {
        for node in &cluster.nodes {
            let is = node.one("SELECT (current_setting('server_version_num')::int / 10000)::text").await?;
            anyhow::ensure!(is == version, "{} runs {is}", node.name());
            let has = node.one(SUM).await?;
            anyhow::ensure!(has == sum, "{} has {has}", node.name());
        }
        Ok(())
    })
    .await;
    cluster.healthy().await;
}

#[tokio::test]
async fn an_upgrade_in_place_loses_nothing_and_remakes_the_standbys() {
    let Some(to) = later() else { return };
    let (cluster, sum) = with_rows().await;
    let leader = cluster.leader().await;
    let before = leader.one("SELECT system_identifier::text FROM pg_control_system()").await.expect("the system");
    let writer = cluster.writer().await;
    let ended = tokio::time::timeout(UPGRADED_WITHIN, begin(&cluster, to).wait_with_output()).await.expect("an end").expect("run tenure");
    assert!(
        ended.status.success(),
        "{}{}\n{}",
        String::from_utf8_lossy(&ended.stdout),
        String::from_utf8_lossy(&ended.stderr),
        leader.log()
    );
    writer.goes_on(50, UPGRADED_WITHIN).await;
    all_have(&cluster, to, &sum).await;
    let ledger = writer.finish();
    println!("upgrade in place from {} to {to}: {}", from(), ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    let view = cluster.view().await.expect("look");
    assert_eq!(view.leader(), Some(leader.name()), "the leader stays: {view}");
    assert_ne!(leader.one("SELECT system_identifier::text FROM pg_control_system()").await.expect("the system"), before);
    let analyzed = leader.one("SELECT count(*) FROM pg_stats WHERE tablename = 'sums'").await.expect("statistics");
    assert_eq!(analyzed, "2", "both columns have their statistics");
    // By an arbiter that begins again, too: the data says of which version it is, the file still names the old one.
    leader.kill_arbiter();
    cluster.start(leader);
    let candidate = cluster.others(leader)[0].name();
    cluster.healthy().await;
    cluster.cli_ok(&["switchover", "--candidate", candidate, "--force"]).await;
    all_have(&cluster, to, &sum).await;
}

async fn reaches(node: &Node, step: &str) {
    let note = PathBuf::from(format!("{}.upgrade.json", node.data_dir().display()));
    let wanted = format!("\"step\":\"{step}\"");
    let bound = tokio::time::Instant::now() + UPGRADED_WITHIN;
    while !std::fs::read_to_string(&note).is_ok_and(|text| text.contains(&wanted)) {
        assert!(tokio::time::Instant::now() < bound, "the step {step} was not reached: {}", node.log());
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_arbiter_killed_in_the_middle_undoes_the_upgrade_or_goes_on_with_it() {
    let Some(to) = later() else { return };
    let (cluster, sum) = with_rows().await;
    let steps = std::env::var("UPGRADE_STEPS").unwrap_or_else(|_| "transfer statistics".to_owned());
    for step in steps.split_whitespace() {
        let leader = cluster.leader().await;
        let command = begin(&cluster, to);
        reaches(leader, step).await;
        leader.kill_arbiter();
        drop(command);
        cluster.start(leader);
        let goes_on = matches!(step, "statistics" | "announce" | "exchange");
        all_have(&cluster, if goes_on { to } else { from() }, &sum).await;
        println!("killed at {step}: PostgreSQL {} with every row", if goes_on { to } else { from() });
    }
}

#[tokio::test]
async fn a_node_that_is_lost_in_the_middle_leaves_the_old_version_to_the_others() {
    let Some(to) = later() else { return };
    let (cluster, sum) = with_rows().await;
    let leader = cluster.leader().await;
    let _command = begin(&cluster, to);
    reaches(leader, "statistics").await;
    leader.kill();
    cluster.wait_within(PATIENCE, "another leader", |view| view.leads_other_than(leader.name())).await;
    cluster.start(leader);
    all_have(&cluster, from(), &sum).await;
    leader.logged(&["is called off: another member leads"], seconds(5)).await;
}
