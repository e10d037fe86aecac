//! A node that Patroni runs, taken over with `tenure adopt` and given back with `tenure abandon`.

use crate::node::{Config, Node};
use crate::room::Room;
use serde_json::json;
use std::process::Output;
use std::time::Duration;

/// In this node's file: what Patroni reads otherwise, and timings that it takes.
pub fn fit_for_patroni(config: &mut Config, hosts: &str) {
    let dynamic = &mut config["bootstrap"]["dcs"];
    (dynamic["ttl"], dynamic["loop_wait"], dynamic["retry_timeout"]) = (json!(20), json!(1), json!(5));
    // Its section takes lists.
    config["etcd3"]["hosts"] = json!([hosts]);
    config["watchdog"] = json!({"mode": "off"});
}

/// `tenure VERB FILE` on this node.
pub async fn on(room: &Room, node: &Node, verb: &[&str]) -> Output {
    let mut command = tokio::process::Command::from(node.command(room));
    command.args(verb).arg(node.config_file()).kill_on_drop(true);
    tokio::time::timeout(Duration::from_secs(150), command.output()).await.expect("it ends").expect("run tenure")
}

/// One that has to succeed; gives what it says.
pub async fn done(room: &Room, node: &Node, verb: &[&str]) -> String {
    let output = on(room, node, verb).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let logs = || {
        ["arbiter.log", "data.arbiter.log", "data.patroni.log"]
            .map(|log| std::fs::read_to_string(node.dir().join(log)).unwrap_or_default())
            .join("\n---\n")
    };
    assert!(output.status.success(), "{verb:?} on {}: {said}{}\n{}", node.name(), String::from_utf8_lossy(&output.stderr), logs());
    println!("{}: {verb:?}\n{said}", node.name());
    said
}

/// One that has to be refused; gives why.
pub async fn refused(room: &Room, node: &Node, verb: &[&str]) -> String {
    let output = on(room, node, verb).await;
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{verb:?} on {}: {}{words}", node.name(), String::from_utf8_lossy(&output.stdout));
    words
}
