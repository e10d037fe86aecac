//! What others ask of the daemon: by REST, by SQL through etcd, and restarts that were planned.

use super::Daemon;
use crate::daemon::observe::Seen;
use crate::daemon::words::word;
use crate::duties::{change_places, replay, restart, restore_to, upgrade};
use crate::node::snapshot::{Command, Restoring, Wanted};
use crate::node::{restoring, settings};
use cluster::duty::Duty;
use cluster::local::Postgres;
use cluster::request::{MemberRequest, Wish};
use cluster::restart::{self as scheduled, ToRestart};
use cluster::restore::{self, Target};
use cluster::upgrade::step::{Owed, Step};
use std::time::Duration;

impl Daemon {
    /// Something other than housekeeping is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.procedure.as_ref().is_some_and(|(_, duty)| *duty != Duty::Rest)
    }

    pub(super) async fn serve(&mut self, command: Command) {
        if self.view_at.is_none() {
            return command.refuse("etcd was not reached yet since this arbiter began");
        }
        match command {
            Command::LookNow => {}
            Command::Reload(answer) => {
                self.reload().await;
                // Where no server runs, it reads the new configuration at its start.
                let done = if self.node.postmaster().is_some() { self.node.reload().await } else { Ok(()) };
                let done = done.map_err(|why| format!("{why:#}"));
                let _ = answer.send(done);
            }
            Command::Restart(answer) => {
                if let Some((_, duty)) = self.procedure.as_ref().filter(|(_, duty)| *duty != Duty::Rest) {
                    let _ = answer.send(Err(format!("{} already in progress", word(duty))));
                } else if self.node.postmaster().is_none() {
                    self.start(answer);
                } else {
                    self.restart(Some(answer));
                }
            }
            Command::Schedule(plan, answer) => {
                let word = match &self.memory.scheduled_restart {
                    Some(before) => Err(format!("Another restart is already scheduled: at {}", before.schedule)),
                    None => {
                        tracing::info!("a restart is planned for {}", plan.schedule);
                        self.memory.scheduled_restart = Some(*plan);
                        Ok(())
                    }
                };
                let _ = answer.send(word);
            }
            Command::ForgetRestart(answer) => {
                let word = self.memory.scheduled_restart.take().map(|_| tracing::info!("the planned restart was taken back"));
                let _ = answer.send(word.ok_or_else(|| "no restarts are scheduled".to_owned()));
            }
            Command::Replay(ask, answer) => {
                // Beside the loop: it may take as long as there is WAL to replay.
                let (node, view) = (self.node.clone(), self.view.clone());
                tokio::spawn(async move {
                    let done = replay::perform(&node, &view, ask).await;
                    let said = done.as_deref().map_or_else(|why| format!("{why:#}"), str::to_owned);
                    tracing::info!("replay by hand ({ask:?}): {said}");
                    let _ = answer.send(done.map_err(|why| format!("{why:#}")));
                });
            }
            Command::Upgrade(wanted, answer) => self.upgrade(wanted, answer),
            Command::Restore(Restoring::To(to), answer) => self.restore(to, answer),
            Command::Restore(Restoring::Undo, answer) => {
                let _ = answer.send(self.undo_restore().await.map_err(|why| format!("{why:#}")));
            }
            Command::Reinitialize { force, from_leader, overwrite, answer } => {
                let done = self.reinitialize(force, from_leader);
                if done.is_ok() {
                    self.node.note_overwrite(overwrite);
                }
                let _ = answer.send(done);
            }
        }
    }

    /// Starts a server that is down as what this node owes the cluster, also in maintenance mode; who asked is told how it ended.
    fn start(&mut self, answer: tokio::sync::oneshot::Sender<Result<(), String>>) {
        tracing::info!("a restart was asked for and Postgres is down: it is started");
        self.memory.start_owed = true;
        self.not_before = None;
        self.node.note_start(None);
        self.start_asked = Some(answer);
    }

    /// The client that asked for a start is told once the server serves, or that it does not start.
    pub(super) fn tell_of_start(&mut self, seen: &Seen) {
        let word = match (&seen.local.postgres, &seen.local.start_failed) {
            (Postgres::Primary { .. } | Postgres::Standby { .. }, _) => Ok(()),
            (Postgres::Stopped, Some(words)) => Err(format!("start failed: {words}")),
            _ => return,
        };
        if let Some(answer) = self.start_asked.take() {
            let _ = answer.send(word);
        }
    }

    /// Begins a major upgrade in place, and says that it has begun: how it goes on GET `/upgrade` tells. Or the change of places with the twin,
    /// which takes moments: who asked is told how it ended.
    fn upgrade(&mut self, wanted: Wanted, answer: tokio::sync::oneshot::Sender<Result<(), String>>) {
        let standby_cluster = self.view.is_standby_cluster().then(|| "a standby cluster is upgraded by making it again".to_owned());
        if let Some(why) = self.not_now().or(standby_cluster) {
            let _ = answer.send(Err(why));
            return;
        }
        self.interrupt_procedure();
        let (node, view) = (self.node.clone(), self.view.clone());
        let task = tokio::spawn(async move {
            match wanted {
                Wanted::InPlace(to) => {
                    let _ = answer.send(Ok(()));
                    upgrade::upgrade(&node, &view, to).await
                }
                Wanted::ChangePlaces => {
                    let done = change_places::change(&node, &view).await;
                    let _ = answer.send(done.as_ref().map(|_| ()).map_err(|why| format!("{why:#}")));
                    done
                }
            }
        });
        self.procedure = Some((task, Duty::Upgrade { owed: Owed::GoOn(Step::Prepare) }));
    }

    /// Why nothing that stops the leader's server for long can begin, if so.
    fn not_now(&self) -> Option<String> {
        match self.procedure.as_ref().filter(|(_, duty)| *duty != Duty::Rest) {
            Some((_, duty)) => Some(format!("{} already in progress", word(duty))),
            None if self.view.leader_if(&self.node.config.name).is_none() => Some("this member does not lead: ask the leader".to_owned()),
            None if self.view.config().paused() => Some("the cluster is in maintenance mode: `tenure resume` ends it".to_owned()),
            None if self.memory.stopping => Some("the arbiter is ending".to_owned()),
            None => None,
        }
    }

    /// Begins a restore of this cluster to a point in its past; who asked is told how it ended.
    fn restore(&mut self, to: Target, answer: tokio::sync::oneshot::Sender<Result<(), String>>) {
        let standby_cluster =
            self.view.is_standby_cluster().then(|| "a standby cluster has the past of the one that it follows".to_owned());
        if let Some(why) = self.not_now().or(standby_cluster) {
            let _ = answer.send(Err(why));
            return;
        }
        self.interrupt_procedure();
        let (node, view) = (self.node.clone(), self.view.clone());
        let task = tokio::spawn(async move {
            let done = restore_to::begin(&node, &view, to).await;
            let _ = answer.send(done.as_ref().map(|_| ()).map_err(|why| format!("{why:#}")));
            done
        });
        self.procedure = Some((task, Duty::RestoreTo { owed: restore::Owed::GoOn(restore::Step::Stop) }));
    }

    /// Calls the restore off that is under way here, unless it is about to be told to etcd.
    async fn undo_restore(&mut self) -> anyhow::Result<()> {
        let Some(mut journal) = restoring::read(&self.node.config).await? else { anyhow::bail!("no restore is under way here") };
        anyhow::ensure!(journal.step < restore::Step::Announce, "it is too late: etcd is being told of the restored data");
        tracing::warn!("the restore to {} is called off", journal.to);
        if let Some((task, Duty::RestoreTo { .. })) = &mut self.procedure {
            task.abort();
            // What it was writing is written.
            let _ = task.await;
            self.procedure = None;
        }
        journal.undo = true;
        restoring::write(&self.node.config, &journal).await?;
        self.not_before = None;
        self.node.wake.notify_one();
        Ok(())
    }

    /// Restarts Postgres in place; who asked is told how it ended.
    fn restart(&mut self, answer: Option<tokio::sync::oneshot::Sender<Result<(), String>>>) {
        self.interrupt_procedure();
        let node = self.node.clone();
        let view = self.view.clone();
        let task = tokio::spawn(async move {
            let done = restart::restart(&node, &view).await;
            if let Some(answer) = answer {
                let _ = answer.send(done.as_ref().map(|_| ()).map_err(|why| format!("{why:#}")));
            }
            done
        });
        self.procedure = Some((task, Duty::Stop));
    }

    /// Takes up what somebody asked for through etcd; the request is gone before anything is done.
    pub(super) async fn requested(&mut self) {
        let name = self.node.config.name.clone();
        let Some(request) = self.view.requests.get(&name).cloned() else { return };
        if self.is_busy() {
            return;
        }
        if let Err(why) = self.node.etcd.take_request(&name, request.revision).await {
            tracing::debug!("the request was not taken up: {why}");
            return;
        }
        if let Some(why) = request.value.refused() {
            tracing::error!("{} asked for by SQL on {} is not done: {why}", request.value.wish, request.value.by);
            return;
        }
        let MemberRequest { wish, conditions, by, speech: _ } = request.value;
        tracing::info!("{wish} asked for by SQL on {by}");
        let (answer, answered) = tokio::sync::oneshot::channel();
        let snapshot_role = if self.view.leader_if(&name).is_some() { "primary" } else { "replica" };
        let facts = self.node.sql.facts().await.ok();
        let pending = facts.as_ref().is_some_and(|facts| {
            !settings::pending(&self.node.config, &self.node.dynamic(&self.view), &self.node.knowledge.known(), facts).is_empty()
        });
        let server = ToRestart { role: snapshot_role, version: facts.as_ref().map(|facts| facts.server_version), pending, started: "" };
        match wish {
            Wish::Restart if !conditions.are_met(&server) => tracing::info!("no restart: its conditions are not met"),
            Wish::Restart => self.serve(Command::Restart(answer)).await,
            Wish::Reload => self.serve(Command::Reload(answer)).await,
            Wish::Reinit => self.serve(Command::Reinitialize { force: false, from_leader: false, overwrite: false, answer }).await,
            Wish::Replay(ask) => {
                // Its end is told in the log, as by REST.
                let (answer, _) = tokio::sync::oneshot::channel();
                return self.serve(Command::Replay(ask, answer)).await;
            }
            // Refused above.
            Wish::Unknown => return,
        }
        tokio::spawn(async move {
            if let Ok(Err(why)) = answered.await {
                tracing::error!("{wish}, asked for by SQL on {by}: {why}");
            }
        });
    }

    /// Does, keeps or drops the restart that was planned; gives how long until it is due.
    pub(super) fn planned_restart(&mut self, seen: &Seen) -> Option<Duration> {
        let plan = self.memory.scheduled_restart.as_ref()?;
        let facts = seen.facts.as_ref()?;
        let late = plan.schedule.parse::<jiff::Timestamp>().ok().map(|at| jiff::Timestamp::now().duration_since(at).as_secs_f64());
        let role = match seen.local.postgres {
            Postgres::Primary { .. } => "primary",
            _ if self.view.leader_if(&self.node.config.name).is_some() => "standby_leader",
            _ => "replica",
        };
        let server = ToRestart {
            role,
            version: Some(facts.server_version),
            pending: !seen.described.pending_restart.is_empty(),
            started: &facts.postmaster_start_time,
        };
        let config = self.view.config();
        match scheduled::judge(plan, &server, late, config.timing().loop_wait.as_secs_f64(), config.paused()) {
            scheduled::Due::Wait => return late.and_then(|late| Duration::try_from_secs_f64(-late).ok()),
            // Something is under way: at its end, or in the next turn.
            scheduled::Due::Restart if self.is_busy() => return None,
            scheduled::Due::Restart => {
                tracing::info!("restarting as planned for {}", plan.schedule);
                self.restart(None);
            }
            scheduled::Due::Drop(why) => tracing::warn!("the restart planned for {} is dropped: {why}", plan.schedule),
        }
        self.memory.scheduled_restart = None;
        None
    }

    /// Takes note that a new copy is wanted; a job that is under way is ended where that is forced.
    fn reinitialize(&mut self, force: bool, from_leader: bool) -> Result<(), String> {
        if self.view.leader_if(&self.node.config.name).is_some() {
            return Err("I am the leader, can not reinitialize".to_owned());
        }
        if let Some((task, duty)) = self.procedure.as_ref().filter(|(_, duty)| *duty != Duty::Rest) {
            if !force {
                return Err(format!("{} already in progress; `--force` ends it", word(duty)));
            }
            // What it leaves is replaced by the copy.
            tracing::warn!("ending what is under way ({}) for a new copy", word(duty));
            task.abort();
            self.reinit_owed = matches!(duty, Duty::Clone { .. });
        }
        (self.memory.reinit, self.memory.from_leader) = (true, from_leader);
        self.not_before = None;
        Ok(())
    }
}
