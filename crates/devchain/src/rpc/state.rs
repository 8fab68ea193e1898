//! `state_*`: storage and runtime APIs, as of a block.

use std::sync::Arc;

use jsonrpsee::{PendingSubscriptionSink, core::RegisterMethodError, types::ErrorObjectOwned};
use serde_json::{Value as Json, json};

use super::{
    Context, Module, method,
    params::{Hash, Hex},
    send,
};
use crate::{
    block::hex,
    chain::{NoState, nonce},
    runtime::Runtime,
    runtime_api,
    view::View,
};

/// A node's limit on the keys of one question or answer.
const MAX_PAGE: usize = 1000;
const SUBSCRIBE_VERSION: &str = "state_subscribeRuntimeVersion";

pub(super) fn register(module: &mut Module) -> Result<(), RegisterMethodError> {
    method(module, "state_getStorage", async |params, context: Arc<Context>| {
        let mut params = params.sequence();
        let Hex(key) = params.next()?;
        let at = params.optional_next::<Hash>()?.map(|h| h.0);
        let read = move |view: &View<'_>| {
            view.storage(at).map(|storage| view.value(&storage, &key).map(hex))
        };
        Ok(json!(context.see(read).await??))
    })?;
    method(module, "state_getKeysPaged", async |params, context: Arc<Context>| {
        let mut params = params.sequence();
        let Hex(prefix) = params.optional_next()?.unwrap_or(Hex(Vec::new()));
        let count = params.next::<u32>()?;
        check_count(count as usize)?;
        let start = params.optional_next::<Hex>()?.map(|h| h.0);
        let at = params.optional_next::<Hash>()?.map(|h| h.0);
        let read = move |view: &View<'_>| {
            let keys = view.storage(at)?.keys(&prefix, start.as_deref(), count as usize);
            Ok::<_, NoState>(keys.iter().map(hex).collect::<Vec<_>>())
        };
        Ok(json!(context.see(read).await??))
    })?;
    method(module, "state_queryStorageAt", async |params, context: Arc<Context>| {
        let mut params = params.sequence();
        let keys: Vec<Hex> = params.next()?;
        check_count(keys.len())?;
        let at = params.optional_next::<Hash>()?.map(|h| h.0);
        let read = move |view: &View<'_>| {
            let storage = view.storage(at)?;
            let change = |Hex(key): &Hex| json!([hex(key), view.value(&storage, key).map(hex)]);
            let changes: Vec<Json> = keys.iter().map(change).collect();
            let hash = view.find(at).map(|block| hex(view.told(block).head.hash));
            Ok::<_, NoState>(json!([{ "block": hash, "changes": changes }]))
        };
        Ok(context.see(read).await??)
    })?;
    method(module, "state_call", async |params, context: Arc<Context>| {
        let mut params = params.sequence();
        let function: String = params.next()?;
        let Hex(arguments) = params.next()?;
        let at = params.optional_next::<Hash>()?.map(|h| h.0);
        let call = move |view: &View<'_>| -> Result<String, ErrorObjectOwned> {
            let state = view.storage(at)?.state();
            let nonce = |who: &_| nonce(&state, who);
            Ok(hex(runtime_api::call(&state, nonce, &function, &arguments)?))
        };
        Ok(json!(context.see(call).await??))
    })?;
    method(module, "state_getMetadata", async |params, context: Arc<Context>| {
        let at = params.sequence().optional_next::<Hash>()?.map(|h| h.0);
        let metadata = context.see(move |view| view.runtime(at).map(|runtime| hex(runtime.raw())));
        Ok(json!(metadata.await??))
    })?;
    method(module, "state_getRuntimeVersion", async |params, context: Arc<Context>| {
        let at = params.sequence().optional_next::<Hash>()?.map(|h| h.0);
        Ok(context.see(move |view| view.runtime(at).map(version)).await??)
    })?;
    module.register_subscription(
        SUBSCRIBE_VERSION,
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

/// Sends the version of the newest block, and every other that comes after it.
async fn send_version(pending: PendingSubscriptionSink, context: Arc<Context>) {
    context.faults.delay(SUBSCRIBE_VERSION).await;
    context.faults.voice().await;
    let Ok(sink) = pending.accept().await else { return };
    let mut watch = context.watch();
    let mut last = Json::Null;
    loop {
        let Ok(Ok(version)) = context.see(|view| view.runtime(None).map(version)).await else {
            return;
        };
        if version != last && send(&sink, &context.faults, &version).await.is_err() {
            return;
        }
        last = version;
        if !watch.changed(&sink).await {
            return;
        }
    }
}
