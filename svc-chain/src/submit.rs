//! Extrinsics on their way: signed, handed to a node, looked for in the blocks.

use domain::{BlockHash, BlockNumber, Hotkey};
use subxt::{
    SubstrateConfig,
    config::{DefaultExtrinsicParamsBuilder, Hasher as _, substrate::BlakeTwo256},
    error::DispatchError,
    events::Phase,
    rpcs::{self, client::RpcSubscription, methods::legacy::TransactionStatus},
    utils::H256,
};

use crate::{
    call::Call,
    chain::{Block, BlockId, Chain, Tips},
    error::Error,
    failure::Failure,
    keys::SigningKey,
    outbox::{Attempt, Final, Outcome},
    read,
};

/// Signs a call as an extrinsic that lives `period` blocks from the final block on or, where
/// finality has stalled, from a block half of that behind the best: it can land meanwhile. A
/// reorganisation of so many blocks only makes it void.
///
/// The nonce is the next one of the best block: the caller sends nothing else before that block's
/// successor holds it.
pub(crate) async fn sign(
    chain: &Chain,
    key: &SigningKey,
    call: &Call,
    period: u64,
    tips: Tips,
) -> Result<Attempt, Error> {
    const WHAT: &str = "the extrinsic";
    let failed =
        |error: subxt::error::ExtrinsicError| Error::reading(WHAT, tips.best.number, error);
    let at = chain.at(BlockId::Hash(tips.best.hash)).await?;
    let nonce = read::nonce(&at, key.hotkey()).await?;
    let oldest = BlockNumber(tips.best.number.0.saturating_sub(period / 2));
    let birth =
        if tips.finalized.number >= oldest { tips.finalized } else { chain.block(oldest).await? };
    let parameters = DefaultExtrinsicParamsBuilder::<SubstrateConfig>::new()
        .mortal_from_unchecked(period, birth.number.0, H256(birth.hash.0))
        .nonce(nonce)
        .build();
    let mut signable =
        at.transactions().create_signable_offline(call, parameters).map_err(failed)?;
    let signed = signable.sign(key).map_err(failed)?;
    Ok(Attempt {
        hash: BlockHash(signed.hash().0),
        nonce,
        birth: birth.number.0,
        period,
        spec: at.spec_version(),
        bytes: signed.encoded().to_vec(),
    })
}

/// Why a node did not say that it took an extrinsic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It said no.
    Refused(Failure),
    /// It did not answer: it may have taken it.
    Unknown(String),
}

/// The pool's news of an extrinsic.
pub(crate) type News = RpcSubscription<TransactionStatus<H256>>;

/// Hands an extrinsic to a node.
pub(crate) async fn broadcast(chain: &Chain, bytes: &[u8]) -> Result<News, Refusal> {
    let error = match chain.methods().author_submit_and_watch_extrinsic(bytes).await {
        Ok(news) => return Ok(news),
        Err(error) => error,
    };
    if let rpcs::Error::User(said) = &error {
        let data = said.data.as_ref().map(|data| data.get()).unwrap_or_default();
        if let Some(failure) = Failure::from_pool(said.code, &said.message, data) {
            return Err(Refusal::Refused(failure));
        }
    }
    Err(Refusal::Unknown(error.to_string()))
}

/// What looking for an extrinsic found.
#[derive(Debug)]
pub(crate) enum Search {
    Found {
        block: Block,
        outcome: Outcome,
    },
    /// It is in no block of the best chain.
    Absent(Final),
}

/// Looks for an extrinsic in every block of the best chain after `from` that can hold it.
///
/// Every final block up to `from` must have been searched before.
pub(crate) async fn search(
    chain: &Chain,
    signer: &Hotkey,
    attempt: &Attempt,
    from: u64,
    tips: Tips,
) -> Result<Search, Error> {
    for number in from + 1..=tips.best.number.0.min(attempt.last_block()) {
        let block = match chain.block(BlockNumber(number)).await {
            Ok(block) => block,
            // The best chain became shorter meanwhile: only final blocks count as searched.
            Err(Error::NoSuchBlock(_)) if number > tips.finalized.number.0 => break,
            Err(error) => return Err(error),
        };
        let body = chain.body(&block).await?;
        let found = body.iter().position(|bytes| BlakeTwo256.hash(bytes).0 == attempt.hash.0);
        if let Some(index) = found {
            let outcome = outcome(chain, &block, index).await?;
            return Ok(Search::Found { block, outcome });
        }
    }
    let at = chain.at(BlockId::Hash(tips.finalized.hash)).await?;
    let nonce = read::nonce(&at, signer).await?;
    let searched = tips.finalized.number.0.max(from);
    Ok(Search::Absent(Final { searched, nonce, spec: at.spec_version() }))
}

/// What the extrinsic at `index` of a block did.
async fn outcome(chain: &Chain, block: &Block, index: usize) -> Result<Outcome, Error> {
    const WHAT: &str = "the events";
    let failed = |error: subxt::error::EventsError| Error::reading(WHAT, block.number, error);
    let at = match chain.at(BlockId::Hash(block.hash)).await {
        Err(Error::StateDiscarded(_)) => return Ok(Outcome::Unknown),
        at => at?,
    };
    let events = match at.events().fetch().await.map_err(failed) {
        Err(Error::StateDiscarded(_)) => return Ok(Outcome::Unknown),
        events => events?,
    };
    let of_extrinsic = u32::try_from(index).map(Phase::ApplyExtrinsic).ok();
    for event in events.iter() {
        let event = event.map_err(failed)?;
        if Some(event.phase()) != of_extrinsic || event.pallet_name() != "System" {
            continue;
        }
        match event.event_name() {
            "ExtrinsicSuccess" => return Ok(Outcome::Success),
            "ExtrinsicFailed" => {
                let error = DispatchError::decode_from(event.field_bytes(), at.metadata())
                    .map_err(|error| Error::reading(WHAT, block.number, error))?;
                let name = if let DispatchError::Module(module) = &error {
                    module.details_string()
                } else {
                    error.to_string()
                };
                return Ok(Outcome::Failed { failure: Failure::from_dispatch(&name) });
            }
            _ => {}
        }
    }
    Ok(Outcome::Unknown)
}
