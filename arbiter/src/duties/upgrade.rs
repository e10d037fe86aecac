//! The upgrade in place, on the leader: the server is stopped with its fence closed, `pg_upgrade --link` carries it, the standbys are copied again.

use crate::duties::done::Done;
use crate::duties::{change_places, upgrade_undone};
use crate::ground::program::WORKS_ON;
use crate::node::twin::Told;
use crate::node::{Node, slots};
use crate::postgres::controldata::{self, ClusterState};
use crate::postgres::postmaster::StopMode;
use crate::postgres::{Programs, read_if_there, run, sync_data_directory, sync_directory, write_atomically};
use crate::upgrade::{carried, demanded, journal, trial};
use anyhow::{Context, Result, bail};
use cluster::member::{MemberRole, MemberState};
use cluster::name::Timeline;
use cluster::store::Upgraded;
use cluster::upgrade::obstacle::Weight;
use cluster::upgrade::step::{Journal, Owed, Step};
use cluster::view::ClusterView;
use dcs::Dcs;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use steward::switchover::wait_for_writers;
use tokio::process::Command;

/// From the drain to the stop, which ends it.
const DRAIN_MOST: Duration = Duration::from_secs(5);
/// Pause before etcd is asked again after it gave no answer.
const RETRY: Duration = Duration::from_millis(250);
/// The port in the name of the socket of a server that nobody else reaches.
const PORT: &str = "50432";

/// What the steps work from.
struct Upgrade<'a> {
    node: &'a Node,
    noted: Journal,
    place: PathBuf,
    /// The new directory.
    data: PathBuf,
    old: Programs,
    new: Programs,
}

/// Begins.
pub async fn upgrade(node: &Node, view: &ClusterView, to: u32) -> Result<Done> {
    node.twin.tell(|told| {
        *told = Told { in_place: Some(to), doing: "every member looks what stands in the way".to_owned(), ..Told::default() };
    });
    let done = begun(node, view, to).await;
    told_end(node, done.as_ref().err());
    done
}

/// What REST tells of it from here on.
fn told_end(node: &Node, failed: Option<&anyhow::Error>) {
    node.twin.tell(|told| *told = Told { failed: failed.map(|why| format!("{why:#}")), ..Told::default() });
}

async fn begun(node: &Node, view: &ClusterView, to: u32) -> Result<Done> {
    let began = Instant::now();
    demanded::nothing_stops(node, view, to, Weight::Stops).await?;
    let control = controldata::read(&node.programs, &node.config.postgres.data_dir).await?;
    let from = slots::major(&node.config).await.context("PG_VERSION can't be read")?;
    let noted = Journal { from, to, step: Step::Prepare, old: control.system_id, new: None, twin: None };
    tracing::info!("upgrading in place from PostgreSQL {from} to {to}");
    let done = go_on(node, view, noted, Step::Prepare).await;
    node.note_upgrade(done.is_err());
    done?;
    tracing::info!("upgraded from PostgreSQL {from} to {to} within {} ms; the standbys are copied again", began.elapsed().as_millis());
    Ok(Done::LookAgain)
}

/// Brings what an interruption left to the end that it is owed.
pub async fn resume(node: &Node, view: &ClusterView, owed: Owed) -> Result<Done> {
    let Some(noted) = journal::read(&node.config).await? else { return Ok(Done::LookAgain) };
    if let Some(from) = noted.twin {
        let _at_work = node.twin.at_work.lock().await;
        let done = match owed {
            Owed::GoOn(_) => change_places::finish(node, &noted, from).await,
            Owed::Undo | Owed::Discard => change_places::call_off(node, view, &noted).await,
            Owed::Wait => Ok(()),
        };
        return done.map(|()| Done::LookAgain);
    }
    let done = match owed {
        Owed::Undo => upgrade_undone::undo(node, &noted).await,
        Owed::Discard => upgrade_undone::discard(node, &noted).await,
        Owed::GoOn(step) => {
            upgrade_undone::end_programs(node, noted.step).await?;
            tracing::info!("going on with the upgrade to PostgreSQL {}: {}", noted.to, step.sentence());
            let done = go_on(node, view, noted, step).await;
            node.note_upgrade(done.is_err());
            told_end(node, done.as_ref().err());
            done
        }
        Owed::Wait => Ok(()),
    };
    done.map(|()| Done::LookAgain)
}

async fn go_on(node: &Node, view: &ClusterView, noted: Journal, first: Step) -> Result<()> {
    let lacks = |major: u32| format!("PostgreSQL {major} is not beside {}", node.config.postgres.bin_dir.display());
    let (old, new) = (node.config.postgres.programs_of(noted.from), node.config.postgres.programs_of(noted.to));
    let place = journal::place(&node.config);
    let mut upgrade = Upgrade {
        node,
        data: place.join("data"),
        place,
        old: old.with_context(|| lacks(noted.from))?,
        new: new.with_context(|| lacks(noted.to))?,
        noted,
    };
    let mut held = None;
    for step in Step::ALL.into_iter().filter(|step| *step >= first) {
        let began = Instant::now();
        upgrade.noted.step = step;
        node.twin.tell(|told| (told.in_place, told.doing) = (Some(upgrade.noted.to), step.sentence().to_owned()));
        journal::write(&node.config, &upgrade.noted).await?;
        let done = match step {
            Step::Prepare => upgrade.prepare().await,
            Step::Hold => {
                held = crate::poolers::pause(node, view).await;
                upgrade.drain_writers(view).await
            }
            Step::Transfer => upgrade.transfer().await,
            Step::Statistics => upgrade.statistics().await,
            Step::Announce => upgrade.announce().await,
            Step::Exchange => upgrade.exchange().await,
        };
        done.with_context(|| format!("upgrade in place to PostgreSQL {}, while {}", upgrade.noted.to, step.sentence()))?;
        tracing::info!("upgrade: {} ({} ms)", step.sentence(), began.elapsed().as_millis());
    }
    drop(held);
    Ok(())
}

impl Upgrade<'_> {
    async fn prepare(&mut self) -> Result<()> {
        let config = &self.node.config;
        let data_dir = &config.postgres.data_dir;
        trial::remove(&self.place).await?;
        tokio::fs::DirBuilder::new().mode(0o700).create(&self.place).await.with_context(|| format!("create {}", self.place.display()))?;
        let control = controldata::read(&self.old, data_dir).await?;
        trial::make_empty(config, &self.new, control.data_checksums, self.noted.from, &self.data).await?;
        self.noted.new = Some(controldata::read(&self.new, &self.data).await?.system_id);
        write_atomically(&self.rules(), "local all all trust\n", 0o600).await?;
        let preloaded = self.node.sql.text("SELECT current_setting('shared_preload_libraries')").await?;
        write_atomically(&self.place.join("preloaded"), &preloaded, 0o600).await?;
        carried::files(config, &self.new, &self.data, self.noted.to).await?;
        journal::write(config, &self.noted).await
    }

    /// The file by which the servers of `place` let in every client that reaches their socket: this user alone.
    fn rules(&self) -> PathBuf {
        self.place.join("hba.conf")
    }

    /// How a server of the new version is started: with the libraries of the old one, as some are loaded at the start or not at all.
    async fn options(&self) -> Result<String> {
        let preloaded = read_if_there(&self.place.join("preloaded")).await?.unwrap_or_default();
        Ok(format!("-c hba_file={} {}", trial::quoted(&self.rules()), trial::preloading(&preloaded)))
    }

    async fn drain_writers(&self, view: &ClusterView) -> Result<()> {
        let node = self.node;
        if let Err(why) = node.sql.checkpoint().await {
            tracing::warn!("checkpoint before the upgrade: {why:#}");
        }
        node.sql.execute(&format!("SELECT tenure_internal.drain({})", DRAIN_MOST.as_millis())).await.context("drain")?;
        wait_for_writers(node).await;
        // The lease worker ends with the stop's first moment: from here on the lease is ours to keep.
        node.speak(MemberState::Stopping, MemberRole::Primary);
        let clean = node.stop_within(StopMode::Fast, steward::stop::patience(view)).await?;
        let control = controldata::read(&self.old, &node.config.postgres.data_dir).await?;
        if !clean || control.state != ClusterState::ShutDown {
            bail!("Postgres did not shut down cleanly ({:?})", control.state);
        }
        Ok(())
    }

    fn say(&self, what: Step) {
        self.node.speak_reason(
            MemberState::from("upgrading".to_owned()),
            MemberRole::Primary,
            format!("to PostgreSQL {}: {}", self.noted.to, what.sentence()),
        );
    }

    fn marked(&self, mut command: Command) -> Command {
        // By which a later arbiter finds and ends it, and the servers that it starts.
        command.env(WORKS_ON, &self.node.config.postgres.data_dir);
        command
    }

    async fn transfer(&self) -> Result<()> {
        self.say(Step::Transfer);
        let command =
            trial::pg_upgrade(&self.node.config, &self.new, &self.old, &self.node.config.postgres.data_dir, &self.data, &self.place)
                .await?;
        let mut command = self.marked(command);
        let rules = format!("-c hba_file={}", trial::quoted(&self.rules()));
        command
            .args(["--link", "--no-sync", "--jobs", &carried::jobs()])
            .arg("--old-options")
            .arg(&rules)
            .arg("--new-options")
            .arg(self.options().await?);
        let output = command.kill_on_drop(true).output().await.context("start pg_upgrade")?;
        if !output.status.success() {
            bail!("pg_upgrade: {}", trial::words(&output, &self.data));
        }
        sync_data_directory(&self.data).await
    }

    async fn statistics(&self) -> Result<()> {
        self.say(Step::Statistics);
        let options = format!(
            "-c listen_addresses='' -c unix_socket_directories={} -c unix_socket_permissions=0700 -c port={PORT} {}",
            trial::quoted(&self.place),
            self.options().await?
        );
        let mut start = self.marked(self.new.command("pg_ctl"));
        start.arg("--pgdata").arg(&self.data).args(["--wait", "--timeout=600", "--silent"]).arg("--log").arg(self.place.join("server.log"));
        start.arg("--options").arg(options).arg("start");
        // Its output would be the server's, which stays.
        start.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        if !start.kill_on_drop(true).status().await.context("start pg_ctl")?.success() {
            let words = read_if_there(&self.place.join("server.log")).await?.unwrap_or_default();
            bail!("the new server does not start: {}", crate::postgres::tail(&words));
        }
        let mut analyze = self.marked(self.new.command("vacuumdb"));
        analyze.args(["--all", "--analyze-only", "--quiet", "--jobs", &carried::jobs(), "--port", PORT]).arg("--host").arg(&self.place);
        analyze.arg("--username").arg(&self.node.config.postgres.authentication.superuser.username);
        let analyzed = run(analyze).await;
        let mut stop = self.marked(self.new.command("pg_ctl"));
        stop.arg("--pgdata").arg(&self.data).args(["--wait", "--timeout=600", "--mode=fast", "--silent", "stop"]);
        run(stop).await.context("stop the new server")?;
        analyzed.context("make the statistics")?;
        let control = controldata::read(&self.new, &self.data).await?;
        if control.state != ClusterState::ShutDown {
            bail!("the new server did not shut down cleanly ({:?})", control.state);
        }
        sync_data_directory(&self.data).await
    }

    /// Until etcd has said that it is so, or that it can't be: a write whose answer was lost may have been done.
    async fn announce(&self) -> Result<()> {
        self.say(Step::Announce);
        let node = self.node;
        let new = self.noted.new.as_ref().context("the new system was not noted")?;
        loop {
            let written = async {
                let view = node.etcd.load_view().await?;
                if view.system_id() == Some(new) {
                    return Ok(true);
                }
                let leader = view.leader_if(&node.config.name).filter(|_| view.system_id() == Some(&self.noted.old));
                let Some(leader) = leader else { return Ok(false) };
                let upgraded = Upgraded { old: self.noted.old.clone(), from: self.noted.from, to: self.noted.to };
                node.etcd.upgraded(leader, &view, new, Timeline(1), upgraded).await.map(|()| true)
            };
            match written.await {
                Ok(true) => return Ok(()),
                Ok(false) => bail!("this node leads no more"),
                Err(dcs::Error::Lost(what)) => tracing::info!("{what} has changed meanwhile: once more"),
                Err(why) => tracing::warn!("etcd was not told yet: {why}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn exchange(&self) -> Result<()> {
        let node = self.node;
        let data_dir = &node.config.postgres.data_dir;
        let there = slots::major(&node.config).await;
        if there == Some(self.noted.from) {
            renameat_with(CWD, &self.data, CWD, data_dir, RenameFlags::EXCHANGE).context("exchange the directories")?;
        }
        for directory in [Some(self.place.as_path()), data_dir.parent()].into_iter().flatten() {
            sync_directory(directory).await?;
        }
        node.run_major(self.noted.to)?;
        node.sql.hang_up().await;
        node.speak(MemberState::Stopped, MemberRole::Primary);
        journal::clear(&node.config).await?;
        let (place, left) = (self.place.clone(), self.data.clone());
        tokio::spawn(async move {
            // Links to files that live on, and what only the old version had; also in tablespaces.
            let removed = async {
                if tokio::fs::try_exists(&left).await? {
                    crate::postgres::empty_directory(&left).await?;
                }
                trial::remove(&place).await
            };
            if let Err(why) = removed.await {
                tracing::warn!("what is left of the old version is not removed: {why:#}; hint: remove {}", place.display());
            }
        });
        Ok(())
    }
}
