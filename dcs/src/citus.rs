//! What only a Citus cluster has in etcd: all its groups at one revision, and the messages by which a worker asks the coordinator to
//! keep writers waiting. Each message is bound to a term and hangs on its author's lease.

use crate::codec::{self, to_bytes};
use crate::error::Error;
use crate::etcd::{Etcd, on, raw, unchanged};
use crate::key::Known;
use crate::verbs::Result;
use cluster::citus::{COORDINATOR, CoordinatorWord, GateWord, GatedWord, Groups, HeldWord, HoldRequest, order};
use cluster::leader::Leader;
use etcd_client::{GetResponse, TxnOp};

/// etcd takes 128 operations in one transaction unless it was told otherwise.
const GROUPS_AT_ONCE: usize = 60;

impl Etcd {
    /// Reads every group of the scope at one revision, linearizably. For an etcd that was named with the scope's keys.
    pub async fn load_groups(&self) -> Result<Groups> {
        match self.read_all(|revision, _, raws| codec::groups(self.keys(), revision, raws)).await {
            Err(Error::TooMuch(_)) => {
                let keys = self.keys();
                let known = |key: &str| keys.group_of(key).is_some_and(|group| keys.group(group).know(key) != Known::Other);
                let found = self.read_one_by_one(&[keys.prefix().to_owned()], Vec::new(), known).await?;
                Ok(codec::groups(keys, found.revision, found.answers.iter().flat_map(GetResponse::kvs).filter_map(raw)))
            }
            read => read,
        }
    }

    /// Asks the coordinator to keep this group's writers waiting, as its leader. Gives the request's revision.
    pub async fn ask_hold(&self, leader: &Leader, prefers_statements: bool) -> Result<i64> {
        let request = HoldRequest { leader: leader.name.clone(), term: leader.term.0, prefers_statements };
        let put = TxnOp::put(self.keys().hold(), to_bytes(&request), on(leader.lease));
        self.guarded("the leader key", vec![self.is_leader(leader)], vec![put]).await
    }

    /// Takes the request of this group back; nothing happens where it is gone or another's.
    pub async fn end_hold(&self, request: i64) -> Result<()> {
        let when = vec![unchanged(self.keys().hold(), request)];
        let then = vec![TxnOp::delete(self.keys().hold(), None), TxnOp::delete(self.keys().held(), None)];
        ignoring_lost(self.guarded("the request to hold", when, then).await)
    }

    /// Answers a group's request, as the coordinator's leader: its writers wait, or it is refused and why. For an etcd that was named with the scope's keys.
    pub async fn answer_hold(&self, group: u32, request: i64, coordinator: &Leader, refused: Option<String>) -> Result<()> {
        let (own, theirs) = (self.keys().group(COORDINATOR), self.keys().group(group));
        let word = HeldWord { request, coordinator: coordinator.name.clone(), term: coordinator.term.0, refused };
        let when = vec![unchanged(own.leader(), coordinator.term.0), unchanged(theirs.hold(), request)];
        let put = TxnOp::put(theirs.held(), to_bytes(&word), on(coordinator.lease));
        self.guarded("the request to hold", when, vec![put]).await.map(drop)
    }

    /// Tells these groups who coordinates, as the coordinator's leader. For an etcd that was named with the scope's keys.
    pub async fn tell_coordinator(&self, groups: &[u32], coordinator: &Leader, generation: u32) -> Result<()> {
        let word = CoordinatorWord { leader: coordinator.name.clone(), term: order(generation, coordinator.term.0) };
        let put = |group: &u32| TxnOp::put(self.keys().group(*group).coordinator(), to_bytes(&word), None);
        let when = vec![unchanged(self.keys().group(COORDINATOR).leader(), coordinator.term.0)];
        self.guarded("the coordinator's leader key", when, groups.iter().map(put).collect()).await.map(drop)
    }

    /// Asks these groups to let distributed statements wait, as the coordinator's leader; gives the revision of the word, the same in all. For an
    /// etcd that was named with the scope's keys.
    pub async fn close_gates(&self, groups: &[u32], word: &GateWord, coordinator: &Leader) -> Result<i64> {
        let put = |group: &u32| TxnOp::put(self.keys().group(*group).gate(), to_bytes(word), on(coordinator.lease));
        let when = vec![unchanged(self.keys().group(COORDINATOR).leader(), coordinator.term.0)];
        self.guarded("the coordinator's leader key", when, groups.iter().map(put).collect()).await
    }

    /// Takes what [`Etcd::close_gates`] asked for back, as the coordinator's leader, whichever worker asked.
    pub async fn open_gates(&self, groups: &[u32], coordinator: &Leader) -> Result<()> {
        let keys = |group: &u32| [self.keys().group(*group).gate(), self.keys().group(*group).gated()];
        for some in groups.chunks(GROUPS_AT_ONCE) {
            let when = vec![unchanged(self.keys().group(COORDINATOR).leader(), coordinator.term.0)];
            let then = some.iter().flat_map(keys).map(|key| TxnOp::delete(key, None)).collect();
            self.guarded("the coordinator's leader key", when, then).await?;
        }
        Ok(())
    }

    /// Answers the coordinator, as this group's leader.
    pub async fn answer_gate(&self, word: &GatedWord, leader: &Leader) -> Result<()> {
        let when = vec![self.is_leader(leader), unchanged(self.keys().gate(), word.gate)];
        let put = TxnOp::put(self.keys().gated(), to_bytes(word), on(leader.lease));
        ignoring_lost(self.guarded("the request to wait", when, vec![put]).await)
    }

    /// Clears a group's request and its answer, as the coordinator's leader: the hold is over.
    pub async fn clear_hold(&self, group: u32, request: i64, coordinator: &Leader) -> Result<()> {
        let (own, theirs) = (self.keys().group(COORDINATOR), self.keys().group(group));
        let when = vec![unchanged(own.leader(), coordinator.term.0), unchanged(theirs.hold(), request)];
        let then = vec![TxnOp::delete(theirs.hold(), None), TxnOp::delete(theirs.held(), None)];
        ignoring_lost(self.guarded("the request to hold", when, then).await)
    }
}

/// What was to go away is not there any more: as good as done.
fn ignoring_lost(done: Result<i64>) -> Result<()> {
    match done {
        Ok(_) | Err(Error::Lost(_)) => Ok(()),
        Err(why) => Err(why),
    }
}
