//! A certificate authority of a story's own, and certificates signed by it.

use crate::room::Room;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use std::path::{Path, PathBuf};

/// Signs certificates.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    dir: PathBuf,
    /// Its own certificate.
    pub file: PathBuf,
}

/// A certificate and its key, as files that only the user of Postgres can read.
#[derive(Debug, Clone)]
pub struct Signed {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes one, in a directory of this name.
    pub fn new(room: &Room, name: &str) -> Authority {
        let dir = room.directory(name);
        let mut params = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("make a key");
        let certificate = params.self_signed(&key).expect("sign the authority");
        let file = dir.join("ca.pem");
        room.file(&file, &certificate.pem());
        Authority { issuer: Issuer::new(params, key), dir, file }
    }

    /// Signs a certificate for loopback, good for servers and clients.
    pub fn sign(&self, room: &Room, name: &str) -> Signed {
        self.sign_until(room, name, 4000)
    }

    /// The same, good until this year.
    pub fn sign_until(&self, room: &Room, name: &str, year: i32) -> Signed {
        let mut params = named(name);
        params.not_after = rcgen::date_time_ymd(year, 1, 1);
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("make a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("sign a certificate");
        let file = |what: &str| self.dir.join(format!("{name}.{what}"));
        let signed = Signed { certificate: file("pem"), key: file("key") };
        room.file(&signed.certificate, &certificate.pem());
        room.file(&signed.key, &key.serialize_pem());
        signed
    }
}

fn named(name: &str) -> CertificateParams {
    let hosts = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
    let mut params = CertificateParams::new(hosts).expect("names of loopback");
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// The path as a configuration file has it.
pub fn text(path: &Path) -> String {
    path.display().to_string()
}
