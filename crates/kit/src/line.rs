//! The client's end towards strangers: TLS with any certificate, which is remembered, so that it
//! can be compared with the one that the other end names in a way that is trusted.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::Context as _;
use rustls::{
    CertificateError, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tonic::transport::ClientTlsConfig;

use crate::{
    certificate::{Fingerprint, fingerprint},
    client::{self, Channel},
    install_crypto,
};

/// A stream may be this far ahead of its reader, in bytes: 4 MiB each 100 ms are 335 Mbit/s.
pub(crate) const STREAM_WINDOW: u32 = 4 << 20;
/// All streams of a connection together.
pub(crate) const CONNECTION_WINDOW: u32 = 8 << 20;

/// A connection to a server whose certificate proves nothing by itself. Cheap to clone.
///
/// Calls have no time limit, and streams have room for much that is on its way.
#[derive(Debug, Clone)]
pub struct Line {
    channel: Channel,
    seen: Arc<Seen>,
}

impl Line {
    /// Connects to `url`, with TLS where it is `https`, when the first call is made, and again
    /// whenever the connection was lost.
    ///
    /// # Errors
    ///
    /// When `url` is malformed.
    pub fn open(url: &str) -> anyhow::Result<Self> {
        install_crypto();
        let mut endpoint = client::endpoint(url)?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let seen = Arc::new(Seen::default());
        if endpoint.uri().scheme_str() == Some("https") {
            let verifier = Arc::new(Remember {
                seen: Arc::clone(&seen),
                algorithms: ring::default_provider().signature_verification_algorithms,
            });
            endpoint = endpoint
                .tls_config_with_verifier(ClientTlsConfig::new(), verifier)
                .context("configure TLS of the client")?;
        }
        Ok(Self { channel: Channel::lazy(&endpoint), seen })
    }

    /// The channel, for generated clients.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Fingerprint of the certificate that the newest connection has shown; `None` without TLS, and
    /// before the first connection.
    #[must_use]
    pub fn shown(&self) -> Option<Fingerprint> {
        *self.seen.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses every other certificate from now on. The first call counts.
    pub fn pin(&self, certificate: Fingerprint) {
        let _ = self.seen.pinned.set(certificate);
    }

    /// Whether both are the same connection.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.seen, &other.seen)
    }
}

#[derive(Debug, Default)]
struct Seen {
    last: Mutex<Option<Fingerprint>>,
    pinned: OnceLock<Fingerprint>,
}

/// Takes any certificate whose key the other end has, and remembers it.
#[derive(Debug)]
struct Remember {
    seen: Arc<Seen>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Remember {
    fn remember(&self, certificate: &CertificateDer<'_>) {
        let shown = Some(fingerprint(certificate));
        *self.seen.last.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }
}

impl ServerCertVerifier for Remember {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.seen.pinned.get() {
            Some(pinned) if *pinned != fingerprint(certificate) => {
                Err(CertificateError::ApplicationVerificationFailure.into())
            }
            Some(_) | None => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid = verify_tls12_signature(message, certificate, signature, &self.algorithms)?;
        self.remember(certificate);
        Ok(valid)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let valid = verify_tls13_signature(message, certificate, signature, &self.algorithms)?;
        self.remember(certificate);
        Ok(valid)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::{
        ClientConfig, ClientConnection, ServerConfig, ServerConnection,
        pki_types::PrivateKeyDer,
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    };

    use super::*;

    /// Shows what it was given, whether the key belongs to the certificate or not.
    #[derive(Debug)]
    struct Shows(Arc<CertifiedKey>);

    impl ResolvesServerCert for Shows {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            Some(Arc::clone(&self.0))
        }
    }

    fn made() -> rcgen::CertifiedKey<rcgen::KeyPair> {
        rcgen::generate_simple_self_signed(["connito".to_owned()]).unwrap()
    }

    /// Shakes hands with a server that shows `certificate` and signs with `key`.
    fn shake(
        seen: &Arc<Seen>,
        certificate: &rcgen::Certificate,
        key: &rcgen::KeyPair,
    ) -> Result<(), rustls::Error> {
        let provider = Arc::new(ring::default_provider());
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let key = provider.key_provider.load_private_key(key).unwrap();
        let shows = Shows(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)));
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shows));
        let algorithms = provider.signature_verification_algorithms;
        let client = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Remember {
                seen: Arc::clone(seen),
                algorithms,
            }))
            .with_no_client_auth();
        let name = "connito".try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets()?;
            bytes.clear();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn a_certificate_whose_key_is_not_there_is_neither_taken_nor_remembered() {
        let (own, foreign) = (made(), made());
        let seen = Arc::new(Seen::default());
        assert!(shake(&seen, &foreign.cert, &own.signing_key).is_err());
        assert_eq!(*seen.last.lock().unwrap(), None);
        shake(&seen, &own.cert, &own.signing_key).unwrap();
        assert_eq!(*seen.last.lock().unwrap(), Some(fingerprint(own.cert.der())));
    }
}
