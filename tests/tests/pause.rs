//! Maintenance mode: nothing is started, stopped or promoted by itself; what an operator asks for by name is done; and the way back.

use std::time::Duration;
use stories::cluster::{Cluster, PATIENCE};
use stories::wait;

/// Longer than the lease of these stories runs: by then a failover would have been.
const LONGER_THAN_A_FAILOVER: Duration = Duration::from_secs(6);

#[tokio::test]
async fn in_maintenance_mode_a_dead_primary_stays_down_until_resume() {
    let cluster = Cluster::of(2).ttl(3).start().await;
    let leader = cluster.leader().await;
    let output = cluster.cli_ok(&["pause", "--wait"]).await;
    assert!(output.contains("Success: cluster management is paused"), "{output}");
    let view = cluster.view().await.expect("look");
    for node in &cluster.nodes {
        let key = view.key(&format!("members/{}", node.name())).expect("its member key").to_owned();
        assert!(key.contains(r#""pause":true"#), "{key}");
    }
    assert!(cluster.cli_ok(&["list"]).await.contains("Maintenance mode: on"));
    leader.kill_postmaster();
    // Nothing is to happen: there is no event to wait for, only the time in which a failover would have come.
    tokio::time::sleep(LONGER_THAN_A_FAILOVER).await;
    let view = cluster.view().await.expect("look");
    assert_eq!(view.leader(), Some(leader.name()), "{view}");
    assert!(leader.one("SELECT 1").await.is_err(), "somebody started it");
    let output = cluster.cli_ok(&["resume", "--wait"]).await;
    assert!(output.contains("Success: cluster management is resumed"), "{output}");
    let view = cluster.healthy().await;
    let key = view.key(&format!("members/{}", leader.name())).expect("its member key").to_owned();
    assert!(!key.contains("pause"), "{key}");
}

#[tokio::test]
async fn in_maintenance_mode_leadership_goes_to_who_is_named_and_to_nobody_else() {
    let cluster = Cluster::of(3).start().await;
    let leader = cluster.leader().await;
    let candidate = cluster.others(leader)[0];
    cluster.cli_ok(&["pause", "--wait"]).await;
    let refused = cluster.cli(&["switchover", "--force"]).await;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("named candidate"), "{text}");
    let output = cluster.cli_ok(&["switchover", "--candidate", candidate.name(), "--force"]).await;
    assert!(output.contains(&format!("Successfully switched over to \"{}\"", candidate.name())), "{output}");
    // Healthy while it is still in maintenance mode: the old primary was stopped by us, so it is started by us.
    let view = cluster.healthy().await;
    assert_eq!(view.leader(), Some(candidate.name()), "{view}");
    assert!(cluster.cli_ok(&["list"]).await.contains("Maintenance mode: on"));
    cluster.cli_ok(&["resume"]).await;
    wait::until("nobody to move", PATIENCE, async || {
        let view = cluster.healthy().await;
        if view.leader() == Some(candidate.name()) { Ok(()) } else { Err(view.to_string()) }
    })
    .await;
}
