//! Data that were set aside for a new copy go once the copy serves.

use crate::node::Node;
use crate::postgres::aside;

/// Removes them beside the loop, where the server `serves`: as a primary, or as a standby that streams (or is to follow the archive alone).
pub async fn clear(node: &Node, serves: bool) {
    let data_dir = &node.config.postgres.data_dir;
    if !serves || !aside::is_any_there(data_dir).await {
        return;
    }
    // Taken here and not by the task: a new copy that is asked for from now on waits until this is over before it sets data aside.
    let Some(alone) = aside::alone_now() else { return };
    let node = node.clone();
    tokio::spawn(async move {
        match aside::remove(&node.config.postgres.data_dir, &alone).await {
            Ok(true) => tracing::info!("the new copy serves: the data that were set aside for it were removed"),
            Ok(false) => {}
            Err(why) => tracing::warn!("the data that were set aside for a new copy: {why:#}"),
        }
    });
}
