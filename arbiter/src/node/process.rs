//! The server's process: started, stopped, ended by force, and what a dead one left.

use crate::node::{Node, hook, memory, settings};
use crate::postgres::conf::Recovery;
use crate::postgres::controldata;
use crate::postgres::mark;
use crate::postgres::postmaster::{Postmaster, Readiness, StopMode, last_words};
use crate::postgres::reserve;
use anyhow::{Context, Result, bail};
use cluster::quorum::{Rules, Trust};
use cluster::view::ClusterView;
use std::time::Duration;

/// A primary that is told to stop keeps its virtual addresses so long at most.
const FAREWELL: Duration = Duration::from_millis(300);

impl Node {
    /// Starts the server and returns as soon as its process runs.
    pub async fn start(&self, view: &ClusterView, recovery: &Recovery) -> Result<Postmaster> {
        let files = self.config.postgres.files();
        self.note_leaving(false);
        memory::before_start(&self.config, &self.etcd).await.context("lay down what is known of etcd's keys")?;
        crate::postgres::promote::forget(&self.config.postgres.data_dir).await?;
        if *recovery == Recovery::None
            && let Some(sync) = view.sync.as_ref().filter(|sync| sync.value.leader.as_deref() == Some(self.config.name.as_str()))
        {
            // Those may be promoted: not one commit without them, from the first on.
            let rules = Rules::of(&self.dynamic(view));
            self.standbys.begin(rules.at_start(&Trust::of(&sync.value)));
        }
        self.write_configuration(view, recovery).await?;
        files.signal(recovery).await.context("write standby.signal")?;
        let mut parameters = self.settled(view, recovery, None).await;
        if matches!(recovery, Recovery::Standby { .. }) {
            let control = controldata::read(&self.programs, &self.config.postgres.data_dir).await?;
            for name in parameters.raise_to(&control.required) {
                tracing::info!("{name} is raised to what the primary's WAL asks for until the configuration says as much");
            }
        }
        // It may be started the next time without us: the data says whose it is.
        mark::write(&self.config.postgres.data_dir, settings::identity(&self.config)).await?;
        let postgres = &self.config.postgres;
        let arguments = parameters.arguments();
        let postmaster = Postmaster::start(&self.programs, &postgres.data_dir, &files.main(), &arguments, &postgres.server_log).await?;
        self.adopted(Some(postmaster.clone()));
        self.wake.notify_one();
        Ok(postmaster)
    }

    /// Starts the server and waits until it takes connections.
    pub async fn start_and_wait(&self, view: &ClusterView, recovery: &Recovery) -> Result<()> {
        let postmaster = self.start(view, recovery).await?;
        match postmaster.ready().await? {
            Readiness::Ended => bail!("Postgres ended while it started: {}", last_words(&self.config.postgres.server_log).await),
            _ => Ok(()),
        }
    }

    /// Stops the server; a fast stop that takes too long becomes an immediate one. True if it was clean.
    pub async fn stop(&self, mode: StopMode) -> Result<bool> {
        self.stop_within(mode, steward::stop::PATIENCE).await
    }

    /// As [`Node::stop`], with this much patience for a fast stop.
    pub async fn stop_within(&self, mode: StopMode, patience: Duration) -> Result<bool> {
        let Some(postmaster) = self.postmaster() else { return Ok(true) };
        hook::before_stop(&self.config).await;
        if mode == StopMode::Fast {
            reserve::give(&self.config.postgres.data_dir, reserve::Part::All).await;
        }
        postmaster.stop(mode)?;
        let hurry = async {
            match self.config.citus {
                Some(_) => crate::postgres::citus_daemon::hurry(&postmaster).await,
                None => std::future::pending().await,
            }
        };
        let stop = async {
            tokio::select! {
                in_time = tokio::time::timeout(patience, postmaster.exited()) => in_time.is_ok(),
                () = hurry => false,
            }
        };
        // The sessions end in a moment and tell their clients so, which they can do only from the address that the clients came to.
        let farewell = async {
            let _ = tokio::time::timeout(FAREWELL, postmaster.exited()).await;
            self.addresses.release(&self.config.vip).await;
        };
        let (stopped, ()) = tokio::join!(stop, farewell);
        if stopped {
            self.callbacks.stopped(&self.config);
            return Ok(mode != StopMode::Immediate);
        }
        tracing::warn!(
            "Postgres did not stop within {} s: stopping it in immediate mode, so it recovers at its next start",
            patience.as_secs()
        );
        postmaster.stop(StopMode::Immediate)?;
        if tokio::time::timeout(Duration::from_secs(10), postmaster.exited()).await.is_err() {
            postmaster.signal(rustix::process::Signal::KILL)?;
            postmaster.exited().await;
        }
        self.clear_orphans().await?;
        self.callbacks.stopped(&self.config);
        Ok(false)
    }

    /// Ends the server whatever state it is in. When this returns, no process of it will ever run an instruction of its own again.
    pub async fn end_by_force(&self) -> Result<()> {
        if let Some(postmaster) = self.postmaster() {
            postmaster.signal(rustix::process::Signal::KILL)?;
        }
        let held = crate::postgres::postmaster::kill_all(&self.config.postgres.data_dir).await?;
        if held > 0 {
            tracing::warn!("{held} processes were killed and wait in the kernel for a disk that does not answer: they end with that");
        }
        self.addresses.release(&self.config.vip).await;
        Ok(())
    }

    /// After the postmaster's death: nothing of its server is left when this returns.
    pub async fn clear_orphans(&self) -> Result<()> {
        let killed = crate::postgres::postmaster::kill_orphans(&self.config.postgres.data_dir).await?;
        if killed > 0 {
            tracing::warn!("killed {killed} processes that the dead postmaster left");
        }
        Ok(())
    }
}
