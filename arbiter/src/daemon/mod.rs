//! The arbiter: one loop over one closed set of wake-ups: look, decide, apply, look again.

pub mod begin;
mod beside;
mod files;
mod health;
mod led;
mod observe;
mod reading;
mod reload;
mod requests;
mod sockets;
mod speaking;
mod turn;
mod words;

use crate::citus;
use crate::config::NodeConfig;
use crate::daemon::led::Led;
use crate::daemon::observe::{LoopMemory, Seen};
use crate::daemon::sockets::wake_socket;
use crate::duties::done::Done;
use crate::ground::systemd::{self, Pulse};
use crate::node::Node;
use crate::node::memory;
use crate::node::paths;
use crate::node::snapshot::{Command, NodeHandle, Snapshot};
use crate::poolers;
use crate::rest;
use crate::rest::Door;
use crate::upkeep;
use anyhow::{Context, Result};
use cluster::duty::Duty;
use cluster::local::Postgres;
use cluster::reason::Decision;
use cluster::view::ClusterView;
use sd_notify::NotifyState;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Pause before etcd is asked again after it gave no answer.
const RETRY: Duration = Duration::from_millis(250);

/// Pause after a procedure failed, so that a fault that stays does not become a flood.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// When the arbiter ends, the last callback may take so long.
const CALLBACK_WITHIN: Duration = Duration::from_secs(10);

/// Why the loop turns.
#[derive(Debug)]
enum WakeUp {
    /// Something changed: in etcd, in the lease, in a procedure.
    Changed,
    /// The lease worker, or a walsender that ended, says so.
    Extension,
    /// The postmaster has ended.
    PostmasterGone,
    /// Nothing happened for a while.
    Tick,
    /// SIGTERM or SIGINT.
    Terminate,
    /// SIGUSR1.
    Leave,
    /// SIGHUP.
    Reload,
    /// A sign of life is due, and nothing else.
    Pulse,
    /// REST asks for something.
    Command(Command),
    /// The procedure under way has ended.
    Ended(Result<Done>),
}

enum Turn {
    Again(Duration),
    End(ExitCode),
    Fail(anyhow::Error),
}

struct Daemon {
    node: Node,
    path: PathBuf,
    memory: LoopMemory,
    view: Arc<ClusterView>,
    view_at: Option<Instant>,
    /// The procedure under way, one at a time, and what it does.
    procedure: Option<(JoinHandle<Result<Done>>, Duty)>,
    /// No procedure before this moment: the last one failed.
    not_before: Option<Instant>,
    told: Option<Decision<Duty>>,
    told_etcd: bool,
    /// Who led, and how often another came.
    led: Led,
    /// Another instance goes by our name, and that was said.
    told_in_use: bool,
    /// Copies that failed, in a row.
    failures: u32,
    /// A new copy was asked for while one was under way.
    reinit_owed: bool,
    /// Something woke the loop while a procedure was under way: look once more when it has ended.
    look_owed: bool,
    /// SIGUSR1 was received: this process ends, and Postgres stays for the next one.
    leaving: bool,
    /// Who asked for a restart of a server that was down.
    start_asked: Option<tokio::sync::oneshot::Sender<Result<(), String>>>,
    /// What was last said about `failsafe_mode`, while etcd is away.
    told_failsafe: Option<String>,
    /// Who may ask REST for what.
    door: watch::Sender<Arc<Door>>,
    /// The node's file as last read, for tasks beside the loop.
    configured: watch::Sender<Arc<NodeConfig>>,
}

impl Daemon {
    fn new(node: Node, path: PathBuf, door: Door) -> Daemon {
        let configured = watch::channel(node.config.clone()).0;
        Daemon {
            node,
            path,
            memory: LoopMemory::with_a_lot(),
            view: Arc::default(),
            view_at: None,
            procedure: None,
            not_before: None,
            told: None,
            told_etcd: false,
            led: Led::default(),
            told_in_use: false,
            failures: 0,
            reinit_owed: false,
            look_owed: false,
            leaving: false,
            start_asked: None,
            told_failsafe: None,
            door: watch::channel(Arc::new(door)).0,
            configured,
        }
    }

    async fn run(mut self, listener: tokio::net::TcpListener) -> Result<ExitCode> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut leave = signal(SignalKind::user_defined1())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let extension = wake_socket(&self.node.config)?;
        memory::recall(&self.node.config, &self.node.etcd).await;
        let (ask, mut asked) = mpsc::channel(16);
        let seen = observe::look(&self.node, &self.view, &mut self.memory).await?;
        let (show, shown) = watch::channel(self.snapshot(&seen, None));
        let keeping_citus = tokio::spawn(citus::keep(self.node.clone(), shown.clone(), self.configured.subscribe()));
        let keeping_poolers = tokio::spawn(poolers::keep(self.node.clone(), shown.clone(), self.configured.subscribe()));
        let beside = beside::begin(&self.node, &self.configured, &shown);
        let node = NodeHandle {
            snapshot: shown,
            commands: ask,
            journal: self.node.journal.clone(),
            etcd: self.node.etcd.clone(),
            promise: self.node.promise.clone(),
            timings: self.node.timings.clone(),
            certificates: self.node.certificates.clone(),
            knowledge: self.node.knowledge.clone(),
            config: self.node.config.clone(),
            sql: self.node.sql.clone(),
            twin: self.node.twin.clone(),
        };
        systemd::tell(&[NotifyState::Ready]);
        let rest = tokio::spawn(rest::serve(listener, node, self.door.subscribe()));
        let watching = tokio::spawn(dcs::watch::keep_watching(self.node.etcd.clone(), self.node.wake.clone()));
        let keeper = self.node.lease.clone();
        let keeping = tokio::spawn(async move { keeper.keep().await });
        let mut next_look = Instant::now();
        let mut pulse = Pulse::asked_for(next_look);
        let ended = loop {
            pulse.beat(Instant::now());
            let postmaster = self.node.postmaster();
            let gone = async {
                match postmaster {
                    Some(postmaster) => postmaster.exited().await,
                    None => std::future::pending().await,
                }
            };
            let mut byte = [0; 8];
            let wake_up = tokio::select! {
                biased;
                _ = terminate.recv() => WakeUp::Terminate,
                _ = interrupt.recv() => WakeUp::Terminate,
                _ = leave.recv() => WakeUp::Leave,
                done = ended(&mut self.procedure) => WakeUp::Ended(done),
                () = gone => WakeUp::PostmasterGone,
                Some(command) = asked.recv() => WakeUp::Command(command),
                _ = extension.recv(&mut byte) => WakeUp::Extension,
                () = self.node.wake.notified() => WakeUp::Changed,
                _ = hangup.recv() => WakeUp::Reload,
                () = tokio::time::sleep_until(next_look.into()) => WakeUp::Tick,
                () = pulse.due() => WakeUp::Pulse,
            };
            if matches!(wake_up, WakeUp::Pulse) {
                continue;
            }
            let pause = match self.turn(wake_up, &show).await {
                Ok(Turn::Again(pause)) => pause,
                Ok(Turn::End(code)) => break Ok(code),
                Ok(Turn::Fail(why)) => break Err(why),
                Err(why) => {
                    tracing::error!("{why:#}");
                    AFTER_FAILURE
                }
            };
            next_look = Instant::now() + pause;
        };
        self.node.callbacks.finish(CALLBACK_WITHIN).await;
        upkeep::watchdog::at_end(&self.node, self.view.config().paused()).await;
        keeping.abort();
        keeping_citus.abort();
        keeping_poolers.abort();
        drop(beside);
        if !self.leaving {
            upkeep::twin::at_end(&self.node).await;
        }
        upkeep::addresses::at_end(&self.node).await;
        watching.abort();
        rest.abort();
        let _ = std::fs::remove_file(paths::wake_socket(&self.node.config));
        ended
    }

    /// What REST shows of this turn.
    fn snapshot(&self, seen: &Seen, decision: Option<&Decision<Duty>>) -> Snapshot {
        // A primary's own page says until when it may write; a node without a server asks the lease the arbiter keeps.
        let by_page = match seen.local.postgres {
            Postgres::Primary { .. } => true,
            Postgres::Standby { .. } => self.view.is_standby_cluster(),
            Postgres::Stopped | Postgres::Starting { .. } | Postgres::Silent => false,
        };
        let lease_until = if by_page { seen.fence_until } else { self.node.lease.until() };
        Snapshot {
            view: self.view.clone(),
            view_at: self.view_at,
            lease_until,
            local: Arc::new(seen.local.clone()),
            facts: seen.facts.clone().map(Arc::new),
            described: Arc::new(seen.described.clone()),
            symptoms: seen.symptoms.clone(),
            decision: decision.cloned(),
            leader_changes: self.led.changes,
            turned_at: Instant::now(),
        }
    }
}

/// The end of the procedure under way; never, while there is none.
async fn ended(procedure: &mut Option<(JoinHandle<Result<Done>>, Duty)>) -> Result<Done> {
    match procedure {
        None => std::future::pending().await,
        Some((task, _)) => match task.await {
            Ok(done) => done,
            Err(cancelled) if cancelled.is_cancelled() => Ok(Done::LookAgain),
            Err(panicked) => Err(panicked).context("a procedure panicked"),
        },
    }
}
