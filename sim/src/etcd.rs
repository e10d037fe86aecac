//! etcd as the world has it: its clock goes on, leases run out, watches fire, and requests travel to it and back.

use crate::time::{Changes, Process};
use crate::world::{Clock, MS, Reach, World};
use dcs::Error;
use dcs::memory::InMemory;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

/// etcd's three endpoints: one request goes to one after another.
const ENDPOINTS: usize = 3;

impl World {
    /// etcd's clock goes on, its scans find what has run out.
    pub fn tick(self: Rc<Self>) {
        let every = if self.setting.sharp { 5 * MS } else { 100 * MS };
        let world = self.clone();
        self.time.at(self.now() + every, move || {
            world.etcd_time();
            world.tick();
        });
    }

    pub fn etcd_clock(&self) -> Duration {
        Clock { rate_ppm: self.etcd_rate_ppm, ..Clock::default() }.read(self.now()).0
    }

    fn etcd_time(self: &Rc<Self>) {
        if self.etcd_down.get() {
            return;
        }
        for lease in self.etcd.set_now(self.etcd_clock()) {
            self.tell("etcd", &format!("lease {lease} has run out"));
            self.fence_shuts_before_etcd_lets_go(lease);
        }
        self.etcd_changed();
    }

    /// A new leader of etcd, or etcd is back.
    pub fn etcd_leader_change(self: &Rc<Self>) {
        self.etcd.change_leader(self.etcd_clock());
    }

    /// Watches fire, invariants on keys are looked at.
    pub fn etcd_changed(self: &Rc<Self>) {
        let revision = self.etcd.revision();
        if self.seen_revision.replace(revision) == revision {
            return;
        }
        self.keys_are_sound();
        for at in 0..self.nodes.len() {
            self.watch_fires(at);
        }
    }

    pub fn watch_fires(self: &Rc<Self>, at: usize) {
        if self.is_cut(self.etcd_place(), at) || self.reach(at) == Some(Reach::Alone) {
            return; // it is opened again when the cut heals, and that wakes
        }
        let world = self.clone();
        self.time.at(self.now() + self.delay(), move || {
            world.nodes[at].wake_worker.notify(&world.time);
            world.nodes[at].wake_arbiter.notify(&world.time);
        });
    }

    /// etcd says that this node leads.
    pub fn holds_the_key(&self, at: usize) -> bool {
        dcs::memory::at_once(dcs::Dcs::load_view(&self.etcd))
            .is_some_and(|view| view.is_ok_and(|view| view.leader_if(&self.nodes[at].name).is_some()))
    }

    /// Sends a request to etcd; it is applied when it arrives, whatever became of the sender.
    pub async fn ask<T: 'static>(
        self: &Rc<Self>,
        process: Process,
        ask: impl Fn(&InMemory) -> dcs::Result<T> + Clone + 'static,
    ) -> dcs::Result<T> {
        let ttl = Duration::from_secs(self.setting.ttl);
        let bound = cluster::lease::try_timeout(ttl, ENDPOINTS);
        let mut answer = Err(Error::Unreachable("no answer".to_owned()));
        for _ in 0..ENDPOINTS {
            let slot = Rc::new((RefCell::new(None), Changes::default()));
            self.send(process.0, ask.clone(), slot.clone());
            let heard = slot.1.wait(&self.time, || slot.0.borrow_mut().take());
            answer = match self.time.timeout(bound, heard).await {
                Some(Err(Error::Unreachable(why))) => Err(Error::Unreachable(why)),
                Some(answer) => return answer,
                None => Err(Error::Unreachable(format!("no answer within {} ms", bound.as_millis()))),
            };
        }
        answer
    }

    fn reach(&self, node: usize) -> Option<Reach> {
        self.with_deposed.borrow().get(&node).copied()
    }

    fn send<T: 'static>(
        self: &Rc<Self>,
        from: usize,
        ask: impl Fn(&InMemory) -> dcs::Result<T> + 'static,
        slot: Rc<(RefCell<Option<dcs::Result<T>>>, Changes)>,
    ) {
        if self.is_cut(from, self.etcd_place()) || self.lost() {
            return;
        }
        let world = self.clone();
        self.time.at(self.now() + self.delay(), move || {
            let reach = world.reach(from);
            let deposed = reach == Some(Reach::Alone) || reach == Some(Reach::Both) && world.random.per_mille(500);
            let answer = if deposed && world.etcd.has_deposed() {
                world.etcd.asked_of_deposed(ask)
            } else if reach == Some(Reach::Alone) || world.etcd_down.get() {
                Err(Error::Unreachable("connection refused".to_owned()))
            } else {
                world.etcd_time();
                let before = world.leader_lease();
                let answer = ask(&world.etcd);
                world.etcd_changed();
                world.move_is_lost(from, before);
                answer
            };
            if world.is_cut(world.etcd_place(), from) || world.lost() {
                return;
            }
            let then = world.clone();
            world.time.at(world.now() + world.delay(), move || {
                *slot.0.borrow_mut() = Some(answer);
                slot.1.tell(&then.time);
            });
        });
    }
}
