//! What sessions are told by a server whose fence is closed: where not to write, and on demand, not to read.

use std::process::Stdio;
use stories::alone::{A_WHILE, Alone, Server};
use stories::programs;
use stories::wait::seconds;

/// What psql, that is libpq, prints for a multi-host connection string.
async fn psql(alone: &Alone, ports: &[u16], more: &str, sql: &str) -> String {
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let hosts = vec!["127.0.0.1"; ports.len()].join(",");
    let conninfo = format!("host={hosts} port={} user=postgres dbname=postgres connect_timeout=5 {more}", ports.join(","));
    let mut command = tokio::process::Command::from(alone.room.command(programs::postgres_bin().join("psql"), alone.room.path()));
    let output = command.args(["-XAtq", "-d", &conninfo, "-c", sql]).stdout(Stdio::piped()).stderr(Stdio::piped()).output();
    let output = output.await.expect("run psql");
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)).trim().to_owned()
}

#[tokio::test]
async fn a_client_that_wants_to_write_walks_on() {
    let alone = Alone::start(&[]).await;
    let other = Server::plain(&alone.room, "other", &[]).await;
    let ports = [alone.port(), other.port()];
    let wants_to_write = "target_session_attrs=read-write";
    assert_eq!(psql(&alone, &ports, wants_to_write, "SHOW port").await, alone.port().to_string());

    alone.let_the_deadline_pass().await;
    assert_eq!(psql(&alone, &ports, wants_to_write, "SHOW port").await, other.port().to_string());
    assert_eq!(psql(&alone, &ports, "target_session_attrs=read-only", "SHOW port").await, alone.port().to_string());
    let refused = psql(&alone, &[alone.port()], wants_to_write, "SELECT 1").await;
    assert!(refused.contains("session is read-only"), "{refused}");
    // What the client asks for itself wins, so that an administrator gets in.
    let insists = "options='-c default_transaction_read_only=off'";
    assert_eq!(psql(&alone, &[alone.port()], insists, "SHOW transaction_read_only").await, "off");

    alone.renew().await;
    assert_eq!(psql(&alone, &ports, wants_to_write, "SHOW port").await, alone.port().to_string());
}

#[tokio::test]
async fn a_pooled_session_writes_again_once_the_fence_is_open() {
    let alone = Alone::start(&[]).await;
    alone.session().await.ok("CREATE TABLE kept(n int)").await;
    alone.let_the_deadline_pass().await;
    let (pooled, asked_for) = (alone.session().await, alone.session().await);
    for sql in ["INSERT INTO kept VALUES (1)", "CREATE TABLE more(n int)", "COPY kept FROM '/dev/null'"] {
        // Postgres' own words, as the session is read-only, with the reason for that.
        let told = pooled.tell(sql).await.refused("25006");
        assert!(told.contains("in a read-only transaction") && told.contains("target_session_attrs"), "{told}");
        let wanted = ["(Its leader lease ran out ", "lease worker has had no answer from etcd for "];
        assert!(wanted.iter().all(|words| told.contains(words)), "{told}");
    }
    assert_eq!(pooled.ok("SHOW default_transaction_read_only").await, "on");
    asked_for.ok("SET default_transaction_read_only = on").await;
    alone.renew().await;
    pooled.ok("INSERT INTO kept VALUES (2)").await;
    assert_eq!(pooled.ok("SHOW default_transaction_read_only").await, "off");
    // A session that asked for read-only itself keeps it.
    let told = asked_for.tell("INSERT INTO kept VALUES (3)").await.refused("25006");
    assert!(told.contains("()"), "the client that asked for it knows why: {told}");
}

#[tokio::test]
async fn with_fence_reads_no_table_is_read_past_the_deadline() {
    let alone = Alone::start(&[("tenure.fence_reads", "on")]).await;
    let (session, patient) = (alone.session().await, alone.session().await);
    session.ok("CREATE TABLE kept(n int); INSERT INTO kept VALUES (1)").await;
    session.ok("CREATE FUNCTION look() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM kept); END'").await;
    session.ok("PREPARE again AS SELECT n FROM kept").await;
    session.ok("SELECT count(*) FROM kept").await;
    patient.ok("SET tenure.fence_wait = '50s'").await;
    alone.let_the_deadline_pass().await;
    for sql in ["SELECT count(*) FROM kept", "SELECT look()", "EXECUTE again", "COPY (SELECT * FROM kept) TO STDOUT"] {
        println!("{sql}");
        session.tell(sql).await.refused("25006");
    }
    let mut reader = patient.begin("SELECT n FROM kept");
    reader.waits(A_WHILE).await;
    // What says how things are stays readable.
    session.ok("SELECT count(*) FROM pg_class").await;
    session.ok("SELECT * FROM tenure.lease()").await;
    alone.thaw_worker().await;
    assert_eq!(reader.told_within(seconds(30)).await.done(), "1");
    session.ok("SELECT look()").await;
}

#[tokio::test]
async fn with_fence_reads_no_table_is_copied_out_past_the_deadline() {
    let alone = Alone::start(&[("tenure.fence_reads", "on")]).await;
    let session = alone.session().await;
    session.ok("CREATE TABLE kept(n int)").await;
    alone.let_the_deadline_pass().await;
    session.tell("COPY kept TO '/dev/null'").await.refused("25006");
    alone.renew().await;
    session.ok("COPY kept TO '/dev/null'").await;
}

#[tokio::test]
async fn a_session_that_began_outside_the_lease_reads_on_by_default() {
    let alone = Alone::start(&[]).await;
    alone.session().await.ok("CREATE TABLE kept(n int); INSERT INTO kept VALUES (1)").await;
    alone.let_the_deadline_pass().await;
    assert_eq!(alone.session().await.ok("SELECT count(*) FROM kept").await, "1");
}
