//! `author_*`: extrinsics, and what becomes of them.

use std::sync::Arc;

use jsonrpsee::{
    PendingSubscriptionSink, SubscriptionSink,
    core::RegisterMethodError,
    types::{ErrorObjectOwned, Params},
};
use serde_json::{Value as Json, json};
use tokio::sync::watch;

use super::{Context, Gone, Module, method, params::Hex, send};
use crate::{
    block::hex,
    pool::{Status, Statuses},
    refusal::Refusal,
};

const SUBMIT_AND_WATCH: &str = "author_submitAndWatchExtrinsic";

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
        SUBMIT_AND_WATCH,
        "author_extrinsicUpdate",
        "author_unwatchExtrinsic",
        |params, pending, context, _| watch_extrinsic(params, pending, context),
    )?;
    Ok(())
}

/// Hands an extrinsic to the pool. Of one that is dropped in silence there are no statuses.
async fn submit(
    context: &Context,
    params: &Params<'_>,
) -> Result<([u8; 32], Option<watch::Receiver<Statuses>>), ErrorObjectOwned> {
    let Hex(bytes) = params.sequence().next()?;
    if context.faults.refuse() {
        return Err(Refusal::Dropped.into());
    }
    if context.faults.drop_submit() {
        let (extrinsic, _) = context.ask(move |chain| chain.vet(bytes.into())).await??;
        return Ok((extrinsic.hash, None));
    }
    let (hash, statuses) = context.ask(move |chain| chain.submit(bytes.into())).await??;
    if context.faults.lose_answer() {
        context.faults.cut();
    }
    Ok((hash, Some(statuses)))
}

async fn watch_extrinsic(
    params: Params<'static>,
    pending: PendingSubscriptionSink,
    context: Arc<Context>,
) {
    context.faults.delay(SUBMIT_AND_WATCH).await;
    let submitted = submit(&context, &params).await;
    context.faults.voice().await;
    let statuses = match submitted {
        Ok((_, statuses)) => statuses,
        Err(error) => return pending.reject(error).await,
    };
    let Ok(sink) = pending.accept().await else { return };
    // Whoever stopped listening needs no word of it.
    let _ = match statuses {
        Some(mut statuses) => tell(&sink, &context, &mut statuses).await,
        None => {
            let ready = send(&sink, &context.faults, &json!("ready")).await;
            sink.closed().await;
            ready
        }
    };
}

/// Sends every status, each as soon as this node knows of the block that it is about.
async fn tell(
    sink: &SubscriptionSink,
    context: &Context,
    statuses: &mut watch::Receiver<Statuses>,
) -> Result<(), Gone> {
    let mut told = 0;
    loop {
        let new = statuses.borrow_and_update().get(told..).unwrap_or_default().to_vec();
        for status in new {
            told += 1;
            send(sink, &context.faults, &seen(sink, context, status).await?).await?;
            if status.is_last() {
                return Ok(());
            }
        }
        tokio::select! {
            () = sink.closed() => return Err(Gone),
            changed = statuses.changed() => if changed.is_err() {
                return send(sink, &context.faults, &json!("dropped")).await;
            },
        }
    }
}

/// A status as clients read it, once this node has seen what it says.
async fn seen(sink: &SubscriptionSink, context: &Context, status: Status) -> Result<Json, Gone> {
    let (name, hash, number) = match status {
        Status::Future => return Ok(json!("future")),
        Status::Ready => return Ok(json!("ready")),
        Status::Invalid => return Ok(json!("invalid")),
        Status::Dropped => return Ok(json!("dropped")),
        Status::Usurped { by } => return Ok(json!({ "usurped": hex(by) })),
        Status::InBlock { hash, .. } => ("inBlock", hash, 0),
        Status::Retracted { hash } => ("retracted", hash, 0),
        Status::Finalized { number, hash } => ("finalized", hash, number),
    };
    let mut watch = context.watch();
    loop {
        let told = context.see(move |view| {
            let block = view.find(Some(hash))?;
            (view.finalized().head.number >= number).then(|| view.told(block).head.hash)
        });
        if let Some(told) = told.await.map_err(|_| Gone)? {
            return Ok(json!({ name: hex(told) }));
        }
        if !watch.changed(sink).await {
            return Err(Gone);
        }
    }
}
