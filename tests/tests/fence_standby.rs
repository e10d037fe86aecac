//! With a synchronous standby: what it has not confirmed is acknowledged to nobody, however the wait ends, and shown to nobody after a crash.

use stories::alone::{A_WHILE, Alone, Server, Session, Told};
use stories::memory;
use stories::wait::{self, seconds};

/// A server with a table and a synchronous standby.
async fn synchronous(settings: &[(&str, &str)]) -> (Alone, Server) {
    let alone = Alone::start(settings).await;
    alone.session().await.ok("CREATE TABLE kept(n int)").await;
    let standby = alone.synchronous_standby().await;
    (alone, standby)
}

/// How a client's wait for a standby may be ended.
#[derive(Debug, Clone, Copy)]
enum End {
    CancelBackend,
    CancelRequest,
    Terminate,
}

/// Runs SQL, whose commit waits for the frozen standby, and ends that wait.
async fn told_when_the_wait_is_ended(alone: &Alone, session: &Session, sql: &str, end: End) -> Told {
    let pid = session.pid().await;
    let mut commit = session.begin(sql);
    alone.waits_for(pid, "SyncRep").await;
    commit.waits(A_WHILE).await;
    match end {
        End::CancelBackend => drop(alone.session().await.ok(&format!("SELECT pg_cancel_backend({pid})")).await),
        End::CancelRequest => session.cancel().await,
        End::Terminate => drop(alone.session().await.ok(&format!("SELECT pg_terminate_backend({pid})")).await),
    }
    commit.told_within(seconds(10)).await
}

#[tokio::test]
async fn a_wait_for_a_standby_that_is_cancelled_never_acknowledges() {
    let (alone, standby) = synchronous(&[]).await;
    let session = async || alone.session().await;
    session().await.ok("CREATE PROCEDURE keep(n int) LANGUAGE plpgsql AS 'BEGIN INSERT INTO kept VALUES (n); COMMIT; END'").await;
    standby.freeze();
    for end in [End::CancelBackend, End::CancelRequest, End::Terminate] {
        for sql in ["INSERT INTO kept VALUES (1)", "BEGIN; INSERT INTO kept VALUES (2); COMMIT", "CALL keep(3)"] {
            println!("{sql}, ended by {end:?}");
            told_when_the_wait_is_ended(&alone, &session().await, sql, end).await.cut();
        }
    }
    assert_eq!(session().await.ok("SELECT count(*) FROM kept").await, "9", "they were durable here");
    standby.thaw();
    session().await.ok("INSERT INTO kept VALUES (4)").await;
}

/// As on a minor release that keeps something else where the positions lie by this build's headers.
#[tokio::test]
async fn where_the_fence_would_read_something_else_it_stays_closed() {
    let (alone, _standby) = synchronous(&[]).await;
    let session = alone.session().await;
    session.ok("INSERT INTO kept VALUES (1)").await;
    let somebody = alone.process_called("checkpointer").await;
    // Like a pointer: ahead of every position that this server will ever have.
    if !memory::overwrite_flushed_by_standbys(somebody, 0x7f12_3456_789a_bcd0) {
        return;
    }
    alone.fence_is("closed").await;
    session.tell("INSERT INTO kept VALUES (2)").await.refused("25006");
    wait::until("the server's log to say why", seconds(20), async || {
        let log = alone.log();
        let said = log.contains("flushed up to 7F123456/789ABCD0, and this server has flushed to")
            && log.contains("the fence can't read what synchronous standbys have confirmed in this release");
        if said { Ok(()) } else { Err("not said") }
    })
    .await;
    wait::throughout("the fence to stay closed", seconds(2), async || match alone.fence().await.as_str() {
        "closed" => Ok(()),
        other => Err(other.to_owned()),
    })
    .await;
}

#[tokio::test]
async fn a_cancelled_prepare_never_acknowledges() {
    let (alone, standby) = synchronous(&[]).await;
    standby.freeze();
    for (name, end) in [("a", End::CancelBackend), ("b", End::Terminate)] {
        let sql = format!("BEGIN; INSERT INTO kept VALUES (1); PREPARE TRANSACTION '{name}'");
        told_when_the_wait_is_ended(&alone, &alone.session().await, &sql, end).await.cut();
    }
    standby.thaw();
    alone.session().await.ok("BEGIN; INSERT INTO kept VALUES (1); PREPARE TRANSACTION 'c'").await;
    assert_eq!(alone.session().await.ok("SELECT count(*) FROM pg_prepared_xacts").await, "3");
}

#[tokio::test]
async fn a_cancelled_end_of_a_prepared_transaction_never_acknowledges() {
    let (alone, standby) = synchronous(&[]).await;
    for name in ["a", "b", "c"] {
        alone.session().await.ok(&format!("BEGIN; INSERT INTO kept VALUES (1); PREPARE TRANSACTION '{name}'")).await;
    }
    standby.freeze();
    for sql in ["COMMIT PREPARED 'a'", "ROLLBACK PREPARED 'b'"] {
        println!("{sql}");
        told_when_the_wait_is_ended(&alone, &alone.session().await, sql, End::CancelBackend).await.cut();
    }
    standby.thaw();
    alone.session().await.ok("COMMIT PREPARED 'c'").await;
}

#[tokio::test]
async fn statement_timeout_never_makes_an_acknowledgement() {
    let (alone, standby) = synchronous(&[]).await;
    let (plain, prepared, procedure) = (alone.session().await, alone.session().await, alone.session().await);
    plain.ok("CREATE PROCEDURE keep(n int) LANGUAGE plpgsql AS 'BEGIN INSERT INTO kept VALUES (n); COMMIT; END'").await;
    plain.ok("BEGIN; INSERT INTO kept VALUES (1); PREPARE TRANSACTION 'one'").await;
    standby.freeze();
    for session in [&plain, &prepared, &procedure] {
        session.ok("SET statement_timeout = '1s'").await;
    }
    let mut commit = plain.begin("INSERT INTO kept VALUES (2)");
    let (prepared, procedure) = (prepared.begin("COMMIT PREPARED 'one'"), procedure.begin("CALL keep(3)"));
    // Where the commit is inside of a statement, the timer still runs while it waits.
    prepared.told_within(seconds(10)).await.cut();
    procedure.told_within(seconds(10)).await.cut();
    // Where the commit is the statement's end, the timer is off by then.
    commit.waits(seconds(2)).await;
    standby.thaw();
    commit.told_within(seconds(30)).await.done();
}

#[tokio::test]
async fn a_fast_shutdown_acknowledges_nothing_that_waits() {
    let (alone, standby) = synchronous(&[]).await;
    let session = alone.session().await;
    let pid = session.pid().await;
    standby.freeze();
    let commit = session.begin("INSERT INTO kept VALUES (1)");
    alone.waits_for(pid, "SyncRep").await;
    alone.stop_fast();
    commit.told_within(seconds(10)).await.cut();
}

#[tokio::test]
async fn a_commit_whose_deadline_passes_while_it_waits_is_cut() {
    let (alone, standby) = synchronous(&[]).await;
    let sessions = [alone.session().await, alone.session().await, alone.session().await, alone.session().await];
    for name in ["a", "b"] {
        sessions[0].ok(&format!("BEGIN; INSERT INTO kept VALUES (1); PREPARE TRANSACTION '{name}'")).await;
    }
    standby.freeze();
    let statements = [
        "INSERT INTO kept VALUES (2)",
        "BEGIN; INSERT INTO kept VALUES (3); PREPARE TRANSACTION 'c'",
        "COMMIT PREPARED 'a'",
        "ROLLBACK PREPARED 'b'",
    ];
    let mut commits = Vec::new();
    for (session, sql) in sessions.iter().zip(statements) {
        let pid = session.pid().await;
        commits.push(session.begin(sql));
        alone.waits_for(pid, "SyncRep").await;
    }
    alone.let_the_deadline_pass().await;
    standby.thaw();
    for (commit, sql) in commits.into_iter().zip(statements) {
        println!("{sql}");
        commit.told_within(seconds(30)).await.cut();
    }
    assert_eq!(alone.count("commits_cut").await, 4);
    assert_eq!(alone.session().await.ok("SELECT count(*) FROM kept").await, "2", "durable all the same");
}

#[tokio::test]
async fn no_session_lowers_synchronous_commit_below_the_clusters_least() {
    let (alone, standby) = synchronous(&[]).await;
    for (number, level) in ["off", "local", "remote_write"].into_iter().enumerate() {
        println!("{level}");
        let session = alone.session().await;
        session.ok(&format!("SET synchronous_commit = {level}")).await;
        standby.freeze();
        let mut commit = session.begin(&format!("INSERT INTO kept VALUES ({number})"));
        commit.waits(A_WHILE).await;
        standby.thaw();
        commit.told_within(seconds(30)).await.done();
        assert_eq!(session.ok("SHOW synchronous_commit").await, level, "the session's own setting stays");
    }
    // Those that are allowed to say so themselves may.
    let session = alone.session().await;
    session.ok("SET synchronous_commit = local; SET tenure.minimum_synchronous_commit = local").await;
    standby.freeze();
    session.begin("INSERT INTO kept VALUES (9)").told_within(seconds(5)).await.done();
    standby.thaw();
    session.ok("SET ROLE pg_monitor").await;
    session.tell("SET tenure.minimum_synchronous_commit = off").await.refused("42501");
}

/// A session rereads its settings between statements only, and all that a CALL does is one statement.
#[tokio::test]
async fn one_long_call_waits_for_standbys_that_were_named_since_it_began() {
    let alone = Alone::start(&[]).await;
    let (session, caller) = (alone.session().await, alone.session().await);
    session.ok("CREATE TABLE kept(n int)").await;
    let body = "BEGIN SET synchronous_commit = off; FOR n IN 1..600 LOOP INSERT INTO kept VALUES (n); COMMIT; PERFORM pg_sleep(0.05); END LOOP; END";
    session.ok(&format!("CREATE PROCEDURE keep() LANGUAGE plpgsql AS '{body}'")).await;
    let pid = caller.pid().await;
    let mut call = caller.begin("CALL keep()");
    call.waits(A_WHILE).await;
    let standby = alone.synchronous_standby().await;
    standby.freeze();
    let before: u64 = session.ok("SELECT count(*) FROM kept").await.parse().expect("a count");
    wait::throughout("no row but the one under way", seconds(2), async || {
        let now: u64 = session.ok("SELECT count(*) FROM kept").await.parse().expect("a count");
        if now <= before + 1 { Ok(()) } else { Err(format!("{} rows that no standby has", now - before)) }
    })
    .await;
    alone.waits_for(pid, "SyncRep").await;
    standby.thaw();
    call.told_within(seconds(60)).await.done();
    assert_eq!(session.ok("SELECT count(*) FROM kept").await, "600");
}

/// Known, and PostgreSQL's own: a standby shows what it has replayed, whichever other server has it.
#[tokio::test]
async fn an_asynchronous_standby_shows_what_still_waits() {
    let alone = Alone::start(&[]).await;
    alone.session().await.ok("CREATE TABLE kept(n int)").await;
    let standbys = alone.synchronous_standbys(2, "FIRST 2 (s1, s2)", "sync").await;
    alone.set("synchronous_standby_names", "s1").await;
    standbys[0].freeze();
    let session = alone.session().await;
    let pid = session.pid().await;
    let commit = session.begin("INSERT INTO kept VALUES (1)");
    alone.waits_for(pid, "SyncRep").await;
    assert_eq!(alone.session().await.ok("SELECT count(*) FROM kept").await, "0", "nobody sees it here while it waits");
    let reader = standbys[1].session().await;
    wait::until("the asynchronous standby to show it", seconds(20), async || match reader.ok("SELECT count(*) FROM kept").await {
        seen if seen == "1" => Ok(()),
        seen => Err(seen),
    })
    .await;
    standbys[0].thaw();
    commit.told_within(seconds(30)).await.done();
}

/// Known, and PostgreSQL's own: who draws from a range that another's transaction has opened waits for nothing at the commit.
#[tokio::test]
async fn a_value_drawn_in_anothers_open_transaction_is_drawn_again() {
    let (alone, standby) = synchronous(&[]).await;
    let (first, second) = (alone.session().await, alone.session().await);
    first.ok("CREATE SEQUENCE drawn; CREATE TABLE used(n bigint)").await;
    first.ok("CHECKPOINT").await;
    standby.freeze();
    first.ok("BEGIN; SELECT nextval('drawn')").await;
    let value = second.begin("SELECT nextval('drawn')");
    let drawn = value.told_within(seconds(10)).await.done();
    assert_eq!(drawn, "2", "given although the standby has nothing of the range");
    // One that is used in a row is not given before the standby has the sequence's record too.
    let mut used = second.begin("INSERT INTO used SELECT nextval('drawn')");
    used.waits(A_WHILE).await;
    standby.thaw();
    used.told_within(seconds(30)).await.done();
    let there = standby.session().await;
    let last: i64 = there.ok("SELECT last_value FROM drawn").await.parse().expect("a number");
    let in_rows: i64 = there.ok("SELECT max(n) FROM used").await.parse().expect("a number");
    assert!(last >= in_rows, "the standby would draw {in_rows} again: its sequence stands at {last}");
}

#[tokio::test]
async fn what_no_standby_ever_gets_is_not_awaited() {
    let (alone, standby) = synchronous(&[]).await;
    let session = alone.session().await;
    session.ok("CREATE UNLOGGED TABLE fleeting(n int); CREATE TEMPORARY TABLE mine(n int)").await;
    standby.freeze();
    session.begin("INSERT INTO fleeting VALUES (1)").told_within(seconds(5)).await.done();
    session.begin("INSERT INTO mine VALUES (1)").told_within(seconds(5)).await.done();
    let pid = session.pid().await;
    drop(session);
    alone.ended(pid, seconds(5)).await;
    assert_eq!(alone.count("commits_cut").await, 0);
}

#[tokio::test]
async fn who_waits_when_the_last_standby_is_struck_from_the_list_is_acknowledged() {
    let (alone, standby) = synchronous(&[]).await;
    let session = alone.session().await;
    standby.freeze();
    let mut commit = session.begin("INSERT INTO kept VALUES (1)");
    commit.waits(A_WHILE).await;
    alone.set("synchronous_standby_names", "").await;
    commit.told_within(seconds(10)).await.done();
}

/// The checkpointer lets the waiting go one by one and only then takes the flag back that says that standbys are awaited.
/// Here each of those it lets go runs while strace holds it up, long before it has come to the flag.
#[tokio::test]
async fn who_is_let_go_before_the_flag_is_taken_back_is_acknowledged() {
    let (alone, standby) = synchronous(&[]).await;
    standby.freeze();
    let mut commits = Vec::new();
    for n in 0..3 {
        let session = alone.session().await;
        let pid = session.pid().await;
        commits.push(session.begin(&format!("INSERT INTO kept VALUES ({n})")));
        alone.waits_for(pid, "SyncRep").await;
    }
    let Some(_traced) = alone.slow_checkpointer(std::time::Duration::from_millis(300)).await else { return };
    alone.set("synchronous_standby_names", "").await;
    for commit in commits {
        commit.told_within(seconds(30)).await.done();
    }
}

/// Commits wait; once the wait is cancelled, nobody is told that it is done.
async fn waits_and_is_never_acknowledged(alone: &Alone, n: u32) {
    for (sql, end) in [
        (format!("INSERT INTO kept VALUES ({n})"), End::CancelBackend),
        (format!("BEGIN; INSERT INTO kept VALUES ({n}); PREPARE TRANSACTION 'p{n}'"), End::CancelRequest),
    ] {
        println!("{sql}, ended by {end:?}");
        told_when_the_wait_is_ended(alone, &alone.session().await, &sql, end).await.cut();
    }
}

#[tokio::test]
async fn where_two_standbys_must_confirm_one_is_not_enough() {
    let alone = Alone::start(&[]).await;
    alone.session().await.ok("CREATE TABLE kept(n int)").await;
    let standbys = alone.synchronous_standbys(2, "FIRST 2 (s1, s2)", "sync").await;
    for (n, frozen) in (1..).zip(&standbys) {
        frozen.freeze();
        waits_and_is_never_acknowledged(&alone, n).await;
        frozen.thaw();
        alone.session().await.ok("INSERT INTO kept VALUES (9)").await;
    }
}

#[tokio::test]
async fn where_any_standby_may_confirm_one_is_enough_and_none_is_not() {
    let alone = Alone::start(&[]).await;
    alone.session().await.ok("CREATE TABLE kept(n int)").await;
    let standbys = alone.synchronous_standbys(2, "ANY 1 (s1, s2)", "quorum").await;
    for frozen in &standbys {
        frozen.freeze();
        alone.session().await.begin("INSERT INTO kept VALUES (9)").told_within(seconds(30)).await.done();
        frozen.thaw();
    }
    standbys.iter().for_each(Server::freeze);
    waits_and_is_never_acknowledged(&alone, 1).await;
    standbys[1].thaw();
    alone.session().await.ok("INSERT INTO kept VALUES (9)").await;
    // From now on both have to.
    standbys[0].thaw();
    alone.set("synchronous_standby_names", "ANY 2 (s1, s2)").await;
    alone.session().await.ok("INSERT INTO kept VALUES (9)").await;
    standbys[0].freeze();
    waits_and_is_never_acknowledged(&alone, 2).await;
    standbys[0].thaw();
}

#[tokio::test]
async fn after_a_crash_under_a_quorum_nobody_sees_what_no_standby_has() {
    let alone = Alone::start(&[]).await;
    alone.session().await.ok("CREATE TABLE kept(n int)").await;
    let standbys = alone.synchronous_standbys(2, "ANY 1 (s1, s2)", "quorum").await;
    let (session, victim) = (alone.session().await, alone.session().await);
    standbys.iter().for_each(Server::freeze);
    let mut commit = session.begin("INSERT INTO kept VALUES (1)");
    commit.waits(A_WHILE).await;
    alone.crash_by(victim).await;
    commit.told().await.cut();
    alone.fence_is("open").await;
    let session = alone.session().await;
    session.ok("SET tenure.fence_wait = '50s'").await;
    let mut reader = session.begin("SELECT count(*) FROM kept");
    reader.waits(A_WHILE).await;
    standbys[1].thaw();
    assert_eq!(reader.told_within(seconds(30)).await.done(), "1", "one of them has it");
    standbys[0].thaw();
}

/// A synchronous primary after a crash that brought back one row nobody was told of; its standby is still frozen.
async fn crashed() -> (Alone, Server) {
    let (alone, standby) = synchronous(&[]).await;
    let (session, victim) = (alone.session().await, alone.session().await);
    standby.freeze();
    let mut commit = session.begin("INSERT INTO kept VALUES (1)");
    commit.waits(A_WHILE).await;
    assert_eq!(alone.session().await.ok("SELECT count(*) FROM kept").await, "0", "nobody sees it while it waits");
    alone.crash_by(victim).await;
    commit.told().await.cut();
    alone.fence_is("open").await;
    (alone, standby)
}

#[tokio::test]
async fn after_a_crash_nobody_sees_what_the_standby_does_not_have() {
    let (alone, standby) = crashed().await;
    let mut readers = Vec::new();
    for sql in [
        "SELECT count(*) FROM kept",
        "COPY kept TO '/dev/null'",
        "BEGIN; DECLARE reader CURSOR FOR SELECT * FROM kept; FETCH reader",
        "DO $$ BEGIN ASSERT (SELECT count(*) FROM kept) = 1; END $$",
        "UPDATE kept SET n = n",
        "EXPLAIN ANALYZE SELECT * FROM kept",
        "PREPARE again AS SELECT * FROM kept; EXECUTE again",
        "CREATE TEMPORARY TABLE copied AS SELECT * FROM kept",
    ] {
        let session = alone.session().await;
        session.ok("SET tenure.fence_wait = '50s'").await;
        readers.push(session.begin(sql));
    }
    for reader in &mut readers {
        reader.waits(A_WHILE).await;
    }
    let session = alone.session().await;
    assert_eq!(session.ok("SELECT 1").await, "1", "what touches no table goes on");
    session.ok("SELECT * FROM pg_stat_replication").await;
    let why = session.tell("SELECT count(*) FROM kept").await.refused("57P03");
    assert!(why.contains("recovery") && why.contains("pg_stat_replication"), "{why}");
    standby.thaw();
    for reader in readers {
        reader.told_within(seconds(30)).await.done();
    }
    assert_eq!(alone.session().await.ok("SELECT count(*) FROM kept").await, "1");
    assert_eq!(standby.session().await.ok("SELECT count(*) FROM kept").await, "1");
    // Once settled, the standby's absence is the commits' business only.
    standby.freeze();
    assert_eq!(alone.session().await.ok("SELECT count(*) FROM kept").await, "1");
}

#[tokio::test]
async fn after_a_crash_giving_the_standby_up_lets_readers_go() {
    let (alone, _standby) = crashed().await;
    let session = alone.session().await;
    session.ok("SET tenure.fence_wait = '50s'").await;
    let mut reader = session.begin("SELECT count(*) FROM kept");
    reader.waits(A_WHILE).await;
    alone.set("synchronous_standby_names", "").await;
    assert_eq!(reader.told_within(seconds(10)).await.done(), "1");
}

#[tokio::test]
async fn standbys_named_after_the_start_hold_no_reader() {
    let alone = Alone::start(&[]).await;
    let session = alone.session().await;
    session.ok("CREATE TABLE kept(n int)").await;
    alone.set("synchronous_standby_names", "nobody").await;
    let writer = alone.session().await;
    let pid = writer.pid().await;
    let _waits = writer.begin("SELECT pg_logical_emit_message(true, 'test', 'commits wait by now')");
    alone.waits_for(pid, "SyncRep").await;
    session.ok("SELECT count(*) FROM kept").await;
}
