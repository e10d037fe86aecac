//! `failsafe_mode`: etcd is away, and the leader goes on as long as every known member promises not to
//! take its key.
//!
//! A promise is kept in the member's shared memory, where the lease worker looks before it takes the
//! key, and in its arbiter, which renews it before it attaches to a restarted server (a server without
//! an arbiter does not stand). The leader counts from before it asked, the members from when they
//! answered, so the leader's time is over first.
//!
//! A member promises for one TTL of its own at most, whichever member asks, and says where that is less than it was asked for. `/patroni` tells
//! the promise, a switchover waits for its end while the old leader still serves, and it ends early where the leader's lease outlives it.

use crate::ground::clock::boottime;
use crate::node::Node;
use crate::node::snapshot::NodeHandle;
use anyhow::{Context, Result, bail};
use cluster::failsafe::Refusal;
use cluster::lease;
use cluster::mixed;
use cluster::name::MemberName;
use cluster::view::ClusterView;
use dcs::Dcs;
use serde_json::json;
use std::time::Duration;

/// Keeps the `failsafe` key equal to the members while the mode is on, and empty while it is off.
pub async fn publish(node: &Node, view: &ClusterView, leader: &cluster::leader::Leader) -> Result<()> {
    let Some(members) = cluster::failsafe::key_to_write(view) else { return Ok(()) };
    // Before it is sent: whatever becomes of the answer, those it adds may stand from then on.
    node.note_failsafe_sent(&members);
    node.etcd.write_failsafe(&members, ClusterView::revision_of(&view.failsafe), leader).await.context("write the failsafe key")?;
    node.note_failsafe_written(members);
    Ok(())
}

/// Asks every member in the `failsafe` key; if all promise, the fence stays open for another TTL.
pub async fn ask_all(node: &Node, view: &ClusterView) -> Result<()> {
    let known = cluster::failsafe::whom_to_ask(view, node.failsafe_sent().as_ref(), &node.config.name)?;
    let ttl = view.config().timing().ttl;
    let asked_at = boottime();
    let address = &node.config.postgres.connect_address;
    let body = json!({
        "name": node.config.name,
        "conn_url": format!("postgres://{address}/{}", node.config.postgres.database),
        "api_url": format!("{}/patroni", node.config.rest.url()),
        "ttl": ttl.as_secs(),
    });
    let by_patroni = |name: &str| MemberName::new(name).is_ok_and(|name| !mixed::is_ours(view, &name));
    let asks = known.iter().map(|(name, api_url)| {
        let (body, by_patroni) = (&body, &by_patroni);
        async move {
            let answer = node.caller.ask(api_url, "POST", "failsafe", Some(body), cluster::failsafe::answer_patience(ttl)).await;
            match answer {
                // Patroni says the same and promises nothing: its standby may take the key as soon as it finds none.
                Ok((200, _)) if by_patroni(name) => bail!("{name} is not known to be run by pg_tenure, and Patroni's answer is no promise"),
                Ok((200, _)) => Ok(ttl),
                Ok((202, text)) => shorter(&text).with_context(|| format!("{name} promises for an unknown time: {text}")),
                Ok((status, text)) => bail!("{name} does not promise: {status} {text}"),
                Err(why) => Err(why).with_context(|| format!("{name} does not promise")),
            }
        }
    });
    let promised = futures_util::future::try_join_all(asks).await?;
    let until = lease::deadline(asked_at, promised.into_iter().fold(ttl, Duration::min));
    let open = node.sql.ask(&format!("SELECT tenure_internal.extend_lease({})", until.as_nanos())).await?;
    if !open {
        bail!("the fence is closed: this node does not lead");
    }
    Ok(())
}

/// What a member answers whose own TTL is shorter than the leader's.
pub fn accepted_for(promised: Duration) -> String {
    format!("{ACCEPTED_FOR}{}", promised.as_millis())
}

const ACCEPTED_FOR: &str = "Accepted, for so many milliseconds only: ";

fn shorter(text: &str) -> Option<Duration> {
    text.strip_prefix(ACCEPTED_FOR)?.trim().parse().ok().map(Duration::from_millis)
}

/// A leader without etcd asks this node for its promise. The sentence of a refusal goes back to it.
///
/// An arbiter that has not read etcd since it began does not promise: it knows neither who leads nor whether the
/// mode is on, and a leader that counted on it would count on a node that may have been told otherwise.
///
/// Gives for how long it is promised: at most one TTL of this node's own configuration.
pub async fn promise(node: &NodeHandle, view: &ClusterView, leader: &str, asked: Option<Duration>) -> Result<Duration, (u16, String)> {
    if node.snapshot.borrow().view_at.is_none() {
        return Err((503, "this arbiter has not read etcd since it began".to_owned()));
    }
    cluster::failsafe::may_promise(view, leader).map_err(|why| match why {
        Refusal::Off => (502, why.to_string()),
        Refusal::AnotherLeads(_) | Refusal::AnotherLed(_) => (500, why.to_string()),
    })?;
    let promised = cluster::failsafe::promised_for(view, asked);
    if let Err(why) = node.promise.write_down(&node.config.postgres.data_dir, promised).await {
        return Err((503, format!("the promise can't be kept here: {why:#}")));
    }
    let until = boottime() + promised;
    // Its page may know of a tenure of its own that this arbiter slept through.
    let known = cluster::failsafe::latest_tenure(view);
    let ask = format!(
        "SELECT CASE WHEN coalesce((SELECT fencing_token FROM tenure.lease()), 0) > {known} THEN false ELSE tenure_internal.promise({}) END",
        until.as_nanos()
    );
    match node.sql.ask(&ask).await {
        Ok(true) => {
            node.promise.extend(until, Some(leader));
            Ok(promised)
        }
        Ok(false) => Err((500, "Running as a leader, or led since, or has said its word for who leads next".to_owned())),
        Err(why) => Err((503, format!("the promise can't be kept here: {why:#}"))),
    }
}
