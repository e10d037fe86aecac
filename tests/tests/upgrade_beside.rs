//! A new major version beside the present one: it follows, its data is compared, the two change places, and back, and nothing is lost.

use stories::majors::{from, later};
use stories::upgrading::{WITHIN, begin, cluster, may_change_places, serves, status, upgrade};
use stories::wait;

#[tokio::test]
async fn a_new_version_follows_changes_places_goes_back_and_stays_in_the_end() {
    let Some(to) = later() else { return };
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
    let Some(to) = later() else { return };
    let cluster = cluster().await;
    let writer = cluster.writer().await;
    let old = cluster.leader().await;
    begin(old, to).await;
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
