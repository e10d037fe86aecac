//! A crash of one process that the postmaster outlives: it ends all others and recovers where it is, once or over and over (a disk on which flushes fail).

use crate::server::{Recovery, Server};
use crate::time::Part;
use crate::world::{MS, World};
use cluster::local::Ended;
use std::rc::Rc;
use std::time::Duration;

impl World {
    /// One process dies. While the disk fails, the checkpoint that ends each recovery is the next crash.
    pub fn server_crashes(self: &Rc<Self>, at: usize, fails_until: Duration) {
        if let Some(server) = self.serving(at).filter(|server| !server.stopping.get() && !self.time.is_frozen((at, Part::Server))) {
            self.recovers_in_place(&server);
        }
        let again = self.apart.mostly(300 * MS, 5000 * MS);
        if self.now() + again < fails_until {
            self.after(again, move |world| world.server_crashes(at, fails_until));
        }
    }

    /// The same postmaster, with new processes and new shared memory.
    fn recovers_in_place(self: &Rc<Self>, before: &Server) {
        let (at, node) = (before.at, &self.nodes[before.at]);
        for part in [Part::Server, Part::Receiver, Part::Worker] {
            self.time.kill((at, part));
        }
        if let Some(upstream) = before.upstream.get().and_then(|up| self.server(up)) {
            upstream.senders.borrow_mut().remove(&at);
        }
        let in_file = {
            let mut data = node.data.borrow_mut();
            let Some(disk) = data.disk_mut() else { return };
            if !before.in_recovery.get() {
                // What was not flushed never was.
                disk.wal.truncate(before.flushed.get());
                disk.ended = Ended::CrashedPrimary;
            }
            disk.standby_names.clone()
        };
        let recovery = if before.in_recovery.get() { Recovery::Standby(before.upstream.get()) } else { Recovery::None };
        // What the postmaster has read counts, not what is in its file by now.
        let names = before.standby_names.borrow().clone();
        self.start_server(at, recovery, names);
        if let Some(disk) = node.data.borrow_mut().disk_mut() {
            disk.standby_names = in_file;
        }
        if let Some(server) = self.server(at) {
            server.postmaster.set(before.postmaster.get());
            // The arbiter that has a session there hears of it as that ends.
            server.crashed.set(before.attached.get() && recovery == Recovery::None);
        }
        before.wal.tell(&self.time);
        node.changed.tell(&self.time);
        node.wake_arbiter.notify(&self.time);
    }
}
