//! Signatures of this validator, from the chain service: the only holder of the hotkey.

use bytes::Bytes;
use domain::Hotkey;
use proto::chain::v1::{
    GetIdentityRequest, SignRequest, chain_service_client::ChainServiceClient,
    sign_request::Purpose,
};
use tonic::Status;

use crate::{error::Refused, message};

/// Has messages to other validators signed.
#[derive(Debug, Clone)]
pub(crate) struct Signer {
    chain: ChainServiceClient<kit::Channel>,
}

impl Signer {
    /// A signer at the chain service behind `channel`.
    pub(crate) fn new(channel: kit::Channel) -> Self {
        Self { chain: ChainServiceClient::new(channel) }
    }

    /// Signs a digest of [`message::Kind`] or of a statement, and checks that `hotkey` did.
    pub(crate) async fn sign(&self, hotkey: &Hotkey, digest: [u8; 32]) -> Result<Bytes, Refused> {
        let purpose = Some(Purpose::PeerDigest(Bytes::copy_from_slice(&digest)));
        let signed = self.chain.clone().sign(SignRequest { purpose }).await;
        let signature = signed
            .map_err(|status| Refused::NotSigned { detail: status.message().to_owned() })?
            .into_inner()
            .signature;
        message::verify(hotkey, &digest, &signature).map_err(|_| Refused::NotSigned {
            detail: format!("its hotkey is not {hotkey}, which the round is for"),
        })?;
        Ok(signature)
    }

    /// Whether the chain service answers.
    pub(crate) async fn reach(&self) -> Result<(), Status> {
        self.chain.clone().get_identity(GetIdentityRequest {}).await.map(|_| ())
    }
}
