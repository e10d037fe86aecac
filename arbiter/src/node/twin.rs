//! What is under way with the twin of a major upgrade, as REST tells it; and what was asked for.

use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// What may be asked for; each is taken up beside the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Make a twin of this major version.
    Begin(u32),
    /// Compare its data with the leader's.
    Compare,
    /// It is wanted no more.
    End,
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Compared {
    /// When it was begun.
    pub at: String,
    /// Tables whose rows were counted and summed on both sides.
    pub tables: usize,
    /// Their rows.
    pub rows: u64,
    /// So many things differ.
    pub different: usize,
    /// Which: tables, definitions, roles. Only those who may act are told.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
    /// So long writers waited for it.
    pub held_ms: u64,
}

/// What GET `/upgrade` tells.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Told {
    /// What is under way, in a sentence; empty where nothing is.
    pub doing: String,
    /// The major version that the cluster runs.
    pub serves: Option<u32>,
    /// The one beside it.
    pub beside: Option<u32>,
    /// The two have changed places since the upgrade began.
    pub switched: bool,
    /// Of a copy.
    pub percent: Option<u8>,
    /// Bytes of WAL that the twin has not confirmed yet.
    pub lag_bytes: Option<u64>,
    /// At the rate of the last seconds; None where it does not come nearer.
    pub seconds_left: Option<u64>,
    /// What the twin could not apply, as its server counts since it follows.
    pub apply_errors: u64,
    /// The last comparison since it follows.
    pub compared: Option<Compared>,
    /// What keeps the two from changing places now.
    pub not_yet: Vec<String>,
    /// Why what was tried last failed.
    pub failed: Option<String>,
    /// How long writers waited at the last change of places, from the drain until etcd was told.
    pub held_ms: Option<u64>,
    /// The cluster is carried to this major version in place just now.
    pub in_place: Option<u32>,
}

impl Told {
    /// No other version is beside this one: what is left to tell is an upgrade in place, and why the last one failed.
    pub fn nothing_beside(&mut self) {
        let (failed, in_place) = (self.failed.take(), self.in_place);
        let doing = if in_place.is_some() { std::mem::take(&mut self.doing) } else { String::new() };
        *self = Told { doing, failed, in_place, ..Told::default() };
    }

    /// As anybody may read it: without the names of what is in the databases.
    pub fn without_names(mut self) -> Told {
        if let Some(compared) = &mut self.compared {
            compared.differences.clear();
        }
        self
    }
}

/// Shared by the task that cares for the twin, the change of places and REST.
#[derive(Debug, Default)]
pub struct TwinWork {
    told: Mutex<Told>,
    wish: Mutex<Option<Wish>>,
    /// Something was asked for.
    pub bell: Notify,
    /// Held by the task that works on the twin, its server or the note.
    pub at_work: tokio::sync::Mutex<()>,
}

impl TwinWork {
    /// As last told.
    pub fn told(&self) -> Told {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is told.
    pub fn tell(&self, change: impl FnOnce(&mut Told)) {
        change(&mut self.told.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Takes a wish, unless another waits.
    pub fn ask(&self, wish: Wish) -> Result<(), String> {
        let mut held = self.wish.lock().unwrap_or_else(PoisonError::into_inner);
        match *held {
            Some(before) if before != wish => {
                return Err("another request about the upgrade waits to be taken up: ask again in a moment".to_owned());
            }
            _ => *held = Some(wish),
        }
        self.bell.notify_one();
        Ok(())
    }

    /// Is this what waits?
    pub fn is_wished(&self, wish: Wish) -> bool {
        *self.wish.lock().unwrap_or_else(PoisonError::into_inner) == Some(wish)
    }

    /// What waits to be taken up.
    pub fn take(&self) -> Option<Wish> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wish_waits_at_a_time() {
        let work = TwinWork::default();
        assert_eq!(work.ask(Wish::Begin(17)), Ok(()));
        assert_eq!(work.ask(Wish::Begin(17)), Ok(()));
        assert!(work.ask(Wish::End).is_err());
        assert_eq!((work.take(), work.take()), (Some(Wish::Begin(17)), None));
    }
}
