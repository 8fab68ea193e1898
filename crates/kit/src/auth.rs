//! Who calls: authentication between the services of one validator.
//!
//! With mutual TLS the verified certificate of the client says it. Without, a secret does that all
//! services of the validator share: the [`Token`], sent with every call of a channel that has it.
//! A service that must know its callers asks its [`Guard`].
//!
//! This module does not know who may do what, nor which services there are.

mod token;

use std::fmt;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use tonic::{Request, Status};

pub use self::token::Token;
use crate::{Channel, Common, client};

/// A caller that has shown who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// By its certificate, verified against the validator's own authority.
    Certificate {
        /// Its first DNS name; of one without, the beginning of its SHA-256.
        name: String,
    },
    /// By the secret that the services of the validator share.
    Token,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate { name } => write!(f, "{name} (certificate)"),
            Self::Token => f.write_str("a service with the token"),
        }
    }
}

/// Tells callers of a server apart from strangers.
#[derive(Debug, Clone)]
pub struct Guard {
    token: Option<Token>,
    tls: bool,
}

impl Guard {
    /// A guard that takes certificates where the server has mutual TLS (`tls`), else `token`.
    #[must_use]
    pub fn new(token: Option<Token>, tls: bool) -> Self {
        Self { token, tls }
    }

    /// The guard that fits a server of this configuration: [`Common::tls`], else the token.
    ///
    /// # Errors
    ///
    /// As [`Token::open`], where there is no TLS.
    pub fn open(common: &Common) -> anyhow::Result<Self> {
        let tls = common.tls.is_set();
        let token = if tls { None } else { Some(Token::open(common)?) };
        Ok(Self::new(token, tls))
    }

    /// Who sends `request`.
    ///
    /// # Errors
    ///
    /// UNAUTHENTICATED, with what is missing: never with the secret.
    pub fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        if self.tls {
            let certificates = request.peer_certs();
            let first = certificates.as_ref().and_then(|chain| chain.first());
            return match first {
                Some(certificate) => Ok(Caller::Certificate { name: name_of(certificate) }),
                None => Err(Status::unauthenticated(
                    "no client certificate: connect with TLS and the files of [common.tls]",
                )),
            };
        }
        let Some(token) = &self.token else {
            return Err(Status::unauthenticated(
                "this service has neither TLS nor a token, so it can't know anybody",
            ));
        };
        let Some(header) = request.metadata().get("authorization") else {
            return Err(Status::unauthenticated(format!(
                "no header `authorization: Bearer TOKEN`: the token is in {}",
                token.source()
            )));
        };
        let Some(shown) = bearer(header.as_encoded_bytes()) else {
            return Err(Status::unauthenticated(
                "the header `authorization` is not of the form `Bearer TOKEN`",
            ));
        };
        if token.is(shown) {
            return Ok(Caller::Token);
        }
        Err(Status::unauthenticated(format!(
            "the token is not this service's, which is in {}: all services of a validator must \
             have one CONNITO_TOKEN, or read one `common.token_file`",
            token.source()
        )))
    }
}

/// A channel to a service of this validator that asks who calls: with the token where there is no
/// TLS. Never for channels to anybody else: they would be told the secret.
///
/// # Errors
///
/// As [`crate::channel`] and [`Token::open`].
pub fn channel(url: &str, common: &Common) -> anyhow::Result<Channel> {
    let channel = client::channel(url, &common.tls)?;
    if common.tls.is_set() {
        return Ok(channel);
    }
    let token = Token::open(common).with_context(|| format!("open the token for {url}"))?;
    Ok(channel.with_token(token))
}

/// What follows the scheme, which is any mix of cases (RFC 9110, section 11.1).
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, shown) = header.split_at_checked(b"Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(shown)
}

/// A name for people. Whether the certificate is good was decided when the connection was made.
fn name_of(certificate: &rustls::pki_types::CertificateDer<'_>) -> String {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok();
    let first = parsed.as_ref().and_then(|parsed| parsed.valid_dns_names().next());
    match first {
        Some(name) => name.to_owned(),
        None => format!("sha256:{}", hex::encode(&Sha256::digest(certificate)[..8])),
    }
}
