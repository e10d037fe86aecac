//! The one place that writes what the server is set to: its configuration files, and the files that those lead to.

use crate::node::hba;
use crate::node::paths::etcd_password_file;
use crate::node::settings::{self, Basis};
use crate::node::{Node, slots};
use crate::postgres::conf::{ConfigFiles, Parameters, Recovery};
use crate::postgres::{pgpass, write_where_other};
use anyhow::{Context, Result};
use cluster::config::DynamicConfig;
use cluster::member::MemberRole;
use cluster::quorum::Setting;
use cluster::view::ClusterView;

impl Node {
    /// Writes every configuration file for the next start or reload; true if something changed.
    pub async fn write_configuration(&self, view: &ClusterView, recovery: &Recovery) -> Result<bool> {
        let synchronous = match recovery {
            Recovery::None => self.standbys.now().setting,
            Recovery::Standby { .. } => Setting::nobody(),
        };
        self.write_configuration_with(view, recovery, &synchronous).await
    }

    /// As [`Node::write_configuration`], with these synchronous standbys.
    pub async fn write_configuration_with(&self, view: &ClusterView, recovery: &Recovery, synchronous: &Setting) -> Result<bool> {
        // The loop's procedures come one after another; `tenure replay` is beside them.
        let _alone = self.writing.lock().await;
        let recovery = &self.replay.over(recovery);
        let files = self.config.postgres.files();
        let parameters = self.settled(view, recovery, Some(synchronous)).await;
        let mut changed = write(&files, &parameters, recovery).await?;
        files.clean_auto_conf().await.context("clean postgresql.auto.conf")?;
        hba::adopt(&files).await?;
        let (dynamic, role) = (self.dynamic(view), settings::role(&self.config, view, recovery));
        for (kind, path) in [(hba::File::Hba, files.hba()), (hba::File::Ident, files.ident())] {
            let wanted = hba::wanted(kind, &self.config, &dynamic, role);
            changed |= hba::write(&path, &wanted).await.with_context(|| format!("write {}", path.display()))?;
        }
        if let Some(password) = &self.config.etcd.password {
            write_where_other(&etcd_password_file(&self.config), password.reveal(), 0o600).await?;
        }
        self.write_pgpass().await?;
        self.knowledge.tell(settings::left_out(&self.config, &dynamic, &self.knowledge.known()));
        let refused: Vec<String> =
            [hba::File::Hba, hba::File::Ident].into_iter().flat_map(|file| hba::refused(file, &self.config, &dynamic, role)).collect();
        let told = std::mem::replace(&mut self.state().told_rules, refused.clone());
        for line in refused.iter().filter(|line| !told.contains(line)) {
            tracing::warn!("{line}; hint: write the line into each node's file too (docs/security.md)");
        }
        Ok(changed)
    }

    /// What the server is set to, without what it would not take.
    pub(super) async fn settled(&self, view: &ClusterView, recovery: &Recovery, synchronous: Option<&Setting>) -> Parameters {
        if let Err(why) = self.knowledge.recall(&self.programs, &self.config).await {
            tracing::warn!("what PostgreSQL knows of parameters is not known, so most of the dynamic configuration is left out: {why:#}");
        }
        let major = slots::major(&self.config).await;
        let leaving = self.state().leaving;
        let basis = Basis { config: &self.config, view, recovery, synchronous, leaving, major };
        self.knowledge.settled(&self.programs, &self.config.postgres.files(), recovery, |known| settings::of(&basis, known)).await
    }

    /// Finds out beforehand what the server would take as primary: a promotion must not wait for that.
    pub async fn settle_as_primary(&self, view: &ClusterView) {
        self.settled(view, &Recovery::None, None).await;
    }

    /// The password file for connections to other members.
    pub async fn write_pgpass(&self) -> Result<()> {
        let authentication = &self.config.postgres.authentication;
        let roles = [Some(&authentication.replication), authentication.rewind.as_ref(), Some(&authentication.superuser)];
        let entries: Vec<pgpass::Entry<'_>> =
            roles.into_iter().flatten().map(|credentials| pgpass::Entry { address: None, credentials }).collect();
        pgpass::write(&self.config.postgres.pgpass, &entries).await
    }

    /// What a server of this node in recovery is: it leads a standby cluster, or it follows a member.
    pub fn standby_role(&self, view: &ClusterView) -> MemberRole {
        if settings::leads_standby_cluster(&self.config, view) { MemberRole::StandbyLeader } else { MemberRole::Replica }
    }

    /// The dynamic configuration, or the one of the file while there is none in etcd.
    pub fn dynamic(&self, view: &ClusterView) -> DynamicConfig {
        settings::dynamic(&self.config, view)
    }

    /// Makes the server read its configuration again.
    pub async fn reload(&self) -> Result<()> {
        self.sql.reload().await?;
        self.reloaded();
        Ok(())
    }

    /// As [`Node::reload`], and returns once our own session goes by what was read.
    pub async fn reload_and_see(&self) -> Result<()> {
        self.sql.reload_and_see().await?;
        self.reloaded();
        Ok(())
    }

    fn reloaded(&self) {
        self.state().rules_owed = true;
        self.callbacks.reloaded(&self.config);
        // Looks what the server did not take of what it has read. Beside: a reload in a hurry must not wait for it.
        let node = self.clone();
        tokio::spawn(async move {
            if node.knowledge.look_after_reload(&node.sql, &node.config.postgres.files()).await {
                node.wake.notify_one();
            }
        });
    }
}

/// Writes postgresql.conf: nothing else does.
pub async fn write(files: &ConfigFiles, parameters: &Parameters, recovery: &Recovery) -> Result<bool> {
    files.write_main(parameters, recovery).await.context("write postgresql.conf")
}
