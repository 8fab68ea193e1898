//! `chain_*`: blocks, headers, and the streams of them.

use std::sync::Arc;

use jsonrpsee::{PendingSubscriptionSink, core::RegisterMethodError};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::{
    Answer, Context, Module, method,
    params::{Hash, Number},
    send,
};
use crate::{
    block::{Block, hex},
    view::View,
};

/// As many hashes are asked for at once.
const MAX_HASHES: usize = 1024;

pub(super) fn register(module: &mut Module) -> Result<(), RegisterMethodError> {
    method(module, "chain_getBlockHash", async |params, context: Arc<Context>| {
        let numbers = params.sequence().optional_next::<Numbers>()?;
        block_hash(&context, numbers).await
    })?;
    method(module, "chain_getFinalizedHead", async |_, context: Arc<Context>| {
        Ok(json!(context.see(|view| hex(view.told(view.finalized()).head.hash)).await?))
    })?;
    method(module, "chain_getHeader", async |params, context: Arc<Context>| {
        let hash = params.sequence().optional_next::<Hash>()?;
        find(&context, hash, Block::header_json).await
    })?;
    method(module, "chain_getBlock", async |params, context: Arc<Context>| {
        let hash = params.sequence().optional_next::<Hash>()?;
        find(&context, hash, Block::json).await
    })?;
    heads(
        module,
        ["chain_subscribeNewHeads", "chain_newHead", "chain_unsubscribeNewHeads"],
        |view| view.best(),
    )?;
    heads(
        module,
        ["chain_subscribeAllHeads", "chain_allHead", "chain_unsubscribeAllHeads"],
        |view| view.best(),
    )?;
    heads(
        module,
        ["chain_subscribeFinalizedHeads", "chain_finalizedHead", "chain_unsubscribeFinalizedHeads"],
        |view| view.finalized(),
    )
}

async fn find(context: &Context, hash: Option<Hash>, write: fn(&Block) -> Json) -> Answer {
    let hash = hash.map(|h| h.0);
    let found = context.see(move |view| view.find(hash).map(|block| write(&view.told(block))));
    Ok(found.await?.unwrap_or(Json::Null))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Numbers {
    One(Number),
    Many(Vec<Number>),
}

async fn block_hash(context: &Context, numbers: Option<Numbers>) -> Answer {
    let hashes = |numbers: Vec<Number>| {
        context.see(move |view| {
            let hash = |n: &Number| view.at(n.0).map(|block| hex(view.told(block).head.hash));
            numbers.iter().take(MAX_HASHES).map(hash).collect::<Vec<_>>()
        })
    };
    Ok(match numbers {
        None => json!(context.see(|view| hex(view.told(view.best()).head.hash)).await?),
        Some(Numbers::One(number)) => json!(hashes(vec![number]).await?.pop().flatten()),
        Some(Numbers::Many(numbers)) => json!(hashes(numbers).await?),
    })
}

/// The end of the chain that a stream follows.
type Newest = for<'a> fn(&View<'a>) -> &'a Block;

/// A stream of headers without gaps: the newest first, then every one after it. After a
/// reorganisation it goes on with the first block of the new branch, or with its tip where a test
/// wants that.
fn heads(
    module: &mut Module,
    [subscribe, notify, unsubscribe]: [&'static str; 3],
    newest: Newest,
) -> Result<(), RegisterMethodError> {
    module.register_subscription(
        subscribe,
        notify,
        unsubscribe,
        move |_, pending, context, _| send_heads(subscribe, pending, context, newest),
    )?;
    Ok(())
}

async fn send_heads(
    method: &'static str,
    pending: PendingSubscriptionSink,
    context: Arc<Context>,
    newest: Newest,
) {
    context.faults.delay(method).await;
    context.faults.voice().await;
    let Ok(sink) = pending.accept().await else { return };
    let mut watch = context.watch();
    let mut last = None;
    loop {
        let headers = context.see(move |view| {
            let blocks = view.since(last, newest(view)).into_iter();
            let header = |block: &Block| (block.head.hash, view.told(block).header_json());
            blocks.map(header).collect::<Vec<_>>()
        });
        let Ok(headers) = headers.await else { return };
        // What came while these are sent is looked for before the next wait.
        let caught_up = headers.is_empty();
        for (hash, header) in headers {
            if send(&sink, &context.faults, &header).await.is_err() {
                return;
            }
            last = Some(hash);
        }
        if caught_up && !watch.changed(&sink).await {
            return;
        }
    }
}
