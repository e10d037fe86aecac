//! What the arbiter does through its own functions in the server ends with it, is seen by who watches, and is never somebody else's function.

use std::time::Duration;
use stories::cluster::{Cluster, PATIENCE};
use stories::node::{self, Node};
use stories::wait::{self, seconds};

async fn status(node: &Node, path: &str) -> u16 {
    node.get(path).await.map_or(0, |answer| answer.status)
}

async fn metric(node: &Node, name: &str) -> String {
    let page = node.get("/metrics").await.expect("metrics").body;
    page.lines().find(|line| line.starts_with(name)).and_then(|line| line.rsplit(' ').next()).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_drain_by_hand_is_seen_by_everybody_and_ends_with_its_session() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let leader = cluster.leader().await;
    leader.query("CREATE TABLE kept(n int)").await.expect("make a table");
    let admin = leader.connect().await.expect("connect");
    node::rows(&admin, "SELECT tenure_internal.drain(60000)").await.expect("drain");
    wait::until("load balancers and monitoring to see it", seconds(20), async || {
        let seen = (status(leader, "/primary").await, metric(leader, "tenure_writable").await);
        if seen == (503, "0".to_owned()) { Ok(()) } else { Err(format!("{seen:?}")) }
    })
    .await;
    wait::until("tenure check to say it", seconds(30), async || {
        let output = cluster.cli(&["check"]).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.contains("new transactions wait at their commit") { Ok(()) } else { Err(said) }
    })
    .await;
    drop(admin);
    wait::until("a write", seconds(10), async || {
        leader.query("INSERT INTO kept VALUES (1)").await.map(drop).map_err(|error| format!("{error:#}"))
    })
    .await;
    wait::until("/primary again", seconds(20), async || match status(leader, "/primary").await {
        200 => Ok(()),
        other => Err(other),
    })
    .await;
    wait::until("tenure check to be content", seconds(30), async || {
        let output = cluster.cli(&["check"]).await;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stdout).into_owned()) }
    })
    .await;
}

#[tokio::test]
async fn an_arbiter_that_freezes_in_a_switchover_holds_writers_for_seconds_only() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let old = cluster.leader().await;
    old.query("CREATE TABLE kept(n int)").await.expect("make a table");
    // It keeps the drain waiting for half a second: the time to freeze the arbiter in.
    let busy = old.connect().await.expect("connect");
    node::rows(&busy, "BEGIN; INSERT INTO kept VALUES (0)").await.expect("begin");
    let watch = old.connect().await.expect("connect");
    let writer = old.connect().await.expect("connect");
    old.query("SELECT tenure.switchover()").await.expect("ask for a switchover");
    wait::until("the drain", PATIENCE, async || {
        let fence = node::rows(&watch, "SELECT fence FROM tenure.lease()").await.map_err(|error| format!("{error:#}"))?;
        if fence[0][0] == "draining" { Ok(()) } else { Err(format!("{fence:?}")) }
    })
    .await;
    old.freeze_arbiter();
    node::rows(&writer, "SET tenure.fence_wait = '30s'").await.expect("set");
    let began = std::time::Instant::now();
    node::rows(&writer, "INSERT INTO kept VALUES (1)").await.expect("a write while the arbiter is frozen");
    assert!(began.elapsed() < Duration::from_secs(15), "it waited for {:?}", began.elapsed());
    old.thaw_arbiter();
    drop(busy);
    cluster.healthy().await;
}

#[tokio::test]
async fn an_extension_that_somebody_dropped_is_made_again_before_it_is_needed() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let old = cluster.leader().await;
    old.query("DROP EXTENSION pg_tenure").await.expect("drop it");
    wait::until("the extension to be there again", seconds(30), async || {
        old.one("SELECT fence FROM tenure.lease()").await.map(drop).map_err(|error| format!("{error:#}"))
    })
    .await;
    assert!(old.log().contains("it was made again"), "nobody was told");
    cluster.cli_ok(&["switchover", "--force"]).await;
    let view = cluster.healthy().await;
    assert!(view.leads_other_than(old.name()), "{view}");
}

/// Who owns the database that the arbiter works in makes functions that are called like ours, before ours are there.
#[tokio::test]
async fn nobody_elses_function_is_called_by_a_superuser() {
    let cluster = Cluster::of(1).ttl(3).start().await;
    let leader = cluster.leader().await;
    for sql in ["CREATE ROLE mallory LOGIN", "ALTER DATABASE postgres OWNER TO mallory", "GRANT CREATE ON DATABASE postgres TO mallory"] {
        leader.query(sql).await.expect(sql);
    }
    let functions = "CREATE SCHEMA tenure; CREATE SCHEMA tenure_internal; \
        CREATE FUNCTION tenure_internal.attach_arbiter() RETURNS void LANGUAGE plpgsql AS 'BEGIN ALTER ROLE mallory SUPERUSER; END'; \
        CREATE FUNCTION tenure.lease(OUT fence text, OUT deadline_left interval, OUT draining_for interval, OUT arbiter_attached boolean) LANGUAGE plpgsql AS \
        'BEGIN ALTER ROLE mallory SUPERUSER; fence := ''open''; arbiter_attached := false; END'; \
        CREATE FUNCTION tenure_internal.describe(text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN ALTER ROLE mallory SUPERUSER; RETURN true; END'";
    // In one go: the extension is never seen to be missing.
    leader.query(&format!("BEGIN; DROP EXTENSION pg_tenure; SET LOCAL ROLE mallory; {functions}; COMMIT")).await.expect("set the trap");
    wait::until("the arbiter to say so", seconds(30), async || {
        if leader.log().contains("is not pg_tenure's own") { Ok(()) } else { Err("nothing said") }
    })
    .await;
    wait::lasting(seconds(3)).await;
    assert_eq!(leader.one("SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'").await.expect("ask"), "f", "mallory became superuser");
}
