//! The status page: one document without anything from elsewhere, and the stream of events that keeps it true.
//!
//! `GET /ui` is the document, `GET /ui/events` the stream. Both are as open as every other look and tell nothing that `/cluster`, `/patroni`
//! and `/journal` do not, and what `tenure check` finds in the same keys. What the page changes, it changes by the routes that are there for
//! that, with their checks; [`is_of_another_site`] is one more for browsers.

pub mod live;
mod past;

use super::access::{Access, host};
use super::peer::Peer;
use super::reply::sentence;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use cluster::view::ClusterView;
use live::Live;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::LazyLock;

const DOCUMENT: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The document, and what a browser may do with it: run this script and no other, speak to this node and nobody else.
static PAGE: LazyLock<(String, String)> = LazyLock::new(|| {
    let hash = |text: &str| base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text.as_bytes()));
    let document = DOCUMENT.replacen("/*STYLE*/", STYLE, 1).replacen("/*SCRIPT*/", SCRIPT, 1);
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        hash(SCRIPT),
        hash(STYLE)
    );
    (document, policy)
});

/// What is answered below `/ui`.
pub fn answer(live: &Live, peer: &Peer, path: &str) -> Response {
    let mut response = match path {
        "/ui" | "/ui/" => {
            let mut response = Response::new(Body::from(PAGE.0.as_str()));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
            response
        }
        "/ui/events" => live::answer(live, peer),
        _ => sentence(StatusCode::NOT_FOUND, "the status page is /ui"),
    };
    let policy = HeaderValue::from_str(&PAGE.1).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ] {
        response.headers_mut().insert(name, value);
    }
    response
}

/// A browser sends this request for a page that is not ours. It would send a password that it knows, or come from an address that is let
/// in, for whatever page its user looks at. Programs say nothing of where they come from and are not asked.
///
/// Where no password is asked for, a page whose name was made to lead here (DNS rebinding) would look like ours: there the name has to be an
/// address or one that a member has.
pub fn is_of_another_site(headers: &HeaderMap, access: &Access, view: &ClusterView) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if text("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none")) {
        return true;
    }
    let Some(origin) = text("origin") else { return false };
    let Some((_, theirs)) = origin.split_once("://") else { return true };
    if text("host") != Some(theirs) {
        return true;
    }
    !access.asks_for_password() && !is_known(origin, view)
}

fn is_known(origin: &str, view: &ClusterView) -> bool {
    let Some(name) = host(origin) else { return false };
    let known = |url: &str| host(url).is_some_and(|known| known.eq_ignore_ascii_case(&name));
    name.parse::<IpAddr>().is_ok()
        || name.eq_ignore_ascii_case("localhost")
        || view.members.values().any(|entry| known(&entry.member.api_url))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{PASSWORD, ask, world};
    use super::*;
    use axum::http::Method;

    #[test]
    fn the_document_brings_everything_with_it() {
        let (document, policy) = &*PAGE;
        assert!(!document.contains("/*STYLE*/") && !document.contains("/*SCRIPT*/"));
        for foreign in ["src=", "@import", "url(http", "<link rel=\"stylesheet\"", " style=\"", " onclick="] {
            assert!(!document.contains(foreign), "the policy would refuse {foreign}");
        }
        assert!(!policy.contains("unsafe") && policy.starts_with("default-src 'none'"), "{policy}");
        assert!(!SCRIPT.contains("innerHTML") && !SCRIPT.contains("eval("), "names come out of etcd");
    }

    #[tokio::test]
    async fn a_page_of_another_site_changes_nothing_also_with_the_password() {
        let right = ("authorization", "Basic YWRtaW46czNjcmV0");
        for (with, headers, status) in [
            (PASSWORD, &[right][..], 503),
            (
                PASSWORD,
                &[right, ("sec-fetch-site", "same-origin"), ("origin", "https://db1.example:8008"), ("host", "db1.example:8008")],
                503,
            ),
            (PASSWORD, &[right, ("sec-fetch-site", "cross-site")], 403),
            (PASSWORD, &[right, ("sec-fetch-site", "same-site")], 403),
            (PASSWORD, &[right, ("origin", "http://evil.example"), ("host", "127.0.0.1:8008")], 403),
            (PASSWORD, &[right, ("origin", "null"), ("host", "127.0.0.1:8008")], 403),
            ("", &[("origin", "http://127.0.0.1:18000"), ("host", "127.0.0.1:18000")], 503),
            ("", &[("origin", "http://[::1]:8008"), ("host", "[::1]:8008")], 503),
            ("", &[("origin", "http://rebound.example:8008"), ("host", "rebound.example:8008")], 403),
        ] {
            let world = world(with);
            assert_eq!(ask(&world, &Method::DELETE, "/restart", headers, "").await.0, status, "{headers:?}");
        }
        // A look may come from anywhere: what it says is open anyway, and no page of another site can read it.
        let world = world(PASSWORD);
        assert_eq!(ask(&world, &Method::GET, "/cluster", &[("sec-fetch-site", "cross-site")], "").await.0, 200);
        assert_eq!(ask(&world, &Method::GET, "/ui/nothing", &[], "").await.0, 404);
    }
}
