//! What went wrong on the way to etcd, in words that name what to do; and which errors a new login mends.
//!
//! The sentences name the keys of the node's file (`etcd3.*`); a node that has an `etcd` section finds
//! the same keys there.

use crate::error::Error;
use etcd_client::Error as Failure;
use std::error::Error as _;

/// Codes of gRPC that are an answer to what was asked, by number: 3 invalid argument, 7 permission
/// denied, 12 unimplemented, 16 unauthenticated.
const ANSWERS: [i32; 4] = [3, 7, 12, 16];

/// What a login that was good once is told after a token has run out, etcd was restarted, or users changed.
const STALE: [&str; 3] = ["invalid auth token", "revision of auth store is old", "user name is empty"];

/// How this client logs in: what its errors are explained by.
#[derive(Debug, Clone, Copy)]
pub struct Login<'a> {
    /// The user, where one is configured.
    pub user: Option<&'a str>,
    /// The keys that are asked for.
    pub prefix: &'a str,
    /// A certificate authority is configured.
    pub authority: bool,
    /// A client certificate is configured.
    pub certificate: bool,
    /// The endpoints are reached by TLS.
    pub tls: bool,
}

/// The token is no longer known, or was made before users changed: nothing was done, and a new login helps.
pub fn is_stale(failure: &Failure) -> bool {
    match failure {
        Failure::GRpcStatus(status) => status.code() as i32 == 16 || STALE.iter().any(|words| status.message().contains(words)),
        _ => false,
    }
}

/// This etcd knows no users (yet): to be used without a login.
pub fn asks_for_no_login(failure: &Failure) -> bool {
    matches!(failure, Failure::GRpcStatus(status) if status.message().contains("authentication is not enabled"))
}

/// Was it an answer, or do we know nothing?
pub fn classify(failure: Failure, login: Login<'_>) -> Error {
    match failure {
        // The library's words for an answer with TTL 0.
        Failure::LeaseKeepAliveError(text) if text == "lease not found" => Error::LeaseGone,
        Failure::GRpcStatus(status) => {
            let code = status.code() as i32;
            let text = chain(status.message(), status.source());
            if text.contains("requested lease not found") {
                Error::LeaseGone
            } else if text.contains("message length too large") {
                Error::TooMuch(text)
            } else if ANSWERS.contains(&code) {
                Error::Refused(refusal(code, &text, login))
            } else {
                let text = if text.is_empty() { format!("{:?}", status.code()) } else { text };
                Error::Unreachable(explained(text, login))
            }
        }
        Failure::InvalidArgs(text) => Error::Refused(text),
        Failure::InvalidUri(error) => Error::Refused(error.to_string()),
        Failure::TransportError(error) => Error::Unreachable(explained(chain(&error.to_string(), error.source()), login)),
        other => Error::Unreachable(other.to_string()),
    }
}

/// An error and what caused it, each part once.
fn chain(first: &str, mut cause: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut text = first.to_owned();
    while let Some(error) = cause {
        let part = error.to_string();
        // The transport's own name says nothing.
        if !text.contains(&part) && part != "transport error" {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

/// etcd's refusal, and what to do about it.
fn refusal(code: i32, text: &str, login: Login<'_>) -> String {
    let has = |words: &str| text.contains(words);
    let user = login.user.unwrap_or_default();
    let prefix = login.prefix;
    match login.user {
        _ if has("authentication failed") => {
            format!("user or password of \"{user}\" is wrong: correct etcd3.username and etcd3.password (or PATRONI_ETCD3_PASSWORD)")
        }
        None if has("user name is empty") => {
            "it asks for a login: give etcd3.username and etcd3.password (or PATRONI_ETCD3_USERNAME and PATRONI_ETCD3_PASSWORD)".to_owned()
        }
        None if code == 7 => format!(
            "permission denied: give etcd3.username and etcd3.password of a user that may read and write {prefix}, or a client certificate with such a user's name"
        ),
        Some(_) if code == 7 => {
            let grant = format!("etcdctl role grant-permission ROLE --prefix=true readwrite {prefix}");
            format!(
                "the user \"{user}\" may not read and write {prefix}: give it a role with that right (`{grant}`, `etcdctl user grant-role {user} ROLE`)"
            )
        }
        _ => text.trim_start_matches("etcdserver: ").to_owned(),
    }
}

/// A connection that failed, and what to do about it where it is about TLS.
fn explained(text: String, login: Login<'_>) -> String {
    let has = |words: &str| text.contains(words);
    // A server that doesn't like a handshake often just hangs up; so does one that ends.
    let closed = ["connection closed", "operation was canceled", "broken pipe", "reset by peer"].into_iter().any(has);
    let hint = if has("UnknownIssuer") && !login.authority {
        "give etcd3.cacert: the file with the authority that signed etcd's certificate"
    } else if has("UnknownIssuer") || has("BadSignature") {
        "etcd3.cacert is not the authority that signed etcd's certificate"
    } else if has("not valid for") {
        "etcd's certificate is not for the host name in etcd3.hosts"
    } else if has("Expired") {
        "etcd's certificate has run out"
    } else if login.tls && (has("fatal alert") || closed) && login.certificate {
        "etcd may not take the certificate in etcd3.cert and etcd3.key"
    } else if login.tls && (has("fatal alert") || closed) {
        "where etcd asks for client certificates, give etcd3.cert and etcd3.key"
    } else if has("InvalidContentType") || has("corrupt message") {
        "this endpoint speaks no TLS: is etcd3.protocol http?"
    } else if !login.tls && (has("http2 error") || has("h2 protocol error") || has("connection reset") || closed) {
        "if this endpoint speaks TLS, set etcd3.protocol to https"
    } else {
        return text;
    };
    format!("{text} ({hint})")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGIN: Login<'_> = Login { user: Some("tenure"), prefix: "/service/demo/", authority: true, certificate: false, tls: true };

    #[test]
    fn refusals_name_what_to_do() {
        let anonymous = Login { user: None, ..LOGIN };
        for (code, text, login, expected) in [
            (3, "etcdserver: authentication failed, invalid user ID or password", LOGIN, "etcd3.password"),
            (3, "etcdserver: user name is empty", anonymous, "etcd3.username"),
            (7, "etcdserver: permission denied", LOGIN, "readwrite /service/demo/"),
            (7, "etcdserver: permission denied", anonymous, "etcd3.username"),
            (3, "etcdserver: too many operations in txn request", LOGIN, "too many operations"),
        ] {
            let said = refusal(code, text, login);
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn failures_of_tls_name_the_setting() {
        let certified = Login { certificate: true, ..LOGIN };
        for (text, login, expected) in [
            ("invalid peer certificate: UnknownIssuer", LOGIN, "is not the authority"),
            ("invalid peer certificate: UnknownIssuer", Login { authority: false, ..LOGIN }, "give etcd3.cacert"),
            ("received fatal alert: CertificateRequired", LOGIN, "give etcd3.cert and etcd3.key"),
            ("received fatal alert: BadCertificate", certified, "may not take"),
            ("operation was canceled: connection closed", LOGIN, "give etcd3.cert and etcd3.key"),
            ("operation was canceled: connection closed", Login { tls: false, ..LOGIN }, "etcd3.protocol to https"),
            ("connection error: connection reset", Login { tls: false, ..LOGIN }, "etcd3.protocol to https"),
            ("received corrupt message of type InvalidContentType", LOGIN, "no TLS"),
        ] {
            let said = explained(text.to_owned(), login);
            assert!(said.starts_with(text) && said.contains(expected), "{said}");
        }
        assert_eq!(explained("tcp connect error".to_owned(), LOGIN), "tcp connect error");
    }
}
