//! A standby dies, freezes, comes back: writes go on.

use stories::cluster::{Cluster, PATIENCE};
use stories::node::sqlstate;
use stories::wait::{self, seconds};

#[tokio::test]
async fn a_killed_standby_costs_nothing_and_comes_back() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let writer = cluster.writer().await;
    standby.kill();
    cluster.wait_until("its member key to run out", |view| view.members().len() == 2).await;
    cluster.start(standby);
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
    let ledger = writer.finish();
    println!("standby killed and back: {}", ledger.summary());
    assert_eq!(ledger.unknown().count() + ledger.refused().count(), 0, "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_standbys_killed_postmaster_is_started_again() {
    let cluster = Cluster::of(2).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    let before = standby.postmaster();
    standby.kill_postmaster();
    wait::until("another postmaster", PATIENCE, async || match standby.postmaster() {
        now if now.is_some() && now != before => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
}

#[tokio::test]
async fn when_the_synchronous_standby_dies_another_takes_its_place() {
    let cluster = Cluster::of(3).ttl(3).synchronous(true).start().await;
    let leader = cluster.leader().await;
    let (_, standbys) = cluster.healthy().await.synchronous().expect("a synchronous standby");
    let first = cluster.node(&standbys[0]);
    let writer = cluster.writer().await;
    first.kill();
    cluster
        .wait_until("another synchronous standby", |view| {
            view.synchronous().is_some_and(|(_, now)| !now.is_empty() && !now.iter().any(|name| name == first.name()))
        })
        .await;
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    println!("synchronous standby killed: {}", ledger.summary());
    assert_eq!(cluster.leader().await.name(), leader.name());
    assert!(ledger.longest_pause() < seconds(8), "{}", ledger.summary());
    cluster.start(first);
    cluster.healthy().await;
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn standbys_do_not_rewind_when_the_new_primary_only_restarts() {
    let cluster = Cluster::of(3).start().await;
    let writer = cluster.writer().await;
    cluster.cli_ok(&["switchover", "--force"]).await;
    writer.goes_on(50, PATIENCE).await;
    cluster.healthy().await;
    let leader = cluster.leader().await;
    let others = cluster.others(leader);
    let before: Vec<String> = others.iter().map(|node| node.log()).collect();
    // Its restart ends every receiver, on a timeline that no standby has a restart point of yet.
    let pid = leader.one("SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'").await.expect("ask");
    let pid = rustix::process::Pid::from_raw(pid.parse().expect("a pid")).expect("a pid");
    stories::process::signal(pid, rustix::process::Signal::KILL);
    writer.goes_on(50, PATIENCE).await;
    cluster.healthy().await;
    let ledger = writer.finish();
    for (node, before) in others.iter().zip(&before) {
        let log = node.log_since(before);
        assert!(!log.contains("rewind to"), "{} had nothing to take back:\n{log}", node.name());
    }
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

/// Found by a storm: the old leader's slot at the new one held nothing back until it connected for the first time.
#[tokio::test]
async fn a_leader_that_stopped_finds_its_log_at_the_next_one_however_much_was_written_meanwhile() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let old = cluster.leader().await;
    let next = cluster.others(old)[0];
    old.stop();
    old.ended(PATIENCE).await;
    cluster.wait_until("the other to lead", |view| view.leader() == Some(next.name())).await;
    let slot = format!("SELECT restart_lsn IS NOT NULL FROM pg_replication_slots WHERE slot_name = '{}'", old.name());
    wait::until("the slot of the one that is away to hold its log", PATIENCE, async || match next.one(&slot).await {
        Ok(held) if held == "t" => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    // More than wal_keep_size (128 MB), and a checkpoint that removes what nobody holds.
    for _ in 0..12 {
        next.one("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'story', 'more')").await.expect("begin a segment");
    }
    next.query("CHECKPOINT").await.expect("a checkpoint");
    cluster.start(old);
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(next.name()), "{view}");
    let log = old.log();
    assert!(!log.contains("rewinding") && !log.contains("cloning"), "it only follows: {log}");
}

#[tokio::test]
async fn an_arbiter_that_begins_while_nobody_streams_knows_what_its_standby_received() {
    let cluster = Cluster::of(2).start().await;
    let writer = cluster.writer().await;
    cluster.cli_ok(&["switchover", "--force"]).await;
    writer.goes_on(50, PATIENCE).await;
    cluster.healthy().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    // The primary is down for a moment and nobody restarts it yet; its key and its member key stand.
    standby.kill_arbiter();
    leader.freeze_arbiter();
    leader.kill_postmaster();
    cluster.start(standby);
    standby.logged(&["adopting the server"], PATIENCE).await;
    stories::wait::lasting(std::time::Duration::from_secs(2)).await;
    leader.thaw_arbiter();
    writer.goes_on(50, PATIENCE).await;
    cluster.healthy().await;
    let ledger = writer.finish();
    assert!(!standby.log().contains("rewind to"), "it had nothing to take back:\n{}", standby.log());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

#[tokio::test]
async fn a_read_waits_until_the_standby_has_replayed_a_write() {
    let cluster = Cluster::of(2).start().await;
    let primary = cluster.leader().await;
    let standby = cluster.others(primary)[0];
    primary.query("CREATE TABLE noted(n int)").await.expect("make a table");
    primary.query("CREATE ROLE reader LOGIN").await.expect("make a role");
    let wait = async |lsn: &str, time: &str| standby.one(&format!("SELECT tenure.wait_for_lsn('{lsn}', '{time}')")).await;
    let lsn = primary.one("SELECT pg_current_wal_insert_lsn()").await.expect("ask");
    assert_eq!(wait(&lsn, "60 s").await.expect("wait"), "t");

    standby.query("SELECT pg_wal_replay_pause()").await.expect("pause the replay");
    primary.query("INSERT INTO noted VALUES (1)").await.expect("write");
    let lsn = primary.one("SELECT pg_current_wal_insert_lsn()").await.expect("ask");
    let began = std::time::Instant::now();
    assert_eq!(wait(&lsn, "300 ms").await.expect("wait"), "f");
    assert!(began.elapsed() >= std::time::Duration::from_millis(300));
    let path = format!("/replica?lsn={lsn}");
    assert_eq!(standby.get(&path).await.expect("GET").status, 503);
    let (waited, resumed) = tokio::join!(wait(&lsn, "60 s"), standby.query("SELECT pg_sleep(0.2), pg_wal_replay_resume()"));
    resumed.expect("resume the replay");
    assert_eq!(waited.expect("wait"), "t");
    assert_eq!(standby.one("SELECT count(*) FROM noted").await.expect("read"), "1");
    stories::wait::until("the load balancer to hear of it", PATIENCE, async || {
        match standby.get(&path).await.map(|answer| answer.status) {
            Ok(200) => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await;

    // On the primary it is the flush that counts, so one code serves everywhere.
    assert_eq!(primary.one(&format!("SELECT tenure.wait_for_lsn('{lsn}')")).await.expect("wait"), "t");
    assert_eq!(primary.one("SELECT tenure.wait_for_lsn('FFFFFFFF/0', '0')").await.expect("wait"), "f");
    for (sql, state) in [
        (format!("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT tenure.wait_for_lsn('{lsn}')"), "25001"),
        ("SELECT tenure.wait_for_lsn('0/1', '-1 s')".to_owned(), "22023"),
        ("SET ROLE reader; SELECT tenure.wait_for_lsn('0/1')".to_owned(), "42501"),
    ] {
        let why = standby.query(&sql).await.expect_err(&sql);
        assert_eq!(sqlstate(&why).as_deref(), Some(state), "{sql}: {why:#}");
    }
}
