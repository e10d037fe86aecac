//! Citus: what `pg_dist_node` of a coordinator is to hold, by which steps it gets there, and when a hold on a group's writers ends.
//!
//! Each group of a Citus cluster is a cluster of its own in etcd. The coordinator's primary reads them all at one revision and
//! keeps its metadata equal to that. What Citus asks of the steps (`node_metadata.c` of Citus 13): host and port are unique over all
//! rows; a row that is moved keeps its id, and with it its group's shards; moves go into the local catalog alone and are
//! carried to the other nodes afterwards, so that they work whichever node is down; rows are added and removed on all nodes at once,
//! which fails while one of them is away or not in step.

pub mod groups;
pub mod hold;
pub mod keys;
pub mod nodes;
pub mod takeover;

pub use groups::{COORDINATOR, Groups};
pub use hold::{GRACE, Prefer, Release, answer, are_wanted, gate_wanted, gated, grace, hold_wanted, not_gated, prefer, release};
pub use keys::{CoordinatorWord, GateWord, GatedWord, HeldWord, HoldRequest, order, term_of};
pub use nodes::{
    NodeRole, Plan, Poolers, Row, Step, Wanted, address_of, all_wanted, demoted, plan, pooler_changes, poolers, primary_address,
    uses_poolers, wanted,
};
