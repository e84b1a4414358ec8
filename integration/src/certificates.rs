//! Certificates for TLS tests. Each instance has new ones.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};

use crate::{HarnessError, Result};

/// A certificate authority and a server certificate for `localhost` and `127.0.0.1` signed by it,
/// as PEM files in one folder. A test gets an untrusted certificate by trusting the authority of
/// another instance.
#[derive(Debug, Clone)]
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Generates the certificates and writes them to `folder`, which the caller owns.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn generate(folder: &Path) -> Result<Self> {
        Self::generate_for(folder, &["localhost", "127.0.0.1"])
    }

    /// Generates a valid server certificate for other host names or addresses.
    ///
    /// # Errors
    /// The folder cannot be written, or a name is not one.
    pub fn generate_for(folder: &Path, names: &[&str]) -> Result<Self> {
        Self::write(folder, names, None)
    }

    /// Generates a server certificate that has expired, otherwise like
    /// [`generate`](Self::generate).
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn generate_expired(folder: &Path) -> Result<Self> {
        Self::write(folder, &["localhost", "127.0.0.1"], Some(EXPIRY_YEAR))
    }

    fn write(folder: &Path, names: &[&str], until: Option<i32>) -> Result<Self> {
        let certificates = Self {
            folder: folder.to_owned(),
        };
        let made = make(names, until)
            .map_err(|error| HarnessError::caused_by("cannot generate certificates", error))?;
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

    /// Returns the path of the authority's certificate, which a client must trust.
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Returns the path of the server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("server.pem")
    }

    /// Returns the path of the server's private key.
    pub fn key(&self) -> PathBuf {
        self.folder.join("server-key.pem")
    }
}

struct Pems {
    ca: String,
    certificate: String,
    key: String,
}

/// The year in which the certificate of [`Certificates::generate_expired`] expires.
const EXPIRY_YEAR: i32 = 2001;

/// Generates the PEM texts. The server's certificate expires in the year `until`, if set.
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
