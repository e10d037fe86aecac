//! One turn of the loop: heed what woke it, read etcd, look at this node, decide, begin what was decided.

use super::{AFTER_FAILURE, Daemon, RETRY, Turn, WakeUp};
use crate::daemon::observe::{self, Seen};
use crate::duties::done::{Done, Judged};
use crate::duties::{self, found, found_by_method};
use crate::ground::systemd;
use crate::node::snapshot::Snapshot;
use crate::upkeep;
use anyhow::Result;
use cluster::duty::{self, Duty};
use cluster::instance::InUse;
use cluster::local::Postgres;
use cluster::member::{MemberRole, MemberState};
use cluster::reason::{Decision, Reason};
use cluster::store::Doubt;
use cluster::view::ClusterView;
use sd_notify::NotifyState;
use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The exit code where another start would end in the same way, and might do harm: the unit's `RestartPreventExitStatus=` names it
/// (EX_CONFIG of sysexits.h).
const IN_VAIN: u8 = 78;

/// What etcd said in this turn.
struct Read {
    /// It answered, is believed, and no other instance goes by our name.
    fresh: bool,
    /// It was emptied: nothing is known from it but that, and only founding the cluster again may follow.
    emptied: Option<ClusterView>,
}

impl Daemon {
    pub(super) async fn turn(&mut self, wake_up: WakeUp, show: &watch::Sender<Snapshot>) -> Result<Turn> {
        if let Some(turn) = self.heed(wake_up).await {
            return Ok(turn);
        }
        let read = match self.ask_etcd(show).await? {
            ControlFlow::Continue(read) => read,
            ControlFlow::Break(turn) => return Ok(turn),
        };
        let seen = self.look_and_speak(&read).await?;
        let decision = duty::decide(read.emptied.as_ref().unwrap_or(&self.view), &seen.local);
        show.send_replace(self.snapshot(&seen, Some(&decision)));
        if decision.what == Duty::Quit && self.procedure.is_none() {
            tracing::error!("this node can't be part of the cluster: {}", decision.why);
            return Ok(Turn::End(ExitCode::from(IN_VAIN)));
        }
        // What etcd said before it went away may be wrong by now: nothing is done on it but stopping.
        let founds = read.emptied.is_some() && decision.what == Duty::Bootstrap;
        if !(read.fresh || founds || self.memory.stopping) {
            if read.emptied.is_some() {
                self.tell(&decision, &seen.local);
            }
            self.fail_safe(&seen).await;
            return Ok(Turn::Again(RETRY));
        }
        self.act(decision, seen).await
    }

    /// What woke the loop. Some where this turn is over with it.
    async fn heed(&mut self, wake_up: WakeUp) -> Option<Turn> {
        match wake_up {
            WakeUp::Changed | WakeUp::Tick | WakeUp::Pulse => {}
            WakeUp::Extension => self.node.page.changed.notify_one(),
            WakeUp::PostmasterGone => self.postmaster_gone().await,
            WakeUp::Terminate => {
                tracing::info!("asked to stop");
                systemd::tell(&[NotifyState::Stopping]);
                self.memory.stopping = true;
                self.leaving = false;
                self.not_before = None;
                self.interrupt_procedure();
            }
            WakeUp::Leave => {
                tracing::info!("asked to end and to leave Postgres as it is, for the next arbiter");
                systemd::tell(&[NotifyState::Stopping]);
                if self.procedure.is_none() {
                    return Some(Turn::End(ExitCode::SUCCESS));
                }
                // What is half done is brought to its end first, as at any other time.
                self.leaving = !self.memory.stopping;
                self.interrupt_procedure();
            }
            WakeUp::Reload => {
                systemd::tell(&systemd::reloading());
                self.reload().await;
                systemd::tell(&[NotifyState::Ready]);
            }
            WakeUp::Command(command) => self.serve(command).await,
            WakeUp::Ended(done) => return self.procedure_ended(done),
        }
        None
    }

    /// The procedure under way has ended. Some where no look has to follow.
    fn procedure_ended(&mut self, done: Result<Done>) -> Option<Turn> {
        let duty = self.procedure.take().map(|(_, duty)| duty);
        if self.leaving {
            if let Err(why) = &done {
                tracing::error!("{why:#}");
            }
            return Some(Turn::End(ExitCode::SUCCESS));
        }
        if matches!((&duty, &done), (Some(Duty::Rest), Ok(Done::Settled))) && !std::mem::take(&mut self.look_owed) {
            return Some(Turn::Again(self.view.config().timing().loop_wait));
        }
        self.memory.control = None;
        if matches!(duty, Some(Duty::RestoreTo { .. })) {
            // What it took was no failure of the server.
            self.memory.down_since = None;
        }
        match done {
            Ok(Done::Stopped) => return Some(Turn::End(ExitCode::SUCCESS)),
            Ok(Done::Settled | Done::LookAgain) => (self.not_before, self.failures) = (None, 0),
            Err(why) => {
                tracing::error!("{why:#}");
                if duty == Some(Duty::Bootstrap) && self.node.config.founding_method().is_some() {
                    tracing::error!("the cluster was not founded by bootstrap.method, which is not tried again here: this arbiter ends");
                    return Some(Turn::End(ExitCode::from(IN_VAIN)));
                }
                self.not_before = Some(Instant::now() + self.pause_after_failure(duty.as_ref(), &why));
            }
        }
        if matches!(duty, Some(Duty::Clone { .. })) {
            // A copy that was ended by force for another one is not the one that was asked for.
            if !std::mem::take(&mut self.reinit_owed) {
                (self.memory.reinit, self.memory.from_leader) = (false, false);
            }
            self.memory.draw_lot();
        }
        None
    }

    /// How long nothing is begun after a procedure failed. What kept data from being made seldom passes by itself: it is tried again ever
    /// later, and said where people look.
    fn pause_after_failure(&mut self, duty: Option<&Duty>, why: &anyhow::Error) -> Duration {
        let (state, kept) = match duty {
            Some(Duty::Bootstrap) => {
                let aside = found_by_method::aside(&self.node.config.postgres.data_dir);
                let kept =
                    if aside.exists() { format!("; the data of a failed founding is in {}", aside.display()) } else { String::new() };
                (found::failed_state(&self.node), kept)
            }
            Some(Duty::Clone { .. } | Duty::Restore) => (MemberState::CreatingReplica, String::new()),
            _ => return AFTER_FAILURE,
        };
        let again = self.pause_after_copy();
        self.node.speak_reason(state, MemberRole::Uninitialized, format!("{why:#}{kept}; tried again in {} s", again.as_secs()));
        again
    }

    /// The view of this turn. Break where it ends the turn: etcd was never read yet, or another node has our name.
    async fn ask_etcd(&mut self, show: &watch::Sender<Snapshot>) -> Result<ControlFlow<Turn, Read>> {
        let first = self.view_at.is_none();
        let read = self.read_etcd().await;
        let emptied = match &read {
            Err(dcs::Error::Doubted { doubt: Doubt::Emptied(..), view }) => Some(self.emptied(view)),
            _ => None,
        };
        let fresh = match read {
            Err(why) if first && emptied.is_none() => return self.before_etcd(why, show).await.map(ControlFlow::Break),
            read => read.is_ok(),
        };
        let in_use = if fresh { self.node.lease.in_use(&self.view) } else { None };
        match in_use {
            // Waits for no key: this file names another address than the node of this name has.
            Some(clash @ InUse::Elsewhere { .. }) if first => return Ok(ControlFlow::Break(Turn::Fail(clash.into()))),
            Some(other) => self.keep_out(&other),
            None if first && fresh => self.met_etcd().await?,
            None => self.told_in_use = false,
        }
        Ok(ControlFlow::Continue(Read { fresh: fresh && !self.kept_out(), emptied }))
    }

    /// Looks at this node, and says what was seen wherever nobody else does.
    async fn look_and_speak(&mut self, read: &Read) -> Result<Seen> {
        self.memory.in_surgery = matches!(
            &self.procedure,
            Some((
                _,
                Duty::Bootstrap | Duty::Clone { .. } | Duty::Restore | Duty::Rewind { .. } | Duty::Upgrade { .. } | Duty::RestoreTo { .. }
            ))
        );
        if !self.is_busy() {
            self.memory.health.ends();
        }
        let mut seen = self.look().await?;
        if self.procedure.is_none() && matches!(seen.local.postgres, Postgres::Primary { .. } | Postgres::Standby { .. }) {
            self.memory.start_owed = false;
        }
        self.tell_of_start(&seen);
        // A node that is about to end has nothing to say: its word would stay for a TTL, as that of a member of this cluster.
        if self.procedure.is_some() || duty::decide(&self.view, &seen.local).what != Duty::Quit {
            self.speak_for(&seen).await;
        }
        self.call_back(&seen);
        let leads = self.view.leader_if(&self.node.config.name).is_some();
        if read.fresh && leads && !self.view.is_standby_cluster() && matches!(seen.local.postgres, Postgres::Standby { .. }) {
            // About to be promoted: what the lease worker knows of the lease is asked of etcd itself.
            seen.local.lease_valid = self.node.lease.confirm(&self.view).await;
        }
        Ok(seen)
    }

    /// On a fresh view: what was asked for and what was planned first, then what was decided.
    async fn act(&mut self, decision: Decision<Duty>, seen: Seen) -> Result<Turn> {
        self.told_failsafe = None;
        if let Err(why) = self.node.promise.end_where_superseded(&self.view, &self.node.etcd, &self.node.sql).await {
            tracing::debug!("{why:#}");
        }
        self.requested().await;
        let planned = self.planned_restart(&seen);
        let pause = self.begin(decision, seen);
        Ok(Turn::Again(planned.map_or(pause, |due| due.min(pause).max(Duration::from_millis(1)))))
    }

    /// A copy costs its source dear: tried again after 1, 2, 4, ... seconds.
    fn pause_after_copy(&mut self) -> Duration {
        let pause = AFTER_FAILURE * 2_u32.pow(self.failures.min(5));
        self.failures += 1;
        pause
    }

    /// Begins what was decided, unless something is under way. Gives the time until the next look.
    fn begin(&mut self, decision: Decision<Duty>, seen: Seen) -> Duration {
        let loop_wait = self.view.config().timing().loop_wait;
        let pause = observe::due_in(&self.view).map_or(loop_wait, |due| due.min(loop_wait).max(Duration::from_millis(1)));
        let hurry = matches!(decision.what, Duty::GiveWay { .. } | Duty::HandOver { .. } | Duty::Promote { .. } | Duty::Follow { .. });
        if hurry && matches!(self.procedure, Some((_, Duty::Rest))) {
            // Clients wait, and housekeeping may take its time, or wait for the very disk that makes this node sick. What a standby's round left
            // half done (files written and not yet read again) a promotion or a change of upstream does anyway.
            self.interrupt_procedure();
            self.procedure = None;
        }
        if self.procedure.is_some() {
            self.look_owed = true;
            return pause;
        }
        self.look_owed = false;
        if let Some(left) = self.not_before.and_then(|at| at.checked_duration_since(Instant::now())) {
            return left.max(Duration::from_millis(1));
        }
        self.tell(&decision, &seen.local);
        self.memory.stuck = matches!(decision.why, Reason::WalGoneNeedsHand { .. }).then(|| decision.why.to_string());
        if decision.what == Duty::Rest && seen.local.postgres == Postgres::Stopped {
            // Down, and nothing is done about it: that must not be a secret of this log.
            let state = if seen.local.start_failed.is_some() { MemberState::StartFailed } else { MemberState::Stopped };
            self.node.speak_reason(state, self.node.standby_role(&self.view), decision.why.to_string());
        }
        let judged = Judged { view: self.view.clone(), local: Arc::new(seen.local), facts: seen.facts.map(Arc::new) };
        if matches!(decision.why, Reason::SickOtherBetter { .. }) {
            self.memory.health.tries();
        }
        self.memory.start_owed |= matches!(decision.what, Duty::Switchover { .. });
        let task = tokio::spawn(duties::apply(self.node.clone(), decision.what.clone(), judged));
        self.procedure = Some((task, decision.what));
        pause
    }

    /// etcd is away: with `failsafe_mode` the leader asks every member for its promise instead.
    async fn fail_safe(&mut self, seen: &Seen) {
        let leads = self.view.leader_if(&self.node.config.name).is_some() && matches!(seen.local.postgres, Postgres::Primary { .. });
        if !leads || !self.view.config().failsafe_mode() {
            return;
        }
        let asked = upkeep::failsafe::ask_all(&self.node, &self.view).await;
        let told = match &asked {
            Ok(()) => "failsafe_mode: every member promised not to take the leader key; commits go on".to_owned(),
            Err(why) => format!("failsafe_mode: commits wait at the fence once the lease runs out: {why:#}"),
        };
        if self.told_failsafe.as_ref() != Some(&told) {
            tracing::warn!("{told}");
            self.told_failsafe = Some(told);
        }
    }

    /// Housekeeping gives way at once; a clone is begun again later. Everything else is let through.
    pub(super) fn interrupt_procedure(&mut self) {
        match &self.procedure {
            Some((task, Duty::Rest | Duty::Clone { .. } | Duty::Restore)) => task.abort(),
            // It may take hours; the next arbiter goes on with it.
            Some((task, Duty::RestoreTo { .. })) => task.abort(),
            // A restore may take hours; the mark says that its half is nobody's data.
            Some((task, Duty::Bootstrap)) if self.node.config.founding_method().is_some() => task.abort(),
            _ => {}
        }
    }
}
