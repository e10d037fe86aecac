//! The replication slots of this node's server: `cluster::slots` decides, and here it is done.

use crate::config::NodeConfig;
use crate::node::Node;
use crate::postgres::facts::ServerFacts;
use crate::postgres::query::demand_ours;
use anyhow::{Context, Result, bail};
use cluster::leader::Leader;
use cluster::lsn::Lsn;
use cluster::member::Tags;
use cluster::name::Timeline;
use cluster::slots::{self, Copied, Facts, LogicalSlot, SlotFacts, SlotStep};
use cluster::view::ClusterView;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// A copy of a logical slot is moved by this much WAL at once: decoding that is called off has moved nothing.
const STRIDE_BYTES: u64 = 64 << 20;

/// Longest time for one such move, for the session that does it.
const COPY_OPTIONS: &str = "-c statement_timeout=30s";

/// How long a promotion waits for a slot that must go and is still being moved.
const RELEASE_PATIENCE: Duration = Duration::from_secs(2);

/// One look at the slots. `leader` is given where this node leads.
pub async fn keep(node: &Node, view: &ClusterView, leader: Option<&Leader>, server: &ServerFacts) -> Result<()> {
    recall(node).await;
    if (leader.is_some() || !slots::keeps_logical(view.config()))
        && let Ok(mut session) = node.slots.session.try_lock()
    {
        // Nothing is copied here: what was begun goes with its session.
        *session = None;
    }
    let tags = Tags(node.config.tags.clone());
    let copies = {
        let mut inner = node.slots.inner();
        inner.timeline = server.timeline;
        let before = std::mem::take(&mut inner.copies);
        inner.copies = slots::remembered(before, view, &server.slots);
        inner.copies.clone()
    };
    let free = free_bytes(&node.config).await;
    let facts = facts(node, view, &tags, leader.is_some(), server, &copies, free);
    let mut made = false;
    let mut told = BTreeSet::new();
    let mut beside = Vec::new();
    for step in slots::decide(&facts) {
        match step {
            SlotStep::Tell { name, what } => {
                told.insert(format!("slot {name}: {what}"));
            }
            SlotStep::Copy { .. } | SlotStep::Trust { .. } | SlotStep::Advance { logical: true, .. } | SlotStep::CreateLogical { .. } => {
                beside.push(step);
            }
            step => {
                match apply(node, &step).await {
                    Ok(()) => made |= matches!(step, SlotStep::CreatePhysical { .. }),
                    // The others don't suffer for one, and the next look tries again.
                    Err(why) => drop(told.insert(format!("{why:#}"))),
                }
            }
        }
    }
    if let Some(leader) = leader {
        // A copy waits for word of the slot that was made for it just now.
        let fresh = if made { node.sql.facts().await.ok() } else { None };
        let facts = Facts { slots: fresh.as_ref().map_or(facts.slots, |fresh| &fresh.slots[..]), ..facts };
        match publish(node, &facts, leader, server, free).await {
            Ok(lines) => told.extend(lines),
            // The configuration and the synchronous standbys must not wait for it.
            Err(why) => drop(told.insert(format!("{why:#}"))),
        }
    }
    node.slots.tell(told);
    work_beside(node, beside);
    Ok(())
}

/// After a restart of the arbiter: the copies that were shown to be safe before.
async fn recall(node: &Node) {
    if std::mem::replace(&mut node.slots.inner().recalled, true) {
        return;
    }
    let text = tokio::fs::read(crate::node::paths::trusted_slots_file(&node.config)).await.unwrap_or_default();
    let trusted: BTreeMap<String, Timeline> = serde_json::from_slice(&text).unwrap_or_default();
    let copied = |timeline| Copied { trusted: Some(timeline), ..Copied::default() };
    node.slots.inner().copies = trusted.into_iter().map(|(name, timeline)| (name, copied(timeline))).collect();
}

/// Writes down which copies were shown to be safe, and on which timeline: on a later one it counts no more.
async fn remember(node: &Node) -> Result<()> {
    let trusted: BTreeMap<String, Timeline> =
        node.slots.inner().copies.iter().filter_map(|(name, copied)| Some((name.clone(), copied.trusted?))).collect();
    let text = serde_json::to_string(&trusted).context("print the trusted slots")?;
    let path = crate::node::paths::trusted_slots_file(&node.config);
    crate::postgres::write_atomically(&path, &text, 0o600).await.with_context(|| format!("write {}", path.display()))
}

fn facts<'a>(
    node: &'a Node,
    view: &'a ClusterView,
    tags: &'a Tags,
    primary: bool,
    server: &'a ServerFacts,
    copies: &'a BTreeMap<String, Copied>,
    free: u64,
) -> Facts<'a> {
    let config = &node.config;
    let position = if server.in_recovery { server.replayed_lsn } else { server.flush_lsn };
    Facts {
        view,
        name: &config.name,
        tags,
        primary,
        position: position.unwrap_or_default(),
        redo: server.redo_lsn.unwrap_or_default(),
        timeline: server.timeline,
        server_version: server.server_version,
        use_slots: config.postgres.use_slots.unwrap_or_else(|| view.config().use_slots()),
        slots: &server.slots,
        copies,
        most_for_a_copy: free / 2,
    }
}

/// What takes a moment only.
async fn apply(node: &Node, step: &SlotStep) -> Result<()> {
    match step {
        SlotStep::Drop { name, why } => {
            node.sql
                .run("SELECT pg_drop_replication_slot($1::text::name)", &[name])
                .await
                .with_context(|| format!("drop the replication slot {name}"))?;
            tracing::info!("dropped the replication slot {name}: {why}");
        }
        SlotStep::CreatePhysical { name } => {
            node.sql
                .run("SELECT pg_create_physical_replication_slot($1::text::name, true)", &[name])
                .await
                .with_context(|| format!("create the replication slot {name}"))?;
            tracing::info!("created the replication slot {name}");
        }
        SlotStep::Advance { name, to, logical: _ } => {
            node.sql
                .run("SELECT pg_replication_slot_advance($1::text::name, $2::text::pg_lsn)", &[name, &to.to_string()])
                .await
                .with_context(|| format!("advance the replication slot {name} to {to}"))?;
        }
        SlotStep::Distrust { name } => {
            tracing::warn!("the leader keeps no catalog rows for the copy of the slot {name} any more: it is not offered until it does");
            if let Some(copied) = node.slots.inner().copies.get_mut(name) {
                copied.trusted = None;
            }
            remember(node).await?;
        }
        SlotStep::CreateLogical { .. } | SlotStep::Copy { .. } | SlotStep::Trust { .. } | SlotStep::Tell { .. } => {
            bail!("{step:?} is done elsewhere")
        }
    }
    Ok(())
}

/// In the slot's own database. Finding a starting point waits for the transactions that run, so the bound is wide.
async fn create_logical(node: &Node, name: &str, database: &str, plugin: &str, failover: bool) -> Result<()> {
    let statement = if failover {
        "SELECT pg_create_logical_replication_slot($1::text::name, $2::text::name, false, false, true)"
    } else {
        "SELECT pg_create_logical_replication_slot($1::text::name, $2::text::name)"
    };
    let made = async {
        let client = node.sql.open(Some(database), "-c statement_timeout=10s").await?;
        client.execute(statement, &[&name, &plugin]).await?;
        anyhow::Ok(())
    };
    made.await.with_context(|| format!("create the logical replication slot {name} ({plugin} in {database})"))?;
    tracing::info!("created the logical replication slot {name} ({plugin} in {database})");
    Ok(())
}

/// Hands the lease worker what it is to publish; gives what is to be told.
async fn publish(node: &Node, facts: &Facts<'_>, leader: &Leader, server: &ServerFacts, free: u64) -> Result<BTreeSet<String>> {
    if slots::keeps_logical(facts.view.config()) && server.server_version < slots::NATIVE_SYNC {
        log_running_transactions(node, facts).await?;
    }
    let round = {
        let mut inner = node.slots.inner();
        inner.round += 1;
        inner.round
    };
    let keep_bytes = server.max_slot_wal_keep_mb.and_then(|mb| u64::try_from(mb).ok()).map(|mb| mb << 20);
    let limit = slots::warning_bytes(keep_bytes, free);
    let publication = slots::publication(facts, leader.term, round, limit);
    let text = serde_json::to_string(&publication).context("print what is published of the slots")?;
    node.sql.run("SELECT tenure_internal.note_slots($1)", &[&text]).await.context("hand the slots to the lease worker")?;
    if publication.facts.reserved != SlotFacts::of(facts.view.status.as_ref().map(|status| &status.value)).reserved {
        // A copy waits for that word: the lease worker writes it when it is woken.
        node.sql.run("SELECT tenure_internal.attach_arbiter()", &[]).await.context("wake the lease worker")?;
    }
    let line = |(name, bytes): (&String, &u64)| {
        // No number that changes all the time: it is said once.
        let hint = "hint: see that its consumer runs, drop the slot, or set max_slot_wal_keep_size";
        let active = facts.slots.iter().any(|slot| slot.slot_name == *name && slot.active);
        let state = if active { "in use" } else { "inactive" };
        let size =
            if *bytes > limit { "more WAL than half of what there is room for" } else { "WAL that is about to be removed or is gone" };
        format!("the replication slot {name} ({state}) holds back {size}; {hint}")
    };
    Ok(publication.facts.holding_back.iter().map(line).collect())
}

/// One such record, of some tens of bytes, in a `loop_wait`: also on an idle server, where a copy could not be shown to be safe else.
async fn log_running_transactions(node: &Node, facts: &Facts<'_>) -> Result<()> {
    let loop_wait = facts.view.config().timing().loop_wait;
    let due = node.slots.inner().logged.is_none_or(|at| at.elapsed() >= loop_wait);
    if due {
        node.sql.run("SELECT tenure_internal.log_running_transactions()", &[]).await.context("log the running transactions")?;
        node.slots.inner().logged = Some(Instant::now());
    }
    Ok(())
}

/// Free space where the WAL is; a file system that does not answer sets no limit.
async fn free_bytes(config: &NodeConfig) -> u64 {
    let wal = config.postgres.data_dir.join("pg_wal");
    let asked = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&wal)).await;
    asked.ok().and_then(Result::ok).map_or(u64::MAX, |seen| seen.f_bavail.saturating_mul(seen.f_frsize))
}

/// Works on logical slots beside the loop: finding a starting point and decoding may take their time, and neither the
/// synchronous standbys nor a promotion must wait for that.
fn work_beside(node: &Node, steps: Vec<SlotStep>) {
    if steps.is_empty() {
        return;
    }
    let Ok(at_work) = node.slots.at_work.clone().try_lock_owned() else { return };
    let node = node.clone();
    tokio::spawn(async move {
        for step in &steps {
            let done = match step {
                SlotStep::CreateLogical { name, database, plugin, failover } => {
                    create_logical(&node, name, database, plugin, *failover).await
                }
                step => on_copy(&node, step).await,
            };
            if let Err(why) = done {
                let told = format!("{why:#}; looking again");
                // The same until the consumer has gone on.
                if std::mem::replace(&mut node.slots.inner().told_of_copies, told.clone()) != told {
                    tracing::info!("{told}");
                }
                *node.slots.session.lock().await = None;
                break;
            }
        }
        drop(at_work);
    });
}

async fn on_copy(node: &Node, step: &SlotStep) -> Result<()> {
    let session = session(node).await?;
    match step {
        SlotStep::Copy { name, from } => copy(node, &session, name, from).await.with_context(|| format!("copy the logical slot {name}")),
        SlotStep::Advance { name, to, .. } => {
            advance(&session, name, *to).await.with_context(|| format!("advance the copy of the logical slot {name} to {to}"))
        }
        SlotStep::Trust { name, temporary } => {
            if *temporary {
                session
                    .execute("SELECT tenure_internal.keep_slot($1)", &[name])
                    .await
                    .with_context(|| format!("keep the logical slot {name}"))?;
            }
            {
                let mut inner = node.slots.inner();
                let timeline = inner.timeline;
                inner.copies.entry(name.clone()).or_default().trusted = Some(timeline);
            }
            remember(node).await?;
            tracing::info!("the logical slot {name} would survive a failover to this node");
            Ok(())
        }
        SlotStep::Drop { .. }
        | SlotStep::CreatePhysical { .. }
        | SlotStep::CreateLogical { .. }
        | SlotStep::Distrust { .. }
        | SlotStep::Tell { .. } => bail!("{step:?} is no work on a copy"),
    }
}

async fn session(node: &Node) -> Result<Arc<Client>> {
    let mut held = node.slots.session.lock().await;
    if let Some(session) = held.as_ref().filter(|session| !session.is_closed()) {
        return Ok(session.clone());
    }
    let session = Arc::new(node.sql.open(None, COPY_OPTIONS).await?);
    demand_ours(&session).await?;
    *held = Some(session.clone());
    Ok(session)
}

async fn copy(node: &Node, session: &Client, name: &str, from: &LogicalSlot) -> Result<()> {
    let position = |lsn: Lsn| i64::try_from(lsn.0).context("a position that no WAL reaches");
    let (restart, confirmed) = (position(from.restart_lsn)?, position(from.confirmed_flush_lsn)?);
    let made = session
        .query_one(
            "SELECT tenure_internal.copy_slot($1, $2, $3, $4, $5, $6, $7)",
            &[&name, &from.plugin, &from.database_oid, &from.two_phase, &restart, &confirmed, &i64::from(from.catalog_xmin.0)],
        )
        .await?;
    let there: bool = made.try_get(0)?;
    if !there {
        bail!("the WAL from {} on is not here: its consumer has to go on first", from.restart_lsn);
    }
    tracing::info!("copied the logical slot {name} at {}: not offered before it is shown to be safe", from.confirmed_flush_lsn);
    let copied = Copied { made_at: Some(from.restart_lsn), ..Copied::default() };
    node.slots.inner().copies.insert(name.to_owned(), copied);
    Ok(())
}

async fn advance(session: &Client, name: &str, to: Lsn) -> Result<()> {
    let at = session
        .query_one("SELECT (confirmed_flush_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = $1::text::name", &[&name])
        .await?;
    let mut at = u64::try_from(at.try_get::<_, i64>(0)?)?;
    loop {
        at = to.0.min(at.saturating_add(STRIDE_BYTES)).max(at);
        session.execute("SELECT pg_replication_slot_advance($1::text::name, $2::text::pg_lsn)", &[&name, &Lsn(at).to_string()]).await?;
        if at >= to.0 {
            return Ok(());
        }
    }
}

/// Before a promotion: copies that nothing shows to be safe go. Their consumers are then told that the slot does not exist,
/// instead of missing changes without a word. Without permanent logical slots nothing is asked or waited for; with them one
/// look is taken, and only a slot that is just being moved is waited for.
pub async fn before_promotion(node: &Node, view: &ClusterView) {
    if !slots::keeps_logical(view.config()) {
        return;
    }
    let deadline = Instant::now() + RELEASE_PATIENCE;
    loop {
        let dropped = async {
            end_copying(node).await?;
            drop_doubtful(node, view).await
        };
        match dropped.await {
            Ok(()) => return,
            Err(why) if Instant::now() >= deadline => {
                return tracing::error!("{why:#}; hint: drop the slot by hand before its consumer goes on, it may miss changes");
            }
            // The session that moved it was just told to end; no notice is given of its end.
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Ends the sessions that move copies, and with them the copies that are temporary still.
async fn end_copying(node: &Node) -> Result<()> {
    if let Ok(mut session) = node.slots.session.try_lock() {
        *session = None;
    }
    let statement = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1 AND pid <> pg_backend_pid()";
    node.sql
        .run(statement, &[&crate::postgres::query::SLOTS_SESSION])
        .await
        .context("end the session that moves copies of logical slots")?;
    Ok(())
}

async fn drop_doubtful(node: &Node, view: &ClusterView) -> Result<()> {
    let mut server = node.sql.facts().await?;
    let copies = {
        let inner = node.slots.inner();
        server.timeline = server.timeline.max(inner.timeline);
        inner.copies.clone()
    };
    let tags = Tags(node.config.tags.clone());
    for name in slots::doubtful(&facts(node, view, &tags, false, &server, &copies, u64::MAX)) {
        // From release 16 on a consumer may use it.
        let statement =
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1::text::name AND active_pid IS NOT NULL";
        node.sql.run(statement, &[&name]).await.with_context(|| format!("end the session that uses the logical slot {name}"))?;
        node.sql
            .run("SELECT pg_drop_replication_slot($1::text::name)", &[&name])
            .await
            .with_context(|| format!("drop the copy of the logical slot {name}, which nothing shows to be safe"))?;
        tracing::error!("dropped the copy of the logical slot {name}: nothing shows that it is safe, and its consumer would miss changes");
    }
    Ok(())
}
