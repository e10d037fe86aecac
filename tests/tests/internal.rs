//! What the arbiter does through its own functions in the server ends with it, is seen where somebody watches, and is never somebody else's function.

use std::path::{Path, PathBuf};
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

/// The owner of the database that the arbiter works in makes functions that are called like ours, before ours are there.
/// What one finds by the extension: its functions, views, their owners and rights.
const OBJECTS: &str = "SELECT string_agg(what, E'\\n' ORDER BY what) FROM (
    SELECT p.oid::regprocedure::text || ' ' || coalesce(p.proacl::text, '') || ' ' || p.prosrc || ' ' || p.provolatile::text || p.proparallel::text AS what
    FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
    UNION ALL SELECT c.oid::regclass::text || ' ' || coalesce(c.relacl::text, '') || ' ' || pg_get_viewdef(c.oid)
    FROM pg_class c WHERE c.relnamespace = 'tenure'::regnamespace AND c.relkind = 'v') objects";

/// No release is older than the first, so one is made here: the SQL objects of 0.0.9 lack what the script to this release brings.
fn an_older_release(extensions: &Path, current: &str) -> std::io::Result<[PathBuf; 2]> {
    let script = std::fs::read_to_string(extensions.join(format!("pg_tenure--{current}.sql")))?;
    let lacking = |statement: &&&str| statement.contains("replay_resume") || statement.contains("tenure.version");
    let statements: Vec<&str> = script.split_inclusive(";\n").collect();
    let created = |statement: &&&str| statement.contains("CREATE ") || statement.contains("COMMENT ");
    let brought: String = statements.iter().filter(|statement| lacking(statement)).filter(created).copied().collect();
    let old: String = statements
        .iter()
        .filter(|statement| !(lacking(statement) && created(statement)))
        .map(|statement| statement.replace(", tenure.replay_resume(text, integer)", "").replace(", tenure.version", ""))
        .collect();
    let rights = "REVOKE ALL ON FUNCTION tenure.replay_resume(text, integer) FROM PUBLIC;\n\
        GRANT EXECUTE ON FUNCTION tenure.replay_resume(text, integer) TO tenure_operator;\n\
        GRANT SELECT ON tenure.version TO pg_monitor, tenure_operator;\n";
    let files = [extensions.join("pg_tenure--0.0.9.sql"), extensions.join(format!("pg_tenure--0.0.9--{current}.sql"))];
    std::fs::write(&files[0], old)?;
    std::fs::write(&files[1], brought + rights)?;
    Ok(files)
}

#[tokio::test]
async fn sql_objects_of_an_older_release_follow_the_library_while_clients_write() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let leader = cluster.leader().await;
    let current = leader.one("SELECT library FROM tenure.version").await.expect("ask for the library's release");
    let share = leader.one("SELECT setting || '/extension' FROM pg_config WHERE name = 'SHAREDIR'").await.expect("ask where scripts are");
    let Ok(files) = an_older_release(Path::new(&share), &current) else {
        println!("SKIPPED: this user can't write scripts of extensions to {share}");
        return;
    };
    let before = leader.one(OBJECTS).await.expect("what there is");
    let writer = cluster.writer().await;
    writer.goes_on(20, PATIENCE).await;
    // In one statement: the arbiter looks at its objects in every turn.
    let older = "DO $$ BEGIN DROP EXTENSION pg_tenure; CREATE EXTENSION pg_tenure VERSION '0.0.9'; END $$";
    leader.query(older).await.expect("put an older release in its place");
    leader.logged(&[&format!("the SQL objects of pg_tenure were brought from release 0.0.9 to {current}")], PATIENCE).await;
    assert_eq!(leader.one("SELECT extension FROM tenure.version").await.expect("ask"), current);
    assert_eq!(leader.one(OBJECTS).await.expect("what there is"), before, "an update leads to the same as a new installation");
    writer.goes_on(20, PATIENCE).await;
    let ledger = writer.finish();
    println!("SQL objects updated under a writer: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    for file in files {
        std::fs::remove_file(file).expect("remove the script again");
    }
}

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
