//! What operators wish for while things go wrong: maintenance mode, tags, a failover by name, an arbiter's planned end, a new copy of a standby.

use crate::time::Part;
use crate::world::{World, now};
use cluster::failover::{self, FailoverRequest};
use cluster::view::ClusterView;
use dcs::Dcs;
use std::rc::Rc;
use std::time::Duration;

impl World {
    /// One wish, in three of twenty steps. False where none is drawn.
    pub fn wish(self: &Rc<Self>, span: Duration) -> bool {
        if !self.apart.per_mille(150) {
            return false;
        }
        let at = self.apart.index(self.setting.nodes);
        let (name, s) = (&self.nodes[at].name, span.as_secs_f64());
        match self.apart.index(5) {
            0 => {
                self.plan(&format!("maintenance mode for {s:.3} s"));
                self.pause(true);
                self.after(span, |world| world.pause(false));
            }
            1 => {
                let tag = ["nofailover", "nosync"][self.apart.index(2)];
                self.plan(&format!("{name} has the tag {tag} for {s:.3} s"));
                self.tag(at, tag, true);
                self.after(span, move |world| world.tag(at, tag, false));
            }
            // Of a member that commits did not wait for it loses some, which who asks for it accepts: nothing could be judged then.
            2 if !self.setting.sync => self.ask_failover(at),
            2 | 3 => {
                self.plan(&format!("the arbiter of {name} is told to end, back after {s:.3} s"));
                self.nodes[at].wished.stop.set(true);
                self.nodes[at].wake_arbiter.notify(&self.time);
                self.after(span, move |world| {
                    world.nodes[at].wished.stop.set(false);
                    world.arbiter_starts(at);
                });
            }
            _ => {
                self.plan(&format!("the data of {name} is to be made again"));
                self.nodes[at].wished.reinit.set(true);
                self.nodes[at].wake_arbiter.notify(&self.time);
            }
        }
        true
    }

    /// The arbiter has stopped its server, as it was told, and ends.
    pub fn arbiter_ends(self: &Rc<Self>, at: usize) {
        self.after(Duration::ZERO, move |world| {
            if world.nodes[at].wished.stop.get() {
                world.tell(world.nodes[at].name.as_str(), "the arbiter ends");
                world.arbiter_dies(at);
            }
        });
    }

    fn pause(self: &Rc<Self>, on: bool) {
        let Ok(view) = now(self.etcd.load_view()) else { return };
        let mut config = view.config().clone();
        config.0.insert("pause".to_owned(), on.into());
        self.etcd.put_by_hand(self.etcd.keys().config(), &dcs::codec::to_bytes(&config.0));
        self.etcd_changed();
    }

    fn tag(&self, at: usize, tag: &str, on: bool) {
        let mut tags = self.nodes[at].wished.tags.borrow_mut();
        if on {
            tags.0.insert(tag.to_owned(), true.into());
        } else {
            tags.0.remove(tag);
        }
        drop(tags);
        self.nodes[at].wake_worker.notify(&self.time);
        self.nodes[at].wake_arbiter.notify(&self.time);
    }

    fn ask_failover(self: &Rc<Self>, to: usize) {
        let Ok(view) = now(self.etcd.load_view()) else { return };
        let request = FailoverRequest { member: Some(self.nodes[to].name.to_string()), ..FailoverRequest::default() };
        // What a person asks for is judged before it is written.
        if self.etcd_down.get() || failover::candidates(&view, &request).is_err() {
            return;
        }
        self.plan(&format!("failover to {} asked", self.nodes[to].name));
        let _ = now(self.etcd.write_failover(&request, ClusterView::revision_of(&view.failover)));
        self.etcd_changed();
    }

    /// A host that starts knows of no wish of before.
    pub fn forget_wishes(&self, at: usize) {
        if !self.time.lives((at, Part::Arbiter)) {
            self.nodes[at].wished.reinit.set(false);
        }
    }
}
