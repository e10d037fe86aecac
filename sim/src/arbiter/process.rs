//! `steward`'s host in the world: the arbiter's process, over simulated time.

use crate::store::Store;
use crate::time::{Part, Signal};
use crate::worker::configured;
use crate::world::World;
use cluster::config::DynamicConfig;
use cluster::member::Member;
use cluster::name::MemberName;
use cluster::time::Moment;
use dcs::remember::Remembered;
use std::cell::RefCell;
use std::fmt::Arguments;
use std::rc::Rc;
use std::time::Duration;
use steward::lease::{Keeper, Word};
use steward::{Host, Tone};

/// The process of an arbiter.
pub(super) struct Process {
    store: Store,
    at: usize,
    name: MemberName,
    word_changed: Signal,
    told: RefCell<String>,
}

impl Process {
    pub fn new(world: &Rc<World>, at: usize, remembered: &Rc<Remembered>) -> Process {
        let store = Store { world: world.clone(), process: (at, Part::Arbiter), remembered: remembered.clone() };
        Process { store, at, name: world.nodes[at].name.clone(), word_changed: Signal::default(), told: RefCell::default() }
    }

    fn world(&self) -> &Rc<World> {
        &self.store.world
    }
}

impl Host for Process {
    type Store = Store;

    fn store(&self) -> &Store {
        &self.store
    }

    fn name(&self) -> &MemberName {
        &self.name
    }

    fn clock(&self) -> Moment {
        self.world().clock(self.at)
    }

    async fn sleep(&self, span: Duration) {
        self.world().time.sleep(span).await;
    }

    fn tell(&self, tone: Tone, text: Arguments<'_>) {
        let text = text.to_string();
        if tone != Tone::Debug && *self.told.borrow() != text {
            self.world().tell(&format!("{} arbiter", self.name), &text);
            *self.told.borrow_mut() = text;
        }
    }
}

impl Keeper for Process {
    fn member(&self, word: Option<&Word>) -> Member {
        let mut member = configured(self.world(), self.at);
        if let Some(word) = word {
            (member.state, member.role) = (word.state.clone(), word.role.clone());
            if let Some(facts) = &mut member.tenure {
                (facts.doubt, facts.memory) = self.store.remembered.word();
            }
        }
        member
    }

    fn first_ttl(&self) -> Duration {
        DynamicConfig::default().timing().ttl
    }

    fn doubts(&self) -> bool {
        self.store.remembered.doubt().is_some()
    }

    fn got_lease(&self) {
        self.world().nodes[self.at].wake_arbiter.notify(&self.world().time);
    }

    fn word_changed(&self) {
        self.word_changed.notify(&self.world().time);
    }

    async fn word_change(&self) {
        self.word_changed.notified(&self.world().time).await;
    }
}
