//! What a node sees of itself, and what is done about it: plain values, as they stand in the member key and in the configuration.

use serde::{Deserialize, Serialize};

/// `sick_primary`: what is done about a sick leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Nobody looks.
    Off,
    /// What is seen is said, with what would be done.
    #[default]
    Observe,
    /// Leadership goes to the member that is better off.
    Act,
}

/// What a node sees of itself. What is well is zero, or absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Vitals {
    /// Worker: the shortest WAL flush of late, or how long the present one has been going on where none has ended.
    #[serde(skip_serializing_if = "is_zero")]
    pub flush_ms: u64,
    /// Worker: by how much its own timer is late.
    #[serde(skip_serializing_if = "is_zero")]
    pub late_ms: u64,
    /// Worker: statements failed of late since the disk is full or gives errors.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub disk_errors: bool,
    /// Worker: connections were refused of late for want of a slot.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// Arbiter: how long a few bytes took to come to the disk, or have been under way.
    #[serde(skip_serializing_if = "is_zero")]
    pub disk_ms: u64,
    /// Arbiter: how long a new connection took, or has been refused or waited for.
    #[serde(skip_serializing_if = "is_zero")]
    pub connect_ms: u64,
    /// Arbiter: what is free on the fullest of its disks, where that is little.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_free_mb: Option<u64>,
    /// Arbiter: what the disk said to a write.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_fault: Option<String>,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl Vitals {
    /// The worker's part from here, the arbiter's from there.
    pub fn with_outside(self, outside: &Vitals) -> Vitals {
        Vitals {
            disk_ms: outside.disk_ms,
            connect_ms: outside.connect_ms,
            disk_free_mb: outside.disk_free_mb,
            disk_fault: outside.disk_fault.clone(),
            ..self
        }
    }
}
