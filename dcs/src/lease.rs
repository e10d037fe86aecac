//! How a lease is kept, found again and got: the same steps for lease worker, arbiter and simulation.

use crate::error::Error;
use crate::verbs::{Grant, KeepAlive, LeaderLook, LocalDcs, Result};
use cluster::instance::{self, Claim, InUse};
use cluster::leader::{Leader, LeaseId};
use cluster::lease;
use cluster::member::Member;
use cluster::name::MemberName;
use cluster::store::Doubt;
use cluster::time::Moment;
use cluster::view::ClusterView;
use std::future::Future;
use std::time::Duration;

/// What of the store a lease needs.
pub trait Leases {
    /// As [`LocalDcs::load_view`].
    fn load_view(&self) -> impl Future<Output = Result<ClusterView>>;
    /// As [`LocalDcs::keep_alive`].
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<KeepAlive>>;
    /// As [`LocalDcs::look_at_leader`].
    fn look_at_leader(&self) -> impl Future<Output = Result<LeaderLook>>;
    /// As [`LocalDcs::is_in_use`].
    fn is_in_use(&self, lease: LeaseId) -> impl Future<Output = Result<bool>>;
    /// As [`LocalDcs::grant`].
    fn grant(&self, ttl: Duration) -> impl Future<Output = Result<Grant>>;
    /// As [`LocalDcs::revoke`].
    fn revoke(&self, lease: LeaseId) -> impl Future<Output = Result<()>>;
    /// As [`LocalDcs::write_member`].
    fn write_member(&self, name: &MemberName, member: &Member, lease: LeaseId, judged: Option<i64>) -> impl Future<Output = Result<()>>;
}

impl<D: LocalDcs> Leases for D {
    fn load_view(&self) -> impl Future<Output = Result<ClusterView>> {
        LocalDcs::load_view(self)
    }
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<KeepAlive>> {
        LocalDcs::keep_alive(self, lease)
    }
    fn look_at_leader(&self) -> impl Future<Output = Result<LeaderLook>> {
        LocalDcs::look_at_leader(self)
    }
    fn is_in_use(&self, lease: LeaseId) -> impl Future<Output = Result<bool>> {
        LocalDcs::is_in_use(self, lease)
    }
    fn grant(&self, ttl: Duration) -> impl Future<Output = Result<Grant>> {
        LocalDcs::grant(self, ttl)
    }
    fn revoke(&self, lease: LeaseId) -> impl Future<Output = Result<()>> {
        LocalDcs::revoke(self, lease)
    }
    fn write_member(&self, name: &MemberName, member: &Member, lease: LeaseId, judged: Option<i64>) -> impl Future<Output = Result<()>> {
        LocalDcs::write_member(self, name, member, lease, judged)
    }
}

/// A lease that this node holds, and until when it counts here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLease {
    /// The lease.
    pub grant: Grant,
    /// Counted from before the renewal (or the grant) was sent, by the caller's clock.
    pub deadline: Moment,
}

/// A renewal that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewed {
    /// The lease, with the TTL that it was granted for.
    pub held: HeldLease,
    /// The leader key as it was after the renewal.
    pub leader: Option<Leader>,
    /// Why nothing may rest on it: the etcd that answered is not the one that this node remembers. The lease lives there, and with it the key in which members
    /// say what they know.
    pub doubt: Option<Doubt>,
}

/// Renews a lease and proves it: `cluster::lease::counts` has the argument. [`Error::LeaseGone`] is a fact here.
pub async fn renew(store: &impl Leases, clock: impl Fn() -> Moment, lease: LeaseId) -> Result<Renewed> {
    let sent = clock();
    match store.keep_alive(lease).await {
        Ok(kept) => {
            let look = store.look_at_leader().await?;
            if !lease::counts(kept.at, look.at) {
                return Err(Error::Unproven("the keep-alive was answered under one raft term, a read after it under another"));
            }
            let deadline = lease::deadline(sent, kept.grant.ttl);
            Ok(Renewed { held: HeldLease { grant: kept.grant, deadline }, leader: look.leader, doubt: look.doubt })
        }
        // A leader of before does not know the leases that were granted since. A lease that was got here carries a key of
        // the cluster for as long as it lives.
        Err(Error::LeaseGone) if store.is_in_use(lease).await? => {
            Err(Error::Unproven("a keep-alive was told that the lease is gone, and keys hang on it"))
        }
        Err(why) => Err(why),
    }
}

/// Why there is no lease.
#[derive(Debug, thiserror::Error)]
pub enum NoLease {
    /// The store.
    #[error("{0}")]
    Store(#[from] Error),
    /// Another instance goes by the name.
    #[error("{0}")]
    InUse(#[from] InUse),
}

/// A lease that was found or got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acquired {
    /// The lease.
    pub held: HeldLease,
    /// It is a new one, and the member key was put on it.
    pub is_new: bool,
}

/// Finds the lease under this instance's own name, or gets a new one and puts `mine` on it. `ttl` says for how long, where
/// the view is as it is.
pub async fn acquire(
    store: &impl Leases,
    clock: impl Fn() -> Moment,
    name: &MemberName,
    mine: &Member,
    ttl: impl Fn(&ClusterView) -> Duration,
) -> std::result::Result<Acquired, NoLease> {
    let view = match store.load_view().await {
        // Believed or not: a lease and the member key change nothing for anybody, and the key is where members say what they know.
        Err(Error::Doubted { view, .. }) => *view,
        read => read?,
    };
    let judged = match instance::claim(&view, name, mine)? {
        Claim::New { revision } => revision,
        Claim::Own { lease, revision } => match renew(store, &clock, lease).await {
            Ok(renewed) => return Ok(Acquired { held: renewed.held, is_new: false }),
            Err(Error::LeaseGone) => revision,
            Err(why) => return Err(why.into()),
        },
    };
    let sent = clock();
    let grant = store.grant(ttl(&view).max(lease::TTL_MINIMUM)).await?;
    match store.write_member(name, mine, grant.lease, Some(judged)).await {
        Ok(()) => Ok(Acquired { held: HeldLease { grant, deadline: lease::deadline(sent, grant.ttl) }, is_new: true }),
        Err(why) => {
            // Where it is not known whether the key was written, the lease stays: the next try finds the key and adopts it, and
            // perhaps the leader key was given to it meanwhile. Else somebody of this node was faster, and it is of no use.
            if !why.is_unknown() {
                let _ = store.revoke(grant.lease).await;
            }
            Err(why.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dcs;
    use crate::key::Keys;
    use crate::memory::{Fate, InMemory, at_once};
    use cluster::name::Scope;
    use std::sync::Arc;

    fn memory() -> InMemory {
        InMemory::new(Keys::new("service", &Scope::new("demo").unwrap()))
    }

    fn mine() -> (MemberName, Member) {
        let json = serde_json::json!({"conn_url": "postgres://h:1/postgres", "api_url": "", "state": "running", "role": "replica"});
        (MemberName::new("n1").unwrap(), serde_json::from_value(json).unwrap())
    }

    fn acquired(store: &impl Leases) -> std::result::Result<Acquired, NoLease> {
        let (name, mine) = mine();
        at_once(acquire(store, Moment::default, &name, &mine, |_| Duration::from_secs(10))).unwrap()
    }

    /// Keep-alives reach the leader of before, everything else the present one.
    struct OneSide(InMemory);

    impl Leases for OneSide {
        async fn load_view(&self) -> Result<ClusterView> {
            Dcs::load_view(&self.0).await
        }
        async fn keep_alive(&self, lease: LeaseId) -> Result<KeepAlive> {
            self.0.asked_of_deposed(|etcd| at_once(Dcs::keep_alive(etcd, lease)).unwrap())
        }
        async fn look_at_leader(&self) -> Result<LeaderLook> {
            Dcs::look_at_leader(&self.0).await
        }
        async fn is_in_use(&self, lease: LeaseId) -> Result<bool> {
            Dcs::is_in_use(&self.0, lease).await
        }
        async fn grant(&self, ttl: Duration) -> Result<Grant> {
            Dcs::grant(&self.0, ttl).await
        }
        async fn revoke(&self, lease: LeaseId) -> Result<()> {
            Dcs::revoke(&self.0, lease).await
        }
        async fn write_member(&self, name: &MemberName, member: &Member, lease: LeaseId, judged: Option<i64>) -> Result<()> {
            Dcs::write_member(&self.0, name, member, lease, judged).await
        }
    }

    #[test]
    fn neither_yes_nor_no_of_a_deposed_leader_is_believed() {
        let store = OneSide(memory());
        let known = acquired(&store.0).unwrap().held.grant.lease;
        store.0.change_leader(Duration::from_secs(1));
        let renewed = |lease| at_once(renew(&store, Moment::default, lease)).unwrap();
        assert!(matches!(renewed(known), Err(Error::Unproven(_))), "{:?}", renewed(known));
        // Granted after it was deposed: it says that there is no such lease.
        at_once(Dcs::revoke(&store.0, known)).unwrap().unwrap();
        let later = acquired(&store.0).unwrap().held.grant.lease;
        assert!(matches!(renewed(later), Err(Error::Unproven(_))), "{:?}", renewed(later));
        at_once(Dcs::revoke(&store.0, later)).unwrap().unwrap();
        assert_eq!(renewed(later), Err(Error::LeaseGone), "no key hangs on it any more");
    }

    #[test]
    fn nothing_rests_on_a_lease_that_an_etcd_keeps_which_went_back() {
        let memory = memory().remembering(Arc::default());
        memory.put_by_hand(memory.keys().initialize(), b"7");
        let lease = acquired(&memory).unwrap().held.grant.lease;
        let saved = memory.save();
        let renewed = || at_once(renew(&memory, Moment::default, lease)).unwrap().unwrap();
        memory.put_by_hand("/x".to_owned(), b"");
        assert!(at_once(Dcs::load_view(&memory)).unwrap().is_ok());
        assert_eq!(renewed().doubt, None);
        memory.restore(&saved, Duration::ZERO);
        let (known, found) = (memory.revision() + 1, memory.revision());
        assert_eq!(renewed().doubt, Some(Doubt::Revision { known, found }));
        // It lives there, and the member key on it: members say in it what they know.
        assert_eq!(renewed().held.grant.lease, lease);
        memory.put_by_hand("/x".to_owned(), b"");
        assert_eq!(renewed().doubt, None, "what shows no key can't know more; the view does");
    }

    #[test]
    fn a_member_key_whose_answer_was_lost_keeps_its_lease_and_is_found_again() {
        let memory = memory();
        for fate in [Fate::Answered, Fate::Answered, Fate::AnswerLost] {
            memory.next_fate(fate);
        }
        assert!(acquired(&memory).is_err());
        let view = at_once(Dcs::load_view(&memory)).unwrap().unwrap();
        let lease = view.lease_of(&mine().0);
        assert!(lease.is_some(), "it was written, and nobody took it away");
        let found = acquired(&memory).unwrap();
        assert_eq!((Some(found.held.grant.lease), found.is_new), (lease, false));
    }

    #[test]
    fn a_name_in_use_is_refused_before_anything_is_touched() {
        let memory = memory();
        let (name, mut other) = mine();
        other.conn_url = "postgres://elsewhere:1/postgres".to_owned();
        let lease = at_once(Dcs::grant(&memory, Duration::from_secs(10))).unwrap().unwrap().lease;
        at_once(Dcs::write_member(&memory, &name, &other, lease, None)).unwrap().unwrap();
        let (before, until) = (memory.revision(), memory.lease_until(lease));
        memory.set_now(Duration::from_secs(1));
        assert!(matches!(acquired(&memory), Err(NoLease::InUse(_))));
        assert_eq!((memory.revision(), memory.lease_until(lease)), (before, until));
    }
}
