//! Certificates that somebody shows, or that lie in a file: when do they end?

use super::tls::{Client, Identity};
use anyhow::{Context, Result, anyhow, bail};
use cluster::host::Address;
use pkcs8::der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use pkcs8::der::{Decode, SliceReader, Tag, Tagged};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};

/// A look at one place.
const BOUND: Duration = Duration::from_secs(3);
/// PostgreSQL's request for TLS: a length and a number in place of a version.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// What is said there before the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// Nothing.
    Tls,
    /// PostgreSQL's request.
    Postgres,
}

/// For looking at certificates: whatever is shown is taken, nothing is said to the server that shows it. Blocks.
pub fn looker(identity: Option<Identity>) -> Option<Arc<ClientConfig>> {
    Client { authority: None, insecure: true, identity }.load().ok()
}

/// When the certificate that is shown there ends, in seconds since 1970.
pub async fn shown_at(tls: &Arc<ClientConfig>, Address { host, port }: &Address, asks: Asks) -> Result<i64> {
    let look = async {
        let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
        if asks == Asks::Postgres {
            stream.write_all(&SSL_REQUEST).await?;
            if stream.read_u8().await? != b'S' {
                bail!("it speaks no TLS");
            }
        }
        let name = ServerName::try_from(host.clone())?;
        let stream = TlsConnector::from(tls.clone()).connect(name, stream).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).context("it showed no certificate")?;
        ends(shown)
    };
    tokio::time::timeout(BOUND, look).await.context("no answer")?
}

/// When the first certificate of a file ends, in seconds since 1970. Blocks.
pub fn of_file(file: &Path) -> Result<i64> {
    ends(&CertificateDer::pem_file_iter(file)?.next().context("it holds no certificate")??)
}

fn ends(certificate: &CertificateDer<'_>) -> Result<i64> {
    let ends = not_after(certificate).map_err(|why| anyhow!("read the certificate: {why}"))?;
    Ok(i64::try_from(ends.as_secs())?)
}

/// When a certificate ends, since 1970 (RFC 5280, 4.1): the second time of `validity`, the fourth field after the version.
fn not_after(certificate: &[u8]) -> pkcs8::der::Result<Duration> {
    let whole = AnyRef::from_der(certificate)?;
    let signed = AnyRef::decode(&mut SliceReader::new(whole.value())?)?;
    let mut fields = SliceReader::new(signed.value())?;
    // The version may be left out: then this is the serial number.
    if AnyRef::decode(&mut fields)?.tag().is_context_specific() {
        AnyRef::decode(&mut fields)?;
    }
    let (_algorithm, _issuer) = (AnyRef::decode(&mut fields)?, AnyRef::decode(&mut fields)?);
    let validity = AnyRef::decode(&mut fields)?;
    let mut times = SliceReader::new(validity.value())?;
    let (_begins, ends) = (AnyRef::decode(&mut times)?, AnyRef::decode(&mut times)?);
    match ends.tag() {
        Tag::UtcTime => Ok(ends.decode_as::<UtcTime>()?.to_unix_duration()),
        _ => Ok(ends.decode_as::<GeneralizedTime>()?.to_unix_duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_read() {
        for (year, seconds) in [(2030, 1_893_456_000), (2049, 2_493_072_000), (2060, 2_840_140_800)] {
            let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            assert_eq!(not_after(certificate.der()).unwrap().as_secs(), seconds, "{year}");
        }
        assert!(not_after(b"nonsense").is_err() && not_after(&[]).is_err());
    }
}
