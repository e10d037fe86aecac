//! A major upgrade beside the present version, as stories ask for it and look at it.

use crate::cluster::Cluster;
use crate::node::Node;
use crate::wait;
use crate::workload::Writer;
use anyhow::Context;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Programs of PostgreSQL are slow beside other stories.
pub const WITHIN: Duration = Duration::from_secs(240);

const TABLES: &str = "
    CREATE TABLE written(id bigint PRIMARY KEY, at timestamptz DEFAULT now());
    CREATE TABLE sums(n int PRIMARY KEY, text text);
    INSERT INTO sums SELECT n, md5(n::text) FROM generate_series(1, 20000) n;
    CREATE TABLE numbered(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text);
    INSERT INTO numbered(what) SELECT 'before' FROM generate_series(1, 100)";

/// Three members with rows that are looked at afterwards.
pub async fn cluster() -> Cluster {
    let parameters = json!({"use_pg_rewind": true, "use_slots": true, "parameters": {"wal_level": "logical"}});
    let cluster = Cluster::of(3).dynamic("postgresql", parameters).start().await;
    cluster.leader().await.query(TABLES).await.expect("make rows");
    cluster.healthy().await;
    cluster
}

/// `tenure upgrade` with these arguments, begun.
pub fn upgrade_begun(cluster: &Cluster, arguments: &[&str]) -> tokio::process::Child {
    let first = &cluster.nodes[0];
    let mut command = tokio::process::Command::from(first.command(&cluster.room));
    command.arg("-c").arg(first.config_file()).arg("upgrade").args(arguments).kill_on_drop(true);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().expect("run tenure")
}

/// The same, to its end: it has to succeed.
pub async fn upgrade(cluster: &Cluster, arguments: &[&str]) -> String {
    let ended =
        tokio::time::timeout(WITHIN, upgrade_begun(cluster, arguments).wait_with_output()).await.expect("an end").expect("run tenure");
    let said = format!("{}{}", String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    println!("tenure upgrade {}: {said}", arguments.join(" "));
    if !ended.status.success() {
        for node in &cluster.nodes {
            println!("{}", node.log());
        }
        panic!("tenure upgrade {}: {said}", arguments.join(" "));
    }
    said
}

/// Asks the leader to make this version, and waits for nothing.
pub async fn begin(leader: &Node, to: u32) {
    let begun = leader.post("/upgrade", &json!({"do": "begin", "to": to})).await.expect("ask");
    assert_eq!(begun.status, 202, "{}", begun.body);
}

/// How far it is.
pub async fn status(cluster: &Cluster) -> Value {
    let said = cluster.cli_ok(&["upgrade", "--status", "--format", "json"]).await;
    serde_json::from_str(&said).unwrap_or_else(|why| panic!("{why}: {said}"))
}

/// Waits until it follows and was compared.
pub async fn may_change_places(cluster: &Cluster) {
    let shown = async || {
        let said = cluster.cli(&["upgrade", "--status", "--format", "json"]).await;
        serde_json::from_slice::<Value>(&said.stdout).map_err(|_| String::from_utf8_lossy(&said.stderr).into_owned())
    };
    wait::until("the two may change places", WITHIN, async || {
        let told = shown().await?;
        let ready = told["compared"].is_object() && told["not_yet"] == json!([]);
        if ready { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
}

/// Writes go on, on a leader whose rows are what they were; a number that was given is not given again. Gives its major version.
pub async fn serving(cluster: &Cluster, writer: &Writer) -> u32 {
    writer.goes_on(50, WITHIN).await;
    // A server that was sealed is started again, perhaps only now.
    wait::until("a leader with the rows", WITHIN, async || {
        let leader = cluster.view().await?.leader().map(str::to_owned).context("nobody leads")?;
        let leader = cluster.node(&leader);
        let version = leader.one("SELECT (current_setting('server_version_num')::int / 10000)::text").await?;
        let fresh = "WITH added AS (INSERT INTO numbered(what) VALUES ('after') RETURNING id) SELECT (id > (SELECT max(id) FROM numbered))::text FROM added";
        anyhow::ensure!(leader.one(fresh).await? == "true", "a number was given twice");
        let sum = leader.one("SELECT count(*) || ' ' || bool_and(text = md5(n::text)) FROM sums").await?;
        anyhow::ensure!(sum == "20000 true", "the rows: {sum}");
        Ok(version.parse::<u32>()?)
    })
    .await
}

/// The same, and it is of this version.
pub async fn serves(cluster: &Cluster, major: u32, writer: &Writer) {
    assert_eq!(serving(cluster, writer).await, major);
}

fn beside(node: &Node, tail: &str) -> PathBuf {
    PathBuf::from(format!("{}{tail}", node.data_dir().display()))
}

/// Until this file beside the leader's data says this.
pub async fn says(node: &Node, tail: &str, what: &str) {
    let note = beside(node, tail);
    let bound = tokio::time::Instant::now() + WITHIN;
    while !std::fs::read_to_string(&note).is_ok_and(|text| text.contains(what)) {
        assert!(tokio::time::Instant::now() < bound, "{what} was not reached: {}", node.log());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Kills the arbiter as soon as this file says this: a step may last for moments. False where it was not seen.
#[expect(clippy::disallowed_methods, reason = "a thread of its own, which looks more often than a timer of an async task would wake it")]
pub async fn killed_when(node: &Node, tail: &str, what: &'static str) -> bool {
    let (note, pid) = (beside(node, tail), node.arbiter_pid().expect("an arbiter"));
    let seen = tokio::task::spawn_blocking(move || {
        let bound = std::time::Instant::now() + Duration::from_secs(60);
        while std::time::Instant::now() < bound {
            if std::fs::read_to_string(&note).is_ok_and(|text| text.contains(what)) {
                crate::process::signal(pid, rustix::process::Signal::KILL);
                return true;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        false
    });
    let seen = seen.await.expect("the look at the note");
    node.kill_arbiter();
    seen
}
