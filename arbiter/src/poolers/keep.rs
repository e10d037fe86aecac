//! The task beside the loop that lets paused poolers go on, and that keeps a pooler's own file pointed at the primary.

use super::console::Console;
use super::record::{forget, key, left_behind};
use crate::config::{NodeConfig, PoolerConfig};
use crate::node::Node;
use crate::node::snapshot::Snapshot;
use crate::postgres::{read_if_there, write_atomically};
use anyhow::{Context, Result, ensure};
use cluster::host::Address;
use cluster::local::Postgres;
use cluster::poolers::{self, Database, Here, Paused, Step};
use cluster::view::ClusterView;
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

/// Pause before the next look at what is outside of this program and tells nobody: a proxy's own health checks, a page that opens, a
/// console that is away.
const RETRY: Duration = Duration::from_millis(100);

/// A pooler's file that could not be written, or a console that was away for it, is tried again after this time.
const POINT_AGAIN: Duration = Duration::from_secs(5);

/// A console that is away, or a record that could not be deleted, is tried again after this time.
const AGAIN: Duration = Duration::from_secs(1);

/// A server behind a proxy has to answer within this time; it is asked again.
const PROBE_WITHIN: Duration = Duration::from_millis(500);

/// Keeps the poolers for as long as the future is polled. `configured` is the node's file as last read.
pub async fn keep(node: Node, mut shown: watch::Receiver<Snapshot>, mut configured: watch::Receiver<Arc<NodeConfig>>) {
    let mut keeper = Keeper { left_behind: left_behind(&node).await, node, known: None, done: BTreeSet::new(), pointed: BTreeMap::new() };
    let changes = keeper.node.poolers.clone();
    loop {
        let config = configured.borrow_and_update().clone();
        let snapshot = shown.borrow_and_update().clone();
        let pause = if config.poolers.is_empty() { Duration::MAX } else { keeper.round(&config, &snapshot).await };
        tokio::select! {
            Ok(()) = shown.changed() => {}
            Ok(()) = configured.changed() => {}
            () = changes.bell.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What became of one pooler.
enum Went {
    /// It goes on; it may have done so before.
    On {
        /// By this node, now.
        resumed: bool,
    },
    /// It leads elsewhere yet.
    NotYet,
}

struct Keeper {
    node: Node,
    /// By the file of the arbiter before this one; until etcd was read.
    left_behind: Option<Paused>,
    /// The record's revision, and since when it is known here.
    known: Option<(i64, Instant)>,
    /// Poolers of that record that go on again.
    done: BTreeSet<String>,
    /// Where each pooler's own file was last pointed, or when that failed.
    pointed: BTreeMap<String, Result<Address, Instant>>,
}

impl Keeper {
    /// One look; gives the time until the next one that nothing else would bring about.
    async fn round(&mut self, config: &NodeConfig, snapshot: &Snapshot) -> Duration {
        let view = &*snapshot.view;
        let again = self.point(config, view).await;
        let (paused, revision) = match (&view.poolers, &self.left_behind) {
            (Some(record), _) => (record.value.clone(), record.revision),
            (None, Some(left)) if snapshot.view_at.is_none() => (left.clone(), 0),
            (None, left) => {
                if left.is_some() || self.known.take().is_some() {
                    self.left_behind = None;
                    // While a change begins, its file comes before its key.
                    if self.node.poolers.count.load(Ordering::Acquire) == 0 {
                        forget(&self.node).await;
                    }
                }
                return again;
            }
        };
        let since = match self.known {
            Some((known, since)) if known == revision => since,
            _ => {
                self.done.clear();
                let now = Instant::now();
                self.known = Some((revision, now));
                now
            }
        };
        let here = Here {
            writes: self.writes(snapshot).await,
            changing: self.node.poolers.count.load(Ordering::Acquire) > 0,
            known_for: since.elapsed(),
        };
        let step = poolers::judge(&paused, view, &self.node.config.name, here);
        let left = Duration::from_secs(paused.at_most_s).saturating_sub(here.known_for);
        if step == Step::Wait {
            // A page that is about to open wakes the loop; should that be missed, this is soon enough.
            let leads = view.leader_if(&self.node.config.name).is_some();
            return if leads && !here.changing { RETRY.min(left) } else { left.max(Duration::from_millis(1)).min(again) };
        }
        let named = config.poolers.iter().map(|pooler| (pooler, key(&self.node.config, pooler)));
        // What another's arbiter re-points or reaches is its own business, until the time is over.
        let mine = named.filter(|(pooler, key)| !self.done.contains(key) && (step != Step::GoOnWithOwn || self.is_local(pooler)));
        let waiting: Vec<(&PoolerConfig, String)> = mine.collect();
        let this = &*self;
        let listed = waiting.iter().filter_map(|(pooler, key)| Some((*pooler, key, paused.poolers.get(key)?)));
        let went = join_all(listed.map(|(pooler, key, databases)| async move {
            match this.go_on(pooler, databases, step, view).await {
                Ok(Went::On { resumed }) => {
                    if resumed {
                        let how = if step == Step::GoOnAnyway { "the change took too long or who paused it is gone; " } else { "" };
                        tracing::info!(
                            "PgBouncer at {} goes on: {how}known as paused for {} ms",
                            pooler.address,
                            since.elapsed().as_millis()
                        );
                    }
                    Ok(Some(key.clone()))
                }
                Ok(Went::NotYet) => Ok(None),
                Err(why) => {
                    tracing::warn!("PgBouncer at {} can't be resumed yet: {why:#}", pooler.address);
                    Err(())
                }
            }
        }))
        .await;
        let failed = went.iter().any(Result::is_err);
        let all_went = went.iter().all(|one| matches!(one, Ok(Some(_))));
        self.done.extend(went.into_iter().flatten().flatten());
        let everything = paused.poolers.keys().all(|key| self.done.contains(key));
        // An arbiter that knows of a part only leaves the word for the others, until each of them has had its time.
        let outlived = step == Step::GoOnAnyway && all_went && here.known_for.as_secs() >= 2 * paused.at_most_s;
        if (here.writes && everything || outlived)
            && revision != 0
            && let Err(why) = self.node.etcd.clear_poolers(revision).await
        {
            tracing::debug!("clear tenure/poolers: {why}");
            return AGAIN;
        }
        match () {
            () if all_went => left.max(AGAIN).min(again),
            () if failed => AGAIN,
            () => RETRY,
        }
    }

    /// A pooler that only this node re-points, or only this node reaches.
    fn is_local(&self, pooler: &PoolerConfig) -> bool {
        pooler.databases_file.is_some() || pooler.address.host.starts_with('/')
    }

    /// This node's server takes writes that begin now.
    async fn writes(&self, snapshot: &Snapshot) -> bool {
        if !matches!(snapshot.local.postgres, Postgres::Primary { .. }) {
            return false;
        }
        match self.node.sql.fence().await {
            Ok(fence) => fence.left.is_some_and(|left| !left.is_zero()) && fence.draining_for.is_none(),
            Err(_) => false,
        }
    }

    /// Lets a pooler go on if it leads to the server that takes writes.
    async fn go_on(&self, pooler: &PoolerConfig, databases: &BTreeSet<String>, step: Step, view: &ClusterView) -> Result<Went> {
        let console = Console::open(pooler).await?;
        if pooler.databases_file.is_some() && step != Step::GoOnAnyway {
            if !self.is_pointed(pooler, view) {
                return Ok(Went::NotYet);
            }
            // Right before it goes on: a client that logged in between the two would make PgBouncer try a server while it is paused.
            console.reload().await?;
        }
        let paused: Vec<Database> =
            console.databases().await?.into_iter().filter(|database| database.paused && databases.contains(&database.name)).collect();
        if step == Step::GoOn && pooler.databases_file.is_none() {
            for database in &paused {
                if !self.leads_here(pooler, database, view).await {
                    return Ok(Went::NotYet);
                }
            }
        }
        resume(&console, &paused).await?;
        Ok(Went::On { resumed: !paused.is_empty() })
    }

    /// A database of the pooler leads to this node, which writes; or nobody can tell where it leads.
    async fn leads_here(&self, pooler: &PoolerConfig, database: &Database, view: &ClusterView) -> bool {
        if let Some(member) = database.leads_to(view) {
            // Another's: the arbiter beside that pooler re-points it.
            return *member == self.node.config.name;
        }
        if database.is_beside() && !poolers::is_own_machine(&pooler.address.host) {
            return true;
        }
        self.is_reached_by(database).await.unwrap_or(true)
    }

    /// Who answers at a proxy's or a virtual address: a primary? None where it can't be asked. No password is sent: the server that answers there may be
    /// anybody, and may ask for it in the clear. That somebody asks for one says at least that a server is reached.
    async fn is_reached_by(&self, database: &Database) -> Option<bool> {
        let superuser = &self.node.config.postgres.authentication.superuser;
        let mut config = tokio_postgres::Config::new();
        config.host(&database.host).port(database.port).user(&superuser.username).dbname(&self.node.config.postgres.database);
        config.application_name("tenure arbiter, poolers").connect_timeout(PROBE_WITHIN);
        let asked = tokio::time::timeout(PROBE_WITHIN, async {
            let (client, connection) = config.connect(NoTls).await?;
            let speaking = tokio::spawn(connection);
            let answer = client.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]).await.and_then(|row| row.try_get::<_, bool>(0));
            speaking.abort();
            answer
        });
        match asked.await {
            Ok(Ok(in_recovery)) => Some(!in_recovery),
            // Whose server it is can't be told from here.
            Ok(Err(why)) if asks_for_a_password(&why) || why.code().is_some_and(|code| *code != SqlState::CANNOT_CONNECT_NOW) => None,
            _ => Some(false),
        }
    }

    fn is_pointed(&self, pooler: &PoolerConfig, view: &ClusterView) -> bool {
        let wanted = poolers::writer(view).map(|(_, address)| address);
        wanted.is_some() && self.pointed.get(&pooler.address.to_string()).and_then(|pointed| pointed.as_ref().ok()) == wanted.as_ref()
    }

    /// Writes the primary's address into the poolers' own files, where it is another than before, and has them read again.
    async fn point(&mut self, config: &NodeConfig, view: &ClusterView) -> Duration {
        let Some((_, server)) = poolers::writer(view) else { return Duration::MAX };
        let mut again = Duration::MAX;
        for pooler in config.poolers.iter().filter(|pooler| pooler.databases_file.is_some()) {
            let name = pooler.address.to_string();
            match self.pointed.get(&name) {
                Some(Ok(pointed)) if *pointed == server => continue,
                Some(Err(failed)) if failed.elapsed() < POINT_AGAIN => {
                    again = again.min(POINT_AGAIN);
                    continue;
                }
                _ => {}
            }
            let pointed = match point(pooler, &server, view.poolers.is_some()).await {
                Ok(changed) => {
                    if changed {
                        tracing::info!("PgBouncer at {} is pointed to {server}", pooler.address);
                    }
                    Ok(server.clone())
                }
                Err(why) => {
                    tracing::error!("PgBouncer at {} is not pointed to {server}: {why:#}", pooler.address);
                    again = again.min(POINT_AGAIN);
                    Err(Instant::now())
                }
            };
            self.pointed.insert(name, pointed);
        }
        again
    }
}

fn asks_for_a_password(error: &tokio_postgres::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.to_string().contains("password missing"))
}

/// True if the file named another server. While a pause is known the pooler reads it when it goes on, and not before.
async fn point(pooler: &PoolerConfig, server: &Address, paused: bool) -> Result<bool> {
    let Some(path) = &pooler.databases_file else { return Ok(false) };
    ensure!(poolers::is_host(&server.host), "the leader's member key names no usable host: {:?}", server.host);
    let text = read_if_there(path).await?.with_context(|| format!("{} is not there (pgbouncer.databases_file)", path.display()))?;
    let wanted = poolers::repointed(&text, server, pooler.databases.as_deref());
    if wanted == text {
        return Ok(false);
    }
    write_atomically(path, &wanted, 0o640).await?;
    if !paused {
        Console::open(pooler).await?.reload().await?;
    }
    Ok(true)
}

async fn resume(console: &Console, paused: &[Database]) -> Result<()> {
    for database in paused {
        if let Err(why) = console.resume(&database.name).await {
            // Another arbiter was faster.
            let still = console.databases().await?.iter().any(|seen| seen.name == database.name && seen.paused);
            ensure!(!still, "{why:#}");
        }
    }
    Ok(())
}

/// Lets these go on wherever they lead.
pub async fn resume_all(pooler: &PoolerConfig, databases: &BTreeSet<String>) -> Result<()> {
    let console = Console::open(pooler).await?;
    let paused: Vec<Database> =
        console.databases().await?.into_iter().filter(|database| database.paused && databases.contains(&database.name)).collect();
    resume(&console, &paused).await
}
