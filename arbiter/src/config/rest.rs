//! `restapi` and `ctl`: the interface, and how others' interfaces are asked.

use super::reach::{reachable, to_listen};
use super::tree::{At, described, truth};
use super::{Allowlist, CtlConfig, RestConfig};
use crate::ground::secret::Secret;
use crate::ground::tls::{self, Identity, VerifyClient};
use crate::postgres::conf::setting_text;
use cluster::host::Address;
use ipnet::IpNet;
use serde_json::Value;
use std::net::IpAddr;

/// `restapi`.
pub(super) fn restapi(at: &At<'_>) -> Option<RestConfig> {
    at.map();
    let listen = match at.at("listen").value {
        Some(_) => to_listen(&at.at("listen"), 8008)?,
        None => Address::new("0.0.0.0", 8008),
    };
    let connect_address = reachable(&at.at("connect_address"), &listen)?;
    let tls = server(at);
    let headers = |name: &str| {
        let section = at.at(name);
        let text = |(name, value): (&String, &Value)| setting_text(value).map(|value| (name.clone(), value));
        section.map().into_iter().flatten().filter_map(text).collect::<Vec<_>>()
    };
    let mut extra_headers = headers("http_extra_headers");
    if tls.is_some() {
        extra_headers.extend(headers("https_extra_headers"));
    }
    for (name, value) in &extra_headers {
        if axum::http::HeaderName::try_from(name).is_err() || axum::http::HeaderValue::try_from(value).is_err() {
            at.at("http_extra_headers").note(format!("\"{name}\" with its value can't be a header"));
        }
    }
    Some(RestConfig { listen, connect_address, authentication: authentication(at), tls, allowlist: allowlist(at), extra_headers })
}

/// A section's `authentication`: both words or none. `auth: user:password` is how files of before write it.
fn authentication(at: &At<'_>) -> Option<(String, Secret)> {
    let section = at.at("authentication");
    if section.value.is_none()
        && let Some(text) = at.at("auth").text()
    {
        let Some((username, password)) = text.split_once(':').filter(|(username, password)| !username.is_empty() && !password.is_empty())
        else {
            at.at("auth").note("expected user:password");
            return None;
        };
        return Some((username.to_owned(), Secret::new(password)));
    }
    match (section.at("username").text(), section.at("password").secret()) {
        (Some(username), Some(password)) => Some((username, password)),
        (None, None) => None,
        _ => {
            section.note("needs both a username and a password");
            None
        }
    }
}

fn identity(at: &At<'_>) -> Option<Identity> {
    let identity = |certificate| Identity { certificate, key: at.at("keyfile").path(), key_password: at.at("keyfile_password").secret() };
    at.at("certfile").path().map(identity)
}

fn server(at: &At<'_>) -> Option<tls::ServerTls> {
    let verify_client = at.at("verify_client");
    let verify = match verify_client.text().as_deref() {
        None | Some("none") => VerifyClient::None,
        Some("optional") => VerifyClient::Optional,
        Some("required") => VerifyClient::Required,
        Some(other) => {
            verify_client.note(format!("found \"{other}\", expected none, optional or required"));
            VerifyClient::None
        }
    };
    let authority = at.at("cafile").path();
    let Some(identity) = identity(at) else {
        for name in ["keyfile", "verify_client"].iter().filter(|name| at.at(name).value.is_some()) {
            at.at(name).note("needs restapi.certfile beside it");
        }
        return None;
    };
    if verify != VerifyClient::None && authority.is_none() {
        verify_client.note("needs restapi.cafile: the authority of the clients' certificates");
    }
    Some(tls::ServerTls { identity, authority, verify_client: verify })
}

fn allowlist(at: &At<'_>) -> Option<Allowlist> {
    let members = at.at("allowlist_include_members").flag().unwrap_or(false);
    let given = at.at("allowlist");
    let words: Vec<String> = match given.value {
        None => Vec::new(),
        Some(Value::String(text)) => text.split(',').map(str::to_owned).collect(),
        Some(Value::Array(_)) => given.lines().unwrap_or_default(),
        Some(other) => {
            given.note(format!("found {}, expected a list of addresses, networks and names", described(other)));
            Vec::new()
        }
    };
    let mut allowlist = Allowlist { members, ..Allowlist::default() };
    for word in words.iter().map(|word| word.trim().trim_matches(['"', '\''])).filter(|word| !word.is_empty()) {
        match word.parse::<IpNet>().or_else(|_| word.parse::<IpAddr>().map(IpNet::from)) {
            Ok(network) => allowlist.networks.push(network),
            Err(_) if word.contains('/') => given.note(format!("\"{word}\" is no network: expected one like 10.0.0.0/8")),
            Err(_) => allowlist.hosts.push(word.to_owned()),
        }
    }
    (members || !words.is_empty()).then_some(allowlist)
}

/// `ctl`, with what it takes from `restapi` where it says nothing itself.
pub(super) fn ctl(at: &At<'_>, restapi: &At<'_>) -> CtlConfig {
    at.map();
    let insecure = at.at("insecure").value.and_then(truth).unwrap_or(false);
    CtlConfig {
        authentication: authentication(at).or_else(|| authentication(restapi)),
        tls: tls::Client {
            authority: at.at("cacert").path().or_else(|| restapi.at("cafile").path()),
            identity: identity(at).or_else(|| identity(restapi)),
            insecure,
        },
    }
}
