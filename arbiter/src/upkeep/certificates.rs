//! When this node's certificates end, for `/metrics`: those that its REST, its server and etcd show, and those of its own in files.
//!
//! What is shown is looked at, not the file that it was read from: a new file is of no use before a reload.

use crate::config::NodeConfig;
use crate::ground::certificates::{self, Asks};
use crate::ground::tls::Identity;
use crate::node::Node;
use crate::node::snapshot::Snapshot;
use cluster::host::Address;
use cluster::local::Postgres;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Between two looks: days count.
const EVERY: Duration = Duration::from_secs(600);

/// Until the server shows its own for the first time.
const AT_FIRST: Duration = Duration::from_secs(5);

/// A certificate that is shown somewhere.
struct Shown {
    what: String,
    at: Address,
    asks: Asks,
    identity: Option<Identity>,
}

/// Looks for as long as the future is polled.
pub async fn keep(node: Node, mut configured: watch::Receiver<Arc<NodeConfig>>, snapshots: watch::Receiver<Snapshot>) {
    let mut served = false;
    loop {
        let config = configured.borrow_and_update().clone();
        let (places, serves) = {
            let snapshot = snapshots.borrow();
            let serves = matches!(snapshot.local.postgres, Postgres::Primary { .. } | Postgres::Standby { .. });
            (places(&config, &snapshot), serves)
        };
        node.certificates.note(look(&node, places, files(&config)).await);
        served |= serves;
        tokio::select! {
            () = tokio::time::sleep(if served { EVERY } else { AT_FIRST }) => {}
            changed = configured.changed() => if changed.is_err() { return },
        }
    }
}

/// Where this node, and etcd, show one. What does not answer, or speaks no TLS, is not told.
fn places(config: &NodeConfig, snapshot: &Snapshot) -> Vec<Shown> {
    let entry = snapshot.view.members.get(&config.name);
    let of_url = |url: &str| url.starts_with("https://").then(|| Address::of_url(url)).flatten();
    let own = |what: &str, at, asks| Shown { what: what.to_owned(), at, asks, identity: config.ctl.tls.identity.clone() };
    let rest = entry.and_then(|entry| of_url(&entry.member.api_url)).map(|at| own("REST", at, Asks::Tls));
    let postgres = entry.and_then(|entry| entry.member.address()).map(|at| own("Postgres", at, Asks::Postgres));
    let certificate = config.etcd.client_certificate.as_ref();
    let identity =
        certificate.map(|(certificate, key)| Identity { certificate: certificate.clone(), key: Some(key.clone()), key_password: None });
    let etcd = config.etcd.endpoints.iter().filter_map(|url| of_url(url));
    let etcd = etcd.map(|at| Shown { what: format!("etcd at {at}"), at, asks: Asks::Tls, identity: identity.clone() });
    rest.into_iter().chain(postgres).chain(etcd).collect()
}

/// What this node shows to others.
fn files(config: &NodeConfig) -> Vec<PathBuf> {
    let etcd = config.etcd.client_certificate.as_ref().map(|(certificate, _)| certificate.clone());
    etcd.into_iter().chain(config.ctl.tls.identity.as_ref().map(|identity| identity.certificate.clone())).collect()
}

async fn look(node: &Node, places: Vec<Shown>, files: Vec<PathBuf>) -> BTreeMap<String, i64> {
    let mut ends = BTreeMap::new();
    for Shown { what, at, asks, identity } in places {
        // While our server is down, whoever has its port is not asked; what a server showed that ended meanwhile may be another's.
        let ours = || asks == Asks::Tls || node.postmaster().is_some();
        let tls = tokio::task::spawn_blocking(|| certificates::looker(identity)).await.ok().flatten();
        if let Some(tls) = tls
            && ours()
            && let Ok(at) = certificates::shown_at(&tls, &at, asks).await
            && ours()
        {
            ends.insert(what, at);
        }
    }
    let of_files = tokio::task::spawn_blocking(move || {
        files.into_iter().filter_map(|file| Some((file.display().to_string(), certificates::of_file(&file).ok()?))).collect::<Vec<_>>()
    });
    ends.extend(of_files.await.unwrap_or_default());
    ends
}
