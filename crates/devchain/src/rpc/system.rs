//! `system_*`: what node this is.

use std::sync::Arc;

use jsonrpsee::{
    core::RegisterMethodError,
    types::{ErrorObjectOwned, error::INVALID_PARAMS_CODE},
};
use serde_json::{Value as Json, json};
use subxt::utils::AccountId32;

use super::{Context, Module, method};
use crate::chain::nonce;

pub(super) fn register(module: &mut Module) -> Result<(), RegisterMethodError> {
    let constants: [(&'static str, Json); 6] = [
        ("system_chain", json!("Connito development")),
        ("system_name", json!("Connito devchain")),
        ("system_version", json!(env!("CARGO_PKG_VERSION"))),
        ("system_chainType", json!("Development")),
        (
            "system_properties",
            json!({ "ss58Format": 42, "tokenDecimals": 9, "tokenSymbol": "TAO" }),
        ),
        ("system_health", json!({ "peers": 0, "isSyncing": false, "shouldHavePeers": false })),
    ];
    for (name, constant) in constants {
        method(module, name, move |_, _| std::future::ready(Ok(constant.clone())))?;
    }
    method(module, "system_accountNextIndex", async |params, context: Arc<Context>| {
        let text: String = params.sequence().next()?;
        let AccountId32(who) = text.parse().map_err(|_| {
            ErrorObjectOwned::owned(INVALID_PARAMS_CODE, "not an SS58 address", None::<()>)
        })?;
        let next = context.see(move |view| -> Result<u32, ErrorObjectOwned> {
            let nonce = nonce(&view.storage(None)?.state(), &who)?;
            Ok(nonce.saturating_add(view.pool().ready_of(&who)))
        });
        Ok(json!(next.await??))
    })
}
