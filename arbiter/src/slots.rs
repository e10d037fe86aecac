//! The replication slots of this node's server: what is wanted against what is there.

use crate::hands::Hands;
use anyhow::Result;
use cluster::name::MemberName;
use cluster::view::ClusterView;
use std::collections::BTreeSet;

/// Slots for the other members. A standby's reserve nothing: they are there so that a member can
/// stream from this node the moment it is promoted.
pub async fn keep(hands: &Hands, view: &ClusterView, primary: bool) -> Result<()> {
    if !hands.config.postgres.use_slots.unwrap_or_else(|| view.config().use_slots()) {
        return Ok(());
    }
    let others: BTreeSet<String> = view.members.keys().filter(|name| **name != hands.config.name).map(MemberName::slot_name).collect();
    let mine = hands.config.name.slot_name();
    // A member that is away for a moment must find its log; one that is gone for good must not fill the disk.
    let (kept, gone) = hands.note_slots(others, view.config().member_slots_ttl());
    let changes = hands.sql.ensure_slots(&kept, primary, |name| name == mine || gone.contains(name)).await?;
    for name in changes.created.iter().filter(|name| !changes.dropped.contains(name)) {
        tracing::info!("created the replication slot {name}");
    }
    for name in &changes.dropped {
        let anew = match (changes.created.contains(name), primary) {
            (false, _) => "",
            (true, false) => " and made it anew, holding nothing back",
            (true, true) => " and made it anew, holding back log from now on",
        };
        tracing::info!("dropped the replication slot {name}{anew}");
    }
    Ok(())
}
