//! The certificate of a server that strangers call: made at its start, or from files.
//!
//! Nobody vouches for it. It is known by the SHA-256 of its encoding, which whoever runs the server
//! tells the callers in words of their own.

use std::{fmt, path::Path};

use anyhow::Context as _;
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};
use tonic::transport::{Identity, ServerTlsConfig};

use crate::client::CONNECT_TIMEOUT;

/// SHA-256 of a certificate in DER.
pub type Fingerprint = [u8; 32];

/// A certificate with its private key.
#[derive(Clone)]
pub struct Certificate {
    identity: Identity,
    fingerprint: Fingerprint,
}

impl Certificate {
    /// Makes a new key, and a certificate that it signs itself.
    ///
    /// # Errors
    ///
    /// When the system gives no random bytes.
    pub fn self_signed() -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["connito".to_owned()]);
        let rcgen::CertifiedKey { cert, signing_key } = made.context("make a certificate")?;
        let identity = Identity::from_pem(cert.pem(), signing_key.serialize_pem());
        Ok(Self { identity, fingerprint: fingerprint(cert.der()) })
    }

    /// Reads PEM files: the certificate, with those between it and its authority after it, and its
    /// key.
    ///
    /// # Errors
    ///
    /// When a file can't be read, or there is no certificate in the first.
    pub fn read(cert: &Path, key: &Path) -> anyhow::Result<Self> {
        let read =
            |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
        let identity = Identity::from_pem(read(cert)?, read(key)?);
        Ok(Self { identity, fingerprint: Self::fingerprint_of(cert)? })
    }

    /// The fingerprint of the first certificate in a PEM file.
    ///
    /// # Errors
    ///
    /// When the file can't be read, or there is no certificate in it.
    pub fn fingerprint_of(cert: &Path) -> anyhow::Result<Fingerprint> {
        let der = CertificateDer::from_pem_file(cert)
            .with_context(|| format!("read a certificate in {}", cert.display()))?;
        Ok(fingerprint(&der))
    }

    /// What it is known by.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(crate) fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new().identity(self.identity.clone()).timeout(CONNECT_TIMEOUT)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fingerprint = hex::encode(self.fingerprint);
        f.debug_struct("Certificate").field("fingerprint", &fingerprint).finish_non_exhaustive()
    }
}

pub(crate) fn fingerprint(der: &[u8]) -> Fingerprint {
    Sha256::digest(der).into()
}
