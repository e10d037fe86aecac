//! What a simulated server, and the data that it runs on, show of themselves.

use crate::server::Server;
use crate::time::Part;
use crate::world::World;
use cluster::failsafe::Spoken;
use cluster::lsn::Lsn;
use cluster::name::Timeline;
use cluster::standing::Bond;

impl Server {
    pub fn describe(&self, world: &World) -> String {
        let page = self.page.look();
        let left = page.deadline.0.as_secs_f64() - world.clock(self.at).0.as_secs_f64();
        let role = if self.in_recovery.get() { "standby" } else { "primary" };
        format!(
            "{role}{}{}{}{}, page {} term {} {left:.3} s left, follows {:?}{}, names {:?}",
            if self.ready.get() { "" } else { " (starting)" },
            if world.time.is_frozen((self.at, Part::Server)) { " (frozen)" } else { "" },
            if world.time.is_frozen((self.at, Part::Worker)) { " (worker frozen)" } else { "" },
            if self.attached.get() { " attached" } else { "" },
            page.mode.word(),
            page.term,
            self.upstream.get().map(|at| at + 1),
            if self.streaming.get() { " streaming" } else { "" },
            self.awaited.borrow().to_string(),
        )
    }

    pub fn replayed(&self, world: &World) -> u64 {
        let end = world.nodes[self.at].data.borrow().disk().map_or(0, |disk| disk.wal.end());
        let left = self.replay_until.get().saturating_sub(world.now());
        if left.is_zero() {
            return end;
        }
        let whole = self.replay_until.get() - self.started;
        let done = 1.0 - left.as_secs_f64() / whole.as_secs_f64().max(1e-9);
        self.replay_from + ((end.saturating_sub(self.replay_from)) as f64 * done.max(0.0)) as u64
    }

    /// The startup process has read all that lies here: the position is the end.
    pub fn end_known(&self, world: &World) -> bool {
        !self.in_recovery.get() || world.now() >= self.replay_until.get()
    }

    /// The newest timeline here and the furthest position, as the lease worker and SQL tell.
    pub fn position(&self, world: &World) -> (Timeline, Lsn) {
        let data = world.nodes[self.at].data.borrow();
        let Some(disk) = data.disk() else { return Default::default() };
        if !self.in_recovery.get() {
            return (Timeline(disk.wal.timeline), Lsn(self.flushed.get()));
        }
        let lsn = self.replayed(world).max(self.received.get().unwrap_or(0));
        let timeline = match disk.wal.upto(lsn) {
            0 => disk.wal.records.first().map_or(disk.wal.timeline, |record| record.timeline),
            count => disk.wal.records[count - 1].timeline,
        };
        (Timeline(timeline), Lsn(lsn))
    }

    pub fn receiver_running(&self, world: &World) -> bool {
        self.receiver.get().is_some() && world.time.lives((self.at, Part::Receiver))
    }
}

impl World {
    /// What binds the server of this node, as it lies beside the data.
    pub fn bond(&self, at: usize) -> Option<Bond> {
        self.nodes[at].data.borrow().disk().and_then(|disk| disk.bond.clone())
    }

    /// In which vacancy the server of this node has said a word that counts, as it lies beside the data.
    pub fn spoken(&self, at: usize) -> Option<Spoken> {
        self.nodes[at].data.borrow().disk().and_then(|disk| disk.spoken)
    }

    /// May a receiver of `me` stream from `up`, as far as a bond goes?
    pub fn bond_allows(&self, me: usize, up: usize) -> bool {
        let theirs = self.nodes[up].data.borrow().disk().map_or(0, |disk| disk.wal.timeline);
        self.bond(me).is_none_or(|bond| cluster::deposition::may_receive(&bond, Timeline(theirs)))
    }
}
