//! From whom a node copies its data: a member that offers itself, else the leader.

use crate::local::LocalState;
use crate::member::MemberRole;
use crate::name::MemberName;
use crate::view::ClusterView;

/// The source of a clone: one of the running standbys tagged `clonefrom`, drawn by `local.cloning.lot`, that has
/// the leader's timeline; the leader where there is none, where the last copy from such a standby failed, or
/// where the leader is asked for.
pub fn of_clone(view: &ClusterView, local: &LocalState, leader: &MemberName) -> MemberName {
    let cloning = &local.cloning;
    if cloning.from_leader || cloning.failed.is_some() {
        return leader.clone();
    }
    let timeline = view.members.get(leader).and_then(|entry| entry.member.timeline);
    let offers = |name: &MemberName| {
        let Some(entry) = view.members.get(name) else { return false };
        let member = &entry.member;
        *name != local.name
            && *name != *leader
            && member.is_running()
            && member.role != MemberRole::Primary
            && member.tags.clonefrom()
            && member.timeline == timeline
            && member.address().is_some()
    };
    let offering: Vec<&MemberName> = view.members.keys().filter(|name| offers(name)).collect();
    match u64::try_from(offering.len()) {
        Ok(count) if count > 0 => {
            let drawn = usize::try_from(cloning.lot % count).unwrap_or_default();
            offering[drawn].clone()
        }
        _ => leader.clone(),
    }
}
