//! TLS between people, members, REST and poolers: rustls, from PEM files that the node's own file names.

use crate::ground::secret::Secret;
use anyhow::{Context, Result, anyhow, bail};
use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::der::pem::decode_label;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, ServerConfig, SignatureScheme,
};

/// A certificate with its key, as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its key; in the same file where None.
    pub key: Option<PathBuf>,
    /// The password of an encrypted key.
    pub key_password: Option<Secret>,
}

/// `restapi.verify_client`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VerifyClient {
    /// Nobody is asked for a certificate.
    #[default]
    None,
    /// A client that changes something shows one; a client that only looks need not.
    Optional,
    /// Nobody is answered without one.
    Required,
}

/// How a server shows who it is, and whom it asks to do the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTls {
    /// Its certificate.
    pub identity: Identity,
    /// The authority of the clients' certificates.
    pub authority: Option<PathBuf>,
    /// Who must show one.
    pub verify_client: VerifyClient,
}

/// How a client asks a member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Client {
    /// The authority of the members' certificates. Without it they are not checked, as with Patroni.
    pub authority: Option<PathBuf>,
    /// What is shown to a member that asks for it.
    pub identity: Option<Identity>,
    /// Never check (`ctl.insecure`, `-k`).
    pub insecure: bool,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

impl ServerTls {
    /// Reads the files. Blocks.
    pub fn load(&self) -> Result<Arc<ServerConfig>> {
        let (chain, key) = self.identity.load()?;
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let builder = match self.verify_client {
            VerifyClient::None => builder.with_no_client_auth(),
            VerifyClient::Optional | VerifyClient::Required => {
                let authority = self.authority.as_deref().context("restapi.verify_client needs restapi.cafile")?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(authority)?), provider());
                let verifier = if self.verify_client == VerifyClient::Optional { verifier.allow_unauthenticated() } else { verifier };
                builder.with_client_cert_verifier(verifier.build().with_context(|| format!("use {}", authority.display()))?)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .with_context(|| format!("use the certificate {} with its key", self.identity.certificate.display()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

impl Client {
    /// This cluster's members speak TLS with each other: there is an authority, or a certificate of one's own (`restapi`'s where `ctl`
    /// has none).
    pub fn is_set(&self) -> bool {
        self.authority.is_some() || self.identity.is_some()
    }

    /// Reads the files. Blocks.
    pub fn load(&self) -> Result<Arc<ClientConfig>> {
        self.load_as(Named::Anything)
    }

    /// The same, and the server's certificate must be for the name or address that was asked (`verify-full`). Blocks.
    pub fn load_by_name(&self) -> Result<Arc<ClientConfig>> {
        self.load_as(Named::AsAsked)
    }

    fn load_as(&self, named: Named) -> Result<Arc<ClientConfig>> {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
        let checked = match &self.authority {
            Some(authority) if !self.insecure => {
                let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(authority)?), provider());
                Some(verifier.build().with_context(|| format!("use {}", authority.display()))?)
            }
            _ => None,
        };
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(Members { checked, named, provider: provider() }));
        Ok(Arc::new(match &self.identity {
            Some(identity) => {
                let (chain, key) = identity.load()?;
                builder
                    .with_client_auth_cert(chain, key)
                    .with_context(|| format!("use the certificate {} with its key", identity.certificate.display()))?
            }
            None => builder.with_no_client_auth(),
        }))
    }
}

impl Identity {
    fn load(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let chain = certificates(&self.certificate)?;
        let file = self.key.as_ref().unwrap_or(&self.certificate);
        Ok((chain, key(file, self.key_password.as_ref())?))
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain = read.with_context(|| format!("read the certificate {}", file.display()))?;
    if chain.is_empty() {
        bail!("{} holds no certificate in PEM form", file.display());
    }
    Ok(chain)
}

fn roots(file: &Path) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).with_context(|| format!("use {} as an authority", file.display()))?;
    }
    Ok(roots)
}

/// A private key in PEM form, in plain or encrypted as PKCS #8.
fn key(file: &Path, password: Option<&Secret>) -> Result<PrivateKeyDer<'static>> {
    let reading = || format!("read the key {}", file.display());
    let text = std::fs::read_to_string(file).with_context(reading)?;
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        bail!("{} is encrypted in OpenSSL's old form; hint: write it again with `openssl pkcs8 -topk8`", file.display());
    }
    let Some(encrypted) = block(&text, "ENCRYPTED PRIVATE KEY") else {
        return PrivateKeyDer::from_pem_slice(text.as_bytes()).with_context(reading);
    };
    let password = password.with_context(|| format!("{} is encrypted, and no keyfile_password is given", file.display()))?;
    let (_, der) = pkcs8::SecretDocument::from_pem(encrypted).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let sealed = EncryptedPrivateKeyInfoRef::try_from(der.as_bytes()).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let opened = sealed
        .decrypt(password.reveal())
        .map_err(|_| anyhow!("{} can't be decrypted: the keyfile_password is wrong, or the cipher is not a usual one", file.display()))?;
    Ok(PrivatePkcs8KeyDer::from(opened.as_bytes().to_vec()).into())
}

/// The PEM block of this label.
fn block<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    let begin = text.find(&format!("-----BEGIN {label}-----"))?;
    let mark = format!("-----END {label}-----");
    let end = begin + text[begin..].find(&mark)? + mark.len();
    let block = &text[begin..end];
    (decode_label(block.as_bytes()).ok()? == label).then_some(block)
}

/// For whom a server's certificate has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    /// Any name: the authority is the cluster's own.
    Anything,
    /// The name or address that was asked.
    AsAsked,
}

/// Checks a member's certificate against the cluster's own authority, not its host's name: certificates of
/// this kind are made per cluster, and Patroni's users have them without addresses.
#[derive(Debug)]
struct Members {
    checked: Option<Arc<WebPkiServerVerifier>>,
    named: Named,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Members {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some(verifier) = &self.checked else { return Ok(ServerCertVerified::assertion()) };
        match verifier.verify_server_cert(certificate, chain, name, ocsp, now) {
            // The chain and its dates are judged before the name is.
            Err(TlsError::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }))
                if self.named == Named::Anything =>
            {
                Ok(ServerCertVerified::assertion())
            }
            judged => judged,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
