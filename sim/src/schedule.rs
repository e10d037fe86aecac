//! What goes wrong, when, and for how long: drawn from the seed.

use crate::arbiter;
use crate::setting::Focus;
use crate::time::Part;
use crate::wal::Data;
use crate::worker::configuration;
use crate::world::{MS, Reach, World, now};
use cluster::failover::FailoverRequest;
use cluster::local::Ended;
use cluster::view::ClusterView;
use dcs::Dcs;
use std::rc::Rc;
use std::time::Duration;

/// The parts of a node that can be frozen together.
const FREEZES: [(&str, &[Part]); 6] = [
    ("node", &[Part::Server, Part::Receiver, Part::Worker, Part::Arbiter]),
    ("worker", &[Part::Worker]),
    ("arbiter", &[Part::Arbiter]),
    ("Postgres", &[Part::Server, Part::Receiver]),
    ("Postgres and worker", &[Part::Server, Part::Receiver, Part::Worker]),
    ("receiver", &[Part::Receiver]),
];

impl World {
    pub(crate) fn plan(self: &Rc<Self>, text: &str) {
        let line = format!("{:>10.4} {text}", self.now().as_secs_f64());
        self.schedule.borrow_mut().push(line);
        self.tell("fault", text);
    }

    pub(crate) fn after(self: &Rc<Self>, span: Duration, act: impl FnOnce(&Rc<World>) + 'static) {
        let world = self.clone();
        self.time.at(self.now() + span, move || act(&world));
    }

    /// A span around the TTL, where most races are.
    fn span(&self) -> Duration {
        let ttl = Duration::from_secs(self.setting.ttl);
        match self.random.index(4) {
            0 => self.random.between(MS, Duration::from_secs(1)),
            1 => self.random.between(ttl / 2, ttl),
            2 => self.random.between(ttl, ttl * 2),
            _ => self.random.between(ttl, ttl * 2 + Duration::from_secs(20)),
        }
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        self.number_of(&now(self.etcd.load_view()).ok()?.leader?.name)
    }

    /// The leader more often than not.
    fn victim(&self) -> usize {
        match self.leader() {
            Some(leader) if self.random.per_mille(550) => leader,
            _ => self.random.index(self.setting.nodes),
        }
    }

    /// Faults one after another, then everything heals. Gives the moment by which it has.
    pub async fn trouble(self: Rc<Self>, steps: u64, healed: Rc<std::cell::Cell<Option<Duration>>>) {
        let mut healed_by = Duration::ZERO;
        if self.setting.founds {
            // From the first moment on; and at some moment of the founding etcd's answers to one node are lost.
            self.time.sleep(self.apart.between(Duration::ZERO, Duration::from_secs(1))).await;
            let (at, from) = (self.apart.index(self.setting.nodes), self.apart.between(Duration::ZERO, Duration::from_secs(3)));
            let span = self.apart.between(Duration::ZERO, Duration::from_secs(self.setting.ttl));
            healed_by = self.now() + from + span;
            self.after(from, move |world| {
                let text = format!("cut etcd's answers to {} for {:.3} s", world.nodes[at].name, span.as_secs_f64());
                world.cut(&text, vec![(world.etcd_place(), at)], span);
            });
        } else {
            self.time.sleep(Duration::from_secs(15)).await;
        }
        for _ in 0..steps {
            let pause = match self.random.index(4) {
                0 => self.random.between(Duration::ZERO, 50 * MS),
                1 => self.random.between(Duration::ZERO, Duration::from_secs(1)),
                2 => self.random.between(Duration::ZERO, Duration::from_secs(6)),
                _ => self.random.between(Duration::ZERO, Duration::from_secs(self.setting.ttl * 2)),
            };
            self.time.sleep(pause).await;
            let span = self.span();
            self.fault(span);
            healed_by = healed_by.max(self.now() + span);
        }
        self.time.until(healed_by + Duration::from_secs(1)).await;
        self.plan("everything is healed");
        healed.set(Some(self.now()));
    }

    fn fault(self: &Rc<Self>, span: Duration) {
        if self.setting.forgets && self.forget(span) {
            return;
        }
        if self.setting.deposes && self.lose_leader(span) {
            return;
        }
        if self.setting.wishes && self.wish(span) {
            return;
        }
        if self.setting.forgets && self.apart.per_mille(60) {
            // More often than else: the window of a lost move is one round trip.
            return self.change_ttl(span);
        }
        if self.setting.crashes && self.apart.per_mille(150) {
            return self.crash(span);
        }
        if self.setting.copies && self.apart.per_mille(150) {
            self.copy(span);
        }
        let at = self.victim();
        let name = self.nodes[at].name.clone();
        let s = span.as_secs_f64();
        let drawn = match self.setting.focus.map(Focus::faults) {
            Some(faults) => faults[self.random.index(faults.len())],
            None => self.random.index(24),
        };
        match drawn {
            0..=4 => {
                let (what, parts) = FREEZES[self.random.index(FREEZES.len())];
                self.plan(&format!("freeze {what} of {name} for {s:.3} s"));
                for part in parts {
                    self.time.freeze((at, *part));
                }
                self.after(span, move |world| {
                    // In any order: who runs first after the thaw is the kernel's choice.
                    let turn = world.random.index(parts.len());
                    for part in parts.iter().cycle().skip(turn).take(parts.len()) {
                        world.time.thaw((at, *part));
                    }
                });
            }
            5 | 6 => {
                self.plan(&format!("kill the postmaster of {name}"));
                self.server_dies(at);
            }
            7 | 8 => {
                self.plan(&format!("kill the arbiter of {name}, back after {s:.3} s"));
                self.arbiter_dies(at);
                self.after(span, move |world| world.arbiter_starts(at));
            }
            9 => {
                self.plan(&format!("kill the lease worker of {name}"));
                self.time.kill((at, Part::Worker));
            }
            10 | 11 => {
                self.plan(&format!("switch off {name} for {s:.3} s"));
                self.nodes[at].off.set(true);
                self.nodes[at].boots.set(self.nodes[at].boots.get() + 1);
                self.arbiter_dies(at);
                self.server_dies(at);
                self.after(span, move |world| {
                    world.nodes[at].off.set(false);
                    world.arbiter_starts(at);
                });
            }
            12 => {
                let others = (0..=self.nodes.len()).filter(|other| *other != at);
                let pairs = others.flat_map(|other| [(at, other), (other, at)]).collect();
                self.cut(&format!("cut off {name} for {s:.3} s"), pairs, span);
            }
            13 => {
                let etcd = self.etcd_place();
                let pairs = match self.random.index(3) {
                    0 => vec![(at, etcd)],
                    1 => vec![(etcd, at)],
                    _ => vec![(at, etcd), (etcd, at)],
                };
                self.cut(&format!("cut {name} and etcd ({} ways) for {s:.3} s", pairs.len()), pairs, span);
            }
            14 => {
                let other = self.random.index(self.setting.nodes);
                let pairs = if self.random.per_mille(500) { vec![(at, other)] } else { vec![(at, other), (other, at)] };
                self.cut(&format!("cut {name} and {} ({} ways) for {s:.3} s", self.nodes[other].name, pairs.len()), pairs, span);
            }
            15 => {
                self.plan("etcd elects another leader");
                self.etcd_leader_change();
            }
            16 if !self.etcd_down.get() => {
                self.plan(&format!("etcd is away for {s:.3} s"));
                self.etcd_down.set(true);
                self.after(span, |world| {
                    world.etcd_leader_change();
                    world.etcd_down.set(false);
                    (0..world.nodes.len()).for_each(|at| world.watch_fires(at));
                });
            }
            17 => {
                let (slow, loss) = (self.random.between(MS, 800 * MS), self.random.below(200));
                self.plan(&format!("a slow network for {s:.3} s: up to {} ms, {loss} of 1000 lost", slow.as_millis()));
                (self.network.borrow_mut().slow, self.network.borrow_mut().loss_per_mille) = (slow, loss);
                self.after(span, |world| {
                    (world.network.borrow_mut().slow, world.network.borrow_mut().loss_per_mille) = (Duration::ZERO, 0)
                });
            }
            18 if self.setting.bad_clocks => {
                self.plan(&format!("the clock of {name} stands still for {s:.3} s"));
                let now = self.now();
                self.nodes[at].clock.borrow_mut().stands_since.get_or_insert(now);
                self.after(span, move |world| {
                    let mut clock = world.nodes[at].clock.borrow_mut();
                    if let Some(since) = clock.stands_since.take() {
                        clock.stood += world.now() - since;
                    }
                });
            }
            19..=21 => self.depose(at, span),
            22 => self.change_ttl(span),
            _ => self.ask_switchover(),
        }
    }

    /// One process of a server dies, or all flushes of its WAL fail for a while.
    fn crash(self: &Rc<Self>, span: Duration) {
        let at = self.victim();
        let name = &self.nodes[at].name;
        let fails = self.apart.per_mille(500);
        let lasts = if fails { format!(", again and again for {:.3} s", span.as_secs_f64()) } else { String::new() };
        self.plan(&format!("a process of {name}'s server crashes{lasts}"));
        self.server_crashes(at, if fails { self.now() + span } else { Duration::ZERO });
    }

    /// A node's disk as it is now is started on another host, with the node's file, and taken away again.
    fn copy(self: &Rc<Self>, span: Duration) {
        let at = self.setting.nodes;
        let copy = &self.nodes[at];
        let original = &self.nodes[copy.original];
        let Data::Present(disk) = &*original.data.borrow() else { return };
        if !copy.off.replace(false) {
            return;
        }
        let mut disk = disk.clone();
        if let Some(server) = self.server(copy.original).filter(|server| !server.in_recovery.get()) {
            disk.wal.truncate(server.flushed.get());
            disk.ended = Ended::CrashedPrimary;
        }
        self.plan(&format!("a copy of {} is started on another host for {:.3} s", original.name, span.as_secs_f64()));
        *copy.data.borrow_mut() = Data::Present(disk);
        copy.kept.borrow_mut().clone_from(&original.kept.borrow());
        copy.promised_for.set(original.promised_for.get());
        copy.boots.set(copy.boots.get() + 1);
        self.arbiter_starts(at);
        self.after(span, move |world| {
            world.copy_is_thrown_away(at);
            world.nodes[at].off.set(true);
            world.arbiter_dies(at);
            world.server_dies(at);
            *world.nodes[at].data.borrow_mut() = Data::Empty;
        });
    }

    /// etcd elects another leader while the one before hangs, and a node with it: what that node reaches afterwards is the
    /// old leader, alone or besides the others, and for a while it answers keep-alives as if nothing had happened.
    fn depose(self: &Rc<Self>, at: usize, span: Duration) {
        let reach = if self.random.per_mille(500) { Reach::Alone } else { Reach::Both };
        let hangs = if self.random.per_mille(500) { self.random.between(Duration::ZERO, span) } else { Duration::ZERO };
        let believes = self.random.between(MS, span);
        let name = &self.nodes[at].name;
        self.plan(&format!(
            "etcd elects another leader; {name} hangs for {:.3} s and reaches the old one ({reach:?}) for {:.3} s, which believes it leads for {:.3} s",
            hangs.as_secs_f64(),
            span.as_secs_f64(),
            believes.as_secs_f64()
        ));
        self.etcd_leader_change();
        self.with_deposed.borrow_mut().insert(at, reach);
        if !hangs.is_zero() {
            let parts = FREEZES[0].1;
            parts.iter().for_each(|part| self.time.freeze((at, *part)));
            self.after(hangs, move |world| parts.iter().for_each(|part| world.time.thaw((at, *part))));
        }
        self.after(believes, |world| world.etcd.deposed_knows());
        self.after(span, move |world| {
            world.with_deposed.borrow_mut().remove(&at);
            world.watch_fires(at);
        });
    }

    /// An operator changes `ttl`; often etcd's answers to the leader are lost from a moment on at which it moves its keys.
    fn change_ttl(self: &Rc<Self>, span: Duration) {
        let ttl = [3, 5, 10, 30][self.random.index(4)];
        if self.etcd_down.get() {
            return; // nobody can write into it
        }
        self.plan(&format!("ttl is set to {ttl}"));
        let mut config = configuration(self);
        config.0.insert("ttl".to_owned(), ttl.into());
        self.etcd.put_by_hand(self.etcd.keys().config(), &dcs::codec::to_bytes(&config.0));
        self.etcd_changed();
        let leader = self.leader();
        if let Some(leader) =
            leader.filter(|_| (self.setting.forgets || self.setting.focus == Some(Focus::Moves)) && self.apart.per_mille(700))
        {
            self.plan(&format!(
                "etcd's answers to {} are lost for {:.3} s once it moves its key",
                self.nodes[leader].name,
                span.as_secs_f64()
            ));
            self.loses_move.set(Some((leader, span)));
        } else if let Some(leader) = leader.filter(|_| self.random.per_mille(600)) {
            let soon = self.random.between(4 * MS, 30 * MS);
            self.after(soon, move |world| {
                let text = format!("cut etcd's answers to {} for {:.3} s", world.nodes[leader].name, span.as_secs_f64());
                world.cut(&text, vec![(world.etcd_place(), leader)], span);
            });
        }
    }

    fn ask_switchover(self: &Rc<Self>) {
        let Some(leader) = self.leader().filter(|_| !self.etcd_down.get()) else { return };
        let Ok(view) = now(self.etcd.load_view()) else { return };
        let to = self.random.per_mille(500).then(|| self.nodes[self.random.index(self.setting.nodes)].name.to_string());
        let request = FailoverRequest { leader: Some(self.nodes[leader].name.to_string()), member: to, ..FailoverRequest::default() };
        self.plan(&format!("switchover asked: {:?} to {:?}", request.leader, request.member));
        let _ = now(self.etcd.write_failover(&request, ClusterView::revision_of(&view.failover)));
        self.etcd_changed();
    }

    pub(crate) fn cut(self: &Rc<Self>, text: &str, pairs: Vec<(usize, usize)>, span: Duration) {
        self.plan(text);
        for pair in &pairs {
            *self.network.borrow_mut().cut.entry(*pair).or_insert(0) += 1;
        }
        self.after(span, move |world| {
            for pair in &pairs {
                *world.network.borrow_mut().cut.entry(*pair).or_insert(1) -= 1;
                if pair.0 == world.etcd_place() {
                    world.watch_fires(pair.1);
                }
            }
        });
    }

    pub(crate) fn arbiter_dies(&self, at: usize) {
        self.time.kill((at, Part::Arbiter));
        if let Some(server) = self.server(at) {
            server.attached.set(false);
            server.crashed.set(false);
        }
    }

    pub fn arbiter_starts(self: &Rc<Self>, at: usize) {
        if !self.nodes[at].off.get() && !self.time.lives((at, Part::Arbiter)) {
            self.forget_wishes(at);
            arbiter::spawn(self, at);
        }
    }
}
