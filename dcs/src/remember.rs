//! What a node remembers of etcd's keys, shared by its loops: each view is judged by it, and the believed ones add to it.

use crate::error::Error;
use crate::verbs::{LeaderLook, Result};
use cluster::leader::Term;
use cluster::store::{self, Doubt, Memory};
use cluster::view::ClusterView;
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The file in the data directory in which the arbiter keeps the memory, and from which the lease worker begins.
pub const FILE: &str = "pg_tenure.memory";

/// A node's memory of one cluster's keys.
#[derive(Debug, Default)]
pub struct Remembered {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    memory: Memory,
    doubt: Option<Doubt>,
    /// More than the revision changed since this was last asked.
    news: bool,
}

/// The file's content: of another cluster's keys it says nothing, as in a copy for a standby cluster.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    keys: String,
    memory: Memory,
}

impl Remembered {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered now.
    pub fn memory(&self) -> Memory {
        self.state().memory.clone()
    }

    /// Why the last view was not believed, where it was not.
    pub fn doubt(&self) -> Option<Doubt> {
        self.state().doubt.clone()
    }

    /// What the member key says of a doubt: the reason, and all that is remembered.
    pub fn word(&self) -> (Option<String>, Option<Box<Memory>>) {
        let state = self.state();
        match &state.doubt {
            Some(doubt) => (Some(doubt.to_string()), Some(Box::new(state.memory.clone()))),
            None => (None, None),
        }
    }

    /// The file's text, where there is something new to be written; `keys` is what all keys begin with.
    pub fn news(&self, keys: &str) -> Option<String> {
        let mut state = self.state();
        if !std::mem::take(&mut state.news) {
            return None;
        }
        let kept = Kept { keys: keys.to_owned(), memory: state.memory.clone() };
        serde_json::to_string_pretty(&kept).ok()
    }

    /// The file could not be written: once more.
    pub fn not_written(&self) {
        self.state().news = true;
    }

    /// Begins with what the file says, unless more is known already.
    pub fn recall(&self, keys: &str, text: &str) -> std::result::Result<(), serde_json::Error> {
        let kept: Kept = serde_json::from_str(text)?;
        let mut state = self.state();
        if kept.keys == keys && state.memory.system_id.is_none() {
            state.memory = kept.memory;
        }
        Ok(())
    }

    /// This node is about to make the keys again: whatever comes of that, the number of this making is used up.
    pub fn attempt(&self, generation: u32) {
        let mut state = self.state();
        state.memory.attempted = state.memory.attempted.max(generation);
        state.news = true;
    }

    /// Judges the look that proves a renewal by what was remembered when it was asked for.
    pub fn judge_look(asked: &Memory, look: LeaderLook) -> LeaderLook {
        let doubt = store::judge_answer(asked, look.at.cluster, look.at.revision).err();
        LeaderLook { doubt, ..look }
    }

    /// Judges the answer to a write that makes this node the leader: an etcd that went back between the view and the write may have the very revisions
    /// that the write compares. Whatever was written there, a view tells what it is worth.
    pub fn judge_term(asked: &Memory, term: Term) -> Result<Term> {
        store::judge_answer(asked, 0, term.0).map(|()| term).map_err(Error::WentBack)
    }

    /// Judges a view by what was remembered when etcd was asked and by what the others say in it that they know, and adds it to the memory
    /// where it is believed.
    pub fn believe(&self, asked: &Memory, mut view: ClusterView) -> Result<ClusterView> {
        let mut asked = asked.clone();
        store::hear(&mut asked, &view);
        let judged = store::judge(&asked, &view);
        let mut state = self.state();
        let heard = store::hear(&mut state.memory, &view);
        state.news |= heard;
        if let Err(doubt) = judged {
            // The first of a kind stays: its numbers move with each key that is written, the member key with this sentence among them.
            let same = state.doubt.as_ref().is_some_and(|before| std::mem::discriminant(before) == std::mem::discriminant(&doubt));
            if !same {
                state.doubt = Some(doubt.clone());
            }
            return Err(Error::Doubted { doubt, view: Box::new(view) });
        }
        state.doubt = None;
        store::complete(&asked, &mut view);
        let news = store::learn(&mut state.memory, &view);
        state.news |= news;
        Ok(view)
    }
}
