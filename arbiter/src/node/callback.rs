//! Callbacks: commands of the node's file that are told what became of the server, and that nobody waits for.

use crate::config::NodeConfig;
use crate::ground::program::{Run, Stragglers};
use cluster::member::MemberRole;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// What a callback is told; the word is Patroni's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The server's configuration was reloaded.
    Reload,
    /// The server was restarted in its role.
    Restart,
    /// The server was promoted, or is back as a standby.
    RoleChange,
    /// The server is ready after a start, or was adopted.
    Start,
    /// The arbiter stopped the server.
    Stop,
}

impl Action {
    fn word(self) -> &'static str {
        match self {
            Action::Reload => "on_reload",
            Action::Restart => "on_restart",
            Action::RoleChange => "on_role_change",
            Action::Start => "on_start",
            Action::Stop => "on_stop",
        }
    }
}

/// What was told last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Told {
    /// The server serves, as far as the callbacks know.
    up: bool,
    /// Its role when it last served.
    role: Option<MemberRole>,
    /// The next start is a restart.
    restart: bool,
    /// When the role last changed.
    changed: Option<Instant>,
}

impl Told {
    /// What is due now that the server serves in this role.
    fn serves(&mut self, role: &MemberRole) -> Option<Action> {
        if self.up && self.role.as_ref() == Some(role) {
            return None;
        }
        let restart = std::mem::take(&mut self.restart);
        let action = match &self.role {
            Some(before) if before != role => Action::RoleChange,
            Some(_) if restart => Action::Restart,
            _ => Action::Start,
        };
        (self.up, self.role, self.changed) = (true, Some(role.clone()), Some(Instant::now()));
        Some(action)
    }

    /// As [`Told::serves`], by a look that began then: one that began before the last change saw what was before it.
    fn seen(&mut self, role: &MemberRole, began: Instant) -> Option<Action> {
        let older = self.changed.is_some_and(|changed| began < changed);
        if older { None } else { self.serves(role) }
    }

    /// What is due now that this node gave the leadership up while its server is down.
    fn demoted(&mut self) -> Option<Action> {
        let led = matches!(self.role, Some(MemberRole::Primary | MemberRole::StandbyLeader));
        self.role = if led { Some(MemberRole::Demoted) } else { self.role.take() };
        led.then_some(Action::RoleChange)
    }

    /// What is due now that the arbiter has stopped the server; the role it had.
    fn stopped(&mut self) -> Option<MemberRole> {
        let was_up = std::mem::take(&mut self.up);
        self.role.clone().filter(|_| was_up && !self.restart)
    }
}

/// Runs the callbacks of one node: one at a time, `on_reload` beside it.
#[derive(Debug, Default)]
pub struct Callbacks {
    told: Mutex<Told>,
    running: Mutex<[Option<JoinHandle<()>>; 2]>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Callbacks {
    /// The server takes connections in this role from now on.
    pub fn serves(&self, config: &NodeConfig, role: &MemberRole) {
        let due = locked(&self.told).serves(role);
        if let Some(action) = due {
            self.call(config, action, role);
        }
    }

    /// A look that began then found the server serving in this role. Told again and again: only a change calls something.
    pub fn seen(&self, config: &NodeConfig, role: &MemberRole, began: Instant) {
        let due = locked(&self.told).seen(role, began);
        if let Some(action) = due {
            self.call(config, action, role);
        }
    }

    /// The server ended by itself: nothing is called, its next start is news.
    pub fn ended(&self) {
        locked(&self.told).up = false;
    }

    /// The arbiter stopped the server.
    pub fn stopped(&self, config: &NodeConfig) {
        let role = locked(&self.told).stopped();
        if let Some(role) = role {
            self.call(config, Action::Stop, &role);
        }
    }

    /// This node leads no more, and its server is down: an address that it held must go now, not when it is back as a standby.
    pub fn demoted(&self, config: &NodeConfig) {
        let due = locked(&self.told).demoted();
        if let Some(action) = due {
            self.call(config, action, &MemberRole::Demoted);
        }
    }

    /// What comes is a restart: its stop calls nothing, its start `on_restart`.
    pub fn restarting(&self) {
        locked(&self.told).restart = true;
    }

    /// The server was told to read its configuration again.
    pub fn reloaded(&self, config: &NodeConfig) {
        let role = locked(&self.told).role.clone();
        if let Some(role) = role {
            self.call(config, Action::Reload, &role);
        }
    }

    fn call(&self, config: &NodeConfig, action: Action, role: &MemberRole) {
        let lines = &config.postgres.callbacks;
        let (line, place) = match action {
            Action::Reload => (&lines.on_reload, 1),
            Action::Restart => (&lines.on_restart, 0),
            Action::RoleChange => (&lines.on_role_change, 0),
            Action::Start => (&lines.on_start, 0),
            Action::Stop => (&lines.on_stop, 0),
        };
        let Some(line) = line else { return };
        let line = line.and([action.word().to_owned(), role.to_string(), config.scope.to_string()]);
        let what = format!("callback {} ({role})", action.word());
        let mut running = locked(&self.running);
        // The news before is old: a callback that still works on it works against the new.
        let before = running[place].take().filter(|before| !before.is_finished());
        if let Some(before) = &before {
            tracing::warn!("{what}: the callback before it still ran and is ended");
            before.abort();
        }
        running[place] = Some(tokio::spawn(async move {
            if let Some(before) = before {
                // Aborted: this waits until its processes are killed, so that the two don't meet.
                let _ = before.await;
            }
            tracing::info!("{what} begins");
            let run = Run { what: &what, environment: Vec::new(), patience: None, stragglers: Stragglers::Leave };
            if let Err(why) = line.run(run).await {
                tracing::warn!("{what} failed: {why:#}");
            }
        }));
    }

    /// Before the arbiter ends: the last callback (`on_stop` takes an address away) gets this long.
    pub async fn finish(&self, patience: Duration) {
        let running = std::mem::take(&mut *locked(&self.running));
        for mut task in running.into_iter().flatten() {
            if tokio::time::timeout(patience, &mut task).await.is_err() {
                tracing::warn!("a callback still runs {} s after the end of the server: it is ended", patience.as_secs());
                task.abort();
                let _ = task.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use {
        Action::*,
        MemberRole::{Primary, Replica},
    };

    /// Found by a story: the loop's look of just before a promotion called `on_role_change` with `replica` after it.
    #[test]
    fn a_look_that_began_before_the_last_change_tells_nothing() {
        let mut told = Told::default();
        let before = Instant::now();
        assert_eq!(told.serves(&Replica), Some(Start));
        assert_eq!(told.serves(&Primary), Some(RoleChange));
        assert_eq!(told.seen(&Replica, before), None);
        assert_eq!(told.seen(&Primary, Instant::now()), None);
        assert_eq!(told.seen(&Replica, Instant::now()), Some(RoleChange));
    }

    #[test]
    fn each_change_is_told_once_with_the_fields_word() {
        enum Event {
            Serves(MemberRole, Option<Action>),
            Stopped(Option<MemberRole>),
            Ended,
            Restarting,
            Demoted(Option<Action>),
        }
        use Event::*;
        for (story, events) in [
            ("a start, and no change", vec![Serves(Replica, Some(Start)), Serves(Replica, None)]),
            ("a promotion", vec![Serves(Replica, Some(Start)), Serves(Primary, Some(RoleChange)), Serves(Primary, None)]),
            (
                "a demotion: stopped as primary, back as a standby",
                vec![Serves(Primary, Some(Start)), Stopped(Some(Primary)), Stopped(None), Serves(Replica, Some(RoleChange))],
            ),
            (
                "a restart",
                vec![Serves(Primary, Some(Start)), Restarting, Stopped(None), Serves(Primary, Some(Restart)), Stopped(Some(Primary))],
            ),
            ("a crash", vec![Serves(Primary, Some(Start)), Ended, Stopped(None), Serves(Primary, Some(Start))]),
            (
                "a crashed leader that gives up, back as a standby",
                vec![Serves(Primary, Some(Start)), Ended, Demoted(Some(RoleChange)), Demoted(None), Serves(Replica, Some(RoleChange))],
            ),
            ("a standby has nothing to give up", vec![Serves(Replica, Some(Start)), Ended, Demoted(None), Serves(Replica, Some(Start))]),
            ("a stop of what never served", vec![Stopped(None), Serves(Replica, Some(Start))]),
        ] {
            let mut told = Told::default();
            for event in events {
                match event {
                    Serves(role, due) => assert_eq!(told.serves(&role), due, "{story}"),
                    Stopped(due) => assert_eq!(told.stopped(), due, "{story}"),
                    Ended => told.up = false,
                    Restarting => told.restart = true,
                    Event::Demoted(due) => assert_eq!(told.demoted(), due, "{story}"),
                }
            }
        }
    }
}
