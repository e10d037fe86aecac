//! One HTTP/1.0 request and its answer: enough for REST here and for etcd's JSON gateway.

use anyhow::{Context, Result, bail};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Status code and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body as text.
    pub body: String,
    /// The head: status line and headers.
    pub head: String,
}

/// GET from loopback; an error where nobody answers within three seconds.
pub async fn get(port: u16, path: &str) -> Result<Answer> {
    request(port, "GET", path, None).await
}

/// POST JSON to loopback; switchovers answer when they are done, so this waits for up to a minute.
pub async fn post(port: u16, path: &str, json: &str) -> Result<Answer> {
    request(port, "POST", path, Some(json)).await
}

/// Any method, on loopback.
pub async fn request(port: u16, method: &str, path: &str, json: Option<&str>) -> Result<Answer> {
    request_to("127.0.0.1", port, method, path, json).await
}

/// Any method, anywhere.
pub async fn request_to(host: &str, port: u16, method: &str, path: &str, json: Option<&str>) -> Result<Answer> {
    request_with(host, port, method, path, json, "").await
}

/// The same with further header lines, each ended by CR LF.
pub async fn request_with(host: &str, port: u16, method: &str, path: &str, json: Option<&str>, headers: &str) -> Result<Answer> {
    let bound = Duration::from_secs(if method == "GET" { 3 } else { 60 });
    tokio::time::timeout(bound, exchange(host, port, method, path, json.unwrap_or(""), headers))
        .await
        .with_context(|| format!("{method} {path} on port {port}: no answer within {bound:?}"))?
}

async fn exchange(host: &str, port: u16, method: &str, path: &str, body: &str, headers: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect((host, port)).await.with_context(|| format!("connect to port {port}"))?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut raw = Vec::new();
    stream.read_to_end(&mut raw).await.context("read the answer")?;
    let text = String::from_utf8_lossy(&raw);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        bail!("{method} {path} on port {port}: not an HTTP answer: {text:?}");
    };
    let status = head.split_whitespace().nth(1).and_then(|code| code.parse().ok()).with_context(|| format!("no status in {head:?}"))?;
    Ok(Answer { status, body: body.to_owned(), head: head.to_owned() })
}
