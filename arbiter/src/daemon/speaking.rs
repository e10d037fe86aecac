//! What the loop says of its server: in the member key while no lease worker does, to the callbacks, and to readers of the arbiter's log.

use super::Daemon;
use crate::daemon::observe::Seen;
use crate::daemon::words::word;
use crate::node::extension;
use crate::postgres::query::ExtensionMissing;
use cluster::duty::Duty;
use cluster::local::{LocalState, Postgres};
use cluster::member::{MemberRole, MemberState};
use cluster::reason::Decision;
use cluster::release::{self, Update};

impl Daemon {
    /// The server that serves speaks for itself; while there is none, the arbiter does.
    pub(super) async fn speak_for(&mut self, seen: &Seen) {
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
                    self.node.lease.hand_to_worker();
                }
                let leads = matches!(seen.local.postgres, Postgres::Primary { .. });
                if let Some(why) = seen.facts.as_ref().and_then(|facts| facts.library_is_apart()) {
                    return self.tell_attach(format!("nothing is called in this server, since its library and this arbiter don't understand each other: {why}; hint: `tenure restart` loads the library that is installed"));
                }
                match extension::attach(&self.node, Some(&seen.described), leads || seen.barred.is_none()).await {
                    Ok(()) => {
                        self.memory.attach_told.clear();
                        self.update_extension(seen).await;
                    }
                    Err(why) => self.not_attached(seen, &why).await,
                }
            }
            Postgres::Stopped if !self.node.lease.keeps() => self.node.speak(MemberState::Stopped, self.node.standby_role(&self.view)),
            Postgres::Starting { .. } if !self.node.lease.keeps() && cluster::duty::keeps_lease_for_recovery(&self.view, &seen.local) => {
                tracing::warn!("Postgres recovers from the crash of one of its processes: the arbiter keeps the lease meanwhile");
                let role = if self.view.is_standby_cluster() { MemberRole::StandbyLeader } else { MemberRole::Primary };
                self.node.speak(MemberState::Starting, role);
            }
            Postgres::Stopped | Postgres::Starting { .. } | Postgres::Silent => {}
        }
    }

    /// Without the extension's functions nothing planned can be done here. Where somebody dropped the extension it is made again, by the node that writes;
    /// a cluster that was just taken over gets it in this way too.
    async fn not_attached(&mut self, seen: &Seen, why: &anyhow::Error) {
        if matches!(self.procedure, Some((_, Duty::Bootstrap))) {
            // The founding makes it, in its turn.
            return;
        }
        let missing = why.chain().any(|cause| cause.is::<ExtensionMissing>());
        if missing && seen.fence_until.is_none() && matches!(seen.local.postgres, Postgres::Primary { .. }) {
            let made = extension::ensure_extension(&self.node).await;
            match made {
                Ok(()) => tracing::warn!("the extension pg_tenure was not there: it was made again"),
                Err(why) => tracing::warn!("the extension pg_tenure is not there: {why:#}"),
            }
            return self.node.wake.notify_one();
        }
        self.tell_attach(format!("attach to the lease worker: {why:#}"));
    }

    fn tell_attach(&mut self, told: String) {
        if self.memory.attach_told != told {
            tracing::warn!("{told}");
            self.memory.attach_told = told;
        }
    }

    /// After an upgrade of pg_tenure: who writes brings the SQL objects to its library's release, once every server has a library that serves them.
    async fn update_extension(&mut self, seen: &Seen) {
        let Some((installed, library)) = seen.facts.as_ref().and_then(|facts| Some((facts.extension.as_deref()?, facts.library()?))) else {
            return;
        };
        if seen.fence_until.is_none() || !matches!(seen.local.postgres, Postgres::Primary { .. }) {
            return;
        }
        let said = match release::update(&self.view, installed, library) {
            Update::Nothing => return self.memory.update_told.clear(),
            Update::Waits(names) => {
                let names = names.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                Ok(format!(
                    "the SQL objects of pg_tenure stay at release {installed} until the servers of these members have loaded {library}: {names}; hint: `tenure restart --rolling`"
                ))
            }
            Update::Due => extension::update(&self.node, installed, library).await,
        };
        let told = said.as_ref().map_or_else(|why| format!("{why:#}"), Clone::clone);
        if self.memory.update_told != told {
            match said {
                Ok(said) => tracing::info!("{said}"),
                Err(why) => tracing::warn!("update the SQL objects of pg_tenure: {why:#}"),
            }
            self.memory.update_told = told;
        }
    }

    /// Tells the callbacks what the server is now. Nothing is told before the cluster exists.
    pub(super) fn call_back(&self, seen: &Seen) {
        let role = match seen.local.postgres {
            Postgres::Primary { .. } => MemberRole::Primary,
            Postgres::Standby { .. } => self.node.standby_role(&self.view),
            Postgres::Stopped | Postgres::Starting { .. } | Postgres::Silent => return,
        };
        if !matches!(self.procedure, Some((_, Duty::Bootstrap))) {
            self.node.callbacks.seen(&self.node.config, &role, seen.began);
        }
    }

    /// The server ended, and nothing here ended it.
    pub(super) async fn postmaster_gone(&mut self) {
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

    /// One line when the decision changed: what and why.
    pub(super) fn tell(&mut self, decision: &Decision<Duty>, local: &LocalState) {
        if self.told.as_ref() != Some(decision) {
            self.node.journal.note(&self.view, local, word(&decision.what), decision);
            tracing::info!("{}: {}", word(&decision.what), decision.why);
            self.told = Some(decision.clone());
        }
    }
}
