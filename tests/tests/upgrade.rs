//! A new major version: what stands in its way is named beforehand, each with its cure.

use serde_json::{Value, json};
use std::path::PathBuf;
use stories::cluster::Cluster;

/// The major version that the stories run on.
fn from() -> u32 {
    let bin = stories::programs::postgres_bin();
    let part = bin.iter().filter_map(|part| part.to_str()?.parse().ok()).next_back();
    part.expect("PostgreSQL's programs lie in a directory that names the version")
}

/// A later major version beside that one with pg_tenure in it; None, said loudly, where there is none.
fn later() -> Option<u32> {
    let has = |major: &u32| {
        let root = PathBuf::from(format!("/usr/lib/postgresql/{major}"));
        root.join("bin/pg_upgrade").exists() && root.join("lib/pg_tenure.so").exists()
    };
    let found = (from() + 1..=18).rev().find(has);
    if found.is_none() {
        println!("SKIPPED IN PART: no later major version with pg_tenure is installed beside PostgreSQL {}", from());
    }
    found
}

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
