//! The modelled server's receiver: it connects, streams what a walsender may send, and confirms what is flushed.

use super::{RECEIVER_TIMEOUT, RETRY_RECEIVE};
use crate::server::Server;
use crate::time::Part;
use crate::world::{MS, World};
use std::rc::Rc;
use std::time::Duration;

impl World {
    /// The startup process: once what is here is replayed it keeps a receiver running.
    pub(super) async fn recover(self: Rc<Self>, server: Rc<Server>) {
        self.time.until(server.replay_until.get()).await;
        while server.in_recovery.get() {
            if server.upstream.get().is_some() && !server.receiver_running(&self) {
                let (world, mine) = (self.clone(), server.clone());
                let task = self.time.spawn((server.at, Part::Receiver), async move {
                    world.receive(&mine).await;
                    mine.streaming.set(false);
                    world.nodes[mine.at].wake_listener.notify(&world.time);
                });
                server.receiver.set(Some(task));
            }
            let changed = server.told_to_follow.wait(&self.time, {
                let before = server.upstream.get();
                let server = server.clone();
                move || (server.upstream.get() != before).then_some(())
            });
            if self.time.timeout(RETRY_RECEIVE, changed).await.is_some() {
                server.stop_receiver(&self);
            }
        }
    }

    /// Connects, and streams until the connection breaks.
    async fn receive(self: &Rc<Self>, me: &Rc<Server>) {
        let Some(up) = me.upstream.get() else { return };
        if self.is_cut(me.at, up) || self.is_cut(up, me.at) {
            return;
        }
        self.time.sleep(self.delay() + self.delay()).await;
        let Some(source) = self.serving(up).filter(|server| !server.stopping.get()) else { return };
        if self.time.is_frozen((up, Part::Server)) || !self.may_stream(me.at, up) || !self.bond_allows(me.at, up) {
            return;
        }
        me.streaming.set(true);
        me.heard.set(self.now());
        source.senders.borrow_mut().insert(me.at);
        self.confirm(me, &source);
        self.nodes[me.at].wake_worker.notify(&self.time);
        let mut quiet_since = self.now();
        loop {
            // A standby can be sent what is flushed there, a cascading one what was received.
            let news = source.wal.wait(&self.time, || {
                let mine = self.end_of(me.at);
                let gone = !self.server(up).is_some_and(|now| Rc::ptr_eq(&now, &source));
                (gone || self.sendable(&source) > mine).then_some(gone)
            });
            let news = self.time.timeout(Duration::from_secs(1), news).await;
            let stalled = self.is_cut(up, me.at) || self.time.is_frozen((up, Part::Server));
            if stalled {
                if self.now() - quiet_since > RECEIVER_TIMEOUT {
                    break;
                }
                self.time.sleep(20 * MS).await;
                continue;
            }
            quiet_since = self.now();
            me.heard.set(quiet_since);
            match news {
                None => self.confirm(me, &source), // the regular status message
                Some(true) => break,
                Some(false) => {
                    let upto = self.sendable(&source);
                    self.time.sleep(self.delay()).await;
                    if !self.take_over(me.at, up, upto) {
                        break;
                    }
                    me.received.set(Some(self.end_of(me.at)));
                    me.wal.tell(&self.time);
                    self.stood_and_confirms(me);
                    self.confirm(me, &source);
                }
            }
        }
        source.senders.borrow_mut().remove(&me.at);
    }

    fn end_of(&self, at: usize) -> u64 {
        self.nodes[at].data.borrow().disk().map_or(0, |disk| disk.wal.end())
    }

    pub(super) fn sendable(&self, source: &Server) -> u64 {
        if source.in_recovery.get() { self.end_of(source.at) } else { source.flushed.get() }
    }

    /// What a walsender checks: my timeline is its own or in its past, and I am no further.
    fn may_stream(&self, me: usize, up: usize) -> bool {
        let (mine, theirs) = (self.nodes[me].data.borrow(), self.nodes[up].data.borrow());
        let (Some(mine), Some(theirs)) = (mine.disk(), theirs.disk()) else { return false };
        theirs.wal.end_of(mine.wal.timeline).is_some_and(|end| mine.wal.end() <= end)
    }

    /// What has arrived is flushed. False where the source is another history by now.
    fn take_over(&self, me: usize, up: usize, upto: u64) -> bool {
        let theirs = self.nodes[up].data.borrow();
        let mut mine = self.nodes[me].data.borrow_mut();
        let (Some(theirs), Some(mine)) = (theirs.disk(), mine.disk_mut()) else { return false };
        let (wal, source) = (&mut mine.wal, &theirs.wal);
        let from = source.upto(wal.end());
        let before = from.checked_sub(1).and_then(|index| source.records.get(index));
        if wal.records.last() != before {
            self.forked_stream(me, up);
            return false;
        }
        let to = source.upto(upto);
        wal.records.extend_from_slice(&source.records[from.min(to)..to]);
        if let Some(last) = wal.records.last() {
            (wal.timeline, wal.branch) = (last.timeline, last.branch);
            wal.lines = source.lines.iter().copied().filter(|(line, _)| *line < last.timeline).collect();
        }
        // The receiver fetches the history files of every timeline in between.
        mine.known.extend(theirs.known.iter().copied());
        true
    }

    /// Sends what is flushed here; the message arrives whatever becomes of the sender.
    fn confirm(self: &Rc<Self>, me: &Rc<Server>, source: &Rc<Server>) {
        self.bound_servers_confirm_nothing(me, source);
        self.has_by_now(me);
        self.deliver_confirmation(me.at, self.end_of(me.at), source.clone(), self.now());
    }

    fn deliver_confirmation(self: &Rc<Self>, from: usize, lsn: u64, source: Rc<Server>, sent: Duration) {
        let world = self.clone();
        self.time.at(self.now() + self.delay(), move || {
            if !world.server(source.at).is_some_and(|now| Rc::ptr_eq(&now, &source)) || world.now() - sent > Duration::from_secs(30) {
                return;
            }
            if world.is_cut(from, source.at) || world.time.is_frozen((source.at, Part::Server)) {
                // Kept by the kernels; it arrives when the path is whole again.
                let later = world.clone();
                return world.time.at(world.now() + 50 * MS, move || later.deliver_confirmation(from, lsn, source, sent));
            }
            let mut confirmed = source.confirmed.borrow_mut();
            let known = confirmed.entry(from).or_insert(0);
            *known = (*known).max(lsn);
            drop(confirmed);
            source.confirmations.tell(&world.time);
        });
    }
}
