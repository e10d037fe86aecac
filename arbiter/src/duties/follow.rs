//! Whom a standby follows: the settings for it, and a reload by which a server that runs follows another.

use crate::duties::done::Done;
use crate::node::Node;
use crate::node::recovery;
use crate::postgres::conf::Recovery;
use anyhow::{Context, Result};
use cluster::member::Tags;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;

/// The server that runs follows this upstream from now on.
pub async fn follow(node: &Node, view: &ClusterView, upstream: &Upstream) -> Result<Done> {
    node.write_configuration(view, &settings(node, view, upstream)).await?;
    node.reload().await.with_context(|| format!("follow {upstream}"))?;
    Ok(Done::LookAgain)
}

/// Recovery settings for following an upstream.
pub fn settings(node: &Node, view: &ClusterView, upstream: &Upstream) -> Recovery {
    recovery::of(&node.config, &node.dynamic(view), view, upstream)
}

/// This upstream, but for a node that streams from nobody.
pub fn unless_nostream(node: &Node, upstream: Upstream) -> Upstream {
    if Tags(node.config.tags.clone()).nostream() { Upstream::Nobody } else { upstream }
}
