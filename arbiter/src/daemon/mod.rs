//! The arbiter: one loop over one closed set of wake-ups: look, decide, apply, look again.

mod asked;
pub mod beside;
pub mod observe;
mod reading;
pub mod snapshot;

use crate::config::{HostPort, NodeConfig};
use crate::daemon::observe::{Memory, Seen};
use crate::daemon::snapshot::{Command, NodeHandle, Snapshot};
use crate::duties::found;
use crate::duties::{self, Done, Judged};
use crate::ground::logging;
use crate::ground::member_rest::Caller;
use crate::ground::systemd::{self, Pulse};
use crate::node::Node;
use crate::node::memory;
use crate::node::settings;
use crate::postgres;
use crate::postgres::query::ExtensionMissing;
use crate::rest;
use crate::rest::Gate;
use anyhow::{Context, Result};
use cluster::duty::{self, Duty};
use cluster::instance::InUse;
use cluster::lease;
use cluster::local::Postgres;
use cluster::member::{MemberRole, MemberState, Tags};
use cluster::reason::{Decision, Reason};
use cluster::store::Doubt;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use dcs::remember::Remembered;
use dcs::{Etcd, Settings};
use reading::Led;
use sd_notify::NotifyState;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixDatagram;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

/// Pause before etcd is asked again after it gave no answer.
const RETRY: Duration = Duration::from_millis(250);

/// Pause after a procedure failed, so that a fault that stays does not become a flood.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// When the arbiter ends, the last callback may take so long.
const CALLBACK_WITHIN: Duration = Duration::from_secs(10);

/// The exit code where another start would end in the same way, and might do harm: the unit's `RestartPreventExitStatus=` names it
/// (EX_CONFIG of sysexits.h).
const IN_VAIN: u8 = 78;

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
    Asked(Command),
    /// The procedure under way has ended.
    Ended(Result<Done>),
}

/// Runs the arbiter with the node's file until it is told to end. The exit code tells why.
pub async fn run(path: &Path) -> Result<ExitCode> {
    let config = NodeConfig::load(path, std::env::vars())?;
    let whose = logging::Whose { scope: config.scope.as_str(), member: config.name.as_str() };
    logging::start(config.log.level, config.log.json, Some(whose));
    postgres::refuse_root()?;
    crate::ground::capabilities::keep_to_ourselves()?;
    for line in &config.not_served {
        tracing::warn!("{}: {line}", path.display());
    }
    warn_of_tags(&config);
    let files = RestFiles::load(&config)?;
    if config.rest.tls.is_some() && config.ctl.tls.authority.is_none() {
        tracing::warn!("other members' certificates are not checked: there is neither ctl.cacert nor restapi.cafile");
    }
    if let Some(parent) = config.postgres.data_dir.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    let listener = listen(&config.rest.listen)
        .await
        .with_context(|| format!("listen for REST on {} (restapi.listen): is another arbiter running here?", config.rest.listen))?;
    let remembered = Arc::new(Remembered::default());
    let etcd = Arc::new(Etcd::new(config.keys(), etcd_settings(&config)?).remembering(remembered));
    let config = Arc::new(config);
    let wake = Arc::new(Notify::new());
    let node = Node::new(config.clone(), files.caller, etcd, wake);
    tracing::info!("arbiter of {} in {} begins, version {}", config.name, config.scope, env!("CARGO_PKG_VERSION"));
    Daemon::new(node, path.to_owned(), files.gate).run(listener).await
}

fn warn_of_tags(config: &NodeConfig) {
    for conflict in Tags(config.tags.clone()).conflicts() {
        tracing::warn!("{conflict}");
    }
}

/// `*` is every address: of both kinds where this machine has both.
async fn listen(address: &HostPort) -> std::io::Result<tokio::net::TcpListener> {
    if address.host != "*" {
        return tokio::net::TcpListener::bind((address.host.as_str(), address.port)).await;
    }
    match tokio::net::TcpListener::bind(("::", address.port)).await {
        Err(why) if why.kind() != std::io::ErrorKind::AddrInUse => tokio::net::TcpListener::bind(("0.0.0.0", address.port)).await,
        bound => bound,
    }
}

/// How to reach etcd, from the node's file. Reads certificates, so before the loop begins.
pub fn etcd_settings(config: &NodeConfig) -> Result<Settings> {
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let ttl = cluster::config::DynamicConfig(config.bootstrap.dcs.clone()).timing().ttl;
    Ok(Settings {
        endpoints: config.etcd.endpoints.clone(),
        user: config
            .etcd
            .username
            .clone()
            .map(|user| (user, config.etcd.password.as_ref().map(|p| p.reveal().to_owned()).unwrap_or_default())),
        ca_certificate: config.etcd.cacert.as_ref().map(read).transpose()?,
        identity: config
            .etcd
            .client_certificate
            .as_ref()
            .map(|(cert, key)| Ok::<_, anyhow::Error>((read(cert)?, read(key)?)))
            .transpose()?,
        try_timeout: lease::try_timeout(ttl, config.etcd.endpoints.len()),
    })
}

/// What REST needs from files, on both sides.
struct RestFiles {
    caller: Caller,
    gate: Gate,
}

impl RestFiles {
    /// Reads certificates. Blocks.
    fn load(config: &NodeConfig) -> Result<RestFiles> {
        let tls = config.ctl.tls.load().context("set up TLS for other members' REST (section ctl)")?;
        let gate = Gate::load(&config.rest).context("set up the REST interface (section restapi)")?;
        if config.rest.is_open_to_everybody() {
            tracing::warn!(
                "whoever reaches REST on {} may switch over, restart, reinitialize and change the configuration; hint: set restapi.authentication, restapi.allowlist or restapi.verify_client, or listen on 127.0.0.1",
                config.rest.listen
            );
        }
        Ok(RestFiles { caller: Caller::new(config.ctl.authentication.clone(), Some(tls)).only_over_tls(config.ctl.tls.is_set()), gate })
    }
}

struct Daemon {
    node: Node,
    path: PathBuf,
    memory: Memory,
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
    gate: watch::Sender<Arc<Gate>>,
    /// The node's file as last read, for tasks beside the loop.
    configured: watch::Sender<Arc<NodeConfig>>,
}

impl Daemon {
    fn new(node: Node, path: PathBuf, gate: Gate) -> Daemon {
        let configured = watch::channel(node.config.clone()).0;
        Daemon {
            node,
            path,
            memory: Memory { lot: lot(), ..Memory::default() },
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
            gate: watch::channel(Arc::new(gate)).0,
            configured,
        }
    }

    async fn run(mut self, listener: tokio::net::TcpListener) -> Result<ExitCode> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut leave = signal(SignalKind::user_defined1())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let extension = wake_socket(&self.node.config)?;
        memory::recall(&self.node).await;
        let (ask, mut asked) = mpsc::channel(16);
        let seen = observe::look(&self.node, &self.view, &mut self.memory).await?;
        let (show, shown) = watch::channel(self.snapshot(&seen, None));
        let keeping_citus = tokio::spawn(crate::citus::keep(self.node.clone(), shown.clone(), self.configured.subscribe()));
        let keeping_poolers = tokio::spawn(crate::poolers::keep(self.node.clone(), shown.clone(), self.configured.subscribe()));
        let beside = crate::daemon::beside::begin(&self.node, &self.configured, &shown);
        let node = NodeHandle {
            snapshot: shown,
            commands: ask,
            journal: self.node.journal.clone(),
            etcd: self.node.etcd.clone(),
            promise: self.node.promise.clone(),
            timings: self.node.timings.clone(),
            knowledge: self.node.knowledge.clone(),
            config: self.node.config.clone(),
            sql: self.node.sql.clone(),
        };
        systemd::tell(&[NotifyState::Ready]);
        let rest = tokio::spawn(rest::serve(listener, node, self.gate.subscribe()));
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
                Some(command) = asked.recv() => WakeUp::Asked(command),
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
        crate::node::watchdog::at_end(&self.node, self.view.config().paused()).await;
        keeping.abort();
        keeping_citus.abort();
        keeping_poolers.abort();
        drop(beside);
        crate::address::at_end(&self.node).await;
        watching.abort();
        rest.abort();
        let _ = std::fs::remove_file(settings::wake_socket(&self.node.config));
        ended
    }

    async fn turn(&mut self, wake_up: WakeUp, show: &watch::Sender<Snapshot>) -> Result<Turn> {
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
                    return Ok(Turn::End(ExitCode::SUCCESS));
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
            WakeUp::Asked(command) => self.asked(command).await,
            WakeUp::Ended(done) => {
                let duty = self.procedure.take().map(|(_, duty)| duty);
                if self.leaving {
                    if let Err(why) = &done {
                        tracing::error!("{why:#}");
                    }
                    return Ok(Turn::End(ExitCode::SUCCESS));
                }
                if matches!((&duty, &done), (Some(Duty::Rest), Ok(Done::Settled))) && !std::mem::take(&mut self.look_owed) {
                    return Ok(Turn::Again(self.view.config().timing().loop_wait));
                }
                self.memory.control = None;
                match done {
                    Ok(Done::Stopped) => return Ok(Turn::End(ExitCode::SUCCESS)),
                    Ok(_) => (self.not_before, self.failures) = (None, 0),
                    Err(why) => {
                        tracing::error!("{why:#}");
                        if duty == Some(Duty::Bootstrap) && self.node.config.founding_method().is_some() {
                            tracing::error!(
                                "the cluster was not founded by bootstrap.method, which is not tried again here: this arbiter ends"
                            );
                            return Ok(Turn::End(ExitCode::from(IN_VAIN)));
                        }
                        if duty == Some(Duty::Bootstrap) {
                            // What keeps a founding from working seldom passes by itself: tried again ever later, and said where people look.
                            let again = self.pause_after_copy();
                            let aside = crate::duties::found_by_method::aside(&self.node.config.postgres.data_dir);
                            let kept = if aside.exists() {
                                format!("; the data of a failed founding is in {}", aside.display())
                            } else {
                                String::new()
                            };
                            let why = format!("{why:#}{kept}; tried again in {} s", again.as_secs());
                            self.node.speak_reason(found::failed_state(&self.node), MemberRole::Uninitialized, why);
                            self.not_before = Some(Instant::now() + again);
                        } else if matches!(duty, Some(Duty::Clone { .. } | Duty::Restore)) {
                            let again = self.pause_after_copy();
                            let why = format!("{why:#}; tried again in {} s", again.as_secs());
                            self.node.speak_reason(MemberState::CreatingReplica, MemberRole::Uninitialized, why);
                            self.not_before = Some(Instant::now() + again);
                        } else {
                            self.not_before = Some(Instant::now() + AFTER_FAILURE);
                        }
                    }
                }
                if matches!(duty, Some(Duty::Clone { .. })) {
                    // A copy that was ended by force for another one is not the one that was asked for.
                    if !std::mem::take(&mut self.reinit_owed) {
                        (self.memory.reinit, self.memory.from_leader) = (false, false);
                    }
                    self.memory.lot = lot();
                }
            }
        }
        let first = self.view_at.is_none();
        let read = self.read_etcd().await;
        // etcd was emptied: nothing is known from it but that, and only founding the cluster again may follow.
        let emptied = match &read {
            Err(dcs::Error::Doubted { doubt: Doubt::Emptied(..), view }) => Some(self.emptied(view)),
            _ => None,
        };
        let fresh = match read {
            Err(why) if first && emptied.is_none() => return self.before_etcd(why, show).await,
            read => read.is_ok(),
        };
        let in_use = if fresh { self.node.lease.in_use(&self.view) } else { None };
        match in_use {
            // Waits for no key: this file names another address than the node of this name has.
            Some(clash @ InUse::Elsewhere { .. }) if first => return Ok(Turn::Fail(clash.into())),
            Some(other) => self.keep_out(&other),
            None if first && fresh => self.met_etcd().await?,
            None => self.told_in_use = false,
        }
        let fresh = fresh && !self.kept_out();
        self.memory.in_surgery =
            matches!(&self.procedure, Some((_, Duty::Bootstrap | Duty::Clone { .. } | Duty::Restore | Duty::Rewind { .. })));
        let mut seen = observe::look(&self.node, &self.view, &mut self.memory).await?;
        if self.procedure.is_none() && matches!(seen.local.postgres, Postgres::Primary { .. } | Postgres::Standby { .. }) {
            self.memory.start_owed = false;
        }
        self.tell_of_start(&seen);
        // Who is about to end has nothing to say: its word would stay for a TTL, as that of a member of this cluster.
        if self.procedure.is_some() || duty::decide(&self.view, &seen.local).what != Duty::Quit {
            self.speak_for(&seen).await;
        }
        self.call_back(&seen);
        let leads = self.view.leader_if(&self.node.config.name).is_some();
        if fresh && leads && !self.view.is_standby_cluster() && matches!(seen.local.postgres, Postgres::Standby { .. }) {
            // About to be promoted: what the lease worker knows of the lease is asked of etcd itself.
            seen.local.lease_valid = self.node.lease.confirm(&self.view).await;
        }
        let decision = duty::decide(emptied.as_ref().unwrap_or(&self.view), &seen.local);
        show.send_replace(self.snapshot(&seen, Some(&decision)));
        if decision.what == Duty::Quit && self.procedure.is_none() {
            bail_out(&decision);
            return Ok(Turn::End(ExitCode::from(IN_VAIN)));
        }
        // What etcd said before it went away may be wrong by now: nothing is done on it but stopping.
        let founds = emptied.is_some() && decision.what == Duty::Bootstrap;
        if !(fresh || founds || self.memory.stopping) {
            if emptied.is_some() {
                self.tell(&decision, &seen.local);
            }
            self.fail_safe(&seen).await;
            return Ok(Turn::Again(RETRY));
        }
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
        if self.procedure.is_some() {
            self.look_owed = true;
            return pause;
        }
        self.look_owed = false;
        if let Some(left) = self.not_before.and_then(|at| at.checked_duration_since(Instant::now())) {
            return left.max(Duration::from_millis(1));
        }
        self.tell(&decision, &seen.local);
        self.memory.stuck = matches!(decision.why, Reason::LogGoneNeedsHand { .. }).then(|| decision.why.to_string());
        if decision.what == Duty::Rest && seen.local.postgres == Postgres::Stopped {
            // Down, and nothing is done about it: that must not be a secret of this log.
            let state = if seen.local.start_failed.is_some() { MemberState::StartFailed } else { MemberState::Stopped };
            self.node.speak_reason(state, self.node.standby_role(&self.view), decision.why.to_string());
        }
        let judged = Judged { view: self.view.clone(), local: Arc::new(seen.local), facts: seen.facts.map(Arc::new) };
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
        let asked = crate::upkeep::failsafe::ask_all(&self.node, &self.view).await;
        let told = match &asked {
            Ok(()) => "failsafe_mode: every member promised not to take the leader key; commits go on".to_owned(),
            Err(why) => format!("failsafe_mode: commits wait at the fence once the lease runs out: {why:#}"),
        };
        if self.told_failsafe.as_ref() != Some(&told) {
            tracing::warn!("{told}");
            self.told_failsafe = Some(told);
        }
    }

    /// The server that serves speaks for itself; while there is none, the arbiter does.
    async fn speak_for(&mut self, seen: &Seen) {
        self.node.lease.describe(&seen.described);
        if let Some(why) = &seen.local.strange {
            // It has no lease worker, or one that speaks for another: this node's key says what is the matter.
            if self.procedure.as_ref().is_none_or(|(_, duty)| *duty == Duty::Rest) {
                let role = if matches!(seen.local.postgres, Postgres::Primary { .. }) { MemberRole::Primary } else { MemberRole::Replica };
                self.node.speak_reason(MemberState::from(cluster::mark::STATE.to_owned()), role, why.clone());
            }
            return;
        }
        match seen.local.postgres {
            Postgres::Primary { .. } | Postgres::Standby { .. } => {
                // A procedure that stops or starts the server keeps the lease itself until it is through.
                let serving =
                    self.procedure.as_ref().is_none_or(|(_, duty)| matches!(duty, Duty::Rest | Duty::Follow { .. } | Duty::Promote { .. }));
                if serving && !self.memory.stopping {
                    self.node.lease.speak(None);
                }
                let leads = matches!(seen.local.postgres, Postgres::Primary { .. });
                match found::attach(&self.node, Some(&seen.described), leads || seen.barred.is_none()).await {
                    Ok(()) => self.memory.attach_told.clear(),
                    Err(why) => self.not_attached(seen, &why).await,
                }
            }
            Postgres::Stopped if !self.node.lease.speaking() => self.node.speak(MemberState::Stopped, self.node.standby_role(&self.view)),
            Postgres::Starting { .. }
                if !self.node.lease.speaking() && cluster::duty::keeps_lease_for_recovery(&self.view, &seen.local) =>
            {
                tracing::warn!("Postgres recovers from the crash of one of its processes: the arbiter keeps the lease meanwhile");
                let role = if self.view.is_standby_cluster() { MemberRole::StandbyLeader } else { MemberRole::Primary };
                self.node.speak(MemberState::Starting, role);
            }
            Postgres::Stopped | Postgres::Starting { .. } | Postgres::Silent => {}
        }
    }

    /// Without the extension's functions nothing planned can be done here. Where somebody dropped the extension it is made again, by whoever writes;
    /// a cluster that was just taken over gets it in this way too.
    async fn not_attached(&mut self, seen: &Seen, why: &anyhow::Error) {
        if matches!(self.procedure, Some((_, Duty::Bootstrap))) {
            // The founding makes it, in its turn.
            return;
        }
        let missing = why.chain().any(|cause| cause.is::<ExtensionMissing>());
        if missing && seen.fence_until.is_none() && matches!(seen.local.postgres, Postgres::Primary { .. }) {
            let made = found::ensure_extension(&self.node).await;
            match made {
                Ok(()) => tracing::warn!("the extension pg_tenure was not there: it was made again"),
                Err(why) => tracing::warn!("the extension pg_tenure is not there: {why:#}"),
            }
            return self.node.wake.notify_one();
        }
        let told = format!("{why:#}");
        if self.memory.attach_told != told {
            tracing::warn!("attach to the lease worker: {told}");
            self.memory.attach_told = told;
        }
    }

    /// Tells the callbacks what the server is now. Nothing is told before the cluster exists.
    fn call_back(&self, seen: &Seen) {
        let role = match seen.local.postgres {
            Postgres::Primary { .. } => MemberRole::Primary,
            Postgres::Standby { .. } => self.node.standby_role(&self.view),
            Postgres::Stopped | Postgres::Starting { .. } | Postgres::Silent => return,
        };
        if !matches!(self.procedure, Some((_, Duty::Bootstrap))) {
            self.node.callbacks.serves(&self.node.config, &role);
        }
    }

    async fn postmaster_gone(&mut self) {
        let expected = self.is_busy() || self.memory.stopping;
        if expected {
            return;
        }
        let status = match self.node.last_postmaster() {
            Some(postmaster) => postmaster.exit_status().await.map(|status| format!(" with {status}")).unwrap_or_default(),
            None => String::new(),
        };
        tracing::warn!("Postgres has ended{status}");
        self.node.addresses.release(&self.node.config.vip).await;
        self.node.callbacks.ended();
        self.node.speak(MemberState::Crashed, self.node.standby_role(&self.view));
        self.interrupt_procedure();
        self.not_before = None;
        if let Err(why) = self.node.clear_orphans().await {
            tracing::error!("{why:#}");
        }
    }

    /// Housekeeping gives way at once; a clone is begun again later. Everything else is let through.
    fn interrupt_procedure(&mut self) {
        match &self.procedure {
            Some((task, Duty::Rest | Duty::Clone { .. } | Duty::Restore)) => task.abort(),
            // A restore may take hours; the mark says that its half is nobody's data.
            Some((task, Duty::Bootstrap)) if self.node.config.founding_method().is_some() => task.abort(),
            _ => {}
        }
    }

    async fn reload(&mut self) {
        tracing::info!("reading {} again", self.path.display());
        let path = self.path.clone();
        let load = move || {
            let config = NodeConfig::load(&path, std::env::vars())?;
            let files = RestFiles::load(&config)?;
            Ok::<_, anyhow::Error>((config, files))
        };
        match tokio::task::spawn_blocking(load).await {
            Ok(Ok((config, files))) => {
                let config = Arc::new(config);
                let fixed = |config: &NodeConfig| {
                    (
                        (config.scope.clone(), config.namespace.clone(), config.name.clone(), config.citus.clone()),
                        (config.postgres.data_dir.clone(), config.postgres.listen.clone(), config.etcd.clone()),
                        (config.rest.listen.clone(), config.rest.connect_address.clone(), config.rest.tls.is_some()),
                    )
                };
                if fixed(&config) != fixed(&self.node.config) {
                    tracing::error!(
                        "scope, namespace, name, citus, etcd3, postgresql.listen, postgresql.data_dir, restapi.listen, restapi.connect_address or whether REST speaks HTTPS changed in {}: they take effect at the next start of the arbiter only; nothing was reloaded",
                        self.path.display()
                    );
                    return;
                }
                if config.tags != self.node.config.tags {
                    warn_of_tags(&config);
                }
                for sql in [&*self.node.sql, &self.node.page.sql] {
                    sql.authenticate_as(&config.postgres.authentication.superuser);
                }
                self.node.lease.reconfigure(config.clone());
                self.node.config = config.clone();
                self.configured.send_replace(config);
                self.node.caller = files.caller;
                self.gate.send_replace(Arc::new(files.gate));
            }
            Ok(Err(why)) => tracing::error!("{why:#}; going on with the old configuration"),
            Err(why) => tracing::error!("read the configuration: {why}"),
        }
    }

    /// One line when the decision changed: what and why.
    fn tell(&mut self, decision: &Decision<Duty>, local: &cluster::local::LocalState) {
        if self.told.as_ref() != Some(decision) {
            self.node.journal.note(&self.view, local, word(&decision.what), decision);
            tracing::info!("{}: {}", word(&decision.what), decision.why);
            self.told = Some(decision.clone());
        }
    }

    fn snapshot(&self, seen: &Seen, decision: Option<&Decision<Duty>>) -> Snapshot {
        // A primary's own page says until when it may write; whoever has no server asks the lease the arbiter keeps.
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
            decision: decision.cloned(),
            leader_changes: self.led.changes,
            turned_at: Instant::now(),
        }
    }
}

/// A number to draw a source with: the low bits of the clock do, nothing depends on its quality.
fn lot() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| u64::from(since.subsec_micros()))
}

enum Turn {
    Again(Duration),
    End(ExitCode),
    Fail(anyhow::Error),
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

fn bail_out(decision: &Decision<Duty>) {
    tracing::error!("this node can't be part of the cluster: {}", decision.why);
}

fn word(duty: &Duty) -> String {
    match duty {
        Duty::Rest => "no action".to_owned(),
        Duty::Bootstrap => "found the cluster".to_owned(),
        Duty::Clone { from } => format!("clone from {from}"),
        Duty::Restore => "make the data from a backup".to_owned(),
        Duty::StartPrimary { term } => format!("start as primary (term {term})"),
        Duty::StartStandby { upstream: Upstream::Nobody } => "start as standby".to_owned(),
        Duty::StartStandby { upstream } => format!("start as standby of {upstream}"),
        Duty::Promote { term } => format!("promote (term {term})"),
        Duty::Demote => "demote".to_owned(),
        Duty::DemoteCluster { term } => format!("become a standby cluster (after term {term})"),
        Duty::Follow { upstream } => format!("follow {upstream}"),
        Duty::Rewind { from } => format!("rewind to {from}"),
        Duty::Switchover { .. } => "switch over".to_owned(),
        Duty::HandOver { to } => format!("hand over to {to}"),
        Duty::CallOff => "take the request back".to_owned(),
        Duty::Release => "give the leader key up".to_owned(),
        Duty::Stop => "stop".to_owned(),
        Duty::Quit => "quit".to_owned(),
    }
}

/// The socket by which the extension wakes us.
fn wake_socket(config: &NodeConfig) -> Result<UnixDatagram> {
    let path = settings::wake_socket(config);
    let _ = std::fs::remove_file(&path);
    let bound = || -> std::io::Result<UnixDatagram> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return UnixDatagram::bind(&path) };
        // A socket's path has at most 107 bytes. By its directory's descriptor it is short wherever the data lies, and stays where nobody else may write.
        let directory = std::fs::File::open(directory)?;
        UnixDatagram::bind(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
    };
    bound().with_context(|| format!("bind the wake socket {}", path.display()))
}
