//! The slots of a server, as it shows them.

use crate::lsn::Lsn;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// From this `server_version_num` on PostgreSQL keeps logical slots on standbys by itself (slots with `failover`).
pub const NATIVE_SYNC: u32 = 170_000;

/// From this `server_version_num` on logical slots may be in use on a standby.
pub(super) const LOGICAL_ON_STANDBY: u32 = 160_000;

/// A transaction id; they wrap around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Xid(pub u32);

impl Xid {
    /// True where `self` is `other` or older.
    pub fn at_or_before(self, other: Xid) -> bool {
        self.0.wrapping_sub(other.0).cast_signed() <= 0
    }
}

/// One row of `pg_replication_slots`, as `to_json` prints it; columns that a version lacks are absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct SlotSeen {
    /// Its name.
    pub slot_name: String,
    /// `physical` or `logical`.
    pub slot_type: String,
    /// Output plugin of a logical slot.
    #[serde(default)]
    pub plugin: Option<String>,
    /// Database of a logical slot.
    #[serde(default)]
    pub database: Option<String>,
    /// The same by number, which physical standbys share.
    #[serde(default, deserialize_with = "number")]
    pub datoid: Option<u32>,
    /// It ends with its session.
    #[serde(default)]
    pub temporary: bool,
    /// Somebody uses it at this moment.
    #[serde(default)]
    pub active: bool,
    /// The oldest transaction whose rows it keeps.
    #[serde(default, deserialize_with = "xid")]
    pub xmin: Option<Xid>,
    /// The oldest transaction whose catalog rows it keeps.
    #[serde(default, deserialize_with = "xid")]
    pub catalog_xmin: Option<Xid>,
    /// The oldest WAL it keeps.
    #[serde(default, deserialize_with = "lsn")]
    pub restart_lsn: Option<Lsn>,
    /// What a logical slot's consumer has confirmed.
    #[serde(default, deserialize_with = "lsn")]
    pub confirmed_flush_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    #[serde(default)]
    pub wal_status: Option<String>,
    /// It decodes prepared transactions.
    #[serde(default)]
    pub two_phase: bool,
    /// PostgreSQL 17: to be kept on standbys by the server itself.
    #[serde(default)]
    pub failover: bool,
    /// PostgreSQL 17: it was made by the server's own synchronisation.
    #[serde(default)]
    pub synced: bool,
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Number(number) => number.as_u64().and_then(|number| u32::try_from(number).ok()),
        Value::String(text) => text.parse().ok(),
        _ => None,
    })
}

fn xid<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Xid>, D::Error> {
    Ok(number(from)?.map(Xid))
}

fn lsn<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Lsn>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.and_then(|text| text.parse().ok()))
}

impl SlotSeen {
    /// A physical slot.
    pub fn is_physical(&self) -> bool {
        self.slot_type == "physical"
    }
    /// Its WAL is gone: it can't be used any more.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }
}
