//! The gate of a Citus server, without Citus: COPY FROM passes it as a distributed statement does, any other statement here does not.

use stories::alone::{A_WHILE, Alone, Session};
use stories::wait::seconds;

/// COPY FROM without a client's data.
const COPY: &str = "COPY kept FROM PROGRAM 'echo 1'";

async fn of_group(group: &str) -> Alone {
    let alone = Alone::start(&[("tenure.group", group)]).await;
    alone.session().await.ok("CREATE TABLE kept(n int)").await;
    alone
}

async fn count(session: &Session) -> String {
    session.ok("SELECT count(*) FROM kept").await
}

#[tokio::test]
async fn a_closed_gate_holds_what_begins_and_counts_what_is_under_way() {
    let alone = of_group("1").await;
    let (admin, client, under_way) = (alone.session().await, alone.session().await, alone.session().await);
    under_way.ok(&format!("BEGIN; {COPY}")).await;
    assert_eq!(admin.ok("SELECT tenure_internal.close_gate(60000, true, 100)").await, "1", "it does not wait for ever");
    under_way.ok(COPY).await;
    let mut waits = client.begin(COPY);
    waits.waits(A_WHILE).await;
    assert_eq!(count(&admin).await, "0", "other statements go on");

    // The session that closes the gate waits for what is under way, and no longer.
    let mut closes = admin.begin("SELECT tenure_internal.close_gate(60000, true, 60000)");
    closes.waits(A_WHILE).await;
    under_way.ok("ROLLBACK").await;
    assert_eq!(closes.told_within(seconds(20)).await.done(), "0");

    assert_eq!(admin.ok("SELECT tenure_internal.open_gate()").await, "t");
    waits.told_within(seconds(20)).await.done();
    assert_eq!(count(&admin).await, "1");
    assert_eq!(admin.ok("SELECT tenure_internal.open_gate()").await, "f");
    assert_eq!(admin.ok("SELECT tenure_internal.close_gate(0, true, 0)").await, "0", "nobody is left in the count");
}

#[tokio::test]
async fn who_waits_at_the_gate_can_be_cancelled_and_the_gate_opens_by_itself() {
    let alone = of_group("2").await;
    let (admin, client) = (alone.session().await, alone.session().await);
    admin.ok("SELECT tenure_internal.close_gate(60000, true, 0)").await;
    client.begin(&format!("SET statement_timeout = '300ms'; {COPY}")).told_within(seconds(20)).await.refused("57014");
    client.ok("SET statement_timeout = 0").await;
    let mut waits = client.begin(COPY);
    waits.waits(A_WHILE).await;
    client.cancel().await;
    waits.told_within(seconds(20)).await.refused("57014");
    assert_eq!(admin.ok("SELECT tenure_internal.close_gate(60000, true, 0)").await, "0", "who gave up is under way no more");

    // Citus' own sessions belong to statements that passed elsewhere.
    let internal = alone.session().await;
    internal.ok("SET application_name = 'citus_internal gpid=10000000123'").await;
    internal.ok(COPY).await;
    assert_eq!(count(&admin).await, "1");

    // Nobody opens it.
    admin.ok("SELECT tenure_internal.close_gate(1500, true, 0)").await;
    client.begin(COPY).told_within(seconds(20)).await.done();
    // Nor does the session that closed it, when it ends.
    let arbiter = alone.session().await;
    arbiter.ok("SELECT tenure_internal.close_gate(600000, true, 0)").await;
    let mut waits = client.begin(COPY);
    waits.waits(A_WHILE).await;
    admin.ok(&format!("SELECT pg_terminate_backend({})", arbiter.pid().await)).await;
    waits.told_within(seconds(20)).await.done();

    admin.ok("CREATE ROLE somebody").await;
    admin
        .ok("GRANT USAGE ON SCHEMA tenure_internal TO somebody; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA tenure_internal TO somebody")
        .await;
    for call in ["tenure_internal.close_gate(1000, true, 0)", "tenure_internal.open_gate()"] {
        client.tell(&format!("SET ROLE somebody; SELECT {call}")).await.refused("42501");
        client.ok("RESET ROLE").await;
    }
}

#[tokio::test]
async fn a_server_without_a_group_has_no_gate() {
    let alone = of_group("-1").await;
    let (admin, client) = (alone.session().await, alone.session().await);
    admin.ok("SELECT tenure_internal.close_gate(60000, true, 0)").await;
    client.begin(COPY).told_within(seconds(20)).await.done();
}
