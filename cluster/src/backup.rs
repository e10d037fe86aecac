//! The last backup that somebody told of: the value of `tenure/backup`.

use serde::{Deserialize, Serialize};

/// The key `tenure/backup`: the last backup that somebody told of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backup {
    /// When it ended, RFC 3339.
    pub at: String,
    /// What it was, in the words of the program that told.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
}
