//! With `etcd/verbs.rs`, `citus.rs` and `survey.rs` the only file that names `etcd_client`: bounded calls to one endpoint after another, guarded writes.

mod verbs;

use crate::codec::{self, Raw, to_bytes};
use crate::error::Error;
use crate::key::{Keys, Known};
use crate::remember::Remembered;
use crate::trouble::{self, Login};
use crate::verbs::{Dcs, Result};
use cluster::leader::{Leader, LeaseId, Term};
use cluster::lease::Standing;
use cluster::name::{MemberName, SystemId, Timeline};
use cluster::request::{MemberRequest, REQUEST_TTL};
use cluster::store::{Making, Memory, Rebuild, Upgraded};
use cluster::sync::SyncState;
use cluster::view::{ClusterView, LastTerm};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, GetResponse, Identity, KeyValue, PutOptions,
    TlsOptions, Txn, TxnOp, TxnOpResponse, TxnResponse, WatchOptions, WatchStream,
};
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

/// So many names are listed at once where values are too much: at most a few hundred kilobytes.
const NAMES_MAX: i64 = 1000;

/// So many keys are read in one transaction; etcd takes 128 operations.
const KEYS_AT_ONCE: usize = 100;

/// So many looks are taken without asking for everything below the prefix, once that was too much: megabytes at each look, and who took
/// them away is noticed within minutes.
const LOOKS_WHILE_CROWDED: u32 = 100;

/// So many keys that are not ours are named.
const NAMED: usize = 3;

/// How to reach etcd.
#[derive(Clone, Default)]
pub struct Settings {
    /// `http://host:port` or `https://host:port`, tried in this order.
    pub endpoints: Vec<String>,
    /// User and password, where etcd has authentication on.
    pub user: Option<(String, String)>,
    /// PEM of the authority that signed etcd's certificates.
    pub ca_certificate: Option<Vec<u8>>,
    /// PEM of our certificate and key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Longest time for one try at one endpoint.
    pub try_timeout: Duration,
}

struct Endpoint {
    url: String,
    client: Mutex<Option<Client>>,
}

impl Endpoint {
    /// The next use connects and logs in again.
    async fn forget(&self) {
        *self.client.lock().await = None;
    }
}

/// etcd, seen as one cluster's keys.
pub struct Etcd {
    keys: Keys,
    settings: Settings,
    endpoints: Vec<Endpoint>,
    preferred: AtomicUsize,
    /// More stands below the prefix than fits into one answer: so many looks more do not ask for all of it.
    crowded: AtomicU32,
    /// By what views are judged: of a node, not of the tool.
    remembered: Option<Arc<Remembered>>,
}

impl Etcd {
    /// Names the cluster and how to reach its etcd; connects when first asked.
    pub fn new(keys: Keys, settings: Settings) -> Etcd {
        let endpoints = settings.endpoints.iter().map(|url| Endpoint { url: url.clone(), client: Mutex::new(None) }).collect();
        Etcd { keys, settings, endpoints, preferred: AtomicUsize::new(0), crowded: AtomicU32::new(0), remembered: None }
    }

    /// From here on no view is believed that can't follow on what is remembered.
    pub fn remembering(self, remembered: Arc<Remembered>) -> Etcd {
        Etcd { remembered: Some(remembered), ..self }
    }

    /// What this node remembers, where it does.
    pub fn remembered(&self) -> Option<&Arc<Remembered>> {
        self.remembered.as_ref()
    }

    /// What is remembered when something is asked: nothing for the tool, which believes everything.
    fn memory(&self) -> Memory {
        self.remembered.as_ref().map(|remembered| remembered.memory()).unwrap_or_default()
    }

    /// What etcd says, believed or not.
    pub async fn look(&self) -> Result<ClusterView> {
        if self.crowded.load(Ordering::Relaxed) == 0 {
            match self.read_all(|revision, etcd, raws| ClusterView { etcd, ..codec::view(&self.keys, revision, raws) }).await {
                // Somebody's data below our prefix must not blind the cluster. Megabytes are not asked for again and again.
                Err(Error::TooMuch(_)) => self.crowded.store(LOOKS_WHILE_CROWDED, Ordering::Relaxed),
                read => return read,
            }
        }
        Box::pin(self.look_one_by_one()).await
    }

    async fn look_one_by_one(&self) -> Result<ClusterView> {
        let prefix = self.keys.prefix();
        let found = self.read_one_by_one(&self.lists(), self.keys.singles(), |key| self.keys.know(key) != Known::Other).await?;
        let left = if found.others.is_empty() { 0 } else { self.crowded.load(Ordering::Relaxed).saturating_sub(1) };
        self.crowded.store(left, Ordering::Relaxed);
        let raws = found.answers.iter().flat_map(GetResponse::kvs).filter_map(raw);
        let mut view = ClusterView { etcd: found.etcd, ..codec::view(&self.keys, found.revision, raws) };
        view.unreadable.push(format!(
            "{prefix}: more stands there than fits into one answer of etcd, so keys are read one by one; not ours: {}",
            found.others.join(", ")
        ));
        Ok(view)
    }

    /// Below what the keys are whose names are not known beforehand; the whole prefix first.
    fn lists(&self) -> [String; 3] {
        ["", "members/", "tenure/"].map(|list| format!("{}{list}", self.keys.prefix()))
    }

    /// The keys that are known, one by one at one revision: those `listed` whose names are found below these prefixes, and `always`.
    pub(crate) async fn read_one_by_one(
        &self,
        lists: &[String],
        always: Vec<String>,
        known: impl Fn(&str) -> bool + Sync,
    ) -> Result<OneByOne> {
        let mut found = OneByOne::default();
        let mut wanted = BTreeSet::new();
        for (number, list) in lists.iter().enumerate() {
            let options = GetOptions::new().with_prefix().with_keys_only().with_limit(NAMES_MAX);
            let names = self
                .call(|mut client| {
                    let (list, options) = (list.clone(), options.clone());
                    async move { client.get(list, Some(options)).await }
                })
                .await?;
            if let Some(header) = names.header().filter(|_| found.revision == 0) {
                (found.revision, found.etcd) = (header.revision(), header.cluster_id());
            }
            for key in names.kvs().iter().filter_map(|pair| pair.key_str().ok()) {
                if known(key) {
                    wanted.insert(key.to_owned());
                } else if found.others.len() < NAMED {
                    found.others.push(key.to_owned());
                }
            }
            // The first is the whole prefix: what it does not name is not there.
            if number == 0 && !names.more() {
                break;
            }
            wanted.extend(always.iter().cloned());
        }
        let wanted: Vec<String> = wanted.into_iter().collect();
        let options = GetOptions::new().with_revision(found.revision);
        for some in wanted.chunks(KEYS_AT_ONCE) {
            let gets: Vec<TxnOp> = some.iter().map(|key| TxnOp::get(key.as_str(), Some(options.clone()))).collect();
            let at_once = |mut client: Client| {
                let txn = Txn::new().and_then(gets.clone());
                async move { client.txn(txn).await }
            };
            match self.call(at_once).await {
                Ok(answer) => found.answers.extend(answer.op_responses().into_iter().filter_map(|one| match one {
                    TxnOpResponse::Get(answer) => Some(answer),
                    TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
                })),
                // One of ours is that large.
                Err(Error::TooMuch(_)) => self.read_each(some, &options, &mut found).await?,
                Err(why) => return Err(why),
            }
        }
        Ok(found)
    }

    async fn read_each(&self, keys: &[String], options: &GetOptions, found: &mut OneByOne) -> Result<()> {
        for key in keys {
            let asked = |mut client: Client| {
                let (key, options) = (key.clone(), options.clone());
                async move { client.get(key, Some(options)).await }
            };
            match self.call(asked).await {
                Ok(answer) => found.answers.push(answer),
                Err(Error::TooMuch(why)) => found.others.push(format!("{key} ({why})")),
                Err(why) => return Err(why),
            }
        }
        Ok(())
    }

    /// Makes the cluster's keys again, if nobody else did meanwhile: one write.
    pub async fn rebuild(&self, plan: &Rebuild, judged: &ClusterView) -> Result<Term> {
        let keys = &self.keys;
        let when = vec![
            unchanged(keys.leader(), plan.replaces.as_ref().map_or(0, |leader| leader.term.0)),
            unchanged(keys.store(), ClusterView::revision_of(&judged.store)),
            unchanged(keys.initialize(), ClusterView::revision_of(&judged.initialize)),
        ];
        let upgraded = judged.store.as_ref().and_then(|store| store.value.upgraded.clone());
        let making = Making { generation: plan.generation, by: format!("{} at {}", plan.leader, judged.revision), upgraded };
        let mut then = vec![
            TxnOp::put(keys.store(), to_bytes(&making), None),
            TxnOp::put(keys.initialize(), plan.system_id.0.as_str(), None),
            self.put_leader(&plan.leader, plan.entry.lease),
            self.last_term(&plan.leader, "made again"),
            TxnOp::put(keys.sync(), to_bytes(&plan.sync), None),
            TxnOp::put(keys.claimed_timeline(), to_bytes(&plan.timeline), None),
            TxnOp::put(keys.failover(), "{}", None),
            TxnOp::delete(keys.status(), None),
        ];
        then.extend(plan.config.iter().map(|config| TxnOp::put(keys.config(), to_bytes(config), None)));
        self.guarded("what the keys were", when, then).await.map(Term)
    }

    /// The cluster goes on as another database system, that of a new major version: one write, if this leader's key and what the cluster
    /// was are as judged. Positions and timelines of the old one mean nothing in it; its own timeline is `timeline`.
    pub async fn upgraded(
        &self,
        leader: &Leader,
        judged: &ClusterView,
        to: &SystemId,
        timeline: Timeline,
        upgraded: Upgraded,
    ) -> Result<()> {
        let keys = &self.keys;
        let when = vec![
            self.is_leader(leader),
            unchanged(keys.store(), ClusterView::revision_of(&judged.store)),
            unchanged(keys.initialize(), ClusterView::revision_of(&judged.initialize)),
            unchanged(keys.sync(), ClusterView::revision_of(&judged.sync)),
        ];
        let own = self.remembered.as_ref().map_or(0, |remembered| remembered.memory().next_generation());
        let making = Making {
            generation: judged.store_generation().saturating_add(1).max(own),
            by: format!("{} at {}", leader.name, judged.revision),
            upgraded: Some(upgraded),
        };
        let mut then = vec![
            TxnOp::put(keys.store(), to_bytes(&making), None),
            TxnOp::put(keys.initialize(), to.0.as_str(), None),
            TxnOp::put(keys.claimed_timeline(), to_bytes(&timeline), None),
            TxnOp::put(keys.failover(), "{}", None),
        ];
        then.extend([keys.history(), keys.status(), keys.failsafe()].map(|key| TxnOp::delete(key, None)));
        // A member that had every acknowledged commit has none of the new system.
        let alone = SyncState::of(&leader.name, &BTreeSet::new());
        let sync = judged.sync.as_ref().map(|sync| SyncState { other: sync.value.other.clone(), ..alone });
        then.extend(sync.map(|sync| TxnOp::put(keys.sync(), to_bytes(&sync), None)));
        self.guarded("what the cluster was", when, then).await.map(drop)
    }

    /// The same etcd, seen as other keys.
    pub fn seen_as(&self, keys: Keys) -> Etcd {
        Etcd::new(keys, self.settings.clone())
    }

    /// The cluster's keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn endpoint_urls(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(|endpoint| endpoint.url.as_str())
    }

    /// The endpoint that answered last.
    pub fn endpoint(&self) -> &str {
        self.endpoints.get(self.preferred.load(Ordering::Relaxed)).map_or("", |endpoint| &endpoint.url)
    }

    /// What errors are explained by.
    fn login(&self) -> Login<'_> {
        Login {
            user: self.settings.user.as_ref().map(|(user, _)| user.as_str()),
            prefix: self.keys.prefix(),
            authority: self.settings.ca_certificate.is_some(),
            certificate: self.settings.identity.is_some(),
            tls: self.settings.endpoints.iter().any(|url| url.starts_with("https://")),
        }
    }

    fn options(&self, url: &str) -> ConnectOptions {
        // A connection that says nothing for this long is given up, so that a cut cable is noticed.
        let quiet = self.settings.try_timeout.max(Duration::from_millis(500));
        let options = ConnectOptions::new()
            .with_connect_timeout(self.settings.try_timeout)
            .with_keep_alive(quiet, quiet)
            .with_tcp_keepalive(Duration::from_secs(5))
            .with_require_leader(true);
        if !url.starts_with("https://") {
            return options;
        }
        let mut tls = TlsOptions::new();
        if let Some(pem) = &self.settings.ca_certificate {
            tls = tls.ca_certificate(Certificate::from_pem(pem));
        }
        if let Some((certificate, key)) = &self.settings.identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        options.with_tls(tls)
    }

    /// For how long etcd lets this lease live yet, unless it is renewed; nothing where it is gone.
    pub async fn lease_left(&self, lease: LeaseId) -> Result<Duration> {
        let answer = self.call(|mut client| async move { client.lease_time_to_live(lease.0, None).await }).await?;
        Ok(Duration::from_secs(u64::try_from(answer.ttl()).unwrap_or(0)))
    }

    /// The connection to this endpoint, made where there is none; logged in, unless this etcd knows no users.
    async fn client(&self, endpoint: &Endpoint) -> std::result::Result<Client, etcd_client::Error> {
        let mut slot = endpoint.client.lock().await;
        if let Some(client) = &*slot {
            return Ok(client.clone());
        }
        let options = self.options(&endpoint.url);
        let client = match &self.settings.user {
            None => connect(&endpoint.url, options).await?,
            Some((user, password)) => {
                let with_login = options.clone().with_user(user, password);
                match connect(&endpoint.url, with_login).await {
                    Err(failure) if trouble::asks_for_no_login(&failure) => connect(&endpoint.url, options).await?,
                    connected => connected?,
                }
            }
        };
        *slot = Some(client.clone());
        Ok(client)
    }

    /// Asks this endpoint; once more with a new login where the old one is no longer known. A refused
    /// login did nothing, so asking again does nothing twice.
    async fn ask<T, F>(&self, endpoint: &Endpoint, ask: &(impl Fn(Client) -> F + Send + Sync)) -> std::result::Result<T, etcd_client::Error>
    where
        F: Future<Output = std::result::Result<T, etcd_client::Error>> + Send,
    {
        match ask(self.client(endpoint).await?).await {
            Err(failure) if self.settings.user.is_some() && trouble::is_stale(&failure) => {
                endpoint.forget().await;
                ask(self.client(endpoint).await?).await
            }
            answer => answer,
        }
    }

    /// Runs `ask` at one endpoint after another, the last that answered first, each within the bound.
    pub(crate) async fn call<T, F>(&self, ask: impl Fn(Client) -> F + Send + Sync) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, etcd_client::Error>> + Send,
        T: Send,
    {
        let count = self.endpoints.len();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for turn in 0..count {
            let at = (first + turn) % count;
            let endpoint = &self.endpoints[at];
            let answer = tokio::time::timeout(self.settings.try_timeout, Box::pin(self.ask(endpoint, &ask))).await;
            let why = match answer.map(|answer| answer.map_err(|failure| trouble::classify(failure, self.login()))) {
                Ok(Err(Error::Unreachable(why))) => why,
                Ok(answer) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return answer;
                }
                Err(_) => format!("no answer within {} ms", self.settings.try_timeout.as_millis()),
            };
            // The connection may be half dead: the next try makes a new one.
            endpoint.forget().await;
            failures.push(format!("{}: {why}", endpoint.url));
        }
        if failures.is_empty() {
            failures.push("no endpoint is configured".to_owned());
        }
        Err(Error::Unreachable(failures.join("; ")))
    }

    /// Opens a watch on everything below the prefix at the endpoint of this number (modulo their count).
    pub(crate) async fn open_watch(&self, number: usize) -> Result<WatchStream> {
        let none = || Error::Unreachable("no endpoint is configured".to_owned());
        let first = self.preferred.load(Ordering::Relaxed);
        let endpoint = self.endpoints.get((first + number) % self.endpoints.len().max(1)).ok_or_else(none)?;
        let watch = |mut client: Client| async move {
            let options = WatchOptions::new().with_prefix();
            client.watch(self.keys.prefix(), Some(options)).await
        };
        let open = Box::pin(self.ask(endpoint, &watch));
        match tokio::time::timeout(self.settings.try_timeout, open).await {
            Ok(opened) => opened.map_err(|failure| trouble::classify(failure, self.login())),
            Err(_) => Err(Error::Unreachable(format!("{}: no watch within {} ms", endpoint.url, self.settings.try_timeout.as_millis()))),
        }
    }

    /// A watch at the endpoint of this number was refused: its login may be one of before. The next use logs in again.
    pub(crate) async fn log_in_anew(&self, number: usize) {
        let first = self.preferred.load(Ordering::Relaxed);
        if let Some(endpoint) = self.endpoints.get((first + number) % self.endpoints.len().max(1)).filter(|_| self.settings.user.is_some())
        {
            endpoint.forget().await;
        }
    }

    /// Reads everything below the prefix at one revision, linearizably.
    pub(crate) async fn read_all<T>(&self, build: impl FnOnce(i64, u64, &mut dyn Iterator<Item = Raw<'_>>) -> T) -> Result<T> {
        let prefix = self.keys.prefix();
        let answer = self.call(|mut client| async move { client.get(prefix, Some(GetOptions::new().with_prefix())).await }).await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let etcd = answer.header().map_or(0, etcd_client::ResponseHeader::cluster_id);
        let mut raws = answer.kvs().iter().filter_map(raw);
        Ok(build(revision, etcd, &mut raws))
    }

    /// Runs a guarded transaction; `what` names what was judged, for [`Error::Lost`]. Gives the revision.
    pub(crate) async fn guarded(&self, what: &'static str, when: Vec<Compare>, then: Vec<TxnOp>) -> Result<i64> {
        let answer: TxnResponse = self
            .call(|mut client| {
                let txn = Txn::new().when(when.clone()).and_then(then.clone());
                async move { client.txn(txn).await }
            })
            .await?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        if answer.succeeded() { Ok(revision) } else { Err(Error::Lost(what)) }
    }

    /// Asks a member for something, unless somebody else's request waits there; it is gone after `REQUEST_TTL`.
    pub async fn write_request(&self, name: &MemberName, request: &MemberRequest) -> Result<()> {
        let lease = self.grant(REQUEST_TTL).await?.lease;
        let when = vec![unchanged(self.keys.request(name), 0)];
        let put = TxnOp::put(self.keys.request(name), to_bytes(request), on(lease));
        self.guarded("the request to this member", when, vec![put]).await.map(drop)
    }

    /// Takes a request up: it is gone before anything is done, so that it is done once at most.
    pub async fn take_request(&self, name: &MemberName, judged: i64) -> Result<()> {
        let when = vec![unchanged(self.keys.request(name), judged)];
        self.guarded("the request to this member", when, vec![TxnOp::delete(self.keys.request(name), None)]).await.map(drop)
    }

    /// Who holds the addresses for reads, by its key.
    pub async fn reader(&self) -> Result<Option<String>> {
        let key = self.keys.reader();
        let answer = self
            .call(|mut client| {
                let key = key.clone();
                async move { client.get(key, None).await }
            })
            .await?;
        Ok(answer.kvs().first().map(|found| String::from_utf8_lossy(found.value()).into_owned()))
    }

    /// Takes the right to hold the addresses for reads, where nobody has it; it ends with this lease.
    pub async fn take_reader(&self, name: &MemberName, lease: LeaseId) -> Result<()> {
        let when = vec![unchanged(self.keys.reader(), 0)];
        self.guarded("the key of who takes reads", when, vec![TxnOp::put(self.keys.reader(), name.as_str(), on(lease))]).await.map(drop)
    }

    /// Deletes every key of the cluster; gives how many there were.
    pub async fn remove_cluster(&self) -> Result<i64> {
        let prefix = self.keys.prefix();
        let delete = |mut client: Client| async move { client.delete(prefix, Some(DeleteOptions::new().with_prefix())).await };
        Ok(self.call(delete).await?.deleted())
    }

    fn last_term(&self, holder: &MemberName, how: &str) -> TxnOp {
        TxnOp::put(self.keys.last_term(), to_bytes(&LastTerm { holder: holder.clone(), how: how.to_owned() }), None)
    }

    fn put_leader(&self, name: &MemberName, lease: LeaseId) -> TxnOp {
        TxnOp::put(self.keys.leader(), name.as_str(), on(lease))
    }

    pub(crate) fn is_leader(&self, leader: &Leader) -> Compare {
        unchanged(self.keys.leader(), leader.term.0)
    }
}

/// Keys that were read one by one.
#[derive(Default)]
pub(crate) struct OneByOne {
    pub revision: i64,
    pub etcd: u64,
    pub answers: Vec<GetResponse>,
    /// Names of a few keys that are not ours.
    pub others: Vec<String>,
}

pub(crate) fn raw(pair: &KeyValue) -> Option<Raw<'_>> {
    let key = pair.key_str().ok()?;
    Some(Raw { key, value: pair.value(), revision: pair.mod_revision(), lease: pair.lease() })
}

/// Boxed: a connection in the making is large, and every call holds one.
async fn connect(url: &str, options: ConnectOptions) -> std::result::Result<Client, etcd_client::Error> {
    Box::pin(Client::connect([url], Some(options))).await
}

/// Where the member stood that answered. Every answer of etcd's says so.
fn standing(header: Option<&etcd_client::ResponseHeader>) -> Result<Standing> {
    let header = header.ok_or(Error::Unproven("it has no header"))?;
    Ok(Standing { cluster: header.cluster_id(), raft_term: header.raft_term(), revision: header.revision() })
}

pub(crate) fn on(lease: LeaseId) -> Option<PutOptions> {
    Some(PutOptions::new().with_lease(lease.0))
}

/// The key's last write is still this revision (0: it does not exist).
pub(crate) fn unchanged(key: String, revision: i64) -> Compare {
    Compare::mod_revision(key, CompareOp::Equal, revision)
}
