//! What a member says of its virtual addresses.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

/// What a member says of its addresses in its member key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AddressFacts {
    /// Its file names addresses for reads, so it could hold them.
    pub replica: bool,
    /// It holds those for reads now.
    pub reads: bool,
    /// All that it holds now.
    pub held: BTreeSet<IpAddr>,
    /// Why it does not hold what it should.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}
