//! What tools and habits of the field expect: strings, codes and keys that scripts and watches compare, and servers handled by hand.

use serde_json::{Value, json};
use stories::cluster::{Cluster, PATIENCE};
use stories::node::Node;
use stories::wait::{self, lasting, seconds};
use stories::{node, programs};

/// `/patroni` as JSON.
async fn status(node: &Node) -> Result<Value, String> {
    let answer = node.get("/patroni").await.map_err(|why| format!("{why:#}"))?;
    serde_json::from_str(&answer.body).map_err(|why| format!("{why} in {}", answer.body))
}

/// Waits until this path answers so.
async fn answers(node: &Node, path: &str, code: u16, bound: std::time::Duration) {
    wait::until(&format!("{path} of {} to answer {code}", node.name()), bound, async || {
        match node.get(path).await.map_err(|why| format!("{why:#}"))?.status {
            seen if seen == code => Ok(()),
            seen => Err(seen.to_string()),
        }
    })
    .await;
}

/// What a person types on the node, as its user.
fn pg_ctl(cluster: &Cluster, node: &Node, arguments: &[&str]) {
    let (success, said) = try_pg_ctl(cluster, node, arguments);
    assert!(success, "pg_ctl {arguments:?}: {said}");
}

/// The same where it may fail: outside of maintenance mode the arbiter, too, starts a server that has ended, and one of the two is first.
fn try_pg_ctl(cluster: &Cluster, node: &Node, arguments: &[&str]) -> (bool, String) {
    let mut command = cluster.room.command(programs::postgres_bin().join("pg_ctl"), node.dir());
    let log = node.dir().join("by-hand.log");
    let output = command.arg("-D").arg(node.data_dir()).args(["-w", "-s", "-l"]).arg(log).args(arguments).output().expect("run pg_ctl");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn tags_and_pending_restarts_are_said_as_the_field_says_them_and_soon() {
    // With the field's own timings nothing may wait for the next round.
    let cluster = Cluster::of(1).dynamic("ttl", json!(30)).dynamic("loop_wait", json!(10)).planned().await;
    let node = &cluster.nodes[0];
    cluster.reconfigure(node, |config| {
        config["tags"] = json!({"clonefrom": false, "noloadbalance": false, "nofailover": false, "failover_priority": "1", "nosync": null});
    });
    cluster.start(node);
    cluster.healthy().await;
    let tags = json!({"nofailover": false, "failover_priority": "1"});
    assert_eq!(status(node).await.expect("ask")["tags"], tags);
    assert_eq!(cluster.view().await.expect("look").member(node.name())["tags"], tags);

    cluster.reconfigure(node, |config| config["tags"] = json!({"new_tag": "new_value", "zone": 1, "clonefrom": false}));
    assert_eq!(node.post("/reload", &json!({})).await.expect("ask").status, 202);
    let tags = json!({"new_tag": "new_value", "zone": 1});
    wait::until("the tags in /patroni", seconds(1), async || match status(node).await?["tags"].clone() {
        seen if seen == tags => Ok(()),
        seen => Err(seen.to_string()),
    })
    .await;
    cluster.wait_within(seconds(5), "the tags in the member key", |view| view.member(node.name())["tags"] == tags).await;

    // One that stands on the command line, and one of the file.
    for (parameter, value) in [("max_connections", "101"), ("superuser_reserved_connections", "6")] {
        cluster.configure(&json!({"postgresql": {"parameters": {parameter: value}}})).await;
        let waits = |of: &Value| of["pending_restart"] == true && of["pending_restart_reason"][parameter]["new_value"] == value;
        wait::until(&format!("{parameter} in /patroni"), seconds(5), async || match status(node).await? {
            seen if waits(&seen) => Ok(()),
            seen => Err(seen.to_string()),
        })
        .await;
        cluster.wait_within(seconds(5), &format!("{parameter} in the member key"), |view| waits(&view.member(node.name()))).await;
    }
    let restarted = node.post("/restart", &json!({})).await.expect("ask");
    assert_eq!((restarted.status, restarted.body.as_str()), (200, "restarted successfully"));
    wait::until("nothing to wait for any more", seconds(5), async || match status(node).await? {
        seen if seen["pending_restart"].is_null() => Ok(()),
        seen => Err(seen.to_string()),
    })
    .await;
    assert_eq!(node.one("SHOW superuser_reserved_connections").await.expect("ask"), "6");
}

#[tokio::test]
async fn refusals_are_the_fields_sentences() {
    let cluster = Cluster::of(2).ttl(3).planned().await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    cluster.start(first);
    cluster.healthy_members(1).await;
    let refused = async |path: &str, body: Value, code: u16, sentence: &str| {
        let answer = first.post(path, &body).await.expect("ask");
        assert_eq!((answer.status, answer.body.as_str()), (code, sentence), "{path} {body}");
    };
    refused("/switchover", json!({"leader": "n1"}), 412, "switchover is not possible: cluster does not have members except leader").await;
    refused("/switchover", json!({"leader": "n9"}), 412, "leader name does not match").await;
    refused("/switchover", json!({"leader": "n1", "candidate": "n9"}), 412, "candidate does not exists").await;
    refused("/switchover", json!({}), 400, "Switchover could be performed only from a specific leader").await;
    refused("/failover", json!({"foo": "bar"}), 400, "Failover could be performed only to a specific candidate").await;
    refused("/reinitialize", json!({"force": true}), 503, "I am the leader, can not reinitialize").await;
    cluster.reconfigure(second, |config| config["tags"] = json!({"nofailover": true}));
    cluster.start(second);
    cluster.healthy().await;
    refused("/failover", json!({"candidate": "n2"}), 412, "failover is not possible: no good candidates have been found").await;
    refused("/switchover", json!({"leader": "n1"}), 412, "switchover is not possible: no good candidates have been found").await;
    let said =
        |output: &std::process::Output| format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let output = cluster.cli(&["switchover", "--leader", "n1", "--force"]).await;
    assert!(output.status.code() == Some(1) && said(&output).contains("Error: No candidates found to switchover to"), "{}", said(&output));

    cluster.cli_ok(&["pause", "--wait"]).await;
    let output = cluster.cli(&["pause"]).await;
    assert!(output.status.code() == Some(1) && said(&output).contains("Error: Cluster is already paused"), "{}", said(&output));
    refused("/restart", json!({"schedule": "2099-01-01T00:00:00+00:00"}), 500, "Can't schedule restart in the paused state").await;
    refused("/switchover", json!({"leader": "n1"}), 400, "Switchover is possible only to a specific candidate in a paused state").await;
    let scheduled = json!({"leader": "n1", "candidate": "n2", "scheduled_at": "2099-01-01T00:00:00+00:00"});
    refused("/switchover", scheduled, 400, "Can't schedule switchover in the paused state").await;
    // Without a terminal nobody is asked, and nobody has to force.
    let output = cluster.cli(&["flush", "story", "switchover"]).await;
    assert!(output.status.success(), "{}", said(&output));
}

#[tokio::test]
async fn in_maintenance_mode_servers_are_restarted_by_rest_and_by_hand_and_the_leadership_moves_by_name() {
    let cluster = Cluster::of(2).dynamic("ttl", json!(20)).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    cluster.cli_ok(&["pause", "--wait"]).await;
    standby.kill_postmaster();
    cluster.wait_within(seconds(10), "the standby's stop in its key", |view| view.member(standby.name())["state"] == "stopped").await;
    let restarted = standby.post("/restart", &json!({})).await.expect("ask");
    assert_eq!((restarted.status, restarted.body.as_str()), (200, "restarted successfully"));
    answers(standby, "/replica", 200, seconds(10)).await;

    // The leader's Postgres, by hand.
    pg_ctl(&cluster, leader, &["restart"]);
    answers(leader, "/primary", 200, seconds(10)).await;
    let said = status(leader).await.expect("ask");
    assert_eq!((said["state"].as_str(), said["role"].as_str(), &said["pause"]), (Some("running"), Some("primary"), &json!(true)), "{said}");
    leader.query("CREATE TABLE by_hand(n int); INSERT INTO by_hand VALUES (1)").await.expect("it takes writes");
    assert_eq!(cluster.view().await.expect("look").leader(), Some(leader.name()));

    cluster.healthy().await;
    let asked = json!({"leader": leader.name(), "candidate": standby.name()});
    let done = leader.post("/switchover", &asked).await.expect("ask");
    assert_eq!((done.status, done.body), (200, format!("Successfully switched over to \"{}\"", standby.name())));
    answers(standby, "/primary", 200, seconds(10)).await;
    answers(leader, "/replica", 200, seconds(10)).await;
    cluster.cli_ok(&["resume", "--wait"]).await;
    cluster.healthy().await;
}

#[tokio::test]
async fn a_member_that_was_here_lately_is_missed() {
    let cluster = Cluster::of(3).ttl(3).start().await;
    let leader = cluster.leader().await;
    let (gone, stays) = (cluster.others(leader)[0], cluster.others(leader)[1]);
    let roster = |view: &stories::view::View| view.json("status")["tenure"]["members"].as_object().map_or(0, serde_json::Map::len);
    cluster.wait_until("all three in the roster", |view| roster(view) == 3).await;
    // Right after the start something may still be on its way: a lag, a setting that waits.
    let in_order = async || {
        wait::until("check to find no faults", seconds(15), async || {
            let said = cluster.cli_ok(&["check"]).await;
            if said.contains("no faults") { Ok(()) } else { Err(said) }
        })
        .await;
    };
    in_order().await;
    gone.kill();
    cluster.wait_until("its key to run out", |view| view.members().len() == 2).await;
    let checked = cluster.cli_ok(&["check"]).await;
    assert!(checked.contains(&format!("warning: {}: it is lost: it was a member", gone.name())), "{checked}");
    let listed = cluster.list().await;
    assert!(listed.iter().any(|row| row["Member"] == gone.name() && row["State"] == "lost"), "{listed:?}");
    // Another leader misses it as well.
    cluster.cli_ok(&["switchover", "--leader", leader.name(), "--candidate", stays.name(), "--force"]).await;
    cluster.healthy_members(2).await;
    let checked = cluster.cli_ok(&["check"]).await;
    assert!(checked.contains(&format!("{}: it is lost", gone.name())), "{checked}");
    cluster.configure(&json!({"missed_member_ttl": 0})).await;
    cluster.wait_until("nobody to be missed", |view| roster(view) == 2).await;
    in_order().await;
    cluster.configure(&json!({"missed_member_ttl": null})).await;
    cluster.start(gone);
    cluster.healthy().await;
}

/// Patroni's scenarios of permanent slots.
#[tokio::test]
async fn slots_are_named_and_moved_as_in_the_field() {
    let slots = json!({"test_physical": 0, "n4": 0});
    let cluster = Cluster::of(4).dynamic("slots", slots).planned().await;
    let nodes = &cluster.nodes;
    cluster.reconfigure(&nodes[1], |config| config["tags"] = json!({"nofailover": true}));
    cluster.reconfigure(&nodes[3], |config| config["tags"] = json!({"replicatefrom": "n3"}));
    cluster.start(&nodes[0]);
    cluster.wait_until("n1 to lead", |view| view.leader() == Some("n1")).await;
    for node in &nodes[1..] {
        cluster.start(node);
    }
    cluster.healthy().await;
    let view = cluster
        .wait_within(seconds(15), "every slot in status", |view| {
            let status = view.json("status");
            ["test_physical", "n1", "n2", "n3", "n4"].iter().all(|slot| !status["slots"][slot].is_null())
                && status["retain_slots"] == json!(["n1", "n2", "n3"])
        })
        .await;
    println!("{}", view.json("status"));
    let at = async |node: &Node, slot: &str| {
        let asked = format!("SELECT coalesce((SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = '{slot}'), '')");
        node.one(&asked).await.map_err(|why| format!("{why:#}"))
    };
    nodes[0].query("CREATE TABLE replicate_me AS SELECT generate_series(1, 10000)").await.expect("write");
    nodes[0].query("SELECT pg_replication_slot_advance('test_physical', pg_current_wal_lsn())").await.expect("its consumer goes on");
    // A node that never leads keeps none but for those that stream from it.
    for (slot, from, to) in [("test_physical", 0, vec![2, 3]), ("n2", 0, vec![2, 3]), ("n3", 0, vec![3]), ("n4", 2, vec![0])] {
        for to in to {
            wait::until(&format!("{slot} to be where n{} has it on n{}", from + 1, to + 1), seconds(10), async || {
                let (there, here) = (at(&nodes[from], slot).await?, at(&nodes[to], slot).await?);
                if there == here && !here.is_empty() { Ok(()) } else { Err(format!("{there} and {here}")) }
            })
            .await;
        }
    }
    // The leader's own is held where recovery would begin on that standby: what the leader needs if it is rewound.
    for standby in [&nodes[2], &nodes[3]] {
        wait::until("n1 to be where recovery would begin", seconds(10), async || {
            let asked =
                "SELECT count(*) FROM pg_replication_slots, pg_control_checkpoint() WHERE slot_name = 'n1' AND restart_lsn <= redo_lsn";
            match standby.one(asked).await {
                Ok(count) if count == "1" => Ok(()),
                other => Err(format!("{other:?}, slot at {:?}", at(standby, "n1").await)),
            }
        })
        .await;
    }
    assert_eq!(at(&nodes[1], "test_physical").await, Ok(String::new()), "a node that never leads keeps a permanent slot");
    // A member that leaves, leaves its slot.
    for node in [&nodes[3], &nodes[2], &nodes[1]] {
        node.stop();
        node.ended(PATIENCE).await;
    }
    cluster.start(&nodes[2]);
    cluster.healthy_members(2).await;
    nodes[0].stop();
    cluster.wait_until("n3 to lead", |view| view.leader() == Some("n3")).await;
    for slot in ["test_physical", "n1", "n2", "n4"] {
        wait::until(&format!("{slot} on n3"), seconds(10), async || {
            match at(&nodes[2], slot).await? {
                seen if seen.is_empty() => Err("none"),
                _ => Ok(()),
            }
            .map_err(str::to_owned)
        })
        .await;
    }
}

/// Patroni's scenario of a stuck synchronous replica.
#[tokio::test]
async fn a_standby_that_replays_nothing_is_replaced_in_maintenance_mode_too() {
    let cluster = Cluster::of(3).dynamic("synchronous_mode", json!("on")).start().await;
    let leader = cluster.leader().await;
    let change =
        json!({"pause": true, "maximum_lag_on_syncnode": 1_500_000, "postgresql": {"parameters": {"synchronous_commit": "remote_apply"}}});
    cluster.configure(&change).await;
    wait::until("remote_apply in maintenance mode", seconds(10), async || match leader.one("SHOW synchronous_commit").await {
        Ok(seen) if seen == "remote_apply" => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    let view = cluster.view().await.expect("look");
    let stuck = cluster.node(&view.synchronous().expect("a sync key").1[0]);
    leader.query("CREATE TABLE mytest(text text)").await.expect("a table");
    stuck.query("SELECT pg_wal_replay_pause()").await.expect("pause the replay");
    let load = "INSERT INTO mytest SELECT repeat('x', 2000) FROM generate_series(1, 3000)";
    let (client, other) =
        (leader.connect().await.expect("connect"), cluster.others(leader).into_iter().find(|node| node.name() != stuck.name()));
    let loaded = async {
        tokio::time::timeout(seconds(15), node::rows(&client, load)).await.expect("the commit waits for the stuck one").expect("load")
    };
    loaded.await;
    let other = other.expect("another standby");
    cluster
        .wait_within(seconds(10), "the other one in the sync key", |view| view.synchronous().is_some_and(|sync| sync.1 == [other.name()]))
        .await;
    stuck.query("SELECT pg_wal_replay_resume()").await.expect("go on");
    answers(other, "/sync", 200, seconds(5)).await;
    answers(stuck, "/async", 200, seconds(5)).await;
    // One that is shut down leaves the key.
    cluster.configure(&json!({"pause": null})).await;
    cluster.healthy().await;
    let view = cluster.wait_until("a synchronous standby", |view| view.synchronous().is_some_and(|sync| sync.1.len() == 1)).await;
    let named = cluster.node(&view.synchronous().expect("a sync key").1[0]);
    named.stop();
    cluster
        .wait_within(seconds(5), "another name in the sync key", |view| {
            view.synchronous().is_some_and(|sync| sync.1.len() == 1 && sync.1[0] != named.name())
        })
        .await;
}

#[tokio::test]
async fn a_leader_whose_arbiter_is_frozen_serves_on_and_is_told_of() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let leader = cluster.leader().await;
    let writer = cluster.writer().await;
    leader.freeze_arbiter();
    // Longer than the field's agents may be silent before another server is promoted beside theirs.
    lasting(seconds(8)).await;
    writer.goes_on(20, PATIENCE).await;
    assert_eq!(cluster.view().await.expect("look").leader(), Some(leader.name()));
    cluster.wait_until("the frozen arbiter in the member key", |view| view.member(leader.name())["tenure"]["arbiter"] == false).await;
    let checked = cluster.cli_ok(&["check"]).await;
    assert!(checked.contains(&format!("{}: no arbiter", leader.name())), "{checked}");
    leader.thaw_arbiter();
    cluster.healthy().await;
    let ledger = writer.finish();
    println!("the leader's arbiter frozen: {}", ledger.summary());
    assert_eq!(ledger.unknown().count() + ledger.refused().count(), 0, "{}", ledger.summary());
    cluster.verdict(&ledger).await.nothing_lost_or_doubled();
}

/// Patroni's scenario of a primary that crashes and does not start again.
#[tokio::test]
async fn a_leader_that_does_not_start_again_gives_up_and_its_callback_is_told() {
    let cluster = Cluster::of(2).ttl(10).planned().await;
    let directory = cluster.room.directory("hooks");
    let (script, notes) = (directory.join("callback.sh"), directory.join("notes"));
    cluster.room.file(&script, &format!("echo \"$*\" >> {}\n", notes.display()));
    cluster.reconfigure(&cluster.nodes[0], |config| {
        config["postgresql"]["callbacks"] = json!({"on_role_change": format!("sh {}", script.display())});
    });
    cluster.start(&cluster.nodes[0]);
    cluster.wait_until("n1 to lead", |view| view.leader() == Some("n1")).await;
    cluster.start(&cluster.nodes[1]);
    cluster.healthy().await;
    let first = &cluster.nodes[0];
    cluster.room.file(&first.data_dir().join("postgresql.auto.conf"), "foobar\n");
    first.kill_postmaster();
    cluster.wait_within(seconds(20), "n2 to lead", |view| view.leader() == Some("n2")).await;
    wait::until("the callback", seconds(5), async || match std::fs::read_to_string(&notes).unwrap_or_default() {
        seen if seen.contains("on_role_change demoted story") => Ok(()),
        seen => Err(seen),
    })
    .await;
}

#[tokio::test]
async fn what_a_person_does_with_a_server_ends_in_a_state_that_check_explains() {
    let cluster = Cluster::of(2).ttl(5).start().await;
    let leader = cluster.leader().await;
    let standby = cluster.others(leader)[0];
    leader.query("ALTER SYSTEM SET work_mem = '7MB'").await.expect("alter");
    leader.query("ALTER SYSTEM SET shared_buffers = '20MB'").await.expect("alter");
    leader.query("SELECT pg_reload_conf()").await.expect("reload");
    wait::until("work_mem", PATIENCE, async || match leader.one("SHOW work_mem").await {
        Ok(seen) if seen == "7MB" => Ok(()),
        seen => Err(format!("{seen:?}")),
    })
    .await;
    cluster.wait_within(seconds(10), "a pending restart", |view| view.member(leader.name())["pending_restart"] == true).await;
    let checked = cluster.cli_ok(&["check"]).await;
    assert!(checked.contains(&format!("notice: {}: a setting waits for a restart: shared_buffers", leader.name())), "{checked}");
    // Restarted by hand: the lease is kept, the same leader goes on, and nothing is left to explain.
    for node in [standby, leader] {
        let before = node.postmaster();
        println!("{}: {:?}", node.name(), try_pg_ctl(&cluster, node, &["restart"]));
        wait::until("another server process", PATIENCE, async || match node.postmaster() {
            seen if seen.is_some() && seen != before => Ok(()),
            seen => Err(format!("{seen:?}")),
        })
        .await;
        let view = cluster.healthy().await;
        assert_eq!(view.leader(), Some(leader.name()), "{view}");
    }
    wait::until("no faults", seconds(15), async || match cluster.cli_ok(&["check"]).await {
        seen if seen.contains("no faults") => Ok(()),
        seen => Err(seen),
    })
    .await;
}
