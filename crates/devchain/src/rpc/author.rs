//! `author_*`: extrinsics, and what becomes of them.

use std::sync::Arc;

use jsonrpsee::{
    PendingSubscriptionSink, SubscriptionSink,
    core::RegisterMethodError,
    types::{ErrorObjectOwned, Params},
};
use serde_json::{Value as Json, json};
use tokio::sync::watch;

use super::{Context, Module, message, method, params::Hex};
use crate::{block::hex, pool::Status, refusal::Refusal};

pub(super) fn register(module: &mut Module) -> Result<(), RegisterMethodError> {
    method(module, "author_submitExtrinsic", async |params, context: Arc<Context>| {
        let (hash, _) = submit(&context, &params).await?;
        Ok(json!(hex(hash)))
    })?;
    method(module, "author_pendingExtrinsics", async |_, context: Arc<Context>| {
        let pending = |chain: &mut crate::chain::Chain| {
            chain.pool().iter().map(|extrinsic| hex(&extrinsic.bytes)).collect::<Vec<_>>()
        };
        Ok(json!(context.ask(pending).await?))
    })?;
    module.register_subscription(
        "author_submitAndWatchExtrinsic",
        "author_extrinsicUpdate",
        "author_unwatchExtrinsic",
        |params, pending, context, _| watch_extrinsic(params, pending, context),
    )?;
    Ok(())
}

async fn submit(
    context: &Context,
    params: &Params<'_>,
) -> Result<([u8; 32], watch::Receiver<Status>), ErrorObjectOwned> {
    let Hex(bytes) = params.sequence().next()?;
    if context.faults.refuse() {
        return Err(Refusal::Dropped.into());
    }
    let taken = context.ask(move |chain| chain.submit(bytes.into())).await??;
    if context.faults.lose_answer() {
        context.faults.cut();
    }
    Ok(taken)
}

async fn watch_extrinsic(
    params: Params<'static>,
    pending: PendingSubscriptionSink,
    context: Arc<Context>,
) {
    context.faults.delay().await;
    let mut status = match submit(&context, &params).await {
        Ok((_, status)) => status,
        Err(error) => return pending.reject(error).await,
    };
    let Ok(sink) = pending.accept().await else { return };
    // Whoever stopped listening needs no word of it.
    let _ = tell(&sink, &context, &mut status).await;
}

/// The listener or the chain is gone.
struct Gone;

async fn tell(
    sink: &SubscriptionSink,
    context: &Context,
    status: &mut watch::Receiver<Status>,
) -> Result<(), Gone> {
    send(sink, &json!("ready")).await?;
    let outcome = tokio::select! {
        () = sink.closed() => return Err(Gone),
        outcome = status.wait_for(|status| *status != Status::Ready) => outcome.map(|s| *s),
    };
    let (number, hash) = match outcome {
        Ok(Status::InBlock { number, hash }) => (number, hex(hash)),
        Ok(Status::Invalid) => return send(sink, &json!("invalid")).await,
        Ok(Status::Ready) | Err(_) => return send(sink, &json!("dropped")).await,
    };
    send(sink, &json!({ "inBlock": hash })).await?;
    let mut tips = context.node.tips();
    tokio::select! {
        () = sink.closed() => return Err(Gone),
        grown = tips.wait_for(|tips| tips.finalized >= number) => grown.map_err(|_| Gone)?,
    };
    send(sink, &json!({ "finalized": hash })).await
}

async fn send(sink: &SubscriptionSink, update: &Json) -> Result<(), Gone> {
    sink.send(message(update).ok_or(Gone)?).await.map_err(|_| Gone)
}
