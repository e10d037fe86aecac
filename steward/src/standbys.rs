//! What a node remembers of the synchronous standbys of its server between two looks.

use cluster::lsn::Lsn;
use cluster::name::MemberName;
use cluster::quorum::Setting;
use cluster::time::Moment;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is known of the synchronous standbys of this server.
#[derive(Debug, Clone, Default)]
pub struct Synchronous {
    /// What `synchronous_standby_names` was last set to.
    pub setting: Setting,
    /// Every process of the server keeps the setting, and whatever was acknowledged before lies before this
    /// position. None as long as that is not known.
    pub in_force_from: Option<Lsn>,
}

/// What a node remembers of its synchronous standbys between two looks.
#[derive(Debug, Default)]
pub struct Standbys(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    synchronous: Synchronous,
    /// Standbys that the server began with and that have yet to come, and since when it serves.
    expected: BTreeSet<MemberName>,
    expected_since: Option<Moment>,
    /// In strict mode: no standby is there for which commits could wait.
    without_standby: bool,
    /// `synchronous_domains` is asked for, and nobody elsewhere confirms.
    without_domain: bool,
}

impl Standbys {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The synchronous standbys the server is set to.
    pub fn now(&self) -> Synchronous {
        self.state().synchronous.clone()
    }

    /// Notes the synchronous standbys the server is set to, and from which position on every process keeps that.
    pub fn note(&self, setting: Setting, in_force_from: Option<Lsn>) {
        self.state().synchronous = Synchronous { setting, in_force_from };
    }

    /// Notes what a server begins with: its standbys are given time to come.
    pub fn begin(&self, setting: Setting) {
        let mut state = self.state();
        (state.expected, state.expected_since) = (setting.names.clone(), None);
        state.synchronous = Synchronous { setting, in_force_from: None };
    }

    /// It is a standby: it awaits nobody.
    pub fn is_standby(&self) {
        self.note(Setting::nobody(), None);
        self.begins_without_standby(false);
    }

    /// Notes whether a strict mode has nobody to wait for; true where that begins.
    pub(crate) fn begins_without_standby(&self, now: bool) -> bool {
        !std::mem::replace(&mut self.state().without_standby, now) && now
    }

    /// Notes whether no synchronous standby is in another failure domain, where one is demanded; true where that begins.
    pub(crate) fn begins_without_domain(&self, now: bool) -> bool {
        !std::mem::replace(&mut self.state().without_domain, now) && now
    }

    /// Those of the standbys that the server began with and that may still be on their way, `patience` long
    /// from the first time this is asked.
    pub(crate) fn expected(&self, now: Moment, patience: Duration) -> BTreeSet<MemberName> {
        let mut state = self.state();
        if !state.expected.is_empty() && now.since(*state.expected_since.get_or_insert(now)) > patience {
            (state.expected, state.expected_since) = Default::default();
        }
        state.expected.clone()
    }
}
