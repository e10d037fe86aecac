//! etcd that goes back: backups that are restored, emptiness, answers that are lost at the worst moment, and the operator who mends it.

use crate::world::{MS, World, now};
use cluster::leader::LeaseId;
use cluster::store::{self, NoRebuild};
use dcs::Dcs;
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

/// So many backups are kept.
const BACKUPS: usize = 3;
/// An operator looks this often.
const LOOKS: Duration = Duration::from_secs(7);
/// A member that led last and is silent for so long after everything healed is taken for gone.
const GONE: Duration = Duration::from_secs(60);

impl World {
    /// In one of seven turns etcd forgets; in others a backup is made. True where it did.
    pub(crate) fn forget(self: &Rc<Self>, span: Duration) -> bool {
        if self.judge.borrow().leaders == 0 {
            return false; // nobody has led yet: there is nothing that anybody could remember
        }
        if self.apart.per_mille(300) {
            let mut backups = self.backups.borrow_mut();
            if backups.len() == BACKUPS {
                let oldest = self.apart.index(BACKUPS);
                backups.remove(oldest);
            }
            backups.push(self.etcd.save());
        }
        if !self.apart.per_mille(140) || self.etcd_down.get() {
            return false;
        }
        // Its members are stopped for that, for a moment or for long.
        let away = if self.apart.per_mille(500) { self.apart.between(MS, Duration::from_secs(1)) } else { span };
        let saved = match self.backups.borrow().len() {
            0 => None,
            count => Some(self.backups.borrow()[self.apart.index(count)].clone()).filter(|_| self.apart.per_mille(600)),
        };
        self.plan(&format!(
            "etcd is {} and away for {:.3} s",
            if saved.is_some() { "restored from a backup" } else { "emptied" },
            away.as_secs_f64()
        ));
        self.etcd_down.set(true);
        self.after(away, move |world| {
            match &saved {
                Some(saved) => world.etcd.restore(saved, world.etcd_clock()),
                None => world.etcd.lose(),
            }
            world.etcd_leader_change();
            world.etcd.deposed_knows();
            world.etcd_down.set(false);
            world.etcd_changed();
            (0..world.nodes.len()).for_each(|at| world.watch_fires(at));
        });
        true
    }

    /// What an operator does who reads `tenure check`: nothing while somebody that may have led has not said what it knows.
    pub(crate) async fn operate(self: Rc<Self>, healed: Rc<Cell<Option<Duration>>>) {
        loop {
            self.time.sleep(LOOKS).await;
            let Ok(view) = now(self.etcd.load_view()) else { continue };
            let gone = healed.get().is_some_and(|since| self.now() > since + GONE);
            let plan = match store::rebuild(&view, None) {
                Err(NoRebuild::HolderSilent { .. }) if gone => {
                    let named = &self.nodes[self.apart.index(self.setting.nodes)].name;
                    store::rebuild(&view, Some(named))
                }
                plan => plan,
            };
            let plan = match plan {
                Ok(plan) => plan,
                Err(NoRebuild::NobodyDoubts) => continue,
                Err(why) => {
                    self.tell("operator", &format!("the keys are not made again: {why}"));
                    continue;
                }
            };
            if !plan.unheard.is_empty() || plan.risk.is_some() {
                self.tell("operator", &format!("{} would lead; unheard {:?}; risk {:?}", plan.leader, plan.unheard, plan.risk));
            }
            if plan.unheard.is_empty() && (plan.risk.is_none() || gone && !self.setting.sync) && !self.etcd_down.get() {
                let done = self.etcd.rebuild(&plan, &view);
                self.tell("operator", &format!("the keys are made again, {} leads: {done:?}", plan.leader));
                self.etcd_changed();
            }
        }
    }

    /// The lease that the leader key hangs on.
    pub(crate) fn leader_lease(&self) -> Option<LeaseId> {
        self.loses_move.get()?;
        now(self.etcd.look_at_leader()).ok()?.leader.map(|leader| leader.lease)
    }

    /// The leader moved its key just now: it does not hear of that.
    pub(crate) fn move_is_lost(self: &Rc<Self>, from: usize, before: Option<LeaseId>) {
        let Some((leader, span)) = self.loses_move.get().filter(|(leader, _)| *leader == from) else { return };
        let holds = now(self.etcd.look_at_leader()).ok().and_then(|look| look.leader);
        let moved = holds.is_some_and(|now| now.name == self.nodes[leader].name && before.is_some_and(|before| before != now.lease));
        if moved {
            self.loses_move.set(None);
            let text = format!("cut etcd's answers to {} for {:.3} s", self.nodes[leader].name, span.as_secs_f64());
            self.cut(&text, vec![(self.etcd_place(), leader)], span);
        }
    }
}
