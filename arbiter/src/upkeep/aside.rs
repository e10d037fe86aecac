//! Data that were set aside for a new copy go once the copy serves.

use crate::node::Node;
use crate::postgres::aside;

/// Removes them beside the loop, where the server `serves`: as a primary, or as a standby that streams (or is to follow the archive alone).
pub async fn clear(node: &Node, serves: bool) {
    let data_dir = &node.config.postgres.data_dir;
    if !serves || !aside::is_any_there(data_dir).await || !node.note_clearing_aside(true) {
        return;
    }
    let node = node.clone();
    tokio::spawn(async move {
        match aside::remove(&node.config.postgres.data_dir).await {
            Ok(true) => tracing::info!("the new copy serves: the data that were set aside for it were removed"),
            Ok(false) => {}
            Err(why) => tracing::warn!("the data that were set aside for a new copy: {why:#}"),
        }
        node.note_clearing_aside(false);
    });
}
