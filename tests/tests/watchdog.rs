//! The watchdog device: armed before a promotion, fed while the page is seen, fatal to a host whose arbiter is silent, and required where the
//! node's file says so.

use serde_json::{Value, json};
use std::time::{Duration, Instant};
use stories::cluster::{Cluster, PATIENCE};
use stories::node::Node;
use stories::wait::{self, seconds};
use stories::watchdog::Device;

/// A device for each node; None where this machine has no FUSE, which is said.
fn devices(cluster: &Cluster) -> Option<Vec<Device>> {
    let made: Result<Vec<Device>, _> = cluster.nodes.iter().map(|node| Device::new(node.dir())).collect();
    made.inspect_err(|why| println!("SKIPPED: no device can be made here (needs root and /dev/fuse): {why:#}")).ok()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    wait::until(what, PATIENCE, async || if condition() { Ok(()) } else { Err("not yet") }).await;
}

/// Where the first word stands before the last in what the arbiter has logged.
fn in_order(node: &Node, words: &[&str]) -> bool {
    let log = node.log();
    let places: Vec<Option<usize>> = words.iter().map(|word| log.find(word)).collect();
    places.iter().all(Option::is_some) && places.is_sorted()
}

#[tokio::test]
async fn a_host_whose_arbiter_is_silent_is_reset_and_no_other() {
    let cluster = Cluster::of(2).ttl(6).planned().await;
    let Some(devices) = devices(&cluster) else { return };
    for (node, device) in cluster.nodes.iter().zip(&devices) {
        let watchdog = json!({"mode": "required", "device": device.path(), "safety_margin": 2});
        cluster.reconfigure(node, |config| config["watchdog"] = watchdog);
    }
    cluster.start_all().await;
    let of = |node: &Node| &devices[usize::from(node.name() == "n2")];
    let old = cluster.leader().await;
    let new = cluster.others(old)[0];
    until("the leader's device to be fed", || of(old).record().feeds > 3).await;
    assert_eq!((of(old).record().timeout_s, of(new).record().feeds), (4, 0), "ttl less the margin; a standby needs none");

    // A planned change: the new one is armed before its promotion, the old one is told to stop when its server is gone.
    cluster.cli_ok(&["switchover", "story", "--candidate", new.name(), "--force"]).await;
    cluster.wait_until("the new leader", |view| view.leader() == Some(new.name())).await;
    cluster.healthy().await;
    until("the old device to be told to stop", || !of(old).record().counting).await;
    assert!(of(old).record().fired.is_none() && of(old).record().disarmed.is_some());
    assert!(in_order(new, &["armed: it resets this host 4 s", "promoting, term"]), "{}", new.log());

    // etcd is away for longer than the TTL: the page closes, reads go on, and nobody is reset for that.
    cluster.etcd.freeze();
    let feeds = of(new).record().feeds;
    wait::lasting(seconds(9)).await;
    assert!(of(new).record().fired.is_none() && of(new).record().feeds > feeds + 5, "{:?}", of(new).record());
    cluster.etcd.thaw();
    cluster.healthy().await;

    // The arbiter is frozen beside a server that serves: the host is reset, and the other one leads.
    let frozen = Instant::now();
    new.freeze_arbiter();
    until("the device to fire", || of(new).record().fired.is_some()).await;
    let after = of(new).record().fired.expect("it fired") - frozen;
    assert!(after < Duration::from_secs(6), "{after:?}: 4 s after the last look");
    cluster.wait_until("the other one to lead", |view| view.leader() == Some(old.name())).await;
    until("its device to be fed", || of(old).record().counting).await;
}

#[tokio::test]
async fn a_required_device_that_is_not_there_keeps_a_node_from_standing() {
    let cluster = Cluster::of(2).ttl(4).planned().await;
    let (first, second) = (&cluster.nodes[0], &cluster.nodes[1]);
    let absent = json!({"mode": "required", "device": "/nowhere/watchdog", "safety_margin": 1});
    cluster.reconfigure(second, |config| config["watchdog"] = absent.clone());
    cluster.start(first);
    cluster.wait_until("the first node to lead", |view| view.leader() == Some(first.name())).await;
    cluster.start(second);
    let said = wait::until("its word in the member key", PATIENCE, async || {
        let keys = cluster.etcd.keys("/service/story/members/n2").await.map_err(|why| format!("{why:#}"))?;
        let member: Value = keys.values().find_map(|value| serde_json::from_str(value).ok()).unwrap_or_default();
        let reason = member["tenure"]["reason"].as_str().unwrap_or_default().to_owned();
        if reason.contains("/nowhere/watchdog") { Ok(reason) } else { Err(member.to_string()) }
    })
    .await;
    assert!(said.starts_with("watchdog.mode is required"), "{said}");
    let check = String::from_utf8_lossy(&cluster.cli(&["check"]).await.stdout).into_owned();
    assert!(check.contains("it does not stand: watchdog.mode is required"), "{check}");
    let status: Value = serde_json::from_str(&second.get("/patroni").await.expect("GET /patroni").body).expect("JSON");
    assert_eq!(status["watchdog_failed"], true, "{status}");

    first.kill();
    wait::lasting(seconds(8)).await;
    assert_eq!(cluster.view().await.expect("etcd").leader(), None, "{}", second.log());
    // With another word in its file it stands at once.
    cluster.reconfigure(second, |config| config["watchdog"]["mode"] = json!("automatic"));
    stories::process::signal(second.arbiter_pid().expect("an arbiter"), rustix::process::Signal::HUP);
    cluster.wait_until("the second node to lead", |view| view.leader() == Some(second.name())).await;
}
