//! A standby that holds the leader key becomes the primary: confirm, claim a timeline, name the standbys, tell the server.

use crate::host::within;
use crate::judged::Done;
use crate::server::Server;
use crate::synchronous;
use anyhow::{Context, Result, bail};
use cluster::leader::Term;
use cluster::view::ClusterView;
use dcs::LocalDcs;
use std::time::Duration;

/// A promotion that takes longer than this is reported as failed; the loop then looks again.
const PATIENCE: Duration = Duration::from_secs(60);

/// Nothing tells another process that recovery has ended; no client waits for this look.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Starts the server as primary; it is not waited for. The watchdog first: from its first moment on the server may write.
pub async fn start<S: Server>(server: &S, view: &ClusterView, term: Term) -> Result<Done> {
    let _armed = match server.arm(view.config().timing().ttl).await {
        Ok(armed) => armed,
        Err(why) => {
            server.error(format_args!("Postgres is not started as primary, and this node stands down: {why:#}"));
            return stand_down(server, term).await;
        }
    };
    server.start_primary(view).await
}

/// Promotes this node's server in the term that was judged.
pub async fn promote<S: Server>(server: &S, term: Term) -> Result<Done> {
    let began = server.clock();
    if let Err(why) = server.may_promote().await {
        server.error(format_args!("this node is not promoted and stands down: {why:#}"));
        return stand_down(server, term).await;
    }
    // Read after the hook: it may have taken long.
    let view = server.store().load_view().await?;
    // The key in our name, in the term that was judged, on a lease that etcd confirms now.
    if view.leader_if(server.name()).is_none_or(|leader| leader.term != term) {
        bail!("term {term} is over");
    }
    if view.is_standby_cluster() {
        bail!("the cluster is to follow another one (standby_cluster)");
    }
    if !server.confirm_lease(&view).await {
        bail!("the lease was not confirmed by etcd");
    }
    let _armed = match server.arm(view.config().timing().ttl).await {
        Ok(armed) => armed,
        Err(why) => {
            server.error(format_args!("this node is not promoted and stands down: {why:#}"));
            return stand_down(server, term).await;
        }
    };
    let process = server.process().context("Postgres does not run")?;
    claim_timeline(server, &view).await.context("claim a timeline")?;
    let view = synchronous::trust_nobody_else(server, view).await.context("write a sync key of this node's own")?;
    let begins_with = synchronous::before_promotion(server, &view).await.context("name the synchronous standbys to begin with")?;
    server.prepare_promotion(&view, &begins_with).await?;
    server.info(format_args!("promoting, term {term}"));
    server.promote(&process, term).await?;
    let promoted = async {
        loop {
            match server.facts().await {
                Ok(facts) if !facts.in_recovery => return Ok(facts),
                Err(why) if server.process().is_none() => return Err(why),
                _ => server.sleep(LOOK_EVERY).await,
            }
        }
    };
    let facts = within(server, PATIENCE, promoted).await.context("Postgres does not leave recovery")??;
    server.info(format_args!("promoted: timeline {}, term {term}", facts.timeline));
    server.standbys().begin(begins_with);
    server.promoted(server.clock().since(began)).await;
    server.begin_first_checkpoint();
    Ok(Done::LookAgain)
}

/// The hook refused, or the watchdog: the key goes back, for another to take, and this node leaves it alone for a TTL.
pub async fn stand_down<S: Server>(server: &S, term: Term) -> Result<Done> {
    let view = server.store().load_view().await?;
    server.stand_down(view.config().timing().ttl).await;
    if let Some(leader) = view.leader_if(server.name()).filter(|leader| leader.term == term) {
        server.store().release_leader(leader).await.context("give the leader key up")?;
    }
    Ok(Done::LookAgain)
}

/// Claims the number of the timeline that the promotion will begin, and makes Postgres use it. By itself
/// Postgres takes the first number for which it has no history file, so two servers that are promoted
/// one after the other, neither knowing of the other's, would begin timelines of one number whose
/// histories parted: nothing would tell them apart afterwards.
async fn claim_timeline<S: Server>(server: &S, view: &ClusterView) -> Result<()> {
    let leader = view.leader_if(server.name()).context("this node leads no more")?;
    let mine = server.facts().await?.timeline;
    let claimed = view.timeline_to_claim(mine);
    server.store().claim_timeline(claimed, ClusterView::revision_of(&view.claimed_timeline), leader).await?;
    server.pass_over_timelines(mine, claimed).await
}
