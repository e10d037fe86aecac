//! A delayed standby that is asked to go on up to a time, and no further.

use serde_json::json;
use std::time::Duration;
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::Etcd;
use stories::room::Room;
use stories::wait;

#[tokio::test]
async fn a_delayed_standby_replays_up_to_just_before_a_mistake_and_stops_there() {
    let room = Room::new();
    let etcd = Etcd::start(&room).await;
    let late = |config: &mut stories::node::Config| {
        if config["name"] == "n2" {
            config["tags"] = json!({"delay": "5min"});
        }
    };
    let cluster = Cluster::of(2).ttl(3).planned_on(room, etcd, late);
    // Else the delayed one may found the cluster.
    cluster.start(&cluster.nodes[0]);
    cluster.healthy_members(1).await;
    cluster.start(&cluster.nodes[1]);
    cluster.healthy().await;
    let (leader, late) = (cluster.leader().await, cluster.node("n2"));
    leader.query("CREATE TABLE kept(n int)").await.expect("make a table");
    let insert = async |n: u32| {
        leader.query(&format!("INSERT INTO kept VALUES ({n})")).await.expect("insert");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let now =
        async || leader.one("SELECT to_char(clock_timestamp(), 'YYYY-MM-DD\"T\"HH24:MI:SS.MSTZH:TZM')").await.expect("ask for the time");
    for n in 1..=3 {
        insert(n).await;
    }
    let early = now().await;
    for n in 4..=5 {
        insert(n).await;
    }
    let before = now().await;
    insert(6).await;
    leader.query("DROP TABLE kept").await.expect("make a mistake");
    assert!(late.one("SELECT count(*) FROM kept").await.is_err(), "it is five minutes late");

    let refused = cluster.cli(&["replay", "n2", "--until", "2100-01-01T00:00:00Z"]).await;
    assert!(!refused.status.success());
    assert_eq!(late.one("SELECT pg_is_wal_replay_paused()").await.expect("ask"), "f", "what is refused changes nothing");
    // By SQL, from the primary; in between it is another's turn.
    let says = async |sql: &str| late.one(sql).await.unwrap_or_else(|why| format!("{why:#}"));
    let asked = leader.one(&format!("SELECT tenure.replay_until('n2', '{early}')")).await;
    assert_eq!(asked.expect("ask by SQL"), "replay of n2 was requested");
    wait::until("the replay that SQL asked for", PATIENCE, async || {
        let rows = "SELECT string_agg(n::text, ' ' ORDER BY n) || pg_is_wal_replay_paused() FROM kept";
        match says(rows).await.as_str() {
            "1 2 3true" => Ok(()),
            seen => Err(seen.to_owned()),
        }
    })
    .await;
    for (call, why) in [
        ("tenure.replay_until('n1', now())", "n1 is the primary"),
        ("tenure.replay_until('n2', now() + '1 h')", "yet to come"),
        ("tenure.replay_until('n2', NULL)", "not NULL"),
        ("tenure.replay_pause('n9')", "no member is called n9"),
    ] {
        let refused = leader.one(&format!("SELECT {call}")).await.expect_err(call);
        assert!(format!("{refused:#}").contains(why), "{call}: {refused:#}");
    }
    let said = cluster.cli_ok(&["replay", "n2", "--until", &before]).await;
    assert!(said.contains("replay is paused, the last commit replayed is of"), "{said}");
    assert_eq!(late.one("SELECT string_agg(n::text, ' ' ORDER BY n) FROM kept").await.expect("what is there"), "1 2 3 4 5");
    // It stays there, whatever the arbiter does meanwhile.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(late.one("SELECT max(n) FROM kept").await.expect("what is there"), "5");

    for (until, why) in
        [("2000-01-01T00:00:00Z", "has replayed a commit"), ("2100-01-01T00:00:00Z", "yet to come"), ("soon", "expected a time")]
    {
        let refused = cluster.cli(&["replay", "n2", "--until", until]).await;
        let said = String::from_utf8_lossy(&refused.stdout).into_owned();
        assert!(!refused.status.success() && said.contains(why), "{until}: {said}");
    }
    leader.one("SELECT tenure.replay_resume('n2')").await.expect("ask by SQL");
    wait::until("the delay of its tag", PATIENCE, async || {
        match late.one("SELECT current_setting('recovery_min_apply_delay') || pg_is_wal_replay_paused()").await {
            Ok(shown) if shown == "5minfalse" => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await;
}
