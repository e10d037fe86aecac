//! The twin of a major upgrade: a server of the other version beside the leader's that follows it by logical replication.
//!
//! What it is and when it goes is `cluster::upgrade::twin`; here are its files, its server, and what both sides are told. The change of
//! places is a duty (`duties/change_places.rs`), the care for it goes on beside the loop (`upkeep/twin.rs`).

pub mod compare;
pub mod join;
pub mod make;
pub mod sides;

use crate::config::NodeConfig;
use crate::node::paths;
use crate::postgres::local::{LocalServer, Way};
use crate::postgres::postmaster::{Postmaster, Readiness, StopMode, last_words};
use crate::postgres::query::LocalSql;
use crate::postgres::{Programs, read_if_there, remove_if_there, sync_directory, write_atomically};
use crate::upgrade::trial;
use anyhow::{Context, Result, bail};
use cluster::upgrade::twin::Twin;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The number of its socket; nobody else reaches that.
pub const PORT: u16 = 50_432;

/// A server of ours that is stopped writes a checkpoint first.
const STOP_PATIENCE: Duration = Duration::from_secs(60);

/// Where it is: beside the data, of mode 0700.
pub fn place(config: &NodeConfig) -> PathBuf {
    paths::beside(config, ".twin")
}

/// Its data.
pub fn data(config: &NodeConfig) -> PathBuf {
    place(config).join("data")
}

fn note(config: &NodeConfig) -> PathBuf {
    paths::beside(config, ".twin.json")
}

/// What is written down, where something is.
pub async fn read(config: &NodeConfig) -> Result<Option<Twin>> {
    let path = note(config);
    let Some(text) = read_if_there(&path).await? else { return Ok(None) };
    let said = format!(
        "{} can't be read: it says what the server in {} is; hint: where that is of no more use, remove both while the arbiter is stopped",
        path.display(),
        place(config).display()
    );
    serde_json::from_str(&text).context(said).map(Some)
}

/// Durable when this returns.
pub async fn write(config: &NodeConfig, twin: &Twin) -> Result<()> {
    write_atomically(&note(config), &serde_json::to_string(twin)?, 0o600).await.context("write down how far the upgrade is")
}

/// There is no twin any more; durable when this returns. The note goes last: as long as it is there the rest is looked for.
pub async fn remove(config: &NodeConfig) -> Result<()> {
    stop(config, StopMode::Immediate).await?;
    trial::remove(&place(config)).await?;
    let path = note(config);
    let removed = remove_if_there(&path).await.context("take the note of the upgrade away")?;
    match path.parent() {
        Some(parent) if removed => sync_directory(parent).await,
        _ => Ok(()),
    }
}

/// What both kinds of its servers need to be like the leader's.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Like {
    /// `shared_preload_libraries` without ours: a server without the fence, which only this user reaches.
    pub preloaded: String,
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
    /// Databases.
    pub databases: u32,
}

impl Like {
    /// As the leader's server says.
    pub async fn ask(sql: &LocalSql) -> Result<Like> {
        const ASKED: &str = "SELECT json_build_object(
            'preloaded', (SELECT coalesce(string_agg(trim(library), ','), '') FROM unnest(string_to_array(current_setting('shared_preload_libraries'), ',')) library
                WHERE trim(library) NOT IN ('', 'pg_tenure', '$libdir/pg_tenure')),
            'max_connections', current_setting('max_connections')::int, 'max_prepared_transactions', current_setting('max_prepared_transactions')::int,
            'max_locks_per_transaction', current_setting('max_locks_per_transaction')::int,
            'databases', (SELECT count(*) FROM pg_database WHERE datallowconn))::text";
        serde_json::from_str(&sql.text(ASKED).await.context("ask what the twin has to be like")?).context("understand the answer")
    }

    /// On the command line, as what ALTER SYSTEM wrote into the data must not open another way in.
    fn arguments(&self, place: &Path) -> Vec<String> {
        let (databases, place) = (self.databases, place.display());
        let settings = [
            ("listen_addresses", String::new()),
            ("port", PORT.to_string()),
            ("unix_socket_directories", place.to_string()),
            ("unix_socket_permissions", "0700".to_owned()),
            ("hba_file", format!("{place}/hba.conf")),
            ("ident_file", format!("{place}/ident.conf")),
            ("ssl", "off".to_owned()),
            ("archive_mode", "off".to_owned()),
            ("synchronous_standby_names", String::new()),
            ("shared_preload_libraries", self.preloaded.clone()),
            ("logging_collector", "off".to_owned()),
            ("wal_level", "logical".to_owned()),
            ("max_connections", self.max_connections.to_string()),
            ("max_prepared_transactions", self.max_prepared_transactions.to_string()),
            ("max_locks_per_transaction", self.max_locks_per_transaction.to_string()),
            ("max_wal_senders", (databases + 8).to_string()),
            // What was the leader's has the slots of its standbys at its first start.
            ("max_replication_slots", (2 * databases + 64).to_string()),
            ("max_logical_replication_workers", (databases + 2).to_string()),
            ("max_worker_processes", (databases + 16).to_string()),
            // What it has applied is on disk, and confirmed, soon: the change of places waits for that.
            ("wal_writer_delay", "10ms".to_owned()),
            ("wal_receiver_status_interval", "1s".to_owned()),
            ("wal_retrieve_retry_interval", "500ms".to_owned()),
            ("cluster_name", "twin".to_owned()),
        ];
        settings.into_iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]).collect()
    }
}

/// Writes what its servers are started with: who is let in, and an empty configuration.
pub async fn prepare_place(place: &Path) -> Result<()> {
    write_atomically(&place.join("hba.conf"), "local all all trust\n", 0o600).await?;
    write_atomically(&place.join("ident.conf"), "", 0o600).await?;
    write_atomically(&place.join("empty.conf"), "", 0o600).await
}

/// Starts a server of ours on this directory, if none runs there, and waits until it is ready or recovers.
pub async fn start(config: &NodeConfig, programs: &Programs, data: &Path, like: &Like, more: &[String]) -> Result<()> {
    let place = place(config);
    let log = place.join("server.log");
    let server = match Postmaster::adopt(data).await? {
        Some(server) => server,
        None => {
            crate::postgres::postmaster::kill_orphans(data).await?;
            let mut arguments = like.arguments(&place);
            arguments.extend_from_slice(more);
            Postmaster::start(programs, data, &place.join("empty.conf"), &arguments, &log).await?
        }
    };
    match server.ready().await? {
        Readiness::Ready | Readiness::Standby => Ok(()),
        Readiness::Ended => bail!("the server beside the leader's does not start: {}", last_words(&log).await),
    }
}

/// Stops the server on this directory, where one runs.
pub async fn stop_server(data: &Path, mode: StopMode) -> Result<()> {
    let Some(server) = Postmaster::adopt(data).await? else { return Ok(()) };
    server.stop(mode)?;
    if tokio::time::timeout(STOP_PATIENCE, server.exited()).await.is_err() {
        server.stop(StopMode::Immediate)?;
        tokio::time::timeout(STOP_PATIENCE, server.exited()).await.context("the server beside the leader's does not end")?;
    }
    Ok(())
}

/// Stops whatever server of ours runs in the place.
pub async fn stop(config: &NodeConfig, mode: StopMode) -> Result<()> {
    let place = place(config);
    for directory in ["copy", "data"].map(|name| place.join(name)) {
        stop_server(&directory, mode).await?;
    }
    Ok(())
}

/// The way to the server on this directory of ours.
pub fn sql(config: &NodeConfig, data: &Path) -> LocalSql {
    let postgres = &config.postgres;
    let server = LocalServer { data_dir: data.to_owned(), port: PORT, ways: vec![Way::Socket] };
    LocalSql::new(server, &postgres.authentication.superuser, &postgres.database)
}

/// The programs of this major version.
pub fn programs(config: &NodeConfig, major: u32) -> Result<Programs> {
    let found = config.postgres.programs_of(major).filter(|programs| programs.path("postgres").is_file());
    found.with_context(|| format!("PostgreSQL {major} is not beside {}", config.postgres.bin_dir.display()))
}
