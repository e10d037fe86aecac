//! A new major version beside the present one, interrupted at each of its steps: it goes on or is called off, and every row stays.

use stories::cluster::Cluster;
use stories::majors::{from, later};
use stories::node::Node;
use stories::upgrading::{WITHIN, begin, cluster, killed_when, may_change_places, says, serves, serving, upgrade_begun};
use stories::wait::{self, seconds};
use stories::workload::Writer;

async fn ends_well(cluster: &Cluster, writer: Writer, what: &str) {
    let ledger = writer.finish();
    println!("{what}: {}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
    cluster.healthy().await;
}

/// The arbiter is killed, and started again.
fn killed(cluster: &Cluster, leader: &Node) {
    leader.kill_arbiter();
    cluster.start(leader);
}

#[tokio::test]
async fn an_arbiter_killed_while_a_new_version_is_made_joined_and_follows_makes_it_anew_or_goes_on() {
    let Some(to) = later() else { return };
    let cluster = cluster().await;
    let writer = cluster.writer().await;
    let leader = cluster.leader().await;
    begin(leader, to).await;
    for (step, words) in
        [("copy", "the data is copied into"), ("pg_upgrade", "pg_upgrade carries the copy"), ("statistics", "statistics are made")]
    {
        let before = leader.log();
        wait::until(step, WITHIN, async || if leader.log_since(&before).contains(words) { Ok(()) } else { Err("not yet") }).await;
        killed(&cluster, leader);
        println!("killed: {step}");
    }
    assert!(killed_when(leader, ".twin.json", "\"joining\"").await, "{}", leader.log());
    cluster.start(leader);
    println!("killed: joining");
    may_change_places(&cluster).await;
    killed(&cluster, leader);
    cluster.healthy().await;
    println!("killed: following");
    may_change_places(&cluster).await;
    serves(&cluster, from(), &writer).await;
    ends_well(&cluster, writer, "killed in the making").await;
}

#[tokio::test]
async fn an_arbiter_killed_in_each_step_of_the_change_of_places_goes_on_or_calls_it_off() {
    let Some(to) = later() else { return };
    let cluster = cluster().await;
    let writer = cluster.writer().await;
    let leader = cluster.leader().await;
    begin(leader, to).await;
    let mut serves_now = from();
    for step in ["hold", "announce", "exchange"] {
        may_change_places(&cluster).await;
        let command = upgrade_begun(&cluster, &[if serves_now == to { "--back" } else { "--switch" }, "--force"]);
        let seen = match step {
            "hold" => killed_when(leader, ".upgrade.json", "\"hold\"").await,
            "announce" => {
                // etcd is silent for a moment, so that the write is under way when the arbiter dies.
                says(leader, ".upgrade.json", "\"hold\"").await;
                cluster.etcd.freeze();
                let seen = killed_when(leader, ".upgrade.json", "\"announce\"").await;
                cluster.etcd.thaw();
                seen
            }
            _ => killed_when(leader, ".upgrade.json", "\"exchange\"").await,
        };
        drop(command);
        assert!(seen, "{step} was not seen: {}", leader.log());
        cluster.start(leader);
        if step != "hold" {
            serves_now = if serves_now == to { from() } else { to };
        }
        serves(&cluster, serves_now, &writer).await;
        assert_eq!(cluster.leader().await.name(), leader.name());
        println!("killed: {step}: PostgreSQL {serves_now} serves");
    }
    may_change_places(&cluster).await;
    let command = upgrade_begun(&cluster, &[if serves_now == to { "--finish" } else { "--cancel" }, "--force"]);
    let seen = killed_when(leader, ".twin.json", "\"ending\"").await;
    drop(command);
    cluster.start(leader);
    println!("killed: ending (seen: {seen})");
    wait::until("definitions may be changed again", WITHIN, async || {
        leader.query("CREATE TABLE IF NOT EXISTS now_again(a int PRIMARY KEY)").await.map(drop).map_err(|why| format!("{why:#}"))
    })
    .await;
    serves(&cluster, serves_now, &writer).await;
    ends_well(&cluster, writer, "killed in the change").await;
}

#[tokio::test]
async fn a_change_of_places_without_etcd_or_without_its_node_leaves_one_version_with_every_row() {
    let Some(to) = later() else { return };
    let cluster = cluster().await;
    let writer = cluster.writer().await;
    let leader = cluster.leader().await;
    begin(leader, to).await;
    may_change_places(&cluster).await;

    // For so short that nobody else comes to lead: it waits, and goes on.
    let command = upgrade_begun(&cluster, &["--switch", "--force"]);
    says(leader, ".upgrade.json", "\"hold\"").await;
    cluster.etcd.freeze();
    says(leader, ".upgrade.json", "\"announce\"").await;
    cluster.etcd.thaw();
    drop(command);
    serves(&cluster, to, &writer).await;
    println!("etcd silent for a moment in announce: PostgreSQL {to} serves");

    // For longer than the lease lives. The member that has the key when etcd answers again decides: this node, or the next leader without it.
    may_change_places(&cluster).await;
    let command = upgrade_begun(&cluster, &["--back", "--force"]);
    says(leader, ".upgrade.json", "\"hold\"").await;
    cluster.etcd.kill();
    says(leader, ".upgrade.json", "\"announce\"").await;
    tokio::time::sleep(seconds(15)).await;
    cluster.etcd.run(&cluster.room).await;
    drop(command);
    let now = serving(&cluster, &writer).await;
    cluster.healthy().await;
    println!("etcd away for 15 s in announce: PostgreSQL {now} serves, led by {}", cluster.leader().await.name());

    // The node dies between the seal and etcd's word. The twin dies with it.
    let leader = cluster.leader().await;
    if leader.data_dir().with_extension("twin.json").exists() {
        may_change_places(&cluster).await;
    } else {
        return ends_well(&cluster, writer, "etcd away").await;
    }
    let word = if now == to { "--back" } else { "--switch" };
    let command = upgrade_begun(&cluster, &[word, "--force"]);
    says(leader, ".upgrade.json", "\"hold\"").await;
    leader.kill();
    drop(command);
    cluster.wait_within(WITHIN, "another leader", |view| view.leads_other_than(leader.name())).await;
    serves(&cluster, now, &writer).await;
    cluster.start(leader);
    cluster.healthy().await;
    println!("the node lost in hold: PostgreSQL {now} serves, led by {}", cluster.leader().await.name());
    ends_well(&cluster, writer, "etcd away, and the node lost").await;
}
