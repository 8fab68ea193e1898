//! `state_*`: storage and runtime APIs, as of a block.

use std::sync::Arc;

use jsonrpsee::{PendingSubscriptionSink, core::RegisterMethodError, types::ErrorObjectOwned};
use serde_json::{Value as Json, json};

use super::{
    Context, Module, message, method,
    params::{Hash, Hex},
};
use crate::{
    block::hex,
    chain::{Chain, NoState},
    runtime::Runtime,
    runtime_api,
};

/// A node's limit on the keys of one question or answer.
const MAX_PAGE: usize = 1000;

pub(super) fn register(module: &mut Module) -> Result<(), RegisterMethodError> {
    method(module, "state_getStorage", async |params, context: Arc<Context>| {
        let mut params = params.sequence();
        let Hex(key) = params.next()?;
        let at = params.optional_next::<Hash>()?.map(|h| h.0);
        let read = move |chain: &mut Chain| {
            chain.storage(at).map(|(storage, block)| storage.get(&key, block).map(hex))
        };
        Ok(json!(context.ask(read).await??))
    })?;
    method(module, "state_getKeysPaged", async |params, context: Arc<Context>| {
        let mut params = params.sequence();
        let Hex(prefix) = params.optional_next()?.unwrap_or(Hex(Vec::new()));
        let count = params.next::<u32>()?;
        check_count(count as usize)?;
        let start = params.optional_next::<Hex>()?.map(|h| h.0);
        let at = params.optional_next::<Hash>()?.map(|h| h.0);
        let read = move |chain: &mut Chain| {
            let (storage, block) = chain.storage(at)?;
            let keys = storage.keys(&prefix, start.as_deref(), count as usize, block);
            Ok::<_, NoState>(keys.iter().map(hex).collect::<Vec<_>>())
        };
        Ok(json!(context.ask(read).await??))
    })?;
    method(module, "state_queryStorageAt", async |params, context: Arc<Context>| {
        let mut params = params.sequence();
        let keys: Vec<Hex> = params.next()?;
        check_count(keys.len())?;
        let at = params.optional_next::<Hash>()?.map(|h| h.0);
        let read = move |chain: &mut Chain| {
            let (storage, block) = chain.storage(at)?;
            let change = |Hex(key): &Hex| json!([hex(key), storage.get(key, block).map(hex)]);
            let changes: Vec<Json> = keys.iter().map(change).collect();
            let hash = chain.block(block.into()).map(|b| hex(b.head.hash));
            Ok::<_, NoState>(json!([{ "block": hash, "changes": changes }]))
        };
        Ok(context.ask(read).await??)
    })?;
    method(module, "state_call", async |params, context: Arc<Context>| {
        let mut params = params.sequence();
        let function: String = params.next()?;
        let Hex(arguments) = params.next()?;
        let at = params.optional_next::<Hash>()?.map(|h| h.0);
        let call = move |chain: &mut Chain| -> Result<String, ErrorObjectOwned> {
            let (_, block) = chain.storage(at)?;
            let nonce = |who: &_| chain.nonce(who, block);
            Ok(hex(runtime_api::call(&chain.state(block), nonce, &function, &arguments)?))
        };
        Ok(json!(context.ask(call).await??))
    })?;
    method(module, "state_getMetadata", async |_, context: Arc<Context>| {
        Ok(json!(context.ask(|chain| hex(chain.runtime().raw())).await?))
    })?;
    method(module, "state_getRuntimeVersion", async |_, context: Arc<Context>| {
        context.ask(|chain| version(chain.runtime())).await
    })?;
    module.register_subscription(
        "state_subscribeRuntimeVersion",
        "state_runtimeVersion",
        "state_unsubscribeRuntimeVersion",
        |_, pending, context, _| send_version(pending, context),
    )?;
    Ok(())
}

fn check_count(count: usize) -> Result<(), ErrorObjectOwned> {
    if count <= MAX_PAGE {
        return Ok(());
    }
    let text = format!("count exceeds maximum value. value: {count}, max: {MAX_PAGE}");
    Err(ErrorObjectOwned::owned(4002, text, None::<()>))
}

/// The version as JSON. The list of APIs is left out: `Core_version` has it.
fn version(runtime: &Runtime) -> Json {
    json!({
        "specName": "node-subtensor",
        "implName": "node-subtensor",
        "authoringVersion": 1,
        "specVersion": runtime.spec_version,
        "implVersion": 1,
        "apis": [],
        "transactionVersion": runtime.transaction_version,
        "stateVersion": 1,
    })
}

/// Sends the version, which never changes here, and stays.
async fn send_version(pending: PendingSubscriptionSink, context: Arc<Context>) {
    let Ok(sink) = pending.accept().await else { return };
    let Ok(version) = context.ask(|chain| version(chain.runtime())).await else { return };
    let Some(message) = message(&version) else { return };
    if sink.send(message).await.is_ok() {
        sink.closed().await;
    }
}
