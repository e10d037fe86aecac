//! The twin of a major upgrade is cared for beside the loop: made, joined, kept running, compared, and taken away.

use crate::node::Node;
use crate::node::slots;
use crate::node::snapshot::Snapshot;
use crate::node::twin::{Told, Wish};
use crate::postgres::postmaster::StopMode;
use crate::upgrade::twin::{self, compare, join, make, sides};
use crate::upgrade::{demanded, journal};
use anyhow::{Context, Result, bail};
use cluster::leader::Term;
use cluster::local::Postgres;
use cluster::upgrade::obstacle::Weight;
use cluster::upgrade::twin::{Care, LAG_MOST, Leads, Stage, Twin, not_yet, owed};
use cluster::view::ClusterView;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// A comparison that could not be made, or that found something, is made again by itself no sooner.
const COMPARE_AGAIN: Duration = Duration::from_secs(5);

/// A view that is older says nothing of who leads now.
const FRESH: Duration = Duration::from_secs(30);

/// At the arbiter's end its server may take so long.
const END_WITHIN: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Looked {
    /// In this term the leader's server was looked at for what another leader's upgrade left.
    looked: Option<Term>,
    /// The last measure of the lag.
    lag: Option<(Instant, u64)>,
    compare_after: Option<Instant>,
    compare_asked: bool,
}

/// Cares for it, for as long as the future is polled.
pub async fn keep(node: Node, mut shown: watch::Receiver<Snapshot>) {
    let mut memory = Looked::default();
    loop {
        if let Err(why) = round(&node, &mut shown, &mut memory).await {
            let words = format!("{why:#}");
            if node.twin.told().failed.as_ref() != Some(&words) {
                tracing::warn!("upgrade: {words}");
            }
            node.twin.tell(|told| told.failed = Some(words));
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = node.twin.bell.notified() => {}
        }
        if shown.has_changed().is_err() {
            return;
        }
    }
}

/// At the arbiter's end: a server that nobody cares for any more is stopped.
pub async fn at_end(node: &Node) {
    let stopped = tokio::time::timeout(END_WITHIN, twin::stop(&node.config, StopMode::Fast)).await;
    if let Ok(Err(why)) = stopped {
        tracing::warn!("the server beside the leader's was not stopped: {why:#}");
    }
}

/// Who leads, by what was seen last; nobody, where that is old or this node's server does not serve.
fn leads(node: &Node, shown: &Snapshot) -> Leads {
    let fresh = shown.view_at.is_some_and(|at| at.elapsed() < FRESH);
    match &shown.view.leader {
        Some(leader) if fresh && leader.name != node.config.name => Leads::Another,
        Some(_) if fresh && matches!(shown.local.postgres, Postgres::Primary { .. }) => Leads::Me,
        _ => Leads::Nobody,
    }
}

async fn round(node: &Node, shown: &mut watch::Receiver<Snapshot>, memory: &mut Looked) -> Result<()> {
    let work = node.twin.clone();
    let Ok(_at_work) = work.at_work.try_lock() else { return Ok(()) };
    // In the middle of a change the step that is noted says what to do.
    if journal::read(&node.config).await?.is_some() {
        return Ok(());
    }
    let (view, leads) = {
        let shown = shown.borrow_and_update();
        (shown.view.clone(), leads(node, &shown))
    };
    let mut noted = twin::read(&node.config).await?;
    match work.take() {
        Some(Wish::Begin(to)) if noted.is_none() && leads == Leads::Me => noted = Some(begun(node, &view, to).await?),
        Some(Wish::Begin(to)) => bail!("an upgrade to PostgreSQL {to} was not begun: another is under way, or this member does not lead"),
        Some(Wish::Compare) => memory.compare_asked = true,
        Some(Wish::End) => {
            if let Some(twin) = noted.as_mut() {
                twin.stage = Stage::Ending;
                twin::write(&node.config, twin).await?;
            }
        }
        None => {}
    }
    let Some(noted) = noted else {
        work.tell(Told::nothing_beside);
        return left_over(node, &view, leads, memory).await;
    };
    work.tell(|told| {
        (told.serves, told.beside, told.switched) = (Some(noted.serves()), Some(noted.waits()), noted.switched);
        told.not_yet = not_yet(noted.stage, told.lag_bytes, told.compared.as_ref().map(|compared| compared.different))
            .iter()
            .map(ToString::to_string)
            .collect();
    });
    match owed(&noted, leads, view.system_id()) {
        Care::Wait => Ok(()),
        Care::Make => made(node, &view, shown, &noted).await,
        Care::Join => {
            let Stage::Joining { from } = noted.stage else { return Ok(()) };
            join::join(node, &view, &noted, from).await?;
            work.tell(|told| (told.failed, told.compared) = (None, None));
            Ok(())
        }
        Care::Keep => kept(node, &noted, memory).await,
        Care::End => ended(node).await,
        Care::Drop => {
            twin::remove(&node.config).await?;
            tracing::warn!("the upgrade to PostgreSQL {} is called off: another member leads", noted.to);
            work.tell(|told| {
                *told = Told { failed: Some("the upgrade was called off: another member leads".to_owned()), ..Told::default() }
            });
            Ok(())
        }
    }
}

async fn begun(node: &Node, view: &ClusterView, to: u32) -> Result<Twin> {
    let from = slots::major(&node.config).await.context("PG_VERSION can't be read")?;
    node.twin.tell(|told| *told = Told { doing: "every member looks what stands in the way".to_owned(), ..Told::default() });
    demanded::nothing_stops(node, view, to, Weight::StopsLogical).await?;
    let main = view.system_id().context("the cluster's system is not known")?.clone();
    let noted = Twin { from, to, stage: Stage::Making, main, twin: None, switched: false, databases: Vec::new() };
    twin::write(&node.config, &noted).await?;
    tracing::info!("upgrade: PostgreSQL {to} is made beside {from}");
    Ok(noted)
}

/// Made, or called off: by somebody who asks for that, by another leader, or by a failure.
async fn made(node: &Node, view: &ClusterView, shown: &mut watch::Receiver<Snapshot>, noted: &Twin) -> Result<()> {
    let called_off = async {
        loop {
            tokio::select! {
                changed = shown.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = node.twin.bell.notified() => {}
            }
            if node.twin.is_wished(Wish::End) || leads(node, &shown.borrow_and_update()) == Leads::Another {
                return;
            }
        }
    };
    let made = tokio::select! {
        made = make::make(node, view, noted) => made.map(drop),
        () = called_off => Ok(()),
    };
    if let Err(why) = made {
        // As it was: nothing of it stays, on either side. The reason is told.
        twin::write(&node.config, &Twin { stage: Stage::Ending, ..noted.clone() }).await?;
        return Err(why.context(format!("the upgrade to PostgreSQL {} is called off", noted.to)));
    }
    Ok(())
}

/// Its server runs, it follows, and how far it is is told. Compared once when it has caught up, and when asked.
async fn kept(node: &Node, noted: &Twin, memory: &mut Looked) -> Result<()> {
    join::run(node, noted).await?;
    let watch = sides::open(&node.sql, None).await?;
    let lag = sides::lag(&watch, &noted.databases).await?;
    if lag.is_none() {
        join::go_on(node, noted).await?;
    }
    let errors = apply_errors(node).await.unwrap_or(0);
    let seconds_left = left(memory, lag);
    node.twin.tell(|told| {
        (told.lag_bytes, told.seconds_left, told.apply_errors, told.percent) = (lag, seconds_left, errors, None);
        told.doing = format!("PostgreSQL {} follows", noted.waits());
    });
    let due = node.twin.told().compared.is_none() && lag.is_some_and(|lag| lag <= LAG_MOST);
    let may = memory.compare_after.is_none_or(|after| Instant::now() >= after);
    if memory.compare_asked || (due && may) {
        memory.compare_asked = false;
        memory.compare_after = Some(Instant::now() + COMPARE_AGAIN);
        let compared = compare::compare(node, noted).await.context("compare the two versions")?;
        tracing::info!(
            "upgrade: {} tables with {} rows compared, {} differences; writers waited {} ms",
            compared.tables,
            compared.rows,
            compared.different,
            compared.held_ms
        );
        node.twin.tell(|told| {
            (told.compared, told.failed) = (Some(compared), None);
            told.doing = format!("PostgreSQL {} follows", noted.waits());
        });
    }
    Ok(())
}

/// At the rate since the last look.
fn left(memory: &mut Looked, lag: Option<u64>) -> Option<u64> {
    let now = Instant::now();
    let before = std::mem::replace(&mut memory.lag, lag.map(|lag| (now, lag)));
    let (lag, (at, more)) = (lag?, before?);
    let gained = more.checked_sub(lag).filter(|gained| *gained > 0)?;
    let took = u64::try_from(now.saturating_duration_since(at).as_millis()).ok()?;
    Some(lag.saturating_mul(took) / gained / 1000)
}

/// Counted from version 15 on.
async fn apply_errors(node: &Node) -> Result<u64> {
    let twin = sides::open(&make::twin_sql(node), None).await?;
    let said = sides::text(&twin, "SELECT coalesce(sum(apply_error_count), 0)::text FROM pg_stat_subscription_stats").await?;
    Ok(said.parse()?)
}

/// Everything that was made for it goes. The twin first, as it reads the slots.
async fn ended(node: &Node) -> Result<()> {
    twin::stop(&node.config, StopMode::Immediate).await?;
    sides::clean(&node.sql).await.context("take away what the upgrade left on the leader's server")?;
    twin::remove(&node.config).await?;
    node.twin.tell(Told::nothing_beside);
    tracing::info!("upgrade: it is over, and definitions may be changed again");
    Ok(())
}

/// A leader without a twin: what an upgrade left on the leader before it, whose twin went with it, is taken away once in its term.
async fn left_over(node: &Node, view: &Arc<ClusterView>, leads: Leads, memory: &mut Looked) -> Result<()> {
    let term = view.leader.as_ref().map(|leader| leader.term);
    if leads != Leads::Me || memory.looked == term {
        return Ok(());
    }
    if sides::is_prepared(&node.sql).await? {
        tracing::warn!("an upgrade of another leader left its publications and its refusal of definitions: they are taken away");
        sides::clean(&node.sql).await?;
    }
    memory.looked = term;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_told_by_the_rate_and_not_at_all_where_it_grows() {
        let mut memory = Looked::default();
        assert_eq!(left(&mut memory, Some(100)), None, "one measure is no rate");
        assert_eq!(left(&mut memory, Some(200)), None, "it grows");
        memory.lag = Some((Instant::now() - Duration::from_secs(10), 300));
        assert!(left(&mut memory, Some(200)).is_some_and(|seconds| (19..=22).contains(&seconds)));
        assert_eq!(left(&mut memory, None), None);
    }
}
