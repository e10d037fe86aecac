//! Who may change something: the one check that every mutating route passes.
//!
//! In the field's order: where the caller comes from, whether it shows a certificate, whether it knows the password.

use super::peer::Peer;
use super::reply::Reply;
use crate::config::{Allowlist, RestConfig};
use crate::ground::secret::Secret;
use crate::ground::tls::VerifyClient;
use axum::http::{HeaderMap, header};
use base64::Engine;
use cluster::host::Address;
use cluster::view::ClusterView;
use std::net::IpAddr;
use std::time::Duration;

/// A name that can't be looked up within this time lets nobody in.
const LOOKUP_WITHIN: Duration = Duration::from_secs(1);

/// What a caller has to show.
pub struct Access {
    /// The value of `Authorization`, where one is asked for.
    expected: Option<Secret>,
    /// Where a caller has to come from.
    allowlist: Option<Allowlist>,
    /// A certificate is to be shown; that it is a good one the handshake has seen to.
    certificate: bool,
}

impl Access {
    /// From `restapi`; where it asks for nothing, anybody who reaches the port may act, as with Patroni.
    pub fn new(config: &RestConfig) -> Access {
        let basic = |(user, password): &(String, Secret)| {
            let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{}", password.reveal()));
            Secret::new(format!("Basic {pair}"))
        };
        Access {
            expected: config.authentication.as_ref().map(basic),
            allowlist: config.allowlist.clone(),
            certificate: config.tls.as_ref().is_some_and(|tls| tls.verify_client != VerifyClient::None),
        }
    }

    /// Is a password asked for?
    pub fn asks_for_password(&self) -> bool {
        self.expected.is_some()
    }

    /// Does the caller show what is asked for? The answer that refuses it otherwise.
    pub async fn admits(&self, headers: &HeaderMap, peer: &Peer, path: &str, view: &ClusterView) -> Result<(), Reply> {
        if let Some(allowlist) = &self.allowlist
            && !is_listed(allowlist, peer.address(), path, view).await
        {
            return Err(Reply::text(403, "Access is denied"));
        }
        if self.certificate && !peer.showed_certificate() {
            return Err(Reply::text(403, "client certificate required"));
        }
        let Some(expected) = &self.expected else { return Ok(()) };
        let given = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        if same(given, expected.reveal().as_bytes()) {
            return Ok(());
        }
        Err(Reply::text(401, "no auth header received or wrong credentials"))
    }
}

/// Is this address on the list? For `/failsafe` the list alone counts, as with Patroni: a leader that lost
/// etcd must not be let in or kept out by what etcd said of it.
async fn is_listed(allowlist: &Allowlist, address: IpAddr, path: &str, view: &ClusterView) -> bool {
    if allowlist.networks.iter().any(|network| network.contains(&address)) {
        return true;
    }
    let asks_promise = path.trim_start_matches('/').split('/').next() == Some("failsafe");
    if asks_promise && allowlist.networks.is_empty() && allowlist.hosts.is_empty() {
        return true;
    }
    let members = view.members.values().filter(|_| allowlist.members && !asks_promise).filter_map(|entry| host(&entry.member.api_url));
    for name in allowlist.hosts.iter().cloned().chain(members) {
        if addresses(&name).await.contains(&address) {
            return true;
        }
    }
    false
}

/// The host of `http://host:port/patroni` or `https://[::1]:port`.
pub(super) fn host(api_url: &str) -> Option<String> {
    Address::of_url(api_url).map(|address| address.host)
}

/// What a name or an address leads to.
pub(super) async fn addresses(host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return vec![address.to_canonical()];
    }
    match tokio::time::timeout(LOOKUP_WITHIN, tokio::net::lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip().to_canonical()).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

/// Compares in a time that does not depend on where they differ.
fn same(given: &[u8], expected: &[u8]) -> bool {
    let differences = expected.iter().enumerate().fold(0, |found, (at, byte)| found | (byte ^ given.get(at).copied().unwrap_or(!byte)));
    differences == 0 && given.len() == expected.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::present::tests::sample;

    fn access() -> Access {
        Access { expected: None, allowlist: None, certificate: false }
    }

    async fn status(access: &Access, peer: &Peer, path: &str, header: &str) -> u16 {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, header.parse().unwrap())]);
        access.admits(&headers, peer, path, &sample()).await.map_or_else(|refused| refused.status, |()| 200)
    }

    #[tokio::test]
    async fn only_the_right_pair_is_admitted() {
        let expected = Some(Secret::new("Basic YWRtaW46czNjcmV0"));
        let access = Access { expected, ..access() };
        let peer = Peer::from_address("127.0.0.1", false);
        assert_eq!(status(&access, &peer, "/config", "Basic YWRtaW46czNjcmV0").await, 200);
        for wrong in ["", "Basic ", "Basic YWRtaW46czNjcmV", "Basic YWRtaW46czNjcmV0x", "Bearer YWRtaW46czNjcmV0"] {
            assert_eq!(status(&access, &peer, "/config", wrong).await, 401, "{wrong}");
        }
        assert!(access.admits(&HeaderMap::new(), &peer, "/config", &sample()).await.is_err());
    }

    #[tokio::test]
    async fn the_list_and_the_certificate_come_before_the_password() {
        let list = |networks: &[&str], hosts: &[&str], members| {
            let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
            Some(Allowlist { networks, hosts: hosts.iter().map(|host| (*host).to_owned()).collect(), members })
        };
        for (allowlist, from, path, expected) in [
            (None, "192.0.2.1", "/config", 200),
            (list(&["10.0.0.0/8"], &[], false), "10.1.2.3", "/config", 200),
            (list(&["10.0.0.0/8"], &[], false), "192.0.2.1", "/config", 403),
            (list(&["10.0.0.0/8"], &[], false), "192.0.2.1", "/failsafe", 403),
            (list(&[], &["localhost"], false), "127.0.0.1", "/config", 200),
            (list(&[], &["no.such.name.invalid"], false), "127.0.0.1", "/config", 403),
            // The members of the sample are on 127.0.0.1.
            (list(&[], &[], true), "127.0.0.1", "/config", 200),
            (list(&[], &[], true), "192.0.2.1", "/config", 403),
            (list(&[], &[], true), "192.0.2.1", "/failsafe", 200),
            (list(&["10.0.0.0/8"], &[], true), "127.0.0.1", "/failsafe", 403),
        ] {
            let case = format!("{allowlist:?} {from} {path}");
            let access = Access { allowlist, ..access() };
            assert_eq!(status(&access, &Peer::from_address(from, false), path, "").await, expected, "{case}");
        }
        let access = Access { certificate: true, expected: Some(Secret::new("Basic x")), ..access() };
        assert_eq!(status(&access, &Peer::from_address("127.0.0.1", false), "/config", "Basic x").await, 403);
        assert_eq!(status(&access, &Peer::from_address("127.0.0.1", true), "/config", "").await, 401);
        assert_eq!(status(&access, &Peer::from_address("127.0.0.1", true), "/config", "Basic x").await, 200);
    }
}
