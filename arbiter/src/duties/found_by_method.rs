//! The first data directory by a method of the node's file: the command is run, what it left recovers to its
//! target on a server that nobody else can reach, and the roles get this configuration's passwords there.

use crate::config::{BootstrapMethod, PostgresConfig, ServerRole};
use crate::ground::program::{self, Run, Stragglers, WORKS_ON};
use crate::node::Node;
use crate::node::{configuration, settings};
use crate::postgres::local::{LocalServer, Way};
use crate::postgres::marker::Incomplete;
use crate::postgres::postmaster::{PidFile, Postmaster, StopMode, kill_orphans, last_words};
use crate::postgres::query::LocalSql;
use crate::postgres::{conf::Recovery, controldata, empty_directory, mark, remove_if_there, sync_data_directory, write_atomically};
use anyhow::{Context, Result, bail};
use cluster::config::DynamicConfig;
use cluster::member::{MemberRole, MemberState};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often the recovery is looked at: no client waits for a cluster that does not exist yet.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Progress is told this often.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The stop after recovery writes a checkpoint of all that was recovered.
const STOP_PATIENCE: Duration = Duration::from_secs(600);

/// Makes the data directory; it is marked before and when this returns.
pub async fn make(node: &Node, method: &BootstrapMethod) -> Result<()> {
    let config = &node.config;
    let data_dir = &config.postgres.data_dir;
    let what = format!("bootstrap method {}", method.command.name);
    program::end_leftovers(data_dir).await?;
    Incomplete::of(data_dir).set(&what).await?;
    empty_directory(data_dir).await?;
    node.speak(MemberState::from("running custom bootstrap script".to_owned()), MemberRole::Uninitialized);
    tracing::info!("{what} begins");
    let ours = [("scope".to_owned(), config.scope.to_string()), ("datadir".to_owned(), data_dir.display().to_string())];
    let run = Run { what: &what, environment: vec![(WORKS_ON, data_dir.into())], patience: None, stragglers: Stragglers::End };
    method.command.line.and(method.command.arguments(&ours)).run(run).await.with_context(|| what.clone())?;
    node.speak(MemberState::from("starting after custom bootstrap".to_owned()), MemberRole::Uninitialized);
    let dynamic = DynamicConfig(config.bootstrap.dcs.clone());
    recover(node, &dynamic, method.recovery_conf.as_ref(), method.keep_existing_recovery_conf).await?;
    sync_data_directory(data_dir).await
}

/// Lets what is in the data directory recover on a server that nobody else reaches: by these settings where there are any, or, with
/// `keep_existing`, by those that lie there.
pub async fn recover(node: &Node, dynamic: &DynamicConfig, settings: Option<&BTreeMap<String, String>>, keep_existing: bool) -> Result<()> {
    let postgres = &node.config.postgres;
    let sockets = sockets(&postgres.data_dir, postgres.listen.port);
    remake_directory(&sockets).await?;
    let recovered = alone(node, dynamic, settings, keep_existing, &sockets).await;
    let _ = tokio::fs::remove_dir_all(&sockets).await;
    recovered
}

/// Where the private server is reached. A socket's path may have 107 bytes.
fn sockets(data_dir: &Path, port: u16) -> PathBuf {
    let mut path = data_dir.as_os_str().to_owned();
    path.push(".tenure-founding");
    if path.len() <= 85 { PathBuf::from(path) } else { std::env::temp_dir().join(format!("tenure-founding-{port}")) }
}

async fn remake_directory(path: &Path) -> Result<()> {
    let _ = tokio::fs::remove_dir_all(path).await;
    // Nobody else may enter: the server there trusts every client.
    let made = tokio::fs::DirBuilder::new().mode(0o700).create(path).await;
    made.with_context(|| format!("create the directory {}", path.display()))
}

/// The server that nobody else reaches. Where the task that waits for it is ended, by an arbiter that is told to stop, it ends too: nobody would know
/// of it.
struct Private(Postmaster);

impl Drop for Private {
    fn drop(&mut self) {
        // It hears nothing where it has ended.
        if let Err(why) = self.0.stop(StopMode::Immediate) {
            tracing::warn!("{why:#}");
        }
    }
}

/// Runs the recovery on a server without network, its fence unmanaged, and leaves it cleanly shut down.
async fn alone(
    node: &Node,
    dynamic: &DynamicConfig,
    recovery: Option<&BTreeMap<String, String>>,
    keep_existing: bool,
    sockets: &Path,
) -> Result<()> {
    let config = &node.config;
    let postgres = &config.postgres;
    let files = postgres.files();
    let control = controldata::read(&node.programs, &postgres.data_dir).await.context("the method left no usable data directory")?;
    let mut parameters = settings::parameters(config, dynamic, &node.knowledge.known(), ServerRole::Primary);
    let _ = parameters.raise_to(&control.required);
    configuration::write(&files, &parameters, &Recovery::None).await?;
    let hba = sockets.join("pg_hba.conf");
    write_atomically(&hba, "local all all trust\n", 0o600).await?;
    let text = |path: &Path| path.display().to_string();
    let mut own = vec![
        ("listen_addresses", String::new()),
        ("unix_socket_directories", text(sockets)),
        ("unix_socket_permissions", "0700".to_owned()),
        ("hba_file", text(&hba)),
        // In the middle of recovery nobody may read: "ready" then means that recovery has ended.
        ("hot_standby", "off".to_owned()),
        ("tenure.scope", String::new()),
        ("synchronous_standby_names", String::new()),
        ("logging_collector", "off".to_owned()),
    ];
    if let Some(recovery) = recovery {
        if !keep_existing {
            files.clean_auto_conf().await.context("clean postgresql.auto.conf")?;
        }
        own.extend(recovery.iter().map(|(name, value)| (name.as_str(), value.clone())));
        remove_if_there(&postgres.data_dir.join("standby.signal")).await?;
        write_atomically(&postgres.data_dir.join("recovery.signal"), "", 0o600).await?;
    } else if !keep_existing {
        files.clean_auto_conf().await.context("clean postgresql.auto.conf")?;
        files.signal(&Recovery::None).await?;
    }
    let mut arguments = parameters.arguments();
    arguments.extend(own.into_iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]));
    // A backup of a member carries its mark: this server is nobody's before it is started as the cluster's.
    mark::remove(&postgres.data_dir).await?;
    let server = Private(Postmaster::start(&node.programs, &postgres.data_dir, &files.main(), &arguments, &postgres.server_log).await?);
    let server = &server.0;
    let patience = dynamic.primary_start_timeout();
    let done = async {
        end_of_recovery(server, postgres, patience).await?;
        let server = LocalServer { data_dir: postgres.data_dir.clone(), port: postgres.listen.port, ways: vec![Way::Socket] };
        let sql = LocalSql::new(server, &postgres.authentication.superuser, &postgres.database);
        sql.ensure_roles(&postgres.authentication).await.context("set the passwords of the cluster's roles")?;
        sql.hang_up().await;
        Ok(())
    };
    let done = done.await;
    stop(server, &postgres.data_dir, done.is_ok()).await?;
    done
}

async fn end_of_recovery(server: &Postmaster, postgres: &PostgresConfig, patience: Duration) -> Result<()> {
    let data_dir = &postgres.data_dir;
    tracing::info!("waiting for the end of recovery");
    let (began, mut moved, mut told) = (Instant::now(), Instant::now(), Instant::now());
    let mut doing = String::new();
    loop {
        tokio::select! {
            () = server.exited() => bail!("Postgres ended before the end of recovery: {}", last_words(&postgres.server_log).await),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let file = PidFile::read(data_dir).await?.filter(|file| file.pid == server.pid());
        if file.and_then(|file| file.status).as_deref() == Some("ready") {
            tracing::info!("recovery ended after {} s", began.elapsed().as_secs());
            return Ok(());
        }
        let now_doing = startup_title(server.pid()).await;
        if now_doing != doing {
            (doing, moved) = (now_doing, Instant::now());
        }
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            tracing::info!("in recovery for {} s: {doing}", began.elapsed().as_secs());
        }
        if moved.elapsed() > patience {
            bail!("recovery has not moved for {} s (primary_start_timeout); last seen: {doing}", patience.as_secs());
        }
    }
}

/// What the startup process shows of itself: `startup recovering 000000010000000000000007`.
async fn startup_title(postmaster: i32) -> String {
    let children = tokio::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).await.unwrap_or_default();
    for child in children.split_whitespace() {
        let title = tokio::fs::read(format!("/proc/{child}/cmdline")).await.unwrap_or_default();
        let title = String::from_utf8_lossy(&title).replace('\0', " ");
        if title.contains("startup") {
            return title.trim().to_owned();
        }
    }
    "no startup process".to_owned()
}

async fn stop(server: &Postmaster, data_dir: &Path, clean: bool) -> Result<()> {
    server.stop(if clean { StopMode::Fast } else { StopMode::Immediate })?;
    if tokio::time::timeout(STOP_PATIENCE, server.exited()).await.is_err() {
        server.signal(rustix::process::Signal::KILL)?;
        server.exited().await;
    }
    kill_orphans(data_dir).await.map(|_| ())
}

/// Where the data of a failed founding is put.
pub fn aside(data_dir: &Path) -> PathBuf {
    let mut failed = data_dir.as_os_str().to_owned();
    failed.push(".failed");
    PathBuf::from(failed)
}

/// Puts the data of a failed founding aside as `<data_dir>.failed`, as Patroni does. Where there is one already,
/// that one is kept, and this node's directory is emptied.
pub async fn set_aside(data_dir: &Path) -> Result<()> {
    if crate::postgres::is_empty_directory(data_dir).await? {
        return Incomplete::of(data_dir).clear().await;
    }
    let failed = aside(data_dir);
    let free = !tokio::fs::try_exists(&failed).await.unwrap_or(true);
    if free && tokio::fs::rename(data_dir, &failed).await.is_ok() {
        tracing::error!("what the failed founding left is in {}", failed.display());
    } else {
        empty_directory(data_dir).await.context("empty the data directory after a failed founding")?;
    }
    Incomplete::of(data_dir).clear().await
}
