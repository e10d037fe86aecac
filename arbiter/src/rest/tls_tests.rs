//! HTTPS over a real socket: certificates made here, asked by the same client that members and people use.

use super::tests::world;
use super::*;
use crate::ground::member_rest::Caller;
use crate::ground::secret::Secret;
use crate::ground::tls::{self, Client, Identity};
use pkcs8::{LineEnding, PrivateKeyInfoRef};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::path::{Path, PathBuf};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// An authority, and files of certificates that it signed.
struct Authority {
    directory: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Authority { directory: tempfile::tempdir().unwrap(), issuer };
        std::fs::write(authority.file("ca.crt"), authority.issuer.pem()).unwrap();
        authority
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A certificate for a name that is not the host's, as the field's are made.
    fn identity(&self, name: &str) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![format!("{name}.example.net")]).unwrap().signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.file(&format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.file(&format!("{name}.key")), key.serialize_pem()).unwrap();
        Identity { certificate: self.file(&format!("{name}.crt")), key: Some(self.file(&format!("{name}.key"))), key_password: None }
    }

    fn client(&self, identity: Option<Identity>) -> Client {
        Client { authority: Some(self.file("ca.crt")), identity, insecure: false }
    }
}

/// The node of the sample, serving HTTPS; gives its URL.
async fn serving(authority: &Authority, verify_client: &str) -> String {
    let server = authority.identity("server");
    let text = |path: &Path| path.display().to_string();
    let rest = format!(
        ", certfile: '{}', keyfile: '{}', cafile: '{}', verify_client: {verify_client}, https_extra_headers: {{Strict-Transport-Security: max-age=1}}",
        text(&server.certificate),
        text(server.key.as_deref().unwrap()),
        text(&authority.file("ca.crt"))
    );
    let world = world(&rest);
    assert!(world.shared.node.config.rest.url().starts_with("https://"));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/patroni", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let shared = world.shared.clone();
        let ended = serve(listener, shared.node.clone(), shared.door.clone()).await;
        drop(world);
        ended
    });
    url
}

async fn ask(client: &Client, url: &str, method: &str, path: &str) -> Result<u16, String> {
    let caller = Caller::new(None, Some(client.load().unwrap()));
    let answer = caller.ask(url, method, path, None, Duration::from_secs(20)).await;
    answer.map(|(status, _)| status).map_err(|why| format!("{why:#}"))
}

#[tokio::test]
async fn members_are_asked_over_https_and_only_if_the_authority_is_theirs() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let url = serving(&authority, "none").await;
    assert_eq!(ask(&authority.client(None), &url, "GET", "primary").await, Ok(200));
    let refused = ask(&stranger.client(None), &url, "GET", "primary").await.unwrap_err();
    assert!(refused.contains("agree on TLS") && refused.contains("invalid peer certificate"), "{refused}");
    // Nobody's word is checked where no authority is known, or where the operator says so.
    assert_eq!(ask(&Client::default(), &url, "GET", "primary").await, Ok(200));
    assert_eq!(ask(&Client { insecure: true, ..stranger.client(None) }, &url, "GET", "primary").await, Ok(200));
    let plain = ask(&Client::default(), &url.replace("https", "http"), "GET", "primary").await;
    assert!(plain.is_err(), "{plain:?}");
}

#[tokio::test]
async fn who_has_to_show_a_certificate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let mine = || authority.client(Some(authority.identity("client")));
    let foreign = Client { identity: Some(stranger.identity("client")), ..authority.client(None) };
    // What each answers to a look and to a change that needs nothing else: who, verify_client, look, change.
    for (who, client, verify, look, change) in [
        ("nobody", authority.client(None), "none", Ok(200), Ok(503)),
        ("nobody", authority.client(None), "optional", Ok(200), Ok(403)),
        ("nobody", authority.client(None), "required", Err(()), Err(())),
        ("a member", mine(), "optional", Ok(200), Ok(503)),
        ("a member", mine(), "required", Ok(200), Ok(503)),
        ("a stranger", foreign.clone(), "optional", Err(()), Err(())),
        ("a stranger", foreign, "required", Err(()), Err(())),
    ] {
        let url = serving(&authority, verify).await;
        assert_eq!(ask(&client, &url, "GET", "primary").await.map_err(drop), look, "{who}, {verify}, look");
        assert_eq!(ask(&client, &url, "DELETE", "restart").await.map_err(drop), change, "{who}, {verify}, change");
    }
}

/// What comes for this path, up to `words`.
async fn heard(client: &Client, url: &str, path: &str, words: &str) -> Result<String, String> {
    let address = url.trim_start_matches("https://").trim_end_matches("/patroni");
    let listening = async {
        let stream = tokio::net::TcpStream::connect(address).await?;
        let name = "db1.example.net".try_into().expect("a name");
        let mut stream = tokio_rustls::TlsConnector::from(client.load().expect("its files")).connect(name, stream).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
        let mut text = Vec::new();
        while !String::from_utf8_lossy(&text).contains(words) {
            if stream.read_buf(&mut text).await? == 0 {
                return Err(std::io::Error::other(format!("it ended: {}", String::from_utf8_lossy(&text))));
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let heard = tokio::time::timeout(Duration::from_secs(20), listening).await.map_err(|_| format!("{path} does not say {words}"))?;
    heard.map_err(|why: std::io::Error| why.to_string())
}

#[tokio::test]
async fn the_page_and_its_stream_come_over_https_to_whom_a_look_is_open() {
    let authority = Authority::new();
    for (certificate, verify, comes) in
        [(false, "none", true), (false, "optional", true), (true, "required", true), (false, "required", false)]
    {
        let client = authority.client(certificate.then(|| authority.identity("client")));
        let url = serving(&authority, verify).await;
        for (path, words) in [("/ui", "</html>"), ("/ui/events", "event: state")] {
            let heard = heard(&client, &url, path, words).await;
            assert_eq!(heard.is_ok(), comes, "{path}, {verify}: {heard:?}");
            if let Ok(heard) = heard {
                let heard = heard.to_lowercase();
                assert!(heard.starts_with("http/1.1 200") && heard.contains("strict-transport-security: max-age=1"), "{heard}");
                assert!(heard.contains("connect-src 'self'"), "{heard}");
            }
        }
    }
}

#[tokio::test]
async fn a_handshake_that_is_never_finished_holds_nobody_up() {
    let authority = Authority::new();
    let url = serving(&authority, "none").await;
    let address = url.trim_start_matches("https://").trim_end_matches("/patroni").to_owned();
    let mut silent = Vec::new();
    for _ in 0..20 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        stream.write_all(&[22, 3, 1]).await.unwrap();
        silent.push(stream);
    }
    assert_eq!(ask(&authority.client(None), &url, "GET", "primary").await, Ok(200));
    let mut buffer = [0; 16];
    let cut = tokio::time::timeout(Duration::from_secs(30), silent[0].read(&mut buffer)).await;
    assert!(matches!(cut, Ok(Ok(0) | Err(_))), "the connection was left open: {cut:?}");
}

#[test]
fn keys_may_be_encrypted() {
    let authority = Authority::new();
    let plain = authority.identity("server");
    let text = std::fs::read_to_string(plain.key.as_deref().unwrap()).unwrap();
    let (_, der) = pkcs8::SecretDocument::from_pem(&text).unwrap();
    let sealed = PrivateKeyInfoRef::try_from(der.as_bytes()).unwrap().encrypt("s3cret").unwrap();
    let file = authority.file("sealed.key");
    std::fs::write(&file, sealed.to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF).unwrap().as_bytes()).unwrap();
    let load = |password: Option<&str>| {
        let identity = Identity { key: Some(file.clone()), key_password: password.map(Secret::new), ..plain.clone() };
        let server = tls::ServerTls { identity, authority: None, verify_client: tls::VerifyClient::None };
        server.load().map(drop).map_err(|why| format!("{why:#}"))
    };
    assert_eq!(load(Some("s3cret")), Ok(()));
    assert!(load(Some("wrong")).unwrap_err().contains("keyfile_password is wrong"));
    assert!(load(None).unwrap_err().contains("no keyfile_password is given"));
    let missing = Client { authority: Some("/nowhere/ca.crt".into()), ..Client::default() }.load().map(drop).unwrap_err();
    assert!(format!("{missing:#}").contains("/nowhere/ca.crt"), "{missing:#}");
}
