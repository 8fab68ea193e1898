//! Mutual TLS from three files.

use std::path::Path;

use anyhow::{Context as _, bail};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::config::Tls;

struct Files {
    identity: Identity,
    ca: Certificate,
}

/// Reads the files, or returns `None` when none is named.
fn read(tls: &Tls) -> anyhow::Result<Option<Files>> {
    match (&tls.cert, &tls.key, &tls.ca) {
        (None, None, None) => Ok(None),
        (Some(cert), Some(key), Some(ca)) => Ok(Some(Files {
            identity: Identity::from_pem(pem(cert)?, pem(key)?),
            ca: Certificate::from_pem(pem(ca)?),
        })),
        _ => bail!("[common.tls] needs all of cert, key and ca, or none: TLS here is mutual"),
    }
}

fn pem(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

pub(crate) fn server(tls: &Tls) -> anyhow::Result<Option<ServerTlsConfig>> {
    Ok(read(tls)?
        .map(|files| ServerTlsConfig::new().identity(files.identity).client_ca_root(files.ca)))
}

pub(crate) fn client(tls: &Tls) -> anyhow::Result<Option<ClientTlsConfig>> {
    Ok(read(tls)?
        .map(|files| ClientTlsConfig::new().identity(files.identity).ca_certificate(files.ca)))
}
