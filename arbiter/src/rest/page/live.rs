//! The page's stream of events: what this node knows, made once for all who watch, whenever it changes and every two seconds.

use super::super::peer::Peer;
use super::super::reply::sentence;
use super::super::{cluster, health};
use super::past::{MEMBERS_MOST, Past, Sample};
use crate::ground::present::{self, Role};
use crate::node::snapshot::{NodeHandle, Snapshot};
use ::cluster::check;
use ::cluster::citus::groups::Groups;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

/// So many watch one node at once: people, not programs.
const STREAMS_MOST: usize = 8;
/// A sample for the charts, and a sign of life.
const EVERY: Duration = Duration::from_secs(2);
/// What changes more often is shown this often.
const SHORTEST: Duration = Duration::from_millis(250);
/// A stream ends after this long and the page asks again: no place is held for ever by a client that forgot it.
const LONGEST: Duration = Duration::from_secs(600);
/// So many decisions are shown.
const DECISIONS: usize = 12;
/// The groups of a Citus cluster are read from etcd this often, while somebody watches.
const GROUPS_EVERY: Duration = Duration::from_secs(3);

/// What streams are made from.
pub struct Live {
    state: watch::Sender<Arc<str>>,
    past: Mutex<Past>,
    places: Arc<Semaphore>,
}

impl Default for Live {
    fn default() -> Live {
        Live { state: watch::Sender::new(Arc::from("{}")), past: Mutex::default(), places: Arc::new(Semaphore::new(STREAMS_MOST)) }
    }
}

/// Keeps samples and tells those who watch; ends with the daemon.
pub async fn keep(live: Arc<Live>, node: NodeHandle) {
    let mut snapshots = node.snapshot.clone();
    let mut sampled: Option<Instant> = None;
    let mut asked: Option<Instant> = None;
    let mut groups = Vec::new();
    loop {
        let now = Instant::now();
        let snapshot = snapshots.borrow_and_update().clone();
        let sample = sample(&snapshot, now);
        if sampled.is_none_or(|last| now.duration_since(last) >= EVERY) {
            sampled = Some(now);
            live.past.lock().unwrap_or_else(PoisonError::into_inner).add(sample.clone());
        }
        if live.state.receiver_count() > 0 {
            if node.config.citus.is_some() && asked.is_none_or(|last| now.duration_since(last) >= GROUPS_EVERY) {
                asked = Some(now);
                if let Ok(Ok(read)) = tokio::time::timeout(EVERY, read_groups(&node)).await {
                    groups = summary(&read);
                }
            }
            let state = state(&node, &snapshot, &groups, &sample, now);
            live.state.send_replace(Arc::from(state.to_string()));
        }
        tokio::time::sleep(SHORTEST).await;
        if let Ok(Err(_)) = tokio::time::timeout(EVERY - SHORTEST, snapshots.changed()).await {
            return;
        }
    }
}

async fn read_groups(node: &NodeHandle) -> dcs::Result<Groups> {
    let keys = dcs::key::Keys::new(&node.config.namespace, &node.config.scope);
    node.etcd.seen_as(keys).load_groups().await
}

fn summary(groups: &Groups) -> Vec<Value> {
    let one = |(group, view): (&u32, &::cluster::view::ClusterView)| {
        let critical = check::faults(view).iter().filter(|fault| fault.severity == check::Severity::Critical).count();
        json!({
            "group": group,
            "leader": view.leader.as_ref().map(|leader| leader.name.as_str()),
            "members": view.members.len(),
            "running": view.members.values().filter(|entry| entry.member.is_running()).count(),
            "critical": critical,
        })
    };
    groups.iter().map(one).collect()
}

fn sample(snapshot: &Snapshot, now: Instant) -> Sample {
    let rows = present::rows(&snapshot.view);
    let member = |row: &present::Row| {
        let lag = if row.role.leads() { Some(0) } else { row.positions.as_ref().and_then(|positions| Some(positions.furthest?.lag_bytes)) };
        (row.name.clone(), lag, row.timeline.map(|timeline| timeline.0))
    };
    let ran_out = health::lease_ran_out(snapshot, now);
    let leads = snapshot.view.leader_if(&snapshot.local.name).is_some();
    let left = snapshot.lease_until.map(|until| u64::try_from(until.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX));
    Sample {
        at: jiff::Timestamp::now().as_millisecond(),
        leader: snapshot.view.leader.as_ref().filter(|_| !ran_out).map(|leader| leader.name.to_string()),
        lease: left.filter(|_| leads),
        etcd: snapshot.view_at.map(|at| now.saturating_duration_since(at).as_secs()),
        members: rows.iter().take(MEMBERS_MOST).map(member).collect(),
    }
}

fn state(node: &NodeHandle, snapshot: &Snapshot, groups: &[Value], sample: &Sample, now: Instant) -> Value {
    let view = &snapshot.view;
    let mut decisions = node.journal.records();
    let old = decisions.len().saturating_sub(DECISIONS);
    decisions.drain(..old);
    decisions.reverse();
    let status = cluster::status(snapshot, snapshot.facts.as_deref(), &node.config.scope, now);
    json!({
        "node": snapshot.local.name.as_str(),
        "group": node.config.citus.as_ref().map(|citus| citus.group),
        "cluster": present::cluster_json(view, node.config.scope.as_str()),
        "fresh": health::is_fresh(snapshot, now),
        "ttl": view.config().timing().ttl.as_secs(),
        "status": status,
        "faults": check::faults(view),
        "decisions": decisions,
        "groups": groups,
        "sample": sample,
        "standby": present::role(view, &snapshot.local.name) != Role::Leader,
    })
}

/// A stream of its own, if there is a place.
pub fn answer(live: &Live, peer: &Peer) -> Response {
    let Ok(place) = live.places.clone().try_acquire_owned() else {
        return sentence(StatusCode::SERVICE_UNAVAILABLE, "as many as may watch this node do so already; ask another member");
    };
    let past = live.past.lock().unwrap_or_else(PoisonError::into_inner).json();
    let watching = Watching {
        // The newest state is sent at once, even if it is of the last one who watched: the next follows within two seconds.
        state: live.state.subscribe(),
        first: Some(format!("retry: 2000\nevent: past\ndata: {past}\n\n")),
        until: Instant::now() + LONGEST,
        peer: peer.clone(),
        _place: place,
    };
    let stream = futures_util::stream::unfold(watching, |mut watching| async move {
        let text = watching.next().await?;
        watching.peer.more();
        Some((Ok::<_, Infallible>(Bytes::from(text)), watching))
    });
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

struct Watching {
    state: watch::Receiver<Arc<str>>,
    first: Option<String>,
    until: Instant,
    peer: Peer,
    _place: OwnedSemaphorePermit,
}

impl Watching {
    /// The next event; a line that says nothing where there is none for a while; None at the end.
    async fn next(&mut self) -> Option<String> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        if Instant::now() >= self.until {
            return None;
        }
        match tokio::time::timeout(2 * EVERY, self.state.changed()).await {
            Ok(Ok(())) => {
                let state = self.state.borrow_and_update().clone();
                Some(format!("event: state\ndata: {state}\n\n"))
            }
            Ok(Err(_)) => None,
            Err(_) => Some(": still here\n\n".to_owned()),
        }
    }
}
