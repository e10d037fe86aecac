//! REST: the field's paths, status codes and JSON, from the daemon's last snapshot.
//!
//! | method | path | answers |
//! |---|---|---|
//! | GET | `/patroni` | 200 this node's status |
//! | GET | `/cluster` `/history` `/config` `/failsafe` | 200 what etcd last said |
//! | GET | `/metrics` | 200 Prometheus' text |
//! | GET | `/journal` | 200 what this node decided and why |
//! | GET | `/parameters?names=a,b` | 200 what the server says of these parameters, 503 |
//! | GET | `/ui` `/ui/events` | 200 the status page, its stream of events, 404, 503 |
//! | GET | anything else | health checks, 200 or 503: `/primary` `/replica?lag=` `/sync` `/liveness` ... |
//! | POST | `/switchover` `/failover` | 200 done, 202 scheduled, 400, 412, 422, 503 |
//! | DELETE | `/switchover` | 200, 404, 409 |
//! | PATCH, PUT | `/config` | 200, 400, 409, 503 |
//! | POST | `/failsafe` | 200 `Accepted`, 500, 502, 503: the leader asks for a promise |
//! | POST | `/restart` `/reload` `/reinitialize` | 200 or 202, 400, 409, 422, 500, 503 |
//! | GET | `/upgrade` | 200 how far a major upgrade is on this node |
//! | POST | `/upgrade` | 200 what stands in the way of a major upgrade, or that a step of it is done; 202 it is begun; 400, 412, 503 |
//! | POST | `/replay` | 200 paused there or going on, 400, 503: ours, for delayed standbys |
//! | POST | `/restore` | 200 restored to a point in the past, or called off, 400, 412, 503: ours, of the leader |
//! | DELETE | `/restart` | 200, 404 |
//!
//! GET (and HEAD, OPTIONS: the bare status) is open and never waits for etcd. Everything else passes
//! [`access::Access`]: [`ROUTES`] is the one table that both the dispatch and the check are made from. HTTP/1 only, with bounds on
//! everything that the other side can draw out ([`listen`], [`places`], [`shared`]).

pub mod access;
pub mod actions;
pub mod cluster;
mod door;
pub mod health;
mod listen;
pub mod metrics;
mod page;
mod peer;
mod places;
mod reply;
mod restore;
mod shared;
mod upgrade;

use crate::ground::present;
use crate::node::snapshot::{NodeHandle, Snapshot};
use crate::postgres::facts::ServerFacts;
use ::cluster::speech;
use access::Access;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::Response;
pub use door::Door;
use door::Shared;
use health::Query;
use peer::{Answering, PHASE_WITHIN, Peer};
use reply::Reply;
pub use restore::RESTORE_WITHIN;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Largest body: a dynamic configuration is a few KiB.
const BODY_MOST: usize = 64 * 1024;
/// How long `/patroni` waits for the server before it answers with what was last seen.
const FACTS_WITHIN: Duration = Duration::from_secs(1);
/// So many parameters are told at a time.
const PARAMETERS_MOST: usize = 500;
/// A GET only reads memory, apart from [`FACTS_WITHIN`].
const GET_WITHIN: Duration = Duration::from_secs(5);
/// A write to etcd: a few tries at one endpoint after another.
const WRITE_WITHIN: Duration = Duration::from_secs(15);
/// A restart writes a shutdown checkpoint first.
const RESTART_WITHIN: Duration = Duration::from_secs(600);
/// Of an upgrade the check and the change of places are waited for; the first bounds itself.
const UPGRADE_WITHIN: Duration = Duration::from_secs(600);

/// Hours of WAL may lie before the time that is asked for.
pub const REPLAY_WITHIN: Duration = Duration::from_secs(3600);

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Status,
    Cluster,
    History,
    Config,
    Failsafe,
    PromiseFailsafe,
    Metrics,
    Parameters,
    Journal,
    Page,
    Health,
    Switchover,
    Failover,
    ForgetSwitchover,
    PatchConfig,
    PutConfig,
    Restart,
    ForgetRestart,
    Reload,
    Reinitialize,
    Upgrade,
    Upgrading,
    Replay,
    Restore,
}

struct Route {
    method: Method,
    path: &'static str,
    purpose: Purpose,
    /// The whole of the answer comes within this time.
    within: Duration,
}

const fn route(method: Method, path: &'static str, purpose: Purpose, within: Duration) -> Route {
    Route { method, path, purpose, within }
}

/// Every route, by its first path segment; a GET that is not here is a health check.
static ROUTES: [Route; 23] = [
    route(Method::GET, "/patroni", Purpose::Status, GET_WITHIN),
    route(Method::GET, "/cluster", Purpose::Cluster, GET_WITHIN),
    route(Method::GET, "/history", Purpose::History, GET_WITHIN),
    route(Method::GET, "/config", Purpose::Config, GET_WITHIN),
    route(Method::GET, "/failsafe", Purpose::Failsafe, GET_WITHIN),
    route(Method::GET, "/metrics", Purpose::Metrics, GET_WITHIN),
    route(Method::GET, "/journal", Purpose::Journal, GET_WITHIN),
    route(Method::GET, "/parameters", Purpose::Parameters, GET_WITHIN),
    route(Method::GET, "/ui", Purpose::Page, GET_WITHIN),
    route(Method::GET, "/upgrade", Purpose::Upgrading, GET_WITHIN),
    route(Method::POST, "/switchover", Purpose::Switchover, Duration::from_secs(75)),
    route(Method::POST, "/failsafe", Purpose::PromiseFailsafe, GET_WITHIN),
    route(Method::DELETE, "/switchover", Purpose::ForgetSwitchover, WRITE_WITHIN),
    route(Method::POST, "/failover", Purpose::Failover, Duration::from_secs(75)),
    route(Method::PATCH, "/config", Purpose::PatchConfig, WRITE_WITHIN),
    route(Method::PUT, "/config", Purpose::PutConfig, WRITE_WITHIN),
    route(Method::POST, "/restart", Purpose::Restart, RESTART_WITHIN),
    route(Method::DELETE, "/restart", Purpose::ForgetRestart, GET_WITHIN),
    route(Method::POST, "/reload", Purpose::Reload, WRITE_WITHIN),
    route(Method::POST, "/reinitialize", Purpose::Reinitialize, WRITE_WITHIN),
    route(Method::POST, "/upgrade", Purpose::Upgrade, UPGRADE_WITHIN),
    route(Method::POST, "/replay", Purpose::Replay, REPLAY_WITHIN),
    route(Method::POST, "/restore", Purpose::Restore, RESTORE_WITHIN),
];

static HEALTH: Route = route(Method::GET, "/", Purpose::Health, GET_WITHIN);

/// Everything that is not a look changes something.
fn changes(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

fn find(method: &Method, path: &str) -> Option<&'static Route> {
    let method = if changes(method) { method } else { &Method::GET };
    let first = path.trim_start_matches('/').split('/').next().unwrap_or("");
    let known = ROUTES.iter().find(|route| route.method == *method && route.path[1..] == *first);
    known.or((*method == Method::GET).then_some(&HEALTH))
}

/// Serves REST on this socket until it is dropped or the socket fails.
pub async fn serve(listener: TcpListener, node: NodeHandle, door: watch::Receiver<Arc<Door>>) -> std::io::Result<()> {
    let answering = |shared: Arc<Shared>, peer: Peer, request| async move { answer(&shared, &peer, request).await };
    listen::keep_listening(listener, Arc::new(Shared::new(node, door)), answering).await
}

async fn answer(shared: &Arc<Shared>, peer: &Peer, request: Request) -> Response {
    let answering = peer.answering();
    let method = request.method().clone();
    let path = request.uri().path();
    let bare = matches!(method, Method::HEAD | Method::OPTIONS)
        || (method == Method::GET && find(&method, path).is_some_and(|route| route.purpose == Purpose::Health) && health::is_bare(path));
    let door = shared.door.borrow().clone();
    let mut response = match find(&method, path) {
        Some(Route { purpose: Purpose::Page, .. }) if !bare => page::answer(&shared.live, peer, path),
        _ => reply(shared, &door.access, peer, &answering, request).await.response(bare),
    };
    response.headers_mut().extend(door.headers.iter().cloned());
    response
}

fn unsupported(method: &Method, path: &str) -> String {
    let why = match path {
        "/citus" | "/mpp" => ": the groups of a Citus cluster speak through etcd, and no event has to be sent here",
        _ => "",
    };
    format!("Unsupported: {method} {path}{why}")
}

async fn reply(shared: &Shared, access: &Access, peer: &Peer, answering: &Answering, request: Request) -> Reply {
    // Before anything is looked at, also for paths that nobody serves.
    if changes(request.method()) {
        let view = shared.node.snapshot.borrow().view.clone();
        if let Err(refused) = access.admits(request.headers(), peer, request.uri().path(), &view).await {
            return refused;
        }
        if let Err(refused) = understood(request.headers()) {
            return refused;
        }
        if page::is_of_another_site(request.headers(), access, &view) {
            return Reply::text(
                403,
                "a browser asks this for a page of another site; open this node's own page, by its address or a member's name",
            );
        }
    }
    let Some(route) = find(request.method(), request.uri().path()) else {
        return Reply::text(501, unsupported(request.method(), request.uri().path()));
    };
    match tokio::time::timeout(route.within, perform(shared, route, answering, request)).await {
        Ok(Ok(reply) | Err(reply)) => reply,
        Err(_) => Reply::text(503, format!("no answer within {} seconds", route.within.as_secs())),
    }
}

/// What a build of another time asks for is not guessed at. Looks are: they tell who is of which time.
fn understood(headers: &HeaderMap) -> Result<(), Reply> {
    let told = headers.get(speech::HEADER).map(|value| String::from_utf8_lossy(value.as_bytes()));
    match speech::apart_by_header(told.as_deref()) {
        Ok(None) => Ok(()),
        Ok(Some(why)) => Err(Reply::text(409, format!("not done: of who asks, {why}"))),
        Err(unreadable) => Err(Reply::text(409, format!("not done: {unreadable}"))),
    }
}

async fn perform(shared: &Shared, route: &Route, answering: &Answering, request: Request) -> Result<Reply, Reply> {
    let node = &shared.node;
    let uri = request.uri().clone();
    let body = tokio::time::timeout(PHASE_WITHIN, to_bytes(request.into_body(), BODY_MOST)).await;
    let body = body
        .map_err(|_| Reply::text(408, format!("the body did not come within {} seconds", PHASE_WITHIN.as_secs())))?
        .map_err(|_| Reply::text(413, "the body is cut short or larger than 64 KiB"))?;
    if changes(&route.method) {
        answering.keep();
    }
    match route.purpose {
        Purpose::Status => Ok(shared.status.get(status(node)).await),
        Purpose::Cluster => Ok(Reply::json(200, &present::cluster_json(&node.snapshot.borrow().view, node.config.scope.as_str()))),
        Purpose::History => Ok(Reply::json(200, &node.snapshot.borrow().view.history().to_json())),
        Purpose::Config => match &node.snapshot.borrow().view.config {
            Some(config) => Ok(Reply::json(200, &config.value.0)),
            None => Err(Reply::text(502, "the config key does not exist")),
        },
        Purpose::Failsafe => match &node.snapshot.borrow().view.failsafe {
            Some(members) => Ok(Reply::json(200, &members.value)),
            None => Err(Reply::text(502, "the failsafe key does not exist")),
        },
        Purpose::PromiseFailsafe => actions::promise(node, &body).await,
        Purpose::Metrics => Ok(shared.metrics.get(measures(node)).await),
        Purpose::Journal => Ok(Reply::json(200, &node.journal.records())),
        Purpose::Parameters => parameters(node, &uri).await,
        // Answered before it comes here, but for the head alone.
        Purpose::Page => Ok(Reply::text(200, "")),
        Purpose::Health => Ok(check(node, &uri)),
        Purpose::Switchover => actions::hand_over(node, &body, true).await,
        Purpose::Failover => actions::hand_over(node, &body, false).await,
        Purpose::ForgetSwitchover => actions::forget_switchover(node).await,
        Purpose::PatchConfig => actions::configure(node, &body, false).await,
        Purpose::PutConfig => actions::configure(node, &body, true).await,
        Purpose::Restart => actions::restart(node, &body, actions::timeout(&body).unwrap_or(route.within).min(route.within)).await,
        Purpose::ForgetRestart => actions::forget_restart(node).await,
        Purpose::Reload => actions::reload(node).await,
        Purpose::Reinitialize => actions::reinitialize(node, &body).await,
        Purpose::Upgrade => upgrade::answer(node, &body).await,
        Purpose::Upgrading => Ok(Reply::json(200, &node.twin.told().without_names())),
        Purpose::Replay => actions::replay(node, &body).await,
        Purpose::Restore => restore::answer(node, &body).await,
    }
}

/// The last snapshot, and what the server says now or, where it does not answer in time, said last.
async fn with_facts(node: &NodeHandle) -> (Snapshot, Option<ServerFacts>) {
    let fresh = tokio::time::timeout(FACTS_WITHIN, node.sql.facts()).await;
    let snapshot = node.snapshot.borrow().clone();
    let facts = match fresh {
        Ok(Ok(facts)) => Some(facts),
        _ => snapshot.facts.as_deref().cloned(),
    };
    (snapshot, facts)
}

async fn status(node: &NodeHandle) -> Reply {
    let (snapshot, facts) = with_facts(node).await;
    let mut status = cluster::status(&snapshot, facts.as_ref(), &node.config.scope, Instant::now());
    if let (Some((left, to)), Some(Value::Object(tenure))) = (node.promise.left(), status.get_mut("tenure")) {
        tenure.insert("promise_ms_left".to_owned(), json!(u64::try_from(left.as_millis()).unwrap_or(u64::MAX)));
        tenure.insert("promised_to".to_owned(), json!(to));
    }
    Reply::json(200, &status)
}

async fn measures(node: &NodeHandle) -> Reply {
    let (snapshot, facts) = with_facts(node).await;
    let counts = match tokio::time::timeout(FACTS_WITHIN, node.sql.fence_counts()).await {
        Ok(Ok(counts)) => Some(counts),
        _ => None,
    };
    let mut page = metrics::page(&snapshot, facts.as_ref(), &node.config.scope, Instant::now());
    page.push_str(&metrics::certificates(&node.certificates.seen(), &node.config.scope, &node.config.name));
    page.push_str(&metrics::counts(counts.as_ref(), &node.timings.all(), &node.config.scope, &node.config.name));
    Reply { content: "text/plain", ..Reply::text(200, page) }
}

/// What the server says of the parameters in `?names=a,b`: kind, unit, range, never a value.
async fn parameters(node: &NodeHandle, uri: &Uri) -> Result<Reply, Reply> {
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri).map(|query| query.0).unwrap_or_default();
    let lists = pairs.iter().filter(|(key, _)| key == "names");
    let names: Vec<String> = lists.flat_map(|(_, list)| list.split(',').map(str::to_owned)).take(PARAMETERS_MOST).collect();
    match tokio::time::timeout(FACTS_WITHIN, node.sql.parameters(&names)).await {
        Ok(Ok(known)) => Ok(Reply::json(200, &known)),
        _ => Err(Reply::text(503, "the server does not answer")),
    }
}

fn check(node: &NodeHandle, uri: &Uri) -> Reply {
    let now = Instant::now();
    let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri).map(|query| query.0).unwrap_or_default();
    let snapshot = node.snapshot.borrow().clone();
    let code = health::status(&snapshot, uri.path(), &Query(pairs), now);
    Reply::json(code, &json!(cluster::status(&snapshot, snapshot.facts.as_deref(), &node.config.scope, now)))
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod openapi_tests;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod tls_tests;
