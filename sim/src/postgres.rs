//! A simulated Postgres: start, stop, replay, stream, promote, commit; and the page of the fence.

mod crash;
mod receiver;
mod seen;

use crate::server::{Recovery, Server};
use crate::time::{Changes, Part};
use crate::wal::{Data, Disk, Wal};
use crate::worker;
use crate::world::{MS, World};
use cluster::fence::{self, Mode, Ruling};
use cluster::local::Ended;
use cluster::lsn::Lsn;
use cluster::name::MemberName;
use cluster::quorum::Setting;
use keeper::Tenure;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// `tenure.fence_wait`.
const FENCE_WAIT: Duration = Duration::from_secs(3);
/// `wal_receiver_timeout`.
const RECEIVER_TIMEOUT: Duration = Duration::from_secs(10);
/// `wal_retrieve_retry_interval`.
const RETRY_RECEIVE: Duration = Duration::from_millis(500);

impl Server {
    /// SIGTERM to the receiver; a frozen one does not hear it.
    pub fn stop_receiver(&self, world: &World) {
        if world.time.is_frozen((self.at, Part::Receiver)) {
            return;
        }
        world.time.kill((self.at, Part::Receiver));
        self.streaming.set(false);
        if let Some(upstream) = self.upstream.get().and_then(|up| world.server(up)) {
            upstream.senders.borrow_mut().remove(&self.at);
        }
    }
}

impl World {
    /// Changes the page of the server that is there, and looks at what the invariants say of it.
    pub fn with_page<T>(&self, at: usize, change: impl FnOnce(&Tenure) -> T) -> Option<T> {
        let server = self.server(at)?;
        Some(self.change_page(&server, change))
    }

    /// Changes a server's page and looks at what the invariants say of it. What a process does that died with its server is seen by nobody.
    pub fn change_page<T>(&self, server: &Rc<Server>, change: impl FnOnce(&Tenure) -> T) -> T {
        let before = server.page.look();
        let answer = change(&server.page);
        if self.server(server.at).is_some_and(|present| Rc::ptr_eq(&present, server)) {
            self.page_is_sound(server.at, before, server.page.look());
        }
        server.renewed.tell(&self.time);
        answer
    }

    /// Starts the postmaster; it is not waited for.
    pub fn start_server(self: &Rc<Self>, at: usize, recovery: Recovery, names: Setting) {
        let node = &self.nodes[at];
        let (end, timeline, from) = {
            let mut data = node.data.borrow_mut();
            let Some(disk) = data.disk_mut() else { return };
            disk.standby_names = names.clone();
            (disk.wal.end(), disk.wal.timeline, disk.checkpoint)
        };
        let now = self.now();
        let page = Tenure::default();
        page.begin(Mode::Closed);
        let takes = self.random.mostly(150 * MS, 3000 * MS) + 20 * MS;
        let replays = takes + self.random.mostly(50 * MS, 2000 * MS);
        let server = Rc::new(Server {
            at,
            started: now,
            postmaster: Cell::new(now),
            crashed: Cell::new(false),
            ready: Cell::new(false),
            in_recovery: Cell::new(recovery != Recovery::None),
            stopping: Cell::new(false),
            ended_cleanly: Cell::new(false),
            page,
            by_promises_until: Cell::default(),
            renewed: Changes::default(),
            flushed: Cell::new(end),
            upstream: Cell::new(match recovery {
                Recovery::None => None,
                Recovery::Standby(upstream) => upstream,
            }),
            streaming: Cell::new(false),
            received: Cell::new(None),
            heard: Cell::default(),
            replay_from: from.0.min(end),
            replay_until: Cell::new(now + replays),
            receiver: Cell::new(None),
            told_to_follow: Changes::default(),
            standby_names: RefCell::new(names.clone()),
            awaited: RefCell::new(names),
            confirmed: RefCell::default(),
            senders: RefCell::default(),
            attached: Cell::new(false),
            checkpointed_timeline: Cell::new(if recovery == Recovery::None { timeline } else { from.1 }),
            wal: Changes::default(),
            confirmations: Changes::default(),
            under_way: Cell::new(0),
        });
        *node.server.borrow_mut() = Some(server.clone());
        // One that was frozen may start its server by what it knew before: its fence stays closed.
        if recovery == Recovery::None && self.holds_the_key(at) {
            self.primary_is_sound(at, "starts as primary");
        }
        let world = self.clone();
        self.time.spawn((at, Part::Server), async move { world.postmaster(server, takes).await });
    }

    async fn postmaster(self: Rc<Self>, server: Rc<Server>, takes: Duration) {
        self.time.sleep(takes).await;
        let at = server.at;
        if !server.in_recovery.get() {
            self.note_ended(at, Ended::CrashedPrimary);
        }
        server.ready.set(true);
        self.tell(self.nodes[at].name.as_str(), "server takes connections");
        self.nodes[at].changed.tell(&self.time);
        self.nodes[at].wake_arbiter.notify(&self.time);
        let world = self.clone();
        let mine = server.clone();
        self.time.spawn((at, Part::Server), async move { world.recover(mine).await });
        loop {
            if !self.time.lives((at, Part::Worker)) && !server.stopping.get() {
                worker::spawn(&self, server.clone());
            }
            // Postgres starts a worker that ended again after a second.
            self.time.sleep(Duration::from_secs(1)).await;
        }
    }

    fn note_ended(&self, at: usize, ended: Ended) {
        if let Some(disk) = self.nodes[at].data.borrow_mut().disk_mut() {
            disk.ended = ended;
        }
    }

    // ---- Ending ----

    /// Everything of the server is gone: killed, or the host is off.
    pub fn server_dies(self: &Rc<Self>, at: usize) {
        let Some(server) = self.nodes[at].server.borrow_mut().take() else { return };
        for part in [Part::Server, Part::Receiver, Part::Worker] {
            self.time.kill((at, part));
        }
        if let Some(disk) = self.nodes[at].data.borrow_mut().disk_mut()
            && !server.in_recovery.get()
        {
            // What was not flushed never was.
            disk.wal.truncate(server.flushed.get());
            disk.ended = Ended::CrashedPrimary;
        }
        self.gone(at, &server);
    }

    fn gone(self: &Rc<Self>, at: usize, server: &Server) {
        if let Some(upstream) = server.upstream.get().and_then(|up| self.server(up)) {
            upstream.senders.borrow_mut().remove(&at);
        }
        server.wal.tell(&self.time);
        self.nodes[at].changed.tell(&self.time);
        self.nodes[at].postmaster_gone.set(true);
        self.nodes[at].wake_arbiter.notify(&self.time);
    }

    /// Stops the server, as the arbiter does. True if it was clean. What was asked goes on without who asked.
    pub async fn stop_server(self: &Rc<Self>, at: usize, fast: bool) -> bool {
        self.stop_server_within(at, fast, Duration::from_secs(60)).await
    }

    /// The same with another bound, after which it is killed.
    pub async fn stop_server_within(self: &Rc<Self>, at: usize, fast: bool, bound: Duration) -> bool {
        let Some(server) = self.server(at) else { return true };
        let same = || self.server(at).is_some_and(|now| now.postmaster == server.postmaster);
        if !fast || !server.ready.get() {
            self.time.sleep(self.random.mostly(10 * MS, 100 * MS)).await;
            if same() {
                self.server_dies(at);
            }
            return !fast;
        }
        if !server.stopping.replace(true) {
            // The lease worker ends with the first moment; backends roll back.
            if !self.time.is_frozen((at, Part::Worker)) {
                self.time.kill((at, Part::Worker));
            }
            let (world, mine) = (self.clone(), server.clone());
            self.time.spawn((at, Part::Server), async move { world.shut_down(mine).await });
        }
        let gone = self.nodes[at].changed.wait(&self.time, || (!same()).then_some(()));
        if self.time.timeout(bound, gone).await.is_some() {
            return server.ended_cleanly.get();
        }
        if same() {
            self.server_dies(at);
        }
        false
    }

    /// A fast shutdown, in the server itself.
    async fn shut_down(self: Rc<Self>, server: Rc<Server>) {
        let at = server.at;
        self.time.sleep(self.random.mostly(30 * MS, 400 * MS)).await;
        if !server.in_recovery.get() {
            if let Some(disk) = self.nodes[at].data.borrow_mut().disk_mut() {
                disk.wal.truncate(server.flushed.get());
                disk.checkpoint = (disk.wal.end(), disk.wal.timeline);
                let end = disk.wal.write(114, 0);
                server.flushed.set(end);
            }
            server.wal.tell(&self.time);
            // Walsenders wait until all that stream have everything.
            let caught_up = server.confirmations.wait(&self.time, || {
                let confirmed = server.confirmed.borrow();
                let all = server.senders.borrow().iter().all(|to| confirmed.get(to).is_some_and(|lsn| *lsn >= server.flushed.get()));
                all.then_some(())
            });
            let _ = self.time.timeout(Duration::from_secs(10), caught_up).await;
        }
        for part in [Part::Server, Part::Receiver, Part::Worker] {
            self.time.kill((at, part));
        }
        *self.nodes[at].server.borrow_mut() = None;
        server.ended_cleanly.set(true);
        if !server.in_recovery.get() {
            self.note_ended(at, Ended::CleanPrimary);
        } else if let Some(disk) = self.nodes[at].data.borrow_mut().disk_mut() {
            disk.checkpoint = (disk.wal.end(), disk.wal.timeline);
        }
        self.gone(at, &server);
    }

    // ---- Promotion ----

    /// SIGUSR1 with a promote file: the server replays what it has and begins a timeline, whatever becomes of the one that asked.
    pub fn promote(self: &Rc<Self>, at: usize, term: i64) {
        let Some(server) = self.server(at).filter(|server| server.in_recovery.get() && !server.stopping.get()) else { return };
        let world = self.clone();
        self.time.spawn((at, Part::Server), async move {
            server.stop_receiver(&world);
            world.time.until(server.replay_until.get()).await;
            world.time.sleep(world.random.mostly(60 * MS, 1500 * MS)).await;
            if !server.in_recovery.get() {
                return;
            }
            world.time.kill((at, Part::Receiver));
            server.streaming.set(false);
            server.upstream.set(None);
            world.branches.set(world.branches.get() + 1);
            let timeline = {
                let mut data = world.nodes[at].data.borrow_mut();
                let Some(disk) = data.disk_mut() else { return };
                let mut next = disk.wal.timeline + 1;
                while disk.known.contains(&next) {
                    next += 1;
                }
                let wal = &mut disk.wal;
                wal.lines.push((wal.timeline, wal.end()));
                (wal.timeline, wal.branch) = (next, world.branches.get());
                disk.known.insert(next);
                server.flushed.set(disk.wal.write(64, 0));
                disk.ended = Ended::CrashedPrimary;
                next
            };
            server.in_recovery.set(false);
            *server.awaited.borrow_mut() = server.standby_names.borrow().clone();
            world.tell(world.nodes[at].name.as_str(), &format!("promoted to timeline {timeline} in term {term}"));
            world.promoted(at, term, timeline);
            // Postgres asks for a checkpoint itself, but a spread one: up to 0.9 of checkpoint_timeout.
            world.checkpoint_within(&server, world.random.between(Duration::from_secs(60), Duration::from_secs(270)));
            server.wal.tell(&world.time);
            world.nodes[at].changed.tell(&world.time);
        });
    }

    /// A checkpoint; where the configuration was reloaded before it, commits wait as it says from here on.
    pub async fn checkpoint(self: &Rc<Self>, at: usize) -> bool {
        let Some(server) = self.sql(at).await else { return false };
        let names = server.standby_names.borrow().clone();
        *server.awaited.borrow_mut() = names;
        server.confirmations.tell(&self.time);
        let takes = self.random.mostly(100 * MS, 3000 * MS);
        let done = self.checkpoint_within(&server, takes);
        server.wal.wait(&self.time, || (done.get() || !self.server(at).is_some_and(|now| Rc::ptr_eq(&now, &server))).then_some(())).await;
        done.get()
    }

    /// The checkpointer's work, whichever process asked for it.
    fn checkpoint_within(self: &Rc<Self>, server: &Rc<Server>, takes: Duration) -> Rc<Cell<bool>> {
        let done = Rc::new(Cell::new(false));
        let (world, server, is_done) = (self.clone(), server.clone(), done.clone());
        self.time.spawn((server.at, Part::Server), async move {
            let node = &world.nodes[server.at];
            let timeline = node.data.borrow().disk().map_or(0, |disk| disk.wal.timeline);
            world.time.sleep(takes).await;
            if !server.in_recovery.get()
                && !server.stopping.get()
                && let Some(disk) = node.data.borrow_mut().disk_mut()
            {
                disk.checkpoint = (disk.wal.end(), timeline);
                server.flushed.set(disk.wal.write(114, 0));
                server.checkpointed_timeline.set(timeline);
                is_done.set(true);
            }
            server.wal.tell(&world.time);
        });
        done
    }

    /// A session's answer from the local server; None where it does not answer.
    pub async fn sql(self: &Rc<Self>, at: usize) -> Option<Rc<Server>> {
        self.time.sleep(MS / 5).await;
        let server = self.serving(at)?;
        let answers = async {
            while self.time.is_frozen((at, Part::Server)) {
                self.time.sleep(20 * MS).await;
            }
        };
        self.time.timeout(Duration::from_secs(1), answers).await?;
        self.serving(at).filter(|now| Rc::ptr_eq(now, &server) && !now.stopping.get())
    }

    // ---- Commit ----

    /// One transaction of a client with an id of its own, as the hooks of `extension/src/fence/` see it.
    pub async fn commit(self: &Rc<Self>, server: &Rc<Server>, commit: u64, cancels: bool) {
        let at = server.at;
        let began = self.clock(at);
        let limit = self.now() + FENCE_WAIT;
        let passes = server.renewed.wait(&self.time, || {
            let fence = server.page.fence();
            (fence::judge(fence, began, self.clock(at)) == Ruling::Pass).then_some(())
        });
        let passed = self.time.timeout(limit.saturating_sub(self.now()), passes).await.is_some();
        if !passed || server.in_recovery.get() || server.stopping.get() {
            self.judge.borrow_mut().refused += 1;
            return;
        }
        let awaits = server.awaited.borrow().count > 0;
        let bytes = 100 + self.random.below(400);
        let end = match self.nodes[at].data.borrow_mut().disk_mut() {
            Some(disk) => disk.wal.write(bytes, commit),
            None => return,
        };
        self.time.sleep(self.random.mostly(MS, 50 * MS)).await;
        server.flushed.set(server.flushed.get().max(end));
        server.wal.tell(&self.time);
        if awaits {
            let released = server.confirmations.wait(&self.time, || self.released(server, end).then_some(()));
            let patience = if cancels { 200 * MS } else { Duration::from_secs(100_000) };
            let _ = self.time.timeout(patience, released).await;
        }
        let fence = server.page.fence();
        // As `why_not_acknowledge`: the deadline first, then what the standbys have confirmed.
        if !fence::may_acknowledge(fence, self.clock(at)) || (awaits && !self.released(server, end)) {
            self.judge.borrow_mut().unknown += 1;
            return;
        }
        self.acknowledged(server, commit, end);
    }

    fn released(&self, server: &Server, end: u64) -> bool {
        let confirmed = server.confirmed.borrow();
        // By the name that a walsender was told, as Postgres does.
        let has = |name: &MemberName| confirmed.iter().any(|(at, lsn)| self.nodes[*at].name == *name && *lsn >= end);
        let awaited = server.awaited.borrow();
        awaited.names.iter().filter(|name| has(name)).count() >= awaited.count
    }

    /// What the synchronous standbys have confirmed: as much as commits are released by.
    pub fn confirmed(&self, server: &Server) -> Option<Lsn> {
        let confirmed = server.confirmed.borrow();
        let awaited = server.awaited.borrow();
        let of = |name: &MemberName| confirmed.iter().filter(|(at, _)| self.nodes[**at].name == *name).map(|(_, lsn)| *lsn).max();
        let mut ends: Vec<u64> = awaited.names.iter().map(|name| of(name).unwrap_or(0)).collect();
        ends.sort_unstable_by_key(|end| std::cmp::Reverse(*end));
        awaited.count.checked_sub(1).and_then(|last| ends.get(last)).map(|end| Lsn(*end))
    }

    /// A commit that waits for nobody, and is flushed at once.
    pub fn marker(&self, server: &Server) {
        if let Some(disk) = self.nodes[server.at].data.borrow_mut().disk_mut() {
            let end = disk.wal.write(80, 0);
            server.flushed.set(server.flushed.get().max(end));
        }
        server.wal.tell(&self.time);
    }

    /// SIGHUP: the postmaster reads the file and tells its children; the checkpointer takes it up when it takes it up. True once sessions go by it.
    pub fn reload(self: &Rc<Self>, server: &Rc<Server>) -> Rc<Cell<bool>> {
        let seen = Rc::new(Cell::new(false));
        let (world, server, is_seen) = (self.clone(), server.clone(), seen.clone());
        self.time.spawn((server.at, Part::Server), async move {
            world.time.sleep(world.random.mostly(MS, 20 * MS)).await;
            let names = world.nodes[server.at].data.borrow().disk().map(|disk| disk.standby_names.clone()).unwrap_or_default();
            server.standby_names.borrow_mut().clone_from(&names);
            is_seen.set(true);
            world.time.sleep(world.random.mostly(5 * MS, 300 * MS)).await;
            if *server.standby_names.borrow() == names {
                *server.awaited.borrow_mut() = names;
                server.confirmations.tell(&world.time);
            }
        });
        seen
    }

    // ---- Files ----

    /// pg_basebackup took this long; what it brings is the source's data as of now.
    pub fn copied(&self, from: usize) -> Option<Data> {
        let data = self.nodes[from].data.borrow();
        let disk = data.disk()?;
        let server = self.serving(from)?;
        let mut wal: Wal = disk.wal.clone();
        wal.truncate(self.sendable(&server));
        Some(Data::Present(Disk { wal, ended: Ended::Standby, standby_names: Setting::nobody(), founding: false, ..disk.clone() }))
    }
}
