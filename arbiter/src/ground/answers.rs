//! Who answers just now: other members asked over REST, before one of them is given the key.

use crate::ground::member_rest::Caller;
use anyhow::{Context, Result};
use cluster::lsn::Lsn;
use cluster::mixed::{self, Kind};
use cluster::name::MemberName;
use cluster::view::ClusterView;
use std::collections::BTreeSet;
use std::time::Duration;

/// Longer than any answer over a network that a cluster could live on, and short beside a TTL.
const PATIENCE: Duration = Duration::from_secs(1);

/// Patroni asks its server again for each answer, from a pool of a few threads.
const PATIENCE_WITH_PATRONI: Duration = Duration::from_secs(3);

/// How far a member says that it is, asked now: the further of received and replayed. Only a standby whose Postgres answers has one.
pub async fn position(caller: &Caller, view: &ClusterView, name: &MemberName) -> Result<Lsn> {
    let answer = status(caller, view, name).await?;
    // Right after its start a standby counts as received only what came since: what it has replayed it has, too.
    let position = |field: &str| answer["xlog"][field].as_u64().map(Lsn);
    position("received_location").max(position("replayed_location")).context("it tells no received position")
}

async fn status(caller: &Caller, view: &ClusterView, name: &MemberName) -> Result<serde_json::Value> {
    let entry = view.members.get(name).context("it has no member key")?;
    let patience = if mixed::kind(&entry.member) == Kind::Patroni { PATIENCE_WITH_PATRONI } else { PATIENCE };
    let (status, text) = caller.ask(&entry.member.api_url, "GET", "patroni", None, patience).await?;
    let answer: serde_json::Value = serde_json::from_str(&text).with_context(|| format!("status {status} is no JSON"))?;
    // Patroni's says nothing of it.
    match cluster::speech::apart_by_header(answer["tenure"]["speech"].as_str())? {
        None => Ok(answer),
        Some(why) => anyhow::bail!("seen from here, {why}"),
    }
}

/// For how long a promise of `failsafe_mode` binds the member yet; None where none does, or it does not answer.
pub async fn promise(caller: &Caller, view: &ClusterView, name: &MemberName) -> Option<Duration> {
    let answer = status(caller, view, name).await.ok()?;
    answer["tenure"]["promise_ms_left"].as_u64().filter(|left| *left > 0).map(Duration::from_millis)
}

/// Those of the members that answer, as standbys whose Postgres serves; all are asked at once.
pub async fn of(caller: &Caller, view: &ClusterView, names: impl IntoIterator<Item = &MemberName>) -> BTreeSet<MemberName> {
    let asks = names.into_iter().map(|name| async move { position(caller, view, name).await.is_ok().then(|| name.clone()) });
    futures_util::future::join_all(asks).await.into_iter().flatten().collect()
}
