//! Before an upgrade begins, every member is asked once more what stands in the way.

use super::{Checked, check};
use crate::node::Node;
use anyhow::{Context, Result, bail};
use cluster::upgrade::obstacle::{Obstacle, Weight};
use cluster::view::ClusterView;
use serde_json::json;
use std::time::Duration;

/// Another member's own check.
const CHECK_BOUND: Duration = Duration::from_secs(160);

/// Nothing of this weight, or of a heavier one, is found: every member looks once more, this one and its databases too. What would stop the
/// near-zero path on another member is no concern of it: its data is made by a copy later.
pub async fn nothing_stops(node: &Node, view: &ClusterView, to: u32, weight: Weight) -> Result<()> {
    let body = json!({"to": to, "check": true});
    let mut found = Box::pin(check(&node.config, &node.sql, view, true, to)).await?.obstacles;
    for (name, entry) in view.members.iter().filter(|(name, _)| **name != node.config.name) {
        let (status, text) = node
            .caller
            .ask(&entry.member.api_url, "POST", "upgrade", Some(&body), CHECK_BOUND)
            .await
            .with_context(|| format!("ask {name} what stands in the way"))?;
        if status != 200 {
            bail!("{name} does not say what stands in the way there: status code {status}, {}", text.trim());
        }
        let checked: Checked = serde_json::from_str(&text).with_context(|| format!("understand what {name} says"))?;
        found.extend(checked.obstacles.into_iter().filter(|obstacle| obstacle.weight == Weight::Stops));
    }
    let stops = |obstacle: &Obstacle| (obstacle.weight <= weight).then(|| obstacle.what.clone());
    let stops: Vec<String> = found.iter().filter_map(stops).collect();
    if !stops.is_empty() {
        bail!("nothing was begun: {}; hint: `tenure upgrade --to {to} --check` says what to do", stops.join("; "));
    }
    Ok(())
}
