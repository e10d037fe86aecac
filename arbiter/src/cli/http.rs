//! A request to a member's REST: one connection, one answer, bounded. Plain HTTP.

use crate::secret::Secret;
use anyhow::{Context, Result, bail};
use base64::Engine;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Largest answer that is read: a status is a few KiB.
const MOST: u64 = 4 * 1024 * 1024;

/// Asks the member behind `api_url` (`http://host:port/patroni`) at `path`; gives status and text.
pub async fn ask(
    api_url: &str,
    method: &str,
    path: &str,
    body: Option<&serde_json::Value>,
    authentication: Option<&(String, Secret)>,
    bound: Duration,
) -> Result<(u16, String)> {
    let exchange = exchange(api_url, method, path, body, authentication);
    match tokio::time::timeout(bound, exchange).await {
        Ok(answered) => answered,
        Err(_) => bail!("{api_url} gave no answer within {} s", bound.as_secs()),
    }
}

async fn exchange(
    api_url: &str,
    method: &str,
    path: &str,
    body: Option<&serde_json::Value>,
    authentication: Option<&(String, Secret)>,
) -> Result<(u16, String)> {
    let host = authority(api_url)?;
    let mut stream = TcpStream::connect(&host).await.with_context(|| format!("connect to {host}"))?;
    let body = body.map(serde_json::Value::to_string).unwrap_or_default();
    // HTTP/1.0: the answer comes unchunked and ends with the connection.
    let mut request =
        format!("{method} /{path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    if let Some((user, password)) = authentication {
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{}", password.reveal()));
        request.push_str(&format!("Authorization: Basic {pair}\r\n"));
    }
    request.push_str("\r\n");
    request.push_str(&body);
    stream.write_all(request.as_bytes()).await.with_context(|| format!("ask {host}"))?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).await.with_context(|| format!("read the answer of {host}"))?;
    parse(&String::from_utf8_lossy(&answer)).with_context(|| format!("{host} does not speak HTTP"))
}

fn authority(api_url: &str) -> Result<String> {
    if api_url.starts_with("https://") {
        bail!("{api_url} wants HTTPS, which this tool does not speak: run the command on a node whose REST is plain, or use SQL there");
    }
    let rest = api_url.strip_prefix("http://").with_context(|| format!("\"{api_url}\" is no address of a member"))?;
    let host = rest.split(['/', '?']).next().unwrap_or("");
    if host.is_empty() {
        bail!("\"{api_url}\" names no host");
    }
    Ok(if host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) { host.to_owned() } else { format!("{host}:80") })
}

fn parse(answer: &str) -> Option<(u16, String)> {
    let status = answer.strip_prefix("HTTP/1.")?.split_whitespace().nth(1)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_addresses_are_understood() {
        assert_eq!(parse("HTTP/1.0 202 Accepted\r\nA: b\r\n\r\nreload scheduled"), Some((202, "reload scheduled".to_owned())));
        assert_eq!(parse("HTTP/1.1 503 x\r\n\r\n"), Some((503, String::new())));
        assert_eq!(parse("SSH-2.0"), None);
        assert_eq!(authority("http://10.0.0.1:8008/patroni").unwrap(), "10.0.0.1:8008");
        assert_eq!(authority("http://[::1]:8008").unwrap(), "[::1]:8008");
        for wrong in ["https://h:1/patroni", "", "http:///x"] {
            assert!(authority(wrong).is_err(), "{wrong}");
        }
    }
}
