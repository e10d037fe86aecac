//! Slots: members that were away find their WAL, consumers go on where they were, whichever member leads.

use serde_json::{Value, json};
use stories::cluster::{Cluster, PATIENCE};
use stories::node::Node;
use stories::subscriber;
use stories::wait;

/// The dynamic `postgresql` section under which a standby finds WAL by its slot or not at all.
fn keeps_no_wal() -> Value {
    let parameters = json!({"wal_keep_size": "0", "max_wal_size": "32MB", "min_wal_size": "32MB"});
    json!({"use_pg_rewind": true, "use_slots": true, "parameters": parameters})
}

/// The restart_lsn of a slot as a number; empty while there is none.
async fn restart_lsn(node: &Node, slot: &str) -> Option<u64> {
    let text = node.one(&format!("SELECT (restart_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = '{slot}'")).await;
    text.ok()?.parse().ok()
}

/// Waits until a slot is there (or not), wherever it is wanted.
async fn slot_is(node: &Node, slot: &str, wanted: bool) {
    let what = format!("the slot {slot} {} on {}", if wanted { "to be" } else { "to be gone" }, node.name());
    wait::until(&what, PATIENCE, async || {
        match node.one(&format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}'")).await {
            Ok(count) if (count == "1") == wanted => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await;
}

/// Waits until a slot is at this position or further.
async fn slot_reaches(node: &Node, slot: &str, position: u64) {
    let what = format!("the slot {slot} on {} to reach {position}", node.name());
    wait::until(&what, PATIENCE, async || match restart_lsn(node, slot).await {
        Some(seen) if seen >= position => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
}

async fn position(node: &Node) -> u64 {
    node.one("SELECT (pg_current_wal_lsn() - '0/0')::bigint").await.expect("ask").parse().expect("a number")
}

/// Several segments of WAL, all of which a checkpoint could remove.
async fn write_segments(node: &Node) {
    node.query("CREATE TABLE IF NOT EXISTS filling(text text)").await.expect("a table");
    for _ in 0..4 {
        node.query("INSERT INTO filling SELECT repeat('x', 1000) FROM generate_series(1, 3000)").await.expect("fill");
        node.query("SELECT pg_switch_wal()").await.expect("switch");
    }
    node.query("CHECKPOINT").await.expect("checkpoint");
}

#[tokio::test]
async fn a_member_that_was_away_during_the_failover_finds_its_wal_on_the_new_primary() {
    let cluster = Cluster::of(3).ttl(3).dynamic("postgresql", keeps_no_wal()).start().await;
    let old = cluster.leader().await;
    let (heir, away) = (cluster.others(old)[0], cluster.others(old)[1]);
    let slot = away.name();
    slot_is(heir, slot, true).await;
    let before = position(old).await;
    slot_reaches(heir, slot, before).await;
    let logged = away.log();
    away.kill();
    cluster.wait_until("its member key to run out", |view| view.members().len() == 2).await;
    let left_at = restart_lsn(old, slot).await.expect("its slot on the primary");
    write_segments(old).await;
    // The heir may remove what it has replayed; its copy of the slot is all that holds it.
    wait::until("a restart point on the heir", PATIENCE, async || {
        heir.query("CHECKPOINT").await.map_err(|error| format!("{error:#}"))?;
        let redo =
            heir.one("SELECT (redo_lsn - '0/0')::bigint FROM pg_control_checkpoint()").await.map_err(|error| format!("{error:#}"))?;
        if redo.parse::<u64>().is_ok_and(|redo| redo > left_at + (32 << 20)) { Ok(()) } else { Err(redo) }
    })
    .await;
    let held = restart_lsn(heir, slot).await.expect("its slot on the heir");
    assert!(held <= left_at, "the copy on the heir is at {held}, past {left_at} where the member left");
    old.kill();
    cluster.wait_until("the heir to lead", |view| view.leader() == Some(heir.name())).await;
    // It has the key first, and is promoted then.
    wait::until("the heir to take writes", PATIENCE, async || {
        heir.query("CREATE TABLE IF NOT EXISTS filling(text text)").await.map(drop).map_err(|error| format!("{error:#}"))
    })
    .await;
    write_segments(heir).await;
    cluster.start(away);
    cluster.healthy_members(2).await;
    let log = away.log_since(&logged);
    assert!(!log.contains("clone from"), "it was cloned:\n{log}");
    cluster.start(old);
    cluster.healthy().await;
}

/// What it is rewound by begins at a checkpoint, not where it wrote last.
#[tokio::test]
async fn a_standby_keeps_what_its_leader_needs_to_be_rewound() {
    let cluster = Cluster::of(2).ttl(3).dynamic("postgresql", keeps_no_wal()).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    slot_is(standby, leader.name(), true).await;
    let redo = "SELECT (redo_lsn - '0/0')::bigint FROM pg_control_checkpoint()";
    leader.query("CREATE TABLE filling(text text)").await.expect("a table");
    for _ in 0..10 {
        leader.query("INSERT INTO filling SELECT repeat('x', 1000) FROM generate_series(1, 1000)").await.expect("fill");
        wait::lasting(std::time::Duration::from_millis(500)).await;
        let held = restart_lsn(standby, leader.name()).await.expect("a position");
        let redo = standby.one(redo).await.expect("ask").parse::<u64>().expect("a number");
        assert!(held <= redo, "the slot of the leader holds from {held} on, its rewind begins at {redo}");
    }
}

/// Until the next leader has spoken of slots, what stands in etcd is what the dead one said of itself: where it wrote last.
#[tokio::test]
async fn what_a_dead_leader_needs_to_be_rewound_is_kept_by_every_standby() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let old = cluster.leader().await;
    let others = cluster.others(old);
    for standby in &others {
        slot_is(standby, old.name(), true).await;
    }
    old.query("CHECKPOINT").await.expect("the last checkpoint before the fork");
    let redo = old.one("SELECT (redo_lsn - '0/0')::bigint FROM pg_control_checkpoint()").await.expect("ask");
    let redo = redo.parse::<u64>().expect("a number");
    for _ in 0..3 {
        old.one("SELECT pg_switch_wal() FROM pg_logical_emit_message(false, 'story', 'more')").await.expect("begin a segment");
    }
    let end = position(old).await;
    cluster.wait_until("its end in etcd", |view| view.json("status")["slots"][old.name()].as_u64() >= Some(end)).await;
    old.kill();
    let view = cluster.wait_until("another leader", |view| view.leads_other_than(old.name())).await;
    let heir = view.leader().expect("a leader");
    cluster.healthy_members(2).await;
    cluster.wait_until("the new leader's slots in etcd", |view| view.json("status")["slots"][heir].as_u64() > Some(end)).await;
    for standby in others {
        let held = restart_lsn(standby, old.name()).await.expect("its slot");
        assert!(held <= redo, "{} (the leader is {heir}) keeps from {held} on, the rewind begins at {redo}", standby.name());
    }
    cluster.start(old);
    cluster.healthy().await;
}

#[tokio::test]
async fn a_permanent_physical_slot_survives_the_failover() {
    let slots = json!({"backup": {"type": "physical"}});
    let cluster = Cluster::of(3).ttl(3).dynamic("slots", slots).start().await;
    let old = cluster.leader().await;
    for node in &cluster.nodes {
        slot_is(node, "backup", true).await;
    }
    write_segments(old).await;
    old.query("SELECT pg_replication_slot_advance('backup', pg_current_wal_lsn())").await.expect("its consumer goes on");
    let at = restart_lsn(old, "backup").await.expect("a position");
    for standby in cluster.others(old) {
        slot_reaches(standby, "backup", at).await;
    }
    old.kill();
    let view = cluster.wait_until("another leader", |view| view.leads_other_than(old.name())).await;
    let heir = cluster.node(view.leader().expect("a leader"));
    assert_eq!(restart_lsn(heir, "backup").await, Some(at), "where its consumer was");
    cluster.start(old);
    cluster.healthy().await;
    // Wanted no more, it goes everywhere.
    cluster.configure(&json!({"slots": null})).await;
    slot_is(heir, "backup", false).await;
}

#[tokio::test]
async fn what_is_ignored_or_unknown_stays_and_without_slots_members_have_none() {
    let cluster = Cluster::of(2).ttl(3).dynamic("ignore_slots", json!([{"type": "physical", "name": "theirs"}])).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    slot_is(leader, standby.name(), true).await;
    leader.query("SELECT pg_create_physical_replication_slot('theirs', true)").await.expect("a slot of somebody else's");
    leader.query("SELECT pg_create_physical_replication_slot('nobodys', true)").await.expect("a slot of nobody's");
    cluster.configure(&json!({"slots": {"theirs": {"type": "physical"}, "ours": {"type": "physical"}}})).await;
    slot_is(standby, "ours", true).await;
    cluster.configure(&json!({"slots": null})).await;
    // The permanent slot goes; the ignored one of the same list, and the unknown one, stay.
    slot_is(leader, "ours", false).await;
    slot_is(leader, "theirs", true).await;
    slot_is(leader, "nobodys", true).await;
    cluster.configure(&json!({"postgresql": {"use_slots": false}})).await;
    slot_is(leader, standby.name(), false).await;
    cluster.healthy().await;
    let used = standby.one("SELECT current_setting('primary_slot_name')").await.expect("ask");
    assert_eq!(used, "", "the standby names a slot");
}

#[tokio::test]
async fn the_slot_of_a_member_that_is_gone_is_kept_for_its_time_and_then_dropped() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let leader = cluster.leader().await;
    let (other, gone) = (cluster.others(leader)[0], cluster.others(leader)[1]);
    slot_is(other, gone.name(), true).await;
    gone.kill();
    cluster.wait_until("its member key to run out", |view| view.members().len() == 2).await;
    // A restart of the arbiter forgets nothing.
    leader.kill_arbiter();
    cluster.start(leader);
    cluster.healthy_members(2).await;
    let view = cluster.wait_until("the slot among those retained", |view| view.json("status")["retain_slots"].as_array().is_some()).await;
    let retained = view.json("status")["retain_slots"].to_string();
    assert!(retained.contains(gone.name()), "{retained}");
    slot_is(leader, gone.name(), true).await;
    cluster.configure(&json!({"member_slots_ttl": "1s"})).await;
    slot_is(leader, gone.name(), false).await;
    slot_is(other, gone.name(), false).await;
    slot_is(leader, other.name(), true).await;
    cluster.start(gone);
    cluster.healthy().await;
    slot_is(leader, gone.name(), true).await;
}

#[tokio::test]
async fn a_logical_subscriber_misses_nothing_through_a_switchover_and_a_failover() {
    let report = subscriber::through(2, true).await;
    println!("{report:?}");
    report.nothing_missing_or_repeated();
}

#[tokio::test]
async fn without_synchronous_standbys_a_subscriber_waits_for_the_others_only_where_that_is_asked() {
    let cluster = subscriber::cluster(false).await;
    let subscriber = subscriber::subscribe(&cluster).await;
    let leader = cluster.leader().await;
    let others = cluster.others(leader);
    let got = async |id: u64| {
        let count = subscriber.session().await.ok(&format!("SELECT count(*) FROM written WHERE id = {id}")).await;
        if count == "1" { Ok(()) } else { Err(format!("{count} rows with {id}")) }
    };
    let write = async |id: u64| leader.query(&format!("INSERT INTO written(id) VALUES ({id})")).await.expect("write");
    // Rounds are counted while logical slots are kept: after two more the leader's backends were told.
    let told = async || {
        let round = |view: &stories::view::View| view.json("status")["tenure"]["round"].as_u64().unwrap_or_default();
        let now = round(&cluster.view().await.expect("look"));
        cluster.wait_until("two more looks at the slots", |view| round(view) > now + 1).await;
    };
    write(1).await;
    wait::until("the first row at the subscriber", PATIENCE, async || got(1).await).await;
    for standby in &others {
        standby.freeze_receiver();
    }
    write(2).await;
    wait::until("a row that no standby has, at the subscriber", PATIENCE, async || got(2).await).await;

    cluster.configure(&json!({"hold_back_logical": true})).await;
    told().await;
    write(3).await;
    let held = async || match got(3).await {
        Ok(()) => Err("the subscriber got a row that no standby has"),
        Err(_) => Ok(()),
    };
    wait::throughout("the row to be held back", wait::seconds(3), held).await;
    cluster.configure(&json!({"hold_back_logical": false})).await;
    wait::until("the row, once nobody is awaited", PATIENCE, async || got(3).await).await;

    cluster.configure(&json!({"hold_back_logical": true})).await;
    told().await;
    write(4).await;
    wait::throughout("the next row to be held back", wait::seconds(1), async || got(4).await.err().map(|_| ()).ok_or("it came")).await;
    for standby in &others {
        standby.thaw();
    }
    wait::until("the row, once the standbys have it", PATIENCE, async || got(4).await).await;
}
