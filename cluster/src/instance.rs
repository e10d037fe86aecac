//! Which instance goes by a member's name: what a copied disk or a copied file does not share with its original.
//!
//! A name stands for one node. A copy of a node's disk, or of its file on another host, bears the same name, and the same
//! address where its file says so; the lease under that name is not the copy's, nor is the leader key on it. So an instance
//! writes what it is into its member key, and an instance that finds another's there touches no key until that one has run out.

pub use crate::name::Instance;

use crate::leader::LeaseId;
use crate::member::Member;
use crate::name::MemberName;
use crate::view::ClusterView;

/// The name is another's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InUse {
    /// At another address.
    #[error(
        "the name {name} is in use by the node at {other}: give this node another name; if that node is gone, its key runs out within its TTL"
    )]
    Elsewhere {
        /// The name.
        name: MemberName,
        /// The address in the key.
        other: String,
    },
    /// At the same address: this node's own file or disk was copied, or this host was started again a moment ago.
    #[error(
        "the name {name} is in use by another instance of the node at {address} (it runs as {theirs}, this one as {ours}): no key is touched; where this is a copy of that node's disk or file, give it a name and addresses of its own; where this host was started again, its former key runs out within its TTL"
    )]
    AnotherInstance {
        /// The name.
        name: MemberName,
        /// The address that both claim.
        address: String,
        /// The instance in the key.
        theirs: Instance,
        /// This one.
        ours: Instance,
    },
}

/// What a node may do about the lease under its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It is this instance's own: to be renewed. The revision is the member key's.
    Own {
        /// The lease of the member key.
        lease: LeaseId,
        /// To be compared where the lease turns out to be gone.
        revision: i64,
    },
    /// There is none: a new one, with a member key that replaces what has this revision (0: nothing).
    New {
        /// To be compared.
        revision: i64,
    },
}

/// Is the name in use by another than `mine`, the member key that this instance would write, where it holds the lease
/// `held`? Under its own lease an address of before is its own.
pub fn in_use(view: &ClusterView, name: &MemberName, mine: &Member, held: Option<LeaseId>) -> Option<InUse> {
    let entry = view.members.get(name)?;
    let on_own_lease = held.is_some_and(|lease| lease == entry.lease);
    if entry.member.conn_url != mine.conn_url && !on_own_lease {
        return Some(InUse::Elsewhere { name: name.clone(), other: entry.member.conn_url.clone() });
    }
    // A key of an older version, or of Patroni's, says no instance: then the address decides alone.
    match (entry.member.instance(), mine.instance()) {
        (Some(theirs), Some(ours)) if theirs != ours => {
            Some(InUse::AnotherInstance { name: name.clone(), address: mine.conn_url.clone(), theirs: theirs.clone(), ours: ours.clone() })
        }
        _ => None,
    }
}

/// What this instance may do about the lease under its name, as the view shows it.
pub fn claim(view: &ClusterView, name: &MemberName, mine: &Member) -> Result<Claim, InUse> {
    if let Some(in_use) = in_use(view, name, mine, None) {
        return Err(in_use);
    }
    Ok(match view.members.get(name) {
        Some(entry) if entry.lease != LeaseId::NONE => Claim::Own { lease: entry.lease, revision: entry.revision },
        Some(entry) => Claim::New { revision: entry.revision },
        None => Claim::New { revision: 0 },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::{MemberEntry, TenureFacts};

    fn member(port: u16, instance: Option<&Instance>) -> Member {
        let json =
            serde_json::json!({"conn_url": format!("postgres://h:{port}/postgres"), "api_url": "", "state": "running", "role": "replica"});
        let mut member: Member = serde_json::from_value(json).unwrap();
        member.tenure = Some(TenureFacts { instance: instance.cloned(), ..TenureFacts::default() });
        member
    }

    #[test]
    fn a_name_belongs_to_the_instance_in_its_key() {
        let name = MemberName::new("n1").unwrap();
        let (one, copy) = (Instance::of("boot-a", 1, 2, "data"), Instance::of("boot-b", 1, 2, "data"));
        let other_disk = Instance::of("boot-a", 3, 2, "data");
        let view = |member: Member, lease: i64| {
            let entry = MemberEntry { member, lease: LeaseId(lease), revision: 7 };
            ClusterView { members: [(name.clone(), entry)].into(), ..ClusterView::default() }
        };
        let claims = |view: &ClusterView, mine: &Member| claim(view, &name, mine);
        let own = Ok(Claim::Own { lease: LeaseId(5), revision: 7 });
        assert_eq!(claims(&ClusterView::default(), &member(1, Some(&one))), Ok(Claim::New { revision: 0 }));
        assert_eq!(claims(&view(member(1, Some(&one)), 5), &member(1, Some(&one))), own);
        assert_eq!(claims(&view(member(1, Some(&one)), 0), &member(1, Some(&one))), Ok(Claim::New { revision: 7 }));
        // Copies: of the disk on another host, of the file in another container.
        for copy in [&copy, &other_disk] {
            let refused = claims(&view(member(1, Some(&one)), 5), &member(1, Some(copy)));
            assert!(matches!(refused, Err(InUse::AnotherInstance { .. })), "{refused:?}");
        }
        let refused = claims(&view(member(1, Some(&one)), 5), &member(2, Some(&one)));
        assert!(matches!(refused, Err(InUse::Elsewhere { .. })), "{refused:?}");
        // An address that was changed, under the lease that is held.
        let moved = view(member(2, Some(&one)), 5);
        assert_eq!(in_use(&moved, &name, &member(1, Some(&one)), Some(LeaseId(5))), None);
        assert!(in_use(&moved, &name, &member(1, Some(&one)), Some(LeaseId(6))).is_some());
        assert!(in_use(&moved, &name, &member(2, Some(&copy)), Some(LeaseId(5))).is_some());
        // Before keys named an instance, and where a host does not tell its boot.
        assert_eq!(claims(&view(member(1, None), 5), &member(1, Some(&one))), own);
        assert_eq!(claims(&view(member(1, Some(&one)), 5), &member(1, None)), own);
    }
}
