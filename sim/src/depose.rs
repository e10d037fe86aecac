//! Leaders that are lost to their voters: how they are heard, what a server binds itself to, and the faults that bring it about.

use crate::time::Part;
use crate::world::{MS, World};
use cluster::hearing::Answer;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// An answer that is on its way.
type Slot = Rc<(Cell<Option<Answer>>, crate::time::Changes)>;

impl World {
    /// One try of `me` to hear `up`, as the extension makes it; an answer that comes to a later try than asked for it is not modelled.
    pub async fn hear(self: &Rc<Self>, me: usize, up: usize, patience: Duration) -> Answer {
        let wal = || {
            let streams = self.serving(me).filter(|server| server.streaming.get() && server.upstream.get() == Some(up));
            streams.map(|server| self.now() - server.heard.get())
        };
        if let Some(ago) = wal().filter(|ago| *ago < patience / 4) {
            return Answer::Heard(ago);
        }
        let began = self.now();
        let slot: Slot = Rc::default();
        self.ask_whether_it_lives(me, up, &slot);
        let heard = slot.1.wait(&self.time, || slot.0.get());
        match self.time.timeout(patience, heard).await {
            Some(answer) => answer,
            None => wal().filter(|ago| *ago <= self.now() - began).map_or(Answer::Silent, Answer::Heard),
        }
    }

    fn ask_whether_it_lives(self: &Rc<Self>, me: usize, up: usize, slot: &Slot) {
        let (world, slot) = (self.clone(), slot.clone());
        if world.is_cut(me, up) || world.lost() || world.nodes[up].off.get() {
            return;
        }
        self.time.at(self.now() + self.delay(), move || {
            let lives = |part| world.time.lives((up, part)) && !world.time.is_frozen((up, part));
            let there = world.time.lives((up, Part::Arbiter)) || world.server(up).is_some();
            // A postmaster that starts answers, too: that it can't take connections yet.
            let answer = match lives(Part::Arbiter) || lives(Part::Server) {
                true => Answer::Heard(Duration::ZERO),
                false if there => return,
                false => Answer::Refused,
            };
            if world.nodes[up].off.get() || world.is_cut(up, me) || world.lost() {
                return;
            }
            let then = world.clone();
            world.time.at(world.now() + world.delay(), move || {
                slot.0.set(Some(answer));
                slot.1.tell(&then.time);
            });
        });
    }

    /// In one of six turns of a run with depositions the leader is lost in a way that a lease alone would take long for. True where it was.
    pub fn lose_leader(self: &Rc<Self>, span: Duration) -> bool {
        let Some(at) = self.leader().filter(|_| self.apart.per_mille(170)) else { return false };
        let (name, s) = (self.nodes[at].name.clone(), span.as_secs_f64());
        let members = || (0..self.nodes.len()).filter(|other| *other != at);
        match self.apart.index(4) {
            0 => {
                self.plan(&format!("kill every process of {name}, its arbiter is back after {s:.3} s"));
                self.arbiter_dies(at);
                self.server_dies(at);
                self.after(span, move |world| world.arbiter_starts(at));
            }
            1 => {
                let pairs = members().flat_map(|other| [(at, other), (other, at)]).collect();
                self.cut(&format!("cut {name} off from the members for {s:.3} s"), pairs, span);
            }
            2 => {
                let from = self.apart.per_mille(500);
                let pairs = members().map(|other| if from { (at, other) } else { (other, at) }).collect();
                self.cut(&format!("cut what {name} {} members for {s:.3} s", if from { "says to" } else { "hears of" }), pairs, span);
            }
            _ => {
                // For about as long as it takes to lose it: it comes back in the middle.
                let span = self.apart.between(MS, Duration::from_secs(self.setting.ttl) / 2);
                self.plan(&format!("freeze node of {name} for {:.3} s", span.as_secs_f64()));
                let parts = [Part::Server, Part::Receiver, Part::Worker, Part::Arbiter];
                parts.iter().for_each(|part| self.time.freeze((at, *part)));
                self.after(span, move |world| {
                    let turn = world.apart.index(parts.len());
                    parts.iter().cycle().skip(turn).take(parts.len()).for_each(|part| world.time.thaw((at, *part)));
                });
            }
        }
        true
    }
}
