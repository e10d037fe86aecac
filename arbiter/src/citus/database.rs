//! One distributed database on the coordinator's primary: its rows in `pg_dist_node`, and the steps on them.

use super::session::SESSION;
use crate::postgres::query::LocalSql;
use anyhow::{Context, Result, bail};
use cluster::citus::{self, NodeRole, Poolers, Row, Step, Wanted};
use cluster::host::Address;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// Our statements may wait for locks, and for other nodes; past this they are given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// After a failover: transactions that use the group whose primary is gone can't end well. They get this long to notice.
pub const AFTER_FAILOVER: Duration = Duration::from_millis(100);

/// Rows that are as they should be are believed for this long.
const BELIEVED: Duration = Duration::from_secs(9);

/// Clients wait meanwhile, so a node that does not answer gets no longer than this.
const CARRY_PATIENCE: &str = "SET LOCAL citus.node_connection_timeout = 1000";

/// What a worker's own copy of the rows says comes from etcd, and its next primary makes it again ([`Database::follow`]): its commit waits for no standby. Right
/// after a change the only one may be the old primary, which is not back yet, and all groups would wait for it.
const LOCALLY: &str = "SET LOCAL tenure.minimum_synchronous_commit = 'local'; SET LOCAL synchronous_commit = 'local'";

/// Moves rows on the other primaries to where they are here, in one exchange with each of them, and takes those whose rows are the same then for in step;
/// one whose rows differ otherwise too leaves them as they were. An address is unique, also from one row to the next: so those that change go aside first.
const CARRY: &str = "
    WITH here AS (SELECT string_agg(format('(%s, %L, %s)', nodeid, nodename, nodeport), ', ') AS list,
        md5(string_agg(format('%s %s %s %s %s %s %s %s %s', nodeid, groupid, nodename, nodeport, noderack,
            noderole, nodecluster, isactive, shouldhaveshards), ',' ORDER BY nodeid)) AS rows FROM pg_catalog.pg_dist_node),
    there AS (SELECT r.* FROM here, run_command_on_workers(format($command$DO $do$ BEGIN
            PERFORM set_config('lock_timeout', '1000', true),
                set_config('tenure.minimum_synchronous_commit', 'local', true), set_config('synchronous_commit', 'local', true);
            LOCK TABLE pg_catalog.pg_dist_node IN SHARE ROW EXCLUSIVE MODE;
            UPDATE pg_catalog.pg_dist_node AS n SET nodename = n.nodename || '-moving-' || n.nodeid FROM (VALUES %1$s) AS w(id, host, port)
                WHERE n.nodeid = w.id AND (n.nodename, n.nodeport) IS DISTINCT FROM (w.host, w.port);
            UPDATE pg_catalog.pg_dist_node AS n SET nodename = w.host, nodeport = w.port FROM (VALUES %1$s) AS w(id, host, port)
                WHERE n.nodeid = w.id AND (n.nodename, n.nodeport) IS DISTINCT FROM (w.host, w.port);
            IF %2$L IS DISTINCT FROM (SELECT md5(string_agg(format('%%s %%s %%s %%s %%s %%s %%s %%s %%s', nodeid, groupid, nodename, nodeport, noderack,
                noderole, nodecluster, isactive, shouldhaveshards), ',' ORDER BY nodeid)) FROM pg_catalog.pg_dist_node) THEN
                RAISE EXCEPTION 'the rows here differ from the coordinator''s in more than addresses';
            END IF;
        END $do$ $command$, here.list, here.rows)) AS r)
    UPDATE pg_catalog.pg_dist_node AS n SET metadatasynced = true FROM there
        WHERE there.success AND (n.nodename, n.nodeport) = (there.nodename, there.nodeport) AND n.hasmetadata AND NOT n.metadatasynced";

/// Those that are not in step.
const BEHIND: &str = "SELECT nodename || ':' || nodeport FROM pg_dist_node
    WHERE hasmetadata AND isactive AND NOT metadatasynced AND noderole = 'primary' AND groupid <> 0 AND nodecluster = 'default'";

/// The same for those that differ: their statements find the primaries, and Citus' daemon brings the rest.
const CARRY_ADDRESSES: &str = "
    SELECT FROM (SELECT string_agg(format('(%s, %L, %s)', nodeid, nodename, nodeport), ', ') AS list FROM pg_catalog.pg_dist_node) AS here,
        run_command_on_workers(format($command$DO $do$ BEGIN
            PERFORM set_config('lock_timeout', '1000', true),
                set_config('tenure.minimum_synchronous_commit', 'local', true), set_config('synchronous_commit', 'local', true);
            LOCK TABLE pg_catalog.pg_dist_node IN SHARE ROW EXCLUSIVE MODE;
            UPDATE pg_catalog.pg_dist_node AS n SET nodename = n.nodename || '-moving-' || n.nodeid FROM (VALUES %1$s) AS w(id, host, port)
                WHERE n.nodeid = w.id AND (n.nodename, n.nodeport) IS DISTINCT FROM (w.host, w.port);
            UPDATE pg_catalog.pg_dist_node AS n SET nodename = w.host, nodeport = w.port FROM (VALUES %1$s) AS w(id, host, port)
                WHERE n.nodeid = w.id AND (n.nodename, n.nodeport) IS DISTINCT FROM (w.host, w.port);
        END $do$ $command$, here.list))";

/// What the rows were found to be, and when.
struct Settled {
    rows: BTreeMap<u32, Wanted>,
    poolers: BTreeMap<u32, Poolers>,
    at: Instant,
}

impl Settled {
    fn is_believed(&self) -> bool {
        self.at.elapsed() < BELIEVED
    }
}

/// A session in the database, and what it found.
pub struct Database {
    sql: Arc<LocalSql>,
    /// Its name.
    pub name: String,
    session: Option<Client>,
    /// An open transaction of [`super::hold`].
    in_transaction: bool,
    /// What `pg_dist_poolinfo` is to say, by group.
    pub poolers: BTreeMap<u32, Poolers>,
    settled: Option<Settled>,
    /// The other nodes were seen to have these rows.
    in_step: bool,
    conflicts: Vec<String>,
}

impl Database {
    /// Connects when first asked something.
    pub fn new(sql: Arc<LocalSql>, name: String) -> Database {
        Database {
            sql,
            name,
            session: None,
            in_transaction: false,
            poolers: BTreeMap::new(),
            settled: None,
            in_step: false,
            conflicts: Vec::new(),
        }
    }

    /// Ends the session; a transaction that is open is rolled back by the server.
    pub fn close(&mut self) {
        self.session = None;
        self.in_transaction = false;
        self.settled = None;
        self.in_step = false;
    }

    /// Makes the rows what is wanted, for all groups of which that is known.
    pub async fn settle(&mut self, wanted: &BTreeMap<u32, Wanted>) -> Result<()> {
        let is_right = |settled: &Settled| settled.rows == *wanted && settled.poolers == self.poolers && settled.is_believed();
        if self.settled.as_ref().is_some_and(is_right) {
            return Ok(());
        }
        self.in_step = false;
        let made = self.make(wanted).await;
        match made {
            Ok(true) => self.settled = Some(Settled { rows: wanted.clone(), poolers: self.poolers.clone(), at: Instant::now() }),
            Ok(false) => self.settled = None,
            // Whatever was open is rolled back.
            Err(_) => self.close(),
        }
        made.map(drop).with_context(|| format!("keep pg_dist_node in {}", self.name))
    }

    /// False where rows that come or go have to wait.
    async fn make(&mut self, wanted: &BTreeMap<u32, Wanted>) -> Result<bool> {
        let plan = citus::plan(&self.rows().await?, wanted);
        if self.conflicts != plan.conflicts {
            plan.conflicts.iter().for_each(|conflict| tracing::warn!("Citus, {}: {conflict}", self.name));
            self.conflicts = plan.conflicts;
        }
        if !plan.moves.is_empty() {
            self.run("BEGIN").await?;
            self.steps(&plan.moves, AFTER_FAILOVER).await?;
            self.keep_poolers().await?;
            self.carry().await?;
            self.run("COMMIT").await?;
            self.in_step = false;
        }
        if !plan.others.is_empty() && !self.behind().await?.is_empty() {
            // Citus would refuse them, after it has locked out who carries the rows.
            self.keep_poolers().await?;
            return Ok(false);
        }
        for step in &plan.others {
            self.steps(std::slice::from_ref(step), AFTER_FAILOVER).await?;
            self.in_step = false;
        }
        self.keep_poolers().await?;
        Ok(true)
    }

    /// Makes `pg_dist_poolinfo` alone what is wanted: rows of `pg_dist_node` come by themselves here.
    pub async fn settle_poolers(&mut self, poolers: &BTreeMap<u32, Poolers>) -> Result<()> {
        if self.settled.as_ref().is_some_and(|settled| settled.poolers == *poolers && settled.is_believed()) {
            return Ok(());
        }
        self.poolers = poolers.clone();
        let kept = self.keep_poolers().await;
        if kept.is_err() {
            self.close();
        } else {
            self.settled = Some(Settled { rows: BTreeMap::new(), poolers: poolers.clone(), at: Instant::now() });
        }
        kept.with_context(|| format!("keep pg_dist_poolinfo in {}", self.name))
    }

    /// Makes `pg_dist_poolinfo` what the configuration of the groups and their members say, for the rows as they are; in the transaction
    /// that moves them, where one is open. Citus carries this table to nobody: each primary keeps its own.
    pub async fn keep_poolers(&mut self) -> Result<()> {
        if self.poolers.is_empty() {
            return Ok(());
        }
        let rows = self.rows().await?;
        let session = self.session().await?;
        let found = bounded(session.query("SELECT nodeid, poolinfo FROM pg_dist_poolinfo", &[])).await.context("read pg_dist_poolinfo")?;
        let found = found.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect::<Result<BTreeMap<i32, String>>>()?;
        for (node, pooler) in citus::pooler_changes(&rows, &found, &self.poolers) {
            let session = self.session().await?;
            let (done, says) = match &pooler {
                Some(pooler) => {
                    let put =
                        "INSERT INTO pg_dist_poolinfo VALUES ($1, $2) ON CONFLICT (nodeid) DO UPDATE SET poolinfo = EXCLUDED.poolinfo";
                    (bounded(session.execute(put, &[&node, pooler])).await, pooler.as_str())
                }
                None => (bounded(session.execute("DELETE FROM pg_dist_poolinfo WHERE nodeid = $1", &[&node])).await, "no pooler"),
            };
            done.with_context(|| format!("write pg_dist_poolinfo of node {node}"))?;
            tracing::info!("Citus, {}: node {node} is reached through {says}", self.name);
        }
        Ok(())
    }

    /// In the transaction that holds writers: moves the rows of a group to where they belong.
    pub async fn move_held(&mut self, wanted: &BTreeMap<u32, Wanted>) -> Result<()> {
        let plan = citus::plan(&self.rows().await?, wanted);
        self.steps(&plan.moves, AFTER_FAILOVER).await?;
        self.keep_poolers().await
    }

    /// The rows, as this session sees them.
    pub async fn rows(&mut self) -> Result<Vec<Row>> {
        const ROWS: &str = "SELECT nodeid, groupid, nodename, nodeport, noderole::text FROM pg_dist_node WHERE nodecluster = 'default'";
        let session = self.session().await?;
        let rows = bounded(session.query(ROWS, &[])).await.context("read pg_dist_node")?;
        let row = |row: &tokio_postgres::Row| -> Result<Row> {
            let (group, port, role): (i32, i32, String) = (row.try_get(1)?, row.try_get(3)?, row.try_get(4)?);
            Ok(Row {
                id: row.try_get(0)?,
                group: u32::try_from(group)?,
                at: Address { host: row.try_get(2)?, port: u16::try_from(port)? },
                role: if role == "primary" { NodeRole::Primary } else { NodeRole::Secondary },
            })
        };
        rows.iter().map(row).collect()
    }

    /// The nodes to which these rows have not been carried yet.
    pub async fn behind(&mut self) -> Result<Vec<String>> {
        if self.in_step {
            return Ok(Vec::new());
        }
        let session = self.session().await?;
        let rows = bounded(session.query(BEHIND, &[])).await.context("read whether the nodes are in step")?;
        self.in_step = rows.is_empty();
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }

    /// On a worker: moves primaries to where they are wanted, in its own copy of the rows. Citus' daemon on the coordinator brings the same a moment
    /// later, in place of all rows.
    pub async fn follow(&mut self, wanted: &BTreeMap<u32, Wanted>) -> Result<()> {
        let plan = citus::plan(&self.rows().await?, wanted);
        if plan.moves.is_empty() {
            return Ok(());
        }
        // The coordinator's arbiter writes the same at the same moment, in another order.
        self.run(&format!("BEGIN; {LOCALLY}; LOCK TABLE pg_catalog.pg_dist_node IN SHARE ROW EXCLUSIVE MODE")).await?;
        let moved = self.move_here(&plan.moves).await;
        if moved.is_err() {
            self.close();
        } else {
            self.run("COMMIT").await?;
        }
        moved
    }

    async fn move_here(&mut self, moves: &[Step]) -> Result<()> {
        const MOVE: &str = "UPDATE pg_catalog.pg_dist_node SET nodename = $2, nodeport = $3 WHERE nodeid = $1";
        let session = self.session().await?;
        for step in moves {
            let Step::Move { id, to } = step else { continue };
            bounded(session.execute(MOVE, &[id, &to.host, &i32::from(to.port)])).await.with_context(|| step.to_string())?;
        }
        Ok(())
    }

    /// In the transaction that moved rows: writes the same on the other primaries, so that nobody there waits for Citus' daemon, and takes those that
    /// have all rows as they are here for in step. The others stay for the daemon. What is written there stays written should this transaction
    /// fail: it is what etcd says, and the move is made again.
    async fn carry(&mut self) -> Result<()> {
        self.run(&format!("SAVEPOINT carry; {CARRY_PATIENCE}")).await?;
        let carried = async {
            let session = self.session().await?;
            bounded(session.batch_execute(CARRY)).await.context("tell the other nodes")?;
            if !bounded(session.query(BEHIND, &[])).await.context("read whether the nodes are in step")?.is_empty() {
                bounded(session.batch_execute(CARRY_ADDRESSES)).await.context("tell the other nodes")?;
            }
            Ok(())
        };
        let carried: Result<()> = carried.await;
        if let Err(why) = &carried {
            tracing::info!("Citus, {}: the other nodes learn of it from Citus' daemon: {why:#}", self.name);
            self.run("ROLLBACK TO carry").await?;
        }
        self.run("RELEASE carry").await
    }

    /// Ends an attempt to carry rows to the other nodes that goes on for longer than this. The maintenance daemon begins another.
    pub async fn hurry(&mut self, longer_than: Duration) {
        const CANCEL: &str = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE application_name = 'Citus Metadata Sync Daemon'
            AND datname = current_database() AND xact_start < clock_timestamp() - make_interval(secs => $1)";
        let cancelled = async {
            let session = self.session().await?;
            bounded(session.query(CANCEL, &[&longer_than.as_secs_f64()])).await
        };
        match cancelled.await {
            Ok(attempts) if attempts.is_empty() => {}
            Ok(_) => tracing::info!("Citus, {}: an attempt to carry older rows to the other nodes was ended", self.name),
            Err(why) => tracing::debug!("Citus, {}: {why:#}", self.name),
        }
    }

    /// Does the steps one by one; transactions in the way of a move end after `cooldown`.
    pub async fn steps(&mut self, steps: &[Step], cooldown: Duration) -> Result<()> {
        let cooldown = i32::try_from(cooldown.as_millis()).unwrap_or(i32::MAX);
        for step in steps {
            let session = self.session().await?;
            let done = match step {
                Step::SetCoordinator { at } => {
                    let call = "SELECT citus_set_coordinator_host($1, $2, 'primary', 'default')";
                    bounded(session.execute(call, &[&at.host, &i32::from(at.port)])).await
                }
                Step::Move { id, to } => {
                    let call = "SELECT citus_update_node($1, $2, $3, true, $4)";
                    bounded(session.execute(call, &[id, &to.host, &i32::from(to.port), &cooldown])).await
                }
                Step::Add { group, at, role } => {
                    let call = "SELECT citus_add_node($1, $2, $3, $4::text::noderole, 'default')";
                    let group = i32::try_from(*group)?;
                    bounded(session.execute(call, &[&at.host, &i32::from(at.port), &group, &role.word()])).await
                }
                Step::Remove { at } => {
                    let call = "SELECT citus_remove_node($1, $2)";
                    bounded(session.execute(call, &[&at.host, &i32::from(at.port)])).await
                }
            };
            done.with_context(|| step.to_string())?;
            tracing::info!("Citus, {}: {step}", self.name);
        }
        Ok(())
    }

    /// The same for one move that ends nobody's transaction: it fails where they go on for longer than this.
    pub async fn step_aside(&mut self, step: &Step, patience: Duration) -> Result<()> {
        let Step::Move { id, to } = step else { bail!("{step} is no move") };
        self.run(&format!("SET LOCAL lock_timeout = {}", patience.as_millis().max(1))).await?;
        let session = self.session().await?;
        let call = "SELECT citus_update_node($1, $2, $3, false, 0)";
        let done = bounded(session.execute(call, &[id, &to.host, &i32::from(to.port)])).await;
        done.with_context(|| format!("wait {} s for transactions that use it (citus.lock_cooldown)", patience.as_secs()))?;
        self.run("SET LOCAL lock_timeout = DEFAULT").await?;
        tracing::info!("Citus, {}: {step}", self.name);
        Ok(())
    }

    /// Opens the transaction in which writers are held, unless it is open.
    pub async fn begin(&mut self, at_most: Duration) -> Result<()> {
        if !self.in_transaction {
            // Should this arbiter freeze, the server itself ends the hold.
            self.run(&format!("SET idle_in_transaction_session_timeout = {}; BEGIN", at_most.as_millis())).await?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Ends the transaction: what was moved in it counts, or the session is given up and nothing of it does.
    pub async fn commit(&mut self) -> Result<()> {
        let carried = self.carry().await;
        let done = match carried {
            Ok(()) => self.run("COMMIT").await,
            Err(_) => carried,
        };
        self.in_transaction = false;
        self.settled = None;
        self.in_step = false;
        if done.is_err() {
            self.close();
        }
        done
    }

    /// The process of our session.
    pub async fn backend(&mut self) -> Result<i32> {
        let session = self.session().await?;
        Ok(bounded(session.query_one("SELECT pg_backend_pid()", &[])).await?.try_get(0)?)
    }

    /// Runs statements without results.
    pub async fn run(&mut self, statements: &str) -> Result<()> {
        let session = self.session().await?;
        bounded(session.batch_execute(statements)).await.with_context(|| statements.to_owned())
    }

    async fn session(&mut self) -> Result<&Client> {
        if self.session.as_ref().is_some_and(Client::is_closed) {
            let held = self.in_transaction;
            self.close();
            if held {
                bail!("the session that held writers in {} was lost", self.name);
            }
        }
        if self.session.is_none() {
            let options = format!("-c statement_timeout={}", PATIENCE.as_millis());
            self.session = Some(self.sql.open_as(SESSION, Some(&self.name), &options).await?);
        }
        self.session.as_ref().context("no session")
    }
}

async fn bounded<T>(exchange: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
    let bound = PATIENCE + Duration::from_secs(5);
    Ok(tokio::time::timeout(bound, exchange).await.with_context(|| format!("no answer within {} s", bound.as_secs()))??)
}
