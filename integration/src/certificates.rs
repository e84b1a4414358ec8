//! Certificates for TLS tests, made afresh for each.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use crate::{HarnessError, Result};

/// A certificate authority of its own and a server certificate for `localhost` and `127.0.0.1` that
/// it signed, as PEM files in one folder. Trusting the authority of another instance is how a test
/// gets a wrong certificate.
#[derive(Debug, Clone)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes them and writes them to `folder`, which stays the caller's.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn generate(folder: &Path) -> Result<Self> {
        Self::generate_for(folder, &["localhost", "127.0.0.1"])
    }

    /// The same for other host names or addresses: a certificate that is in order, but not for this
    /// server.
    ///
    /// # Errors
    /// The folder cannot be written, or a name is not one.
    pub fn generate_for(folder: &Path, names: &[&str]) -> Result<Self> {
        Self::write(folder, names, None)
    }

    /// The same as [`generate`](Self::generate), but the server's certificate has expired.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn generate_expired(folder: &Path) -> Result<Self> {
        Self::write(folder, &["localhost", "127.0.0.1"], Some(LONG_AGO))
    }

    fn write(folder: &Path, names: &[&str], until: Option<i32>) -> Result<Self> {
        let certificates = Self {
            folder: folder.to_owned(),
        };
        let made = make(names, until)
            .map_err(|error| HarnessError::caused_by("cannot make certificates", error))?;
        for (path, pem) in [
            (certificates.ca(), made.ca),
            (certificates.certificate(), made.certificate),
            (certificates.key(), made.key),
        ] {
            fs::write(&path, pem).map_err(|error| {
                HarnessError::caused_by(format!("cannot write {}", path.display()), error)
            })?;
        }
        Ok(certificates)
    }

    /// The authority's certificate: what a client must trust.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("server.pem")
    }

    /// The server's private key.
    pub fn key(&self) -> PathBuf {
        self.folder.join("server-key.pem")
    }
}

struct Pems {
    ca: String,
    certificate: String,
    key: String,
}

/// The year in which a certificate has expired that [has expired](Certificates::generate_expired).
const LONG_AGO: i32 = 2001;

/// `until`: the year in which the server's certificate expires.
fn make(names: &[&str], until: Option<i32>) -> Result<Pems, rcgen::Error> {
    let mut authority = CertificateParams::default();
    authority
        .distinguished_name
        .push(DnType::CommonName, "Leasehold test authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_key = KeyPair::generate()?;
    let ca = authority.self_signed(&authority_key)?.pem();
    let issuer = Issuer::new(authority, authority_key);

    let mut server = CertificateParams::new(
        names
            .iter()
            .map(|&name| name.to_owned())
            .collect::<Vec<_>>(),
    )?;
    if let Some(year) = until {
        (server.not_before, server.not_after) =
            (date_time_ymd(year - 1, 1, 1), date_time_ymd(year, 1, 1));
    }
    let server_key = KeyPair::generate()?;
    let certificate = server.signed_by(&server_key, &issuer)?.pem();
    Ok(Pems {
        ca,
        certificate,
        key: server_key.serialize_pem(),
    })
}
