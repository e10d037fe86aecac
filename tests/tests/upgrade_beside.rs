//! A new major version beside the present one: it follows, its data is compared, the two change places, and back, and nothing is lost.

use serde_json::{Value, json};
use std::time::Duration;
use stories::cluster::Cluster;
use stories::majors::{from, later};
use stories::wait;
use stories::workload::Writer;

/// Programs of PostgreSQL are slow beside other stories.
const WITHIN: Duration = Duration::from_secs(240);

const TABLES: &str = "
    CREATE TABLE written(id bigint PRIMARY KEY, at timestamptz DEFAULT now());
    CREATE TABLE sums(n int PRIMARY KEY, text text);
    INSERT INTO sums SELECT n, md5(n::text) FROM generate_series(1, 20000) n;
    CREATE TABLE numbered(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, what text);
    INSERT INTO numbered(what) SELECT 'before' FROM generate_series(1, 100)";

/// The later version, where there is one and the path may be begun: it is not offered yet.
fn offered() -> Option<u32> {
    if std::env::var_os("TENURE_UPGRADE_BESIDE").is_none() {
        println!("SKIPPED: this path is not offered yet; TENURE_UPGRADE_BESIDE=yes in the environment tries it");
        return None;
    }
    later()
}

async fn cluster() -> Cluster {
    let parameters = json!({"use_pg_rewind": true, "use_slots": true, "parameters": {"wal_level": "logical"}});
    let cluster = Cluster::of(3).dynamic("postgresql", parameters).start().await;
    cluster.leader().await.query(TABLES).await.expect("make rows");
    cluster.healthy().await;
    cluster
}

/// A command that takes as long as PostgreSQL's programs.
async fn upgrade(cluster: &Cluster, arguments: &[&str]) -> String {
    let first = &cluster.nodes[0];
    let mut command = tokio::process::Command::from(first.command(&cluster.room));
    command.arg("-c").arg(first.config_file()).arg("upgrade").args(arguments).kill_on_drop(true);
    let ended = tokio::time::timeout(WITHIN, command.output()).await.expect("an end").expect("run tenure");
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

async fn status(cluster: &Cluster) -> Value {
    let said = cluster.cli_ok(&["upgrade", "--status", "--format", "json"]).await;
    serde_json::from_str(&said).unwrap_or_else(|why| panic!("{why}: {said}"))
}

async fn may_change_places(cluster: &Cluster) {
    wait::until("the two may change places", WITHIN, async || {
        let told = status(cluster).await;
        let ready = told["compared"].is_object() && told["not_yet"] == json!([]);
        if ready { Ok(()) } else { Err(told.to_string()) }
    })
    .await;
}

/// The leader runs this version, writes go on, a number that was given is not given again, and the other rows are what they were.
async fn serves(cluster: &Cluster, major: u32, writer: &Writer) {
    writer.goes_on(50, WITHIN).await;
    let leader = cluster.leader().await;
    let version = leader.one("SELECT (current_setting('server_version_num')::int / 10000)::text").await.expect("the version");
    assert_eq!(version, major.to_string());
    let fresh = "WITH added AS (INSERT INTO numbered(what) VALUES ('after') RETURNING id) SELECT (id > (SELECT max(id) FROM numbered))::text FROM added";
    assert_eq!(leader.one(fresh).await.expect("a new number"), "true");
    let sum = "SELECT count(*) || ' ' || bool_and(text = md5(n::text)) FROM sums";
    assert_eq!(leader.one(sum).await.expect("the rows"), "20000 true");
}

#[tokio::test]
async fn a_new_version_follows_changes_places_goes_back_and_stays_in_the_end() {
    let Some(to) = offered() else { return };
    let cluster = cluster().await;
    let writer = cluster.writer().await;
    let major = to.to_string();
    upgrade(&cluster, &["--to", &major, "--force"]).await;
    println!("changed to {to}: {}", status(&cluster).await);
    serves(&cluster, to, &writer).await;
    let refused = cluster.leader().await.query("CREATE TABLE not_now(a int)").await.map(drop).expect_err("definitions are refused");
    assert!(format!("{refused:#}").contains("while a new major version follows"), "{refused:#}");
    cluster.leader().await.query("CREATE TEMPORARY TABLE only_here(a int)").await.expect("a temporary table is nobody else's business");

    may_change_places(&cluster).await;
    upgrade(&cluster, &["--back", "--force"]).await;
    println!("back to {}: {}", from(), status(&cluster).await);
    serves(&cluster, from(), &writer).await;

    may_change_places(&cluster).await;
    upgrade(&cluster, &["--switch", "--force"]).await;
    println!("again to {to}: {}", status(&cluster).await);
    serves(&cluster, to, &writer).await;
    upgrade(&cluster, &["--finish", "--force"]).await;
    let leader = cluster.leader().await;
    leader.query("CREATE TABLE now_again(a int)").await.expect("definitions may be changed again");
    let left = "SELECT (SELECT count(*) FROM pg_subscription) || ' ' || (SELECT count(*) FROM pg_publication) || ' ' || \
        (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical')";
    assert_eq!(leader.one(left).await.expect("what is left"), "0 0 0");
    assert!(!std::path::PathBuf::from(format!("{}.twin", leader.data_dir().display())).exists());

    let ledger = writer.finish();
    println!("there, back and there again: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    cluster.healthy().await;
}

#[tokio::test]
async fn a_failover_calls_an_upgrade_off_and_the_next_leader_takes_away_what_it_left() {
    let Some(to) = offered() else { return };
    let cluster = cluster().await;
    let writer = cluster.writer().await;
    let old = cluster.leader().await;
    let begun = old.post("/upgrade", &json!({"do": "begin", "to": to})).await.expect("ask");
    assert_eq!(begun.status, 202, "{}", begun.body);
    may_change_places(&cluster).await;
    old.kill();
    cluster.wait_within(WITHIN, "another leader", |view| view.leads_other_than(old.name())).await;
    cluster.start(old);
    writer.goes_on(50, WITHIN).await;
    let leader = cluster.leader().await;
    wait::until("definitions may be changed again", WITHIN, async || {
        leader.query("CREATE TABLE IF NOT EXISTS now_again(a int PRIMARY KEY)").await.map(drop).map_err(|why| format!("{why:#}"))
    })
    .await;
    old.logged(&["is called off: another member leads"], WITHIN).await;
    let ledger = writer.finish();
    println!("a failover: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    cluster.healthy().await;
}

/// Until this file beside the leader's data says this.
async fn says(node: &stories::node::Node, tail: &str, what: &str) {
    let note = std::path::PathBuf::from(format!("{}{tail}", node.data_dir().display()));
    let bound = tokio::time::Instant::now() + WITHIN;
    while !std::fs::read_to_string(&note).is_ok_and(|text| text.contains(what)) {
        assert!(tokio::time::Instant::now() < bound, "{what} was not reached: {}", node.log());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn an_arbiter_killed_while_it_is_made_while_it_follows_and_in_the_change_goes_on() {
    let Some(to) = offered() else { return };
    let cluster = cluster().await;
    let writer = cluster.writer().await;
    let leader = cluster.leader().await;
    let begun = leader.post("/upgrade", &json!({"do": "begin", "to": to})).await.expect("ask");
    assert_eq!(begun.status, 202, "{}", begun.body);
    says(leader, ".twin.json", "\"making\"").await;
    wait::until("a copy that has begun", WITHIN, async || {
        let copy = format!("{}.twin/copy", leader.data_dir().display());
        if std::path::Path::new(&copy).exists() { Ok(()) } else { Err("no copy yet") }
    })
    .await;
    leader.kill_arbiter();
    cluster.start(leader);
    may_change_places(&cluster).await;
    println!("killed while it was made: made anew, compared");

    leader.kill_arbiter();
    cluster.start(leader);
    cluster.healthy().await;
    may_change_places(&cluster).await;
    println!("killed while it followed: follows, compared");

    let first = &cluster.nodes[0];
    let mut command = tokio::process::Command::from(first.command(&cluster.room));
    command.arg("-c").arg(first.config_file()).args(["upgrade", "--switch", "--force"]).kill_on_drop(true);
    let asked = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().expect("run tenure");
    says(leader, ".upgrade.json", "\"announce\"").await;
    leader.kill_arbiter();
    drop(asked);
    cluster.start(leader);
    serves(&cluster, to, &writer).await;
    println!("killed in the change: PostgreSQL {to} serves");
    let ledger = writer.finish();
    println!("killed three times: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    cluster.healthy().await;
}
