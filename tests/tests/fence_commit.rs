//! Past the deadline no commit passes, of whatever kind and by whatever process; and nothing of it is written.

use std::time::Instant;
use stories::alone::{A_WHILE, Alone, PATIENCE, Server, Told};
use stories::programs;
use stories::wait::{self, seconds};

/// A server with a table; its fence is open.
async fn fenced(settings: &[(&str, &str)], setup: &str) -> Alone {
    let alone = Alone::start(settings).await;
    let session = alone.session().await;
    session.ok("CREATE TABLE kept(n int)").await;
    session.ok(setup).await;
    alone
}

#[tokio::test]
async fn a_commit_past_the_deadline_waits_is_refused_and_leaves_nothing() {
    let alone = fenced(&[], "CREATE PROCEDURE keep(n int) LANGUAGE plpgsql AS 'BEGIN INSERT INTO kept VALUES (n); COMMIT; END'").await;
    let session = alone.session().await;
    session.ok("SET tenure.fence_wait = '800ms'").await;
    alone.let_the_deadline_pass().await;

    let began = Instant::now();
    let why = session.tell("INSERT INTO kept VALUES (1)").await.refused("25006");
    assert!(began.elapsed() >= A_WHILE, "refused after {:?}, without waiting for a renewal", began.elapsed());
    assert!(began.elapsed() < seconds(5), "refused only after {:?}", began.elapsed());
    assert!(why.contains("ran out") && why.contains("target_session_attrs"), "{why}");

    session.ok("BEGIN; INSERT INTO kept VALUES (2)").await;
    session.tell("COMMIT").await.refused("25006");
    session.tell("CALL keep(3)").await.refused("25006");
    session.tell("CREATE TABLE another()").await.refused("25006");
    assert_eq!(session.ok("SELECT count(*) FROM kept").await, "0", "the session lives and nothing was written");
    assert_eq!((alone.count("commits_refused").await, alone.count("commits_cut").await), (4, 0));

    alone.renew().await;
    session.ok("INSERT INTO kept VALUES (4)").await;
    assert_eq!(session.ok("SELECT string_agg(n::text, ',') FROM kept").await, "4");
}

#[tokio::test]
async fn a_renewal_in_time_is_only_latency() {
    let alone = fenced(&[("tenure.fence_wait", "50s")], "SELECT").await;
    let (one, other) = (alone.session().await, alone.session().await);
    alone.let_the_deadline_pass().await;
    let mut commit = one.begin("INSERT INTO kept VALUES (1)");
    let mut prepare = other.begin("BEGIN; INSERT INTO kept VALUES (2); PREPARE TRANSACTION 'two'");
    commit.waits(A_WHILE).await;
    prepare.waits(A_WHILE).await;
    alone.thaw_worker().await;
    commit.told().await.done();
    prepare.told().await.done();
    one.ok("COMMIT PREPARED 'two'").await;
    assert_eq!(one.ok("SELECT count(*) FROM kept").await, "2");
    assert_eq!((alone.count("commits_waited").await, alone.count("commits_refused").await), (2, 0));
}

/// What a fast stop sends to each session is SIGTERM. The commit has not begun, and its client hears so instead of a lost connection.
#[tokio::test]
async fn a_commit_that_waits_when_its_session_is_ended_is_refused_and_not_unknown() {
    let alone = fenced(&[("tenure.fence_wait", "50s")], "SELECT").await;
    let (admin, session) = (alone.session().await, alone.session().await);
    let pid = session.ok("SELECT pg_backend_pid()").await;
    admin.ok("SELECT tenure_internal.drain(60000)").await;
    let mut commit = session.begin("INSERT INTO kept VALUES (1)");
    commit.waits(A_WHILE).await;
    admin.ok(&format!("SELECT pg_terminate_backend({pid})")).await;
    let why = commit.told_within(seconds(5)).await.refused("40001");
    assert!(why.contains("about to stop") && why.contains("rolled back"), "{why}");
    assert_eq!(admin.ok("SELECT count(*) FROM kept").await, "0");
}

#[tokio::test]
async fn a_waiting_commit_can_be_cancelled_and_is_then_refused() {
    let alone = fenced(&[("tenure.fence_wait", "50s")], "SELECT").await;
    let session = alone.session().await;
    alone.let_the_deadline_pass().await;
    let mut commit = session.begin("INSERT INTO kept VALUES (1)");
    commit.waits(A_WHILE).await;
    session.cancel().await;
    commit.told_within(seconds(5)).await.refused("57014");
    assert_eq!(session.ok("SELECT count(*) FROM kept").await, "0");
}

#[tokio::test]
async fn nothing_is_prepared_past_the_deadline() {
    let alone = fenced(&[], "SELECT").await;
    let session = alone.session().await;
    alone.let_the_deadline_pass().await;
    session.ok("BEGIN; INSERT INTO kept VALUES (1)").await;
    session.tell("PREPARE TRANSACTION 'late'").await.refused("25006");
    assert_eq!(session.ok("SELECT count(*) FROM pg_prepared_xacts").await, "0");
}

#[tokio::test]
async fn a_prepared_transaction_is_committed_inside_the_lease_only() {
    let alone = fenced(&[], "BEGIN; INSERT INTO kept VALUES (1); PREPARE TRANSACTION 'one'").await;
    let session = alone.session().await;
    alone.let_the_deadline_pass().await;
    session.tell("COMMIT PREPARED 'one'").await.refused("25006");
    assert_eq!(session.ok("SELECT count(*) FROM pg_prepared_xacts").await, "1");
    alone.renew().await;
    session.ok("COMMIT PREPARED 'one'").await;
    assert_eq!(session.ok("SELECT count(*) FROM kept").await, "1");
}

#[tokio::test]
async fn a_prepared_transaction_is_rolled_back_inside_the_lease_only() {
    let alone = fenced(&[], "BEGIN; INSERT INTO kept VALUES (1); PREPARE TRANSACTION 'one'").await;
    let session = alone.session().await;
    alone.let_the_deadline_pass().await;
    session.tell("ROLLBACK PREPARED 'one'").await.refused("25006");
    assert_eq!(session.ok("SELECT count(*) FROM pg_prepared_xacts").await, "1");
    alone.renew().await;
    session.ok("ROLLBACK PREPARED 'one'").await;
    assert_eq!(session.ok("SELECT count(*) FROM kept").await, "0");
}

#[tokio::test]
async fn an_xid_that_is_drawn_while_committing_is_seen_afterwards() {
    let alone = fenced(&[], "SELECT").await;
    let session = alone.session().await;
    alone.let_the_deadline_pass().await;
    // NOTIFY draws its xid after the look before the commit, so it can only be cut.
    session.tell("NOTIFY somebody").await.cut();
    assert_eq!(alone.count("commits_cut").await, 1);
}

#[tokio::test]
async fn a_sequence_gives_no_new_range_outside_the_lease() {
    let alone = fenced(&[], "CREATE SEQUENCE drawn; SELECT nextval('drawn')").await;
    let session = alone.session().await;
    session.ok("CHECKPOINT").await; // the next value is logged again
    alone.let_the_deadline_pass().await;
    session.ok("BEGIN; SELECT nextval('drawn')").await;
    session.tell("COMMIT").await.refused("25006");
    // A value of a range that is in the WAL already comes without an xid: its transaction writes nothing, and
    // what it would be used for is refused. Known, as without us: only a commit makes a value one's own.
    session.ok("SELECT nextval('drawn')").await;
    session.tell("SELECT setval('drawn', 100)").await.refused("25006");
    assert_eq!(alone.count("commits_refused").await, 2);
}

#[tokio::test]
async fn a_parallel_query_in_a_writing_transaction_is_judged_once() {
    let forced = if programs::postgres_major() < 16 { "force_parallel_mode" } else { "debug_parallel_query" };
    let alone = fenced(
        &[(forced, "on"), ("max_parallel_workers_per_gather", "2"), ("tenure.fence_wait", "0")],
        "CREATE TABLE large AS SELECT generate_series(1, 20000) AS n; ANALYZE large",
    )
    .await;
    let session = alone.session().await;
    session.ok("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0").await;
    session.ok("BEGIN; INSERT INTO kept VALUES (1)").await;
    let plan = session.tell("EXPLAIN (ANALYZE, COSTS off, TIMING off) SELECT sum(n) FROM large").await;
    assert!(plan.to_string().contains("Workers Launched: 2"), "no parallel workers: {plan}");
    session.ok("COMMIT").await;

    session.ok("BEGIN; INSERT INTO kept VALUES (2)").await;
    alone.let_the_deadline_pass().await;
    assert_eq!(session.ok("SELECT sum(n) FROM large").await, "200010000", "workers read for a transaction that is not judged yet");
    session.tell("COMMIT").await.refused("25006");
    assert_eq!(alone.count("commits_refused").await, 1, "once, by the leader alone");
    alone.renew().await;
    assert_eq!(session.ok("SELECT count(*) FROM kept").await, "1");
}

#[tokio::test]
async fn autovacuum_commits_inside_the_lease_only() {
    let alone = fenced(&[("autovacuum_naptime", "1s")], "INSERT INTO kept SELECT generate_series(1, 2000)").await;
    let session = alone.session().await;
    alone.let_the_deadline_pass().await;
    alone.set("autovacuum", "on").await;
    wait::until("autovacuum to be refused", PATIENCE, async || {
        let log = alone.log();
        let refused = "cannot commit because this server is not the leader";
        // The error's context line names the table.
        let seen = log.contains(refused) && log.contains(" of table \"postgres.public.kept\"");
        if seen { Ok(()) } else { Err("no refusal in the log".to_owned()) }
    })
    .await;
    let statistics = "SELECT count(*) FROM pg_stats WHERE tablename = 'kept'";
    assert_eq!(session.ok(statistics).await, "0");
    alone.renew().await;
    // The refused analyze has counted the rows as seen all the same.
    session.ok("INSERT INTO kept SELECT generate_series(1, 5000)").await;
    wait::until("the analyze", PATIENCE, async || match session.ok(statistics).await {
        seen if seen == "1" => Ok(()),
        seen => Err(seen),
    })
    .await;
}

#[tokio::test]
async fn a_subscription_applies_inside_the_lease_only() {
    let alone = fenced(&[("wal_retrieve_retry_interval", "200ms")], "SELECT").await;
    let publisher = Server::plain(&alone.room, "publisher", &[("wal_level", "logical")]).await;
    let source = publisher.session().await;
    source.ok("CREATE TABLE kept(n int)").await;
    source.ok("CREATE PUBLICATION everything FOR TABLE kept").await;
    let session = alone.session().await;
    let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", publisher.port());
    session.ok(&format!("CREATE SUBSCRIPTION everything CONNECTION '{conninfo}' PUBLICATION everything")).await;
    let arrives = async |wanted: &str| {
        wait::until(&format!("rows {wanted} to arrive"), PATIENCE, async || {
            match session.ok("SELECT coalesce(string_agg(n::text, ',' ORDER BY n), '') FROM kept").await {
                seen if seen == wanted => Ok(()),
                seen => Err(seen),
            }
        })
        .await;
    };
    source.ok("INSERT INTO kept VALUES (1)").await;
    arrives("1").await;

    alone.let_the_deadline_pass().await;
    source.ok("INSERT INTO kept VALUES (2)").await;
    wait::until(
        "the apply worker to be refused",
        PATIENCE,
        async || {
            if alone.count("commits_refused").await > 0 { Ok(()) } else { Err("not yet") }
        },
    )
    .await;
    assert_eq!(session.ok("SELECT count(*) FROM kept WHERE n = 2").await, "0", "applied outside the lease");
    alone.renew().await;
    arrives("1,2").await;
}

#[tokio::test]
async fn a_session_ends_without_a_lease() {
    let alone = fenced(&[("tenure.fence_wait", "50s")], "SELECT").await;
    let session = alone.session().await;
    session.ok("CREATE TEMPORARY TABLE mine AS SELECT 1 AS n").await;
    let pid = session.pid().await;
    alone.let_the_deadline_pass().await;
    drop(session);
    alone.ended(pid, seconds(5)).await;
}

#[tokio::test]
async fn after_a_crash_the_fence_is_closed_until_the_lease_is_taken_up_again() {
    let alone = fenced(&[], "SELECT").await;
    let victim = alone.session().await;
    alone.etcd.freeze();
    alone.crash_by(victim).await;
    let session = alone.session().await;
    session.ok("SET default_transaction_read_only = off").await;
    assert_eq!(session.ok("SELECT fence FROM tenure.lease()").await, "closed");
    let why = session.tell("INSERT INTO kept VALUES (1)").await.refused("25006");
    assert!(["etcd has not answered", "etcd does not answer"].iter().any(|words| why.contains(words)), "{why}");
    alone.etcd.thaw();
    alone.fence_is("open").await;
    session.ok("INSERT INTO kept VALUES (2)").await;
    assert_eq!(session.ok("SELECT string_agg(n::text, ',') FROM kept").await, "2");
}

#[tokio::test]
async fn a_drain_lets_end_what_began_before_and_holds_what_begins_after() {
    let alone = fenced(&[("tenure.fence_wait", "50s")], "BEGIN; INSERT INTO kept VALUES (1); PREPARE TRANSACTION 'one'").await;
    let (before, after, hasty) = (alone.session().await, alone.session().await, alone.session().await);
    before.ok("BEGIN; INSERT INTO kept VALUES (2)").await;
    let admin = alone.session().await;
    assert_eq!(admin.ok("SELECT tenure_internal.drain(60000)").await, "t");
    assert_eq!(alone.fence().await, "draining");

    before.begin("COMMIT").told_within(seconds(5)).await.done();
    admin.begin("COMMIT PREPARED 'one'").told_within(seconds(5)).await.done();
    let mut writes = after.begin("INSERT INTO kept VALUES (3)");
    writes.waits(A_WHILE).await;
    hasty.ok("SET tenure.fence_wait = 0").await;
    let why = hasty.tell("INSERT INTO kept VALUES (4)").await.refused("25006");
    assert!(why.contains("A planned change of leader is under way"), "{why}");
    assert_eq!(hasty.ok("SELECT count(*) FROM kept").await, "2", "reads go on");

    assert_eq!(admin.ok("SELECT tenure_internal.undrain()").await, "t");
    writes.told_within(seconds(5)).await.done();
    assert_eq!(admin.ok("SELECT string_agg(n::text, ',' ORDER BY n) FROM kept").await, "1,2,3");
}

#[tokio::test]
async fn a_drain_ends_with_the_deadline_too() {
    let alone = fenced(&[], "SELECT").await;
    let (before, admin) = (alone.session().await, alone.session().await);
    before.ok("BEGIN; INSERT INTO kept VALUES (1)").await;
    admin.ok("SELECT tenure_internal.drain(60000)").await;
    alone.let_the_deadline_pass().await;
    assert!(matches!(before.tell("COMMIT").await, Told::Refused(state, _) if state == "25006"));
    assert_eq!(admin.ok("SELECT count(*) FROM kept").await, "0");
}

#[tokio::test]
async fn a_drain_ends_with_its_time_and_with_its_session() {
    let alone = fenced(&[("tenure.fence_wait", "50s")], "SELECT").await;
    let (admin, writer) = (alone.session().await, alone.session().await);
    // Nobody ends it, and who began it lives on, as an arbiter that froze.
    assert_eq!(admin.ok("SELECT tenure_internal.drain(2000)").await, "t");
    let mut write = writer.begin("INSERT INTO kept VALUES (1)");
    write.waits(A_WHILE).await;
    write.told_within(seconds(10)).await.done();
    assert_eq!(alone.fence().await, "open");
    assert_eq!(admin.ok("SELECT draining_for IS NULL FROM tenure.lease()").await, "t");

    // The session that began it is gone.
    let pid = admin.pid().await;
    assert_eq!(admin.ok("SELECT tenure_internal.drain(60000)").await, "t", "a second one");
    let mut write = writer.begin("INSERT INTO kept VALUES (2)");
    write.waits(A_WHILE).await;
    assert_eq!(writer_sees(&alone).await, "draining t");
    drop(admin);
    alone.ended(pid, seconds(10)).await;
    write.told_within(seconds(10)).await.done();
    assert_eq!(alone.fence().await, "open");

    // Not one that somebody else began meanwhile.
    let (first, second) = (alone.session().await, alone.session().await);
    first.ok("SELECT tenure_internal.drain(60000)").await;
    first.ok("SELECT tenure_internal.undrain()").await;
    second.ok("SELECT tenure_internal.drain(60000)").await;
    let pid = first.pid().await;
    drop(first);
    alone.ended(pid, seconds(10)).await;
    assert_eq!(alone.fence().await, "draining");
    drop(second);
    alone.fence_is("open").await;
    for call in ["tenure_internal.promise(9223372036854775807)", "tenure_internal.extend_lease(9223372036854775807)"] {
        writer.tell(&format!("SELECT {call}")).await.refused("22023");
    }
}

/// A server from whose last commit another database system goes on. The session that drained ends as every session does in a fast stop.
#[tokio::test]
async fn a_sealed_server_lets_nobody_commit_until_it_is_started_anew() {
    let alone = fenced(&[("tenure.fence_wait", "50s")], "SELECT").await;
    let (admin, before, after) = (alone.session().await, alone.session().await, alone.session().await);
    before.ok("BEGIN; INSERT INTO kept VALUES (1)").await;
    assert_eq!(admin.ok("SELECT tenure_internal.drain(60000)").await, "t");
    let mut after = after.begin("INSERT INTO kept VALUES (2)");
    after.waits(A_WHILE).await;
    assert_eq!(admin.ok("SELECT tenure_internal.seal()").await, "t", "writers were held until then");
    let mut before = before.begin("COMMIT");
    let pid = admin.pid().await;
    drop(admin);
    alone.ended(pid, seconds(10)).await;
    after.waits(A_WHILE).await;
    before.waits(A_WHILE).await;
    // The lease worker renews, and says that it leads.
    alone.freeze_worker().await;
    alone.thaw_worker().await;
    let other = alone.session().await;
    assert_eq!(other.ok("SELECT tenure_internal.undrain()").await, "f", "the drain is over, the seal is not");
    assert_eq!(other.ok("SELECT tenure_internal.drain(1000)").await, "f");
    other.ok("SET tenure.fence_wait = '1s'; SET default_transaction_read_only = off").await;
    let why = other.tell("INSERT INTO kept VALUES (3)").await.refused("25006");
    assert!(why.contains("until it is started again"), "{why}");
    assert_eq!(other.ok("SELECT count(*) FROM kept").await, "0");
    alone.stop_fast();
    for told in [after.told().await, before.told().await] {
        assert!(!matches!(told, Told::Done(_)), "{told}");
    }
    alone.start_anew().await;
    assert_eq!(alone.session().await.ok("INSERT INTO kept VALUES (4); SELECT string_agg(n::text, ',') FROM kept").await, "4");
}

/// A planned stop needs no seal: what passes as the drain's session ends before others do is before the shutdown checkpoint, so this server has it, and
/// so has a candidate, which proves that it has that checkpoint.
#[tokio::test]
async fn what_passes_a_drain_while_the_server_stops_is_kept() {
    let alone = fenced(&[("tenure.fence_wait", "50s")], "SELECT").await;
    let admin = alone.session().await;
    assert_eq!(admin.ok("SELECT tenure_internal.drain(60000)").await, "t");
    let mut writers = Vec::new();
    for n in 0..25 {
        writers.push(alone.session().await.begin(&format!("INSERT INTO kept VALUES ({n})")));
    }
    writers[24].waits(A_WHILE).await;
    alone.stop_fast();
    let mut told = Vec::new();
    for writer in writers {
        told.push(writer.told().await);
    }
    alone.start_anew().await;
    let session = alone.session().await;
    for (n, told) in told.iter().enumerate().filter(|(_, told)| matches!(told, Told::Done(_))) {
        assert_eq!(session.ok(&format!("SELECT count(*) FROM kept WHERE n = {n}")).await, "1", "{told}");
    }
    println!("{} of 25 writers were acknowledged after the drain", told.iter().filter(|told| matches!(told, Told::Done(_))).count());
}

async fn writer_sees(alone: &Alone) -> String {
    alone.session().await.ok("SELECT fence || ' ' || CASE WHEN draining_for > '0' THEN 't' ELSE 'f' END FROM tenure.lease()").await
}

/// What only the arbiter calls is out of everybody's reach, those who may act included.
#[tokio::test]
async fn nobody_but_a_superuser_reaches_what_the_arbiter_calls() {
    let alone = fenced(&[], "CREATE ROLE somebody").await;
    let session = alone.session().await;
    let functions =
        "SELECT string_agg(oid::regprocedure::text, ' ' ORDER BY 1) FROM pg_proc WHERE pronamespace = 'tenure_internal'::regnamespace";
    let all = session.ok(functions).await;
    for name in ["attach_arbiter", "drain", "undrain", "close_gate", "open_gate", "promise", "extend_lease", "describe", "note_slots"] {
        assert!(all.contains(&format!("tenure_internal.{name}(")), "{name} is not among {all}");
    }
    for role in ["somebody", "pg_monitor", "tenure_operator"] {
        let reached = format!(
            "SELECT count(*) FROM pg_proc WHERE pronamespace = 'tenure_internal'::regnamespace \
             AND (has_function_privilege('{role}', oid, 'EXECUTE') OR has_schema_privilege('{role}', 'tenure_internal', 'USAGE'))"
        );
        assert_eq!(session.ok(&reached).await, "0", "{role}");
        session.ok(&format!("SET ROLE {role}")).await;
        session.tell("SELECT tenure_internal.drain(1000)").await.refused("42501");
        session.ok("RESET ROLE").await;
    }
}

/// As after a pause of the whole machine, of which its own clocks know nothing until somebody sets the wall clock right. The lease lasts a minute.
#[tokio::test]
async fn a_wall_clock_that_jumps_ahead_closes_until_the_next_renewal() {
    let (alone, clock) = Alone::start_with_clock(&[]).await;
    let (session, waiting) = (alone.session().await, alone.session().await);
    session.ok("CREATE TABLE kept(n int)").await;
    // By an hour back: nothing. (Postgres' own timeouts by the wall clock are another matter.)
    clock.set(-3600).expect("step");
    session.ok("INSERT INTO kept VALUES (1)").await;
    clock.set(0).expect("step");
    alone.fence_is("open").await;
    alone.freeze_worker().await;
    session.ok("BEGIN; INSERT INTO kept VALUES (2)").await;
    clock.set(3600).expect("step");
    let why = session.tell("COMMIT").await.refused("25006");
    assert!(why.contains("ran out"), "{why}");
    assert_eq!(alone.fence().await, "expired");
    waiting.ok("SET tenure.fence_wait = '50s'; SET default_transaction_read_only = off").await;
    let mut commit = waiting.begin("INSERT INTO kept VALUES (3)");
    commit.waits(A_WHILE).await;
    // A renewal that was sent since is the truth, whatever clocks say.
    alone.thaw_worker().await;
    commit.told_within(seconds(40)).await.done();
    assert_eq!(session.ok("SELECT string_agg(n::text, ',' ORDER BY n) FROM kept").await, "1,3");
    assert_eq!(alone.count("commits_cut").await, 0);
}
