//! The groups of a Citus cluster.

use crate::view::ClusterView;
use std::collections::BTreeMap;

/// The coordinator's group.
pub const COORDINATOR: u32 = 0;

/// All groups of a Citus cluster, at one revision.
pub type Groups = BTreeMap<u32, ClusterView>;
