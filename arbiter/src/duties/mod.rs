//! The duties whose work is files and programs; which duty is whose procedure stands in `steward::duties`.

pub mod change_places;
pub mod copy;
pub mod demote_cluster;
pub mod done;
pub mod follow;
pub mod found;
pub mod found_by_method;
pub mod give_way;
pub mod leave;
pub mod past;
pub mod replay;
pub mod rest;
pub mod restart;
pub mod restore_to;
pub mod rewind;
mod server;
pub mod source;
pub mod start;
pub mod upgrade;
pub mod upgrade_undone;
pub mod word;

use crate::duties::done::{Done, Judged};
use crate::node::Node;
use anyhow::Result;
use cluster::duty::Duty;

/// Does what the node owes the cluster.
pub async fn apply(node: Node, duty: Duty, judged: Judged) -> Result<Done> {
    let judged = steward::Judged { view: &judged.view, local: &judged.local, seen: judged.facts.as_deref() };
    // One procedure of many: on the heap it is as large as it is, and the task stays small.
    Box::pin(steward::duties::apply(&node, duty, judged)).await
}
