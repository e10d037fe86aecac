//! The keys of a founding: the claim, the identity that ends it, and the claim given back. Each write whose answer is lost is neither a yes nor a no.

use crate::host::Host;
use anyhow::{Context, Result};
use cluster::leader::{Leader, LeaseId};
use cluster::name::SystemId;
use cluster::view::ClusterView;
use dcs::{Error, LocalDcs};
use std::future::Future;
use std::time::Duration;

/// Pause before etcd is asked again after it gave no answer.
const RETRY: Duration = Duration::from_millis(250);

/// The claim, once etcd has said whose it is; `None`: another node makes the cluster. A claim that was written while its answer was lost
/// hangs on our own lease, which is kept: an arbiter that gave up here would take it for another node's, and so would all others, for ever.
pub async fn claim<H: Host, F: Future<Output = Result<LeaseId>>>(host: &H, lease: impl Fn() -> F) -> Result<Option<(i64, LeaseId)>> {
    let mut sent = false;
    loop {
        let lease = match lease().await {
            Ok(lease) => lease,
            Err(_) if sent => continue,
            Err(why) => return Err(why),
        };
        match host.store().claim_initialize(host.name(), lease).await {
            Ok(claim) => return Ok(Some((claim, lease))),
            Err(Error::Lost(_)) => return Ok(None),
            Err(why) if why.is_unknown() => host.warn(format_args!("the claim to found the cluster got no answer: {why}")),
            Err(why) => return Err(why).context("claim the making of the cluster"),
        }
        sent = true;
        host.sleep(RETRY).await;
    }
}

/// The cluster exists from here on: its identity replaces the claim. Where that is not known, the cluster may exist already, and its only data must not be taken
/// for those of a founding that failed; so this ends once etcd has said.
pub async fn finish<H: Host>(host: &H, leader: &Leader, claim: i64, system_id: &SystemId) -> Result<()> {
    let mut unknown = false;
    loop {
        match host.store().found(leader, claim, system_id).await {
            Ok(()) => return Ok(()),
            Err(why) if why.is_unknown() => {
                unknown = true;
                host.warn(format_args!("the cluster's identity got no answer: {why}"));
            }
            Err(lost @ Error::Lost(_)) if unknown => match look(host).await {
                Ok(view) if view.system_id() == Some(system_id) => return Ok(()),
                Err(why) if why.is_unknown() => {}
                Ok(_) => return Err(lost).context("write the cluster's identity"),
                Err(why) => return Err(why).context("look whether the cluster exists"),
            },
            Err(why) => return Err(why).context("write the cluster's identity"),
        }
        host.sleep(RETRY).await;
    }
}

/// Gives the claim back, and the leader key with it, until etcd has said that it is given back, for the reason that [`claim`] has.
pub async fn give_back<H: Host>(host: &H, claim: i64) -> Result<(), Error> {
    loop {
        match try_give_back(host, claim).await {
            Err(why) if why.is_unknown() => host.sleep(RETRY).await,
            // Gone, by a try whose answer was lost or with the lease.
            Err(Error::Lost(_)) => return Ok(()),
            done => return done,
        }
    }
}

async fn try_give_back<H: Host>(host: &H, claim: i64) -> Result<(), Error> {
    if let Some(leader) = look(host).await?.leader_if(host.name()) {
        host.store().release_leader(leader).await?;
    }
    host.store().unclaim_initialize(claim).await
}

/// What stands there, believed or not: an etcd that was emptied is what is mended here.
async fn look<H: Host>(host: &H) -> Result<ClusterView, Error> {
    match host.store().load_view().await {
        Err(Error::Doubted { view, .. }) => Ok(*view),
        read => read,
    }
}
