//! A commit that could not be acknowledged to a client is neither confirmed to a publisher nor shown to a session that decodes it by SQL.

use stories::alone::{A_WHILE, Alone, PATIENCE, Server, Session};
use stories::wait::{self, seconds};

/// A subscriber with a synchronous standby, and its publisher; the first row has arrived.
struct Subscriber {
    alone: Alone,
    standby: Server,
    source: Session,
    _publisher: Server,
}

const ARRIVED: &str = "SELECT coalesce(string_agg(n::text, ',' ORDER BY n), '') FROM kept";

impl Subscriber {
    async fn start() -> Subscriber {
        let alone = Alone::start(&[("wal_retrieve_retry_interval", "200ms"), ("wal_receiver_status_interval", "1s")]).await;
        let publisher = Server::plain(&alone.room, "publisher", &[("wal_level", "logical")]).await;
        let (session, source) = (alone.session().await, publisher.session().await);
        for table in [&session, &source] {
            table.ok("CREATE TABLE kept(n int)").await;
        }
        source.ok("CREATE PUBLICATION everything FOR TABLE kept").await;
        let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", publisher.port());
        session.ok(&format!("CREATE SUBSCRIPTION everything CONNECTION '{conninfo}' PUBLICATION everything")).await;
        let standby = alone.synchronous_standby().await;
        let subscriber = Subscriber { alone, standby, source, _publisher: publisher };
        subscriber.source.ok("INSERT INTO kept VALUES (1)").await;
        subscriber.arrives("1").await;
        let end = subscriber.end().await;
        subscriber.is_confirmed(&end).await;
        subscriber
    }

    async fn arrives(&self, wanted: &str) {
        let session = self.alone.session().await;
        wait::until(&format!("rows {wanted} to arrive"), PATIENCE, async || match session.ok(ARRIVED).await {
            seen if seen == wanted => Ok(()),
            seen => Err(seen),
        })
        .await;
    }

    /// Where the publisher's WAL ends.
    async fn end(&self) -> String {
        self.source.ok("SELECT pg_current_wal_lsn()").await
    }

    async fn confirmed(&self, end: &str) -> bool {
        self.source.ok(&format!("SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = 'everything'")).await
            == "t"
    }

    async fn is_confirmed(&self, end: &str) {
        wait::until("the subscriber to confirm", PATIENCE, async || if self.confirmed(end).await { Ok(()) } else { Err("not yet") }).await;
    }

    async fn stays_unconfirmed(&self, end: &str) {
        wait::throughout("nothing to be confirmed upstream", seconds(4), async || {
            if self.confirmed(end).await { Err("the publisher was told that it arrived") } else { Ok(()) }
        })
        .await;
    }

    async fn worker(&self) -> i32 {
        let ask = "SELECT coalesce((SELECT pid FROM pg_stat_subscription WHERE relid IS NULL AND pid IS NOT NULL), 0)";
        let session = self.alone.session().await;
        wait::until("the worker of the subscription", PATIENCE, async || match session.ok(ask).await.parse::<i32>() {
            Ok(pid) if pid != 0 => Ok(pid),
            other => Err(format!("{other:?}")),
        })
        .await
    }
}

#[tokio::test]
async fn a_subscription_confirms_upstream_only_what_the_standbys_have() {
    let subscriber = Subscriber::start().await;
    for (n, end) in [(2, "pg_cancel_backend"), (3, "pg_terminate_backend")] {
        println!("a commit of the worker, ended by {end}");
        let worker = subscriber.worker().await;
        subscriber.standby.freeze();
        subscriber.source.ok(&format!("INSERT INTO kept VALUES ({n})")).await;
        let written = subscriber.end().await;
        subscriber.alone.waits_for(worker, "SyncRep").await;
        subscriber.alone.session().await.ok(&format!("SELECT {end}({worker})")).await;
        subscriber.alone.ended(worker, seconds(10)).await;
        // Its successor, which finds the commit in the origin's progress, says no more than it could.
        subscriber.worker().await;
        subscriber.stays_unconfirmed(&written).await;
        subscriber.standby.thaw();
        subscriber.is_confirmed(&written).await;
    }
    subscriber.source.ok("INSERT INTO kept VALUES (4)").await;
    subscriber.arrives("1,2,3,4").await;
}

#[tokio::test]
async fn a_subscription_confirms_upstream_inside_the_lease_only() {
    let subscriber = Subscriber::start().await;
    let worker = subscriber.worker().await;
    subscriber.standby.freeze();
    subscriber.source.ok("INSERT INTO kept VALUES (2)").await;
    let written = subscriber.end().await;
    subscriber.alone.waits_for(worker, "SyncRep").await;
    subscriber.alone.let_the_deadline_pass().await;
    subscriber.standby.thaw();
    subscriber.alone.ended(worker, seconds(20)).await;
    subscriber.stays_unconfirmed(&written).await;
    subscriber.alone.renew().await;
    subscriber.is_confirmed(&written).await;
}

#[tokio::test]
async fn who_reads_a_slot_by_sql_sees_no_commit_that_waits() {
    let alone = Alone::start(&[("wal_level", "logical")]).await;
    let session = alone.session().await;
    session.ok("CREATE TABLE kept(n int)").await;
    session.ok("SELECT pg_create_logical_replication_slot('changes', 'test_decoding')").await;
    let standby = alone.synchronous_standby().await;
    let inserts =
        |function: &str| format!("SELECT count(*) FROM {function}('changes', NULL, NULL) WHERE data LIKE 'table public.kept: INSERT%'");
    session.ok("INSERT INTO kept VALUES (1)").await;
    assert_eq!(session.ok(&inserts("pg_logical_slot_peek_changes")).await, "1");
    standby.freeze();
    let writer = alone.session().await;
    let pid = writer.pid().await;
    let commit = writer.begin("INSERT INTO kept VALUES (2)");
    alone.waits_for(pid, "SyncRep").await;
    for function in ["pg_logical_slot_peek_changes", "pg_logical_slot_get_changes", "pg_logical_slot_get_binary_changes"] {
        session.tell(&format!("SELECT * FROM {function}('changes', NULL, NULL)")).await.refused("55000");
    }
    session.tell("SELECT pg_replication_slot_advance('changes', pg_current_wal_lsn())").await.refused("55000");
    session.ok("SET tenure.fence_wait = '50s'").await;
    let mut reads = session.begin(&inserts("pg_logical_slot_get_changes"));
    reads.waits(A_WHILE).await;
    session.cancel().await;
    reads.told_within(seconds(5)).await.refused("57014");
    let mut reads = session.begin(&inserts("pg_logical_slot_get_changes"));
    reads.waits(A_WHILE).await;
    standby.thaw();
    assert_eq!(reads.told_within(seconds(30)).await.done(), "2", "nothing was skipped meanwhile");
    commit.told_within(seconds(30)).await.done();
}
