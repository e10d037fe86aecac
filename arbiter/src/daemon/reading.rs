//! What the loop reads of etcd: for the first time, each turn, and where it is away or not believed.

use super::{Daemon, RETRY, Turn};
use crate::daemon::observe;
use crate::node::memory;
use crate::node::snapshot::Snapshot;
use anyhow::{Result, anyhow};
use cluster::instance::InUse;
use cluster::view::{ClusterView, Versioned};
use dcs::Dcs;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::watch;

impl Daemon {
    /// etcd was never read yet. REST tells what this node knows of itself, and nothing is decided: Postgres, if
    /// it runs, goes on as it is, since whose server it may be and whether the cluster is paused is not known.
    pub(super) async fn before_etcd(&mut self, why: dcs::Error, show: &watch::Sender<Snapshot>) -> Result<Turn> {
        let file = self.path.display().to_string();
        if let dcs::Error::Refused(why) = why {
            return Ok(Turn::Fail(anyhow!("etcd refuses this node: {why}; hint: look at the etcd3 section of {file}")));
        }
        if self.memory.stopping {
            return Ok(Turn::Fail(anyhow!("told to end before etcd was reached; Postgres is left as it is")));
        }
        if !self.told_etcd {
            tracing::error!("{why}; hint: check the etcd3 section of {file} and that etcd runs; asking again until it answers");
            self.told_etcd = true;
        }
        let seen = self.look().await?;
        if let dcs::Error::Doubted { .. } = why {
            self.speak_for(&seen).await;
        }
        show.send_replace(self.snapshot(&seen, None));
        Ok(Turn::Again(RETRY))
    }

    /// Looks at this node. What etcd said is written down meanwhile: before anything follows from it, and of a view that is not believed, too, as
    /// other members say something in it.
    pub(super) async fn look(&mut self) -> Result<observe::Seen> {
        let (seen, ()) =
            tokio::join!(observe::look(&self.node, &self.view, &mut self.memory), memory::keep(&self.node.config, &self.node.etcd));
        seen
    }

    /// etcd was read for the first time: may this node be what its file says?
    pub(super) async fn met_etcd(&mut self) -> Result<()> {
        // A planned restart outlives the arbiter that took it: it stands in the member key.
        let own = self.view.members.get(&self.node.config.name).and_then(|entry| entry.member.other.get("scheduled_restart"));
        self.memory.scheduled_restart = own.and_then(|plan| serde_json::from_value(plan.clone()).ok());
        // An arbiter before us may have promised something that we know nothing of.
        let ttl = self.view.config().failsafe_mode().then(|| self.view.config().timing().ttl);
        let recalled = self.node.promise.recall(&self.node.config.postgres.data_dir, ttl).await;
        if recalled.is_err() {
            // Nothing is decided before it is known: the next turn is the first again.
            self.view_at = None;
        }
        recalled
    }

    /// Another instance goes by our name: what stands in etcd under it is not of this node, so neither key nor server is
    /// touched, but for a stop that was asked for. Looked at again until that key has run out.
    pub(super) fn keep_out(&mut self, other: &InUse) {
        if !self.told_in_use {
            tracing::error!("{other}");
            self.told_in_use = true;
        }
        self.node.lease.keep_out();
        let mut view = ClusterView::clone(&self.view);
        view.leader = view.leader.filter(|leader| leader.name != self.node.config.name);
        self.view = Arc::new(view);
        self.view_at = None;
    }

    /// The last look found another instance under our name.
    pub(super) fn kept_out(&self) -> bool {
        self.told_in_use
    }

    /// An emptied etcd as it is judged: with the configuration that was last known.
    pub(super) fn emptied(&self, view: &ClusterView) -> ClusterView {
        let mut view = view.clone();
        if let Some(config) = self.node.etcd.remembered().and_then(|remembered| remembered.memory().config) {
            view.config = Some(Versioned { revision: 0, ..config });
        }
        view
    }

    pub(super) async fn read_etcd(&mut self) -> Result<(), dcs::Error> {
        let read = self.node.etcd.load_view().await;
        match read {
            Ok(view) => {
                if self.told_etcd {
                    tracing::info!("etcd answers again");
                }
                self.told_etcd = false;
                self.led.saw(view.leader.as_ref().map(|leader| &leader.name));
                self.view = Arc::new(view);
                crate::ground::logging::note_term(self.view.leader.as_ref().map(|leader| leader.term));
                self.view_at = Some(Instant::now());
                Ok(())
            }
            // Before the first answer there is more to say, and another says it.
            Err(why) if self.view_at.is_none() => Err(why),
            Err(why @ dcs::Error::Doubted { .. }) => {
                if !self.told_etcd {
                    tracing::error!("{why}; Postgres goes on as it is, commits wait at the fence once the lease runs out");
                }
                self.told_etcd = true;
                Err(why)
            }
            Err(why) => {
                if !self.told_etcd {
                    tracing::warn!("{why}; Postgres goes on as it is, commits wait at the fence once the lease runs out");
                }
                self.told_etcd = true;
                Err(why)
            }
        }
    }
}
