//! `chain_*`: blocks, headers, and the streams of them.

use std::sync::Arc;

use jsonrpsee::{PendingSubscriptionSink, core::RegisterMethodError};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::{
    Answer, Context, Module, message, method,
    params::{Hash, Number},
};
use crate::{
    block::{Block, hex},
    chain::Tips,
};

/// As many hashes are asked for at once.
const MAX_HASHES: usize = 1024;

pub(super) fn register(module: &mut Module) -> Result<(), RegisterMethodError> {
    method(module, "chain_getBlockHash", async |params, context: Arc<Context>| {
        let numbers = params.sequence().optional_next::<Numbers>()?;
        block_hash(&context, numbers).await
    })?;
    method(module, "chain_getFinalizedHead", async |_, context: Arc<Context>| {
        Ok(json!(context.ask(|chain| hex(chain.finalized().head.hash)).await?))
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
        |tips| tips.best,
    )?;
    heads(
        module,
        ["chain_subscribeAllHeads", "chain_allHead", "chain_unsubscribeAllHeads"],
        |tips| tips.best,
    )?;
    heads(
        module,
        ["chain_subscribeFinalizedHeads", "chain_finalizedHead", "chain_unsubscribeFinalizedHeads"],
        |tips| tips.finalized,
    )
}

async fn find(context: &Context, hash: Option<Hash>, write: fn(&Block) -> Json) -> Answer {
    let found = context.ask(move |chain| chain.find(hash.map(|h| h.0)).map(write)).await?;
    Ok(found.unwrap_or(Json::Null))
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Numbers {
    One(Number),
    Many(Vec<Number>),
}

async fn block_hash(context: &Context, numbers: Option<Numbers>) -> Answer {
    let hashes = |numbers: Vec<Number>| {
        context.ask(move |chain| {
            let hash = |n: &Number| chain.block(n.0).map(|b| hex(b.head.hash));
            numbers.iter().take(MAX_HASHES).map(hash).collect::<Vec<_>>()
        })
    };
    Ok(match numbers {
        None => json!(context.ask(|chain| hex(chain.head().head.hash)).await?),
        Some(Numbers::One(number)) => json!(hashes(vec![number]).await?.pop().flatten()),
        Some(Numbers::Many(numbers)) => json!(hashes(numbers).await?),
    })
}

/// A stream of headers without gaps: the newest first, then every one after it.
fn heads(
    module: &mut Module,
    [subscribe, notify, unsubscribe]: [&'static str; 3],
    newest: fn(Tips) -> u32,
) -> Result<(), RegisterMethodError> {
    module.register_subscription(
        subscribe,
        notify,
        unsubscribe,
        move |_, pending, context, _| send_heads(pending, context, newest),
    )?;
    Ok(())
}

async fn send_heads(
    pending: PendingSubscriptionSink,
    context: Arc<Context>,
    newest: fn(Tips) -> u32,
) {
    context.faults.delay().await;
    let Ok(sink) = pending.accept().await else { return };
    let mut tips = context.node.tips();
    let mut next = newest(*tips.borrow());
    loop {
        let newest = newest(*tips.borrow_and_update());
        while next <= newest {
            let number = u64::from(next);
            let header = context.ask(move |chain| chain.block(number).map(Block::header_json));
            let Ok(Some(header)) = header.await else { return };
            let Some(message) = message(&header) else { return };
            if sink.send(message).await.is_err() {
                return;
            }
            next += 1;
        }
        tokio::select! {
            () = sink.closed() => return,
            grown = tips.changed() => if grown.is_err() {
                return;
            },
        }
    }
}
