//! Before the data goes that a word of this node speaks of (`cluster::deposition`), with the bond that keeps it true: the word is taken back.

use crate::node::Node;
use anyhow::{Context, Result};
use cluster::deposition;
use cluster::view::ClusterView;
use dcs::Dcs;

/// Takes it back where there is one, or fails, and then the data stays.
pub async fn take_back(node: &Node, view: &ClusterView) -> Result<()> {
    let (name, file) = (&node.config.name, node.config.postgres.data_dir.join(deposition::FILE));
    let kept = crate::postgres::read_if_there(&file).await?;
    // One that can't be understood goes with the data; what it stood for is asked of etcd.
    let bond = kept.and_then(|text| serde_json::from_str(&text).ok());
    let Some(said) = deposition::before_new_data(view, name, bond.as_ref()) else { return Ok(()) };
    let lease = view.lease_of(name).unwrap_or_default();
    node.etcd.say(name, &said, lease).await.context("take back the word by which this node deposed the leader")
}
