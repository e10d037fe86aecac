//! A request to a member's REST: one connection, one answer, bounded. HTTP or HTTPS, as the member's `api_url` says.

use crate::ground::secret::Secret;
use anyhow::{Context, Result, bail};
use base64::Engine;
use cluster::host::Address;
use cluster::speech;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;

/// Largest answer that is read: a status is a few KiB.
const MOST: usize = 4 * 1024 * 1024;

/// Who asks members: with which credentials, and by which TLS where a member wants it. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    authentication: Option<Arc<(String, Secret)>>,
    tls: Option<Arc<ClientConfig>>,
    /// The credentials go through TLS or not at all.
    only_over_tls: bool,
}

impl Caller {
    /// Without `tls`, a member that speaks HTTPS can't be asked.
    pub fn new(authentication: Option<(String, Secret)>, tls: Option<Arc<ClientConfig>>) -> Caller {
        Caller { authentication: authentication.map(Arc::new), tls, only_over_tls: false }
    }

    /// Where the cluster speaks TLS, a member that is said to be at `http://` gets no password: addresses come out of etcd, and
    /// anybody who may write there could name their own.
    pub fn only_over_tls(self, only_over_tls: bool) -> Caller {
        Caller { only_over_tls, ..self }
    }

    #[cfg(test)]
    pub fn credentials(&self) -> Option<(&str, &str)> {
        self.authentication.as_ref().map(|pair| (pair.0.as_str(), pair.1.reveal()))
    }

    /// Asks the member at `api_url` (`http://host:port/patroni`) at `path`; gives status and text.
    pub async fn ask(
        &self,
        api_url: &str,
        method: &str,
        path: &str,
        body: Option<&serde_json::Value>,
        bound: Duration,
    ) -> Result<(u16, String)> {
        match tokio::time::timeout(bound, self.exchange(api_url, method, path, body)).await {
            Ok(answered) => answered,
            Err(_) => bail!("{api_url} gave no answer within {} s", bound.as_secs_f32()),
        }
    }

    async fn exchange(&self, api_url: &str, method: &str, path: &str, body: Option<&serde_json::Value>) -> Result<(u16, String)> {
        let (address, tls) = address_of(api_url)?;
        let authority = address.to_string();
        let body = body.map(serde_json::Value::to_string).unwrap_or_default();
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(format!("/{path}"))
            .header(header::HOST, &authority)
            .header(header::CONTENT_TYPE, "application/json")
            .header(speech::HEADER, speech::OURS.to_string())
            .header(header::CONNECTION, "close");
        // Looks are open to everybody, so nobody has to be told the password for one.
        if let Some(pair) = self.authentication.as_ref().filter(|_| method != "GET") {
            if self.only_over_tls && !tls {
                bail!(
                    "{api_url} is not HTTPS, and this cluster has TLS: the password of REST is not sent there; hint: is this the member's own address? `restapi.certfile` is missing in its file otherwise"
                );
            }
            let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", pair.0, pair.1.reveal()));
            let mut value = header::HeaderValue::try_from(format!("Basic {encoded}")).context("make the credentials a header")?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Full::new(Bytes::from(body))).with_context(|| format!("ask for /{path}"))?;
        let stream = TcpStream::connect(&authority).await.with_context(|| format!("connect to {authority}"))?;
        if !tls {
            return exchange_over(stream, request).await.with_context(|| format!("ask {authority}"));
        }
        let Some(config) = &self.tls else { bail!("{api_url} wants HTTPS, and no TLS is set up here") };
        let name = ServerName::try_from(address.host.clone()).with_context(|| format!("{} is no host name", address.host))?;
        let stream = TlsConnector::from(config.clone()).connect(name, stream).await;
        let stream = stream.with_context(|| format!("agree on TLS with {authority}"))?;
        exchange_over(stream, request).await.with_context(|| format!("ask {authority}"))
    }
}

async fn exchange_over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    request: hyper::Request<Full<Bytes>>,
) -> Result<(u16, String)> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), MOST).collect().await.map_err(|error| anyhow::anyhow!("read the answer: {error}"))?;
        Ok((status, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
    };
    tokio::pin!(exchange);
    tokio::pin!(connection);
    let ended = tokio::select! {
        answered = &mut exchange => return answered,
        ended = &mut connection => ended,
    };
    // The connection may be over before its last bytes are taken.
    match (exchange.await, ended) {
        (Ok(answer), _) => Ok(answer),
        (Err(_), Err(why)) => Err(why.into()),
        (Err(why), Ok(())) => Err(why),
    }
}

/// Where an `api_url` points, and whether by TLS.
fn address_of(api_url: &str) -> Result<(Address, bool)> {
    let tls = api_url.starts_with("https://");
    if !tls && !api_url.starts_with("http://") {
        bail!("\"{api_url}\" is no address of a member");
    }
    Ok((Address::of_url(api_url).with_context(|| format!("\"{api_url}\" names no host and port"))?, tls))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    /// What a member that is nobody's hears when it is asked, with the password `s3cret` set.
    async fn heard(method: &str, only_over_tls: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/patroni", listener.local_addr().unwrap());
        let caller = Caller::new(Some(("admin".to_owned(), Secret::new("s3cret"))), None).only_over_tls(only_over_tls);
        let method = method.to_owned();
        let asking = tokio::spawn(async move { caller.ask(&url, &method, "failsafe", None, Duration::from_secs(1)).await });
        let Ok(Ok((mut stream, _))) = tokio::time::timeout(Duration::from_millis(500), listener.accept()).await else {
            return format!("{:#}", asking.await.unwrap().unwrap_err());
        };
        let mut bytes = vec![0; 4096];
        let count = tokio::time::timeout(Duration::from_millis(500), stream.read(&mut bytes)).await.unwrap().unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    }

    #[tokio::test]
    async fn the_password_goes_out_for_a_change_only_and_never_in_plain_where_there_is_tls() {
        let basic = "authorization: Basic YWRtaW46czNjcmV0";
        assert!(!heard("GET", false).await.contains("uthorization"));
        assert!(heard("POST", false).await.contains(basic));
        let refused = heard("POST", true).await;
        assert!(refused.contains("is not HTTPS") && !refused.contains("s3cret"), "{refused}");
    }

    #[test]
    fn addresses_are_understood() {
        for (url, tls, authority, host) in [
            ("http://10.0.0.1:8008/patroni", false, "10.0.0.1:8008", "10.0.0.1"),
            ("http://[::1]:8008", false, "[::1]:8008", "::1"),
            ("http://[::1]/patroni", false, "[::1]:80", "::1"),
            ("https://db1.example.net:8008/patroni", true, "db1.example.net:8008", "db1.example.net"),
            ("https://db1", true, "db1:443", "db1"),
        ] {
            let (address, by_tls) = address_of(url).unwrap();
            assert_eq!((by_tls, address.to_string().as_str(), address.host.as_str()), (tls, authority, host), "{url}");
        }
        for wrong in ["ftp://h:1/patroni", "", "http:///x", "http://h:port/x", "http://:1/"] {
            assert!(address_of(wrong).is_err(), "{wrong}");
        }
    }
}
