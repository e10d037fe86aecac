//! What a planned change has paused, in etcd: written by the leader before it pauses anything, deleted by the member that leads when all of it goes on.

use crate::codec::to_bytes;
use crate::error::Error;
use crate::etcd::{Etcd, unchanged};
use crate::verbs::Result;
use cluster::leader::Leader;
use cluster::poolers::Paused;
use etcd_client::TxnOp;

impl Etcd {
    /// Says what is about to be paused, as the leader, over what was judged. Gives the revision.
    pub async fn write_poolers(&self, paused: &Paused, judged: i64, leader: &Leader) -> Result<i64> {
        let when = vec![self.is_leader(leader), unchanged(self.keys().poolers(), judged)];
        self.guarded("the key of paused poolers", when, vec![TxnOp::put(self.keys().poolers(), to_bytes(paused), None)]).await
    }

    /// All of it goes on. Nothing happens where another change has begun since.
    pub async fn clear_poolers(&self, judged: i64) -> Result<()> {
        let when = vec![unchanged(self.keys().poolers(), judged)];
        match self.guarded("the key of paused poolers", when, vec![TxnOp::delete(self.keys().poolers(), None)]).await {
            Ok(_) | Err(Error::Lost(_)) => Ok(()),
            Err(why) => Err(why),
        }
    }
}
