//! The gRPC face of the service: decode, call once, encode.

use std::{pin::Pin, sync::Arc};

use domain::{BlockHash, BlockNumber, ModelHash, RoundId, Uid};
use futures::{Stream, StreamExt as _};
use kit::{Shutdown, auth::Guard};
use proto::{
    InvalidField,
    chain::v1::{self, chain_service_server::ChainService},
    convert::{bytes, parse, required},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::{Span, debug, field::Empty, instrument, warn};

use crate::{
    blocks::{self, Blocks},
    chain::{Block, BlockId, Chain},
    config::Follow,
    degradations::Degradations,
    error::Error,
    keys::SigningKey,
    metrics,
    nodes::Nodes,
    outbox::{Intent, Key, Kind, Outbox, State},
    payload,
    quorum::{Agreed, Quorum},
    read,
    runtime::Runtime,
    sign::{Purpose, Signer},
    snapshots::{self, Snapshots},
    status,
    weights::{self, Preference},
};

/// Answers calls; those that need the chain are UNAVAILABLE until it was reached.
#[derive(Debug)]
pub(crate) struct Handler {
    pub(crate) key: Arc<SigningKey>,
    pub(crate) signer: Signer,
    /// Knows the callers of what only the validator's own services may do.
    pub(crate) guard: Guard,
    pub(crate) chain: watch::Receiver<Option<Chain>>,
    pub(crate) nodes: Nodes,
    pub(crate) runtime: Runtime,
    pub(crate) blocks: Blocks,
    pub(crate) snapshots: Snapshots,
    pub(crate) quorum: Quorum,
    pub(crate) degradations: Degradations,
    pub(crate) outbox: Outbox,
    pub(crate) preference: Preference,
    pub(crate) shutdown: Shutdown,
}

impl Handler {
    fn chain(&self) -> Result<Chain, Error> {
        let chain = self.chain.borrow().clone();
        chain.ok_or_else(|| Error::Unreachable("not connected yet".to_owned()))
    }
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::ChainEvent, Status>> + Send>>;

#[tonic::async_trait]
impl ChainService for Handler {
    type WatchBlocksStream = Events;

    async fn get_identity(
        &self,
        _request: Request<v1::GetIdentityRequest>,
    ) -> Result<Response<v1::GetIdentityResponse>, Status> {
        let chain = self.chain()?;
        let at = chain.at(BlockId::Hash(self.blocks.newest()?.hash)).await?;
        let uid = read::uid_of(&chain, &at, self.key.hotkey()).await?;
        Ok(Response::new(v1::GetIdentityResponse {
            hotkey: self.key.hotkey().to_string(),
            uid: uid.map(|uid| uid.0.into()),
            netuid: chain.netuid.0.into(),
            genesis_hash: chain.genesis().0.to_vec().into(),
            spec_version: at.spec_version(),
        }))
    }

    async fn watch_blocks(
        &self,
        request: Request<v1::WatchBlocksRequest>,
    ) -> Result<Response<Events>, Status> {
        let request = request.into_inner();
        let (finality, chain) = (finality_in(request.finality()), self.chain()?);
        let known = request.known.map(known_in).transpose().map_err(Error::from)?;
        if let Some(known) = known {
            self.blocks.known(finality, &chain, known).await?;
        }
        let events = self.blocks.watch(finality, known, chain, self.shutdown.clone());
        Ok(Response::new(Box::pin(events.map(|event| Ok(event_out(event))))))
    }

    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let reading = status::of_reading(
            &self.nodes,
            &self.runtime,
            &self.blocks,
            &self.snapshots,
            &self.quorum,
            &self.degradations,
        );
        let mut status = reading.await;
        status.nonce_owner = self.outbox.is_owner();
        // A store or a chain that is away hides these and nothing else.
        if let Ok(intents) = self.outbox.list().await {
            let open = intents.iter().filter(|intent| !intent.state.is_finished()).count();
            status.open_intents = u32::try_from(open).unwrap_or(u32::MAX);
        }
        if let (Ok(chain), Ok(head)) = (self.chain(), self.blocks.newest())
            && let Ok(at) = chain.at(BlockId::Hash(head.hash)).await
            && let Ok(offer) = weights::facts::offer(&chain, &at).await
        {
            status.weights_mode = match offer.choose(self.preference) {
                Ok(mode) => mode.as_str().to_owned(),
                Err(failure) => failure.reason().to_owned(),
            };
        }
        Ok(Response::new(status))
    }

    #[instrument(name = "chain.get_block", skip_all)]
    async fn get_block(
        &self,
        request: Request<v1::GetBlockRequest>,
    ) -> Result<Response<v1::GetBlockResponse>, Status> {
        let v1::GetBlockRequest { number, agreed } = request.into_inner();
        let number = number.map(BlockNumber);
        let block = match (number, agreed) {
            (None, false) => Agreed::by_one(self.blocks.newest()?),
            (Some(number), false) => Agreed::by_one(self.chain()?.block(number).await?),
            (number, true) => {
                let number = number.map_or_else(|| self.blocks.newest().map(|b| b.number), Ok)?;
                self.snapshots.agreed_block(&self.chain()?, number).await?
            }
        };
        Ok(Response::new(v1::GetBlockResponse {
            block: Some(status::block(block.value)),
            agreed_by: block.by,
            degradations: block.degradations.into_iter().map(status::degradation).collect(),
        }))
    }

    #[instrument(name = "chain.get_metagraph", skip_all, fields(block = Empty))]
    async fn get_metagraph(
        &self,
        request: Request<v1::GetMetagraphRequest>,
    ) -> Result<Response<v1::Metagraph>, Status> {
        let id = block_in(request.into_inner().at)?;
        let metagraph = read::metagraph(&self.chain()?, id).await?;
        Ok(Response::new(metagraph_out(metagraph)))
    }

    #[instrument(name = "chain.get_weights", skip_all, fields(block = Empty))]
    async fn get_weights(
        &self,
        request: Request<v1::GetWeightsRequest>,
    ) -> Result<Response<v1::GetWeightsResponse>, Status> {
        let id = block_in(request.into_inner().at)?;
        let rows = read::weights(&self.chain()?, id).await?.into_iter().map(|row| v1::WeightRow {
            uid: row.uid.0.into(),
            weights: row.weights.into_iter().map(weight_out).collect(),
        });
        Ok(Response::new(v1::GetWeightsResponse { rows: rows.collect() }))
    }

    #[instrument(name = "chain.get_commitments", skip_all, fields(block = Empty))]
    async fn get_commitments(
        &self,
        request: Request<v1::GetCommitmentsRequest>,
    ) -> Result<Response<v1::GetCommitmentsResponse>, Status> {
        let v1::GetCommitmentsRequest { at, agreed } = request.into_inner();
        let id = block_in(at)?;
        let answer = self.snapshots.commitments(&self.chain()?, id, agreed).await?;
        Ok(Response::new(commitments_out(answer)))
    }

    #[instrument(name = "chain.submit_intent", skip_all, fields(round = Empty, kind = Empty))]
    async fn submit_intent(
        &self,
        request: Request<v1::SubmitIntentRequest>,
    ) -> Result<Response<v1::Intent>, Status> {
        let caller = self.guard.caller(&request)?;
        let request = request.into_inner();
        let key = key_in(request.key)?;
        debug!(%key, %caller, "intent is handed in");
        let payload = payload::parse(key.kind, request.payload).map_err(Error::from)?;
        let intent = self.outbox.submit(key, payload).await?;
        Ok(Response::new(intent_out(&intent)))
    }

    #[instrument(name = "chain.get_intent", skip_all, fields(round = Empty, kind = Empty))]
    async fn get_intent(
        &self,
        request: Request<v1::GetIntentRequest>,
    ) -> Result<Response<v1::Intent>, Status> {
        let intent = self.outbox.get(key_in(request.into_inner().key)?).await?;
        Ok(Response::new(intent_out(&intent)))
    }

    async fn list_intents(
        &self,
        request: Request<v1::ListIntentsRequest>,
    ) -> Result<Response<v1::ListIntentsResponse>, Status> {
        let v1::ListIntentsRequest { open, limit } = request.into_inner();
        let limit = if limit == 0 { usize::MAX } else { limit as usize };
        let intents = self.outbox.list().await?;
        let wanted = intents.iter().rev().filter(|intent| !open || !intent.state.is_finished());
        let intents = wanted.take(limit).map(intent_out).collect();
        Ok(Response::new(v1::ListIntentsResponse { intents }))
    }

    async fn sign(
        &self,
        request: Request<v1::SignRequest>,
    ) -> Result<Response<v1::SignResponse>, Status> {
        let caller = self.guard.caller(&request);
        let purpose = purpose_in(request.into_inner()).map_err(Error::from)?;
        let caller = caller.inspect_err(|status| {
            metrics::signature_refused(purpose.name(), "unauthenticated");
            warn!(purpose = purpose.name(), reason = status.message(), "not signed");
        })?;
        let signature = self.signer.sign(&caller, purpose)?;
        Ok(Response::new(v1::SignResponse { signature: signature.to_vec().into() }))
    }
}

fn block_in(at: Option<v1::At>) -> Result<BlockId, Error> {
    let at = required("at", at.and_then(|at| at.block))?;
    let id = match at {
        v1::at::Block::Number(number) => BlockId::Number(BlockNumber(number)),
        v1::at::Block::Hash(hash) => BlockId::Hash(BlockHash(bytes("at.hash", &hash)?)),
    };
    Span::current().record("block", tracing::field::display(id));
    Ok(id)
}

/// The block that a caller holds, who need not say what it stands on.
fn known_in(known: v1::Block) -> Result<Block, InvalidField> {
    let parent = match known.parent_hash.is_empty() {
        true => [0; 32],
        false => bytes("known.parent_hash", &known.parent_hash)?,
    };
    let hash = BlockHash(bytes("known.hash", &known.hash)?);
    Ok(Block { number: BlockNumber(known.number), hash, parent: BlockHash(parent) })
}

fn finality_in(finality: v1::Finality) -> Option<Follow> {
    match finality {
        v1::Finality::Unspecified => None,
        v1::Finality::Best => Some(Follow::Best),
        v1::Finality::Finalized => Some(Follow::Finalized),
    }
}

fn event_out(event: blocks::Event) -> v1::ChainEvent {
    use v1::chain_event::Event;
    let event = match event {
        blocks::Event::Block(block) => Event::Block(status::block(block)),
        blocks::Event::Reorganisation(blocks::Reorganisation { ancestor, abandoned }) => {
            Event::Reorganisation(v1::Reorganisation {
                ancestor: Some(status::block(ancestor)),
                abandoned: Some(status::block(abandoned)),
            })
        }
        blocks::Event::Degradation(noticed) => Event::Degradation(status::degradation(noticed)),
    };
    v1::ChainEvent { event: Some(event) }
}

fn commitments_out(answer: snapshots::Answer) -> v1::GetCommitmentsResponse {
    let snapshots::Answer { block, source, agreed } = answer;
    let source = match source {
        snapshots::Source::Node => v1::Source::Node,
        snapshots::Source::Snapshot => v1::Source::Snapshot,
        snapshots::Source::Archive => v1::Source::Archive,
    };
    let kinds = agreed.value.kinds();
    let commitments = agreed.value.list.into_iter().map(|commitment| v1::Commitment {
        kind: commitment.kind().to_owned(),
        hotkey: commitment.hotkey.to_string(),
        block: commitment.block.0,
        data: commitment.data.into(),
    });
    v1::GetCommitmentsResponse {
        commitments: commitments.collect(),
        block: Some(status::block(block)),
        source: source.into(),
        agreed_by: agreed.by,
        kinds: kinds.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect(),
        degradations: agreed.degradations.into_iter().map(status::degradation).collect(),
    }
}

fn weight_out((uid, value): (Uid, u16)) -> v1::Weight {
    v1::Weight { uid: uid.0.into(), value: value.into() }
}

fn metagraph_out(metagraph: domain::Metagraph) -> v1::Metagraph {
    let neurons = metagraph.neurons.into_iter().map(|neuron| v1::Neuron {
        uid: neuron.uid.0.into(),
        hotkey: neuron.hotkey.to_string(),
        coldkey: neuron.coldkey.map(|key| key.to_string()).unwrap_or_default(),
        axon: neuron.axon,
        stake: neuron.stake,
        incentive: neuron.incentive.into(),
        validator_permit: neuron.validator_permit,
        last_update: neuron.last_update.0,
        registered_at: neuron.registered_at.0,
    });
    v1::Metagraph {
        block: metagraph.block.0,
        block_hash: metagraph.block_hash.0.to_vec().into(),
        neurons: neurons.collect(),
        weights_rate_limit: metagraph.weights_rate_limit,
        min_allowed_weights: metagraph.min_allowed_weights,
        weights_version: metagraph.weights_version,
        commit_reveal: metagraph.commit_reveal,
    }
}

fn key_in(key: Option<v1::IntentKey>) -> Result<Key, Error> {
    let key = required("key", key)?;
    let kind: Kind = parse("key.kind", &key.kind)?;
    Span::current().record("round", key.round).record("kind", kind.as_str());
    Ok(Key { round: RoundId(key.round), kind })
}

fn purpose_in(request: v1::SignRequest) -> Result<Purpose, InvalidField> {
    use v1::sign_request::Purpose as Wire;
    Ok(match required("purpose", request.purpose)? {
        Wire::ModelHash(hash) => Purpose::ModelHash(parse::<ModelHash>("model_hash", &hash)?),
        Wire::PeerDigest(digest) => Purpose::Peer(bytes("peer_digest", &digest)?),
        Wire::RecordDigest(digest) => Purpose::Record(bytes("record_digest", &digest)?),
    })
}

fn intent_out(intent: &Intent) -> v1::Intent {
    let state = match &intent.state {
        State::Recorded { .. } => v1::IntentState::Recorded,
        State::Submitted { .. } => v1::IntentState::Submitted,
        State::Included { .. } => v1::IntentState::Included,
        State::Done { .. } => v1::IntentState::Done,
        State::Failed { .. } => v1::IntentState::Failed,
    };
    let key =
        v1::IntentKey { round: intent.key.round.0, kind: intent.key.kind.as_str().to_owned() };
    v1::Intent {
        key: Some(key),
        state: state.into(),
        extrinsic_hash: intent.extrinsic.map(|hash| hash.0.to_vec()).unwrap_or_default().into(),
        block: intent.state.block(),
        reason: intent.last.as_ref().map(|last| last.reason().to_owned()).unwrap_or_default(),
        detail: intent.detail(),
        attempts: intent.attempts,
        payload_digest: intent.payload.digest().to_vec().into(),
        not_before: intent.not_before(),
        advice: intent
            .last
            .as_ref()
            .map(|last| last.advice().as_str().to_owned())
            .unwrap_or_default(),
        mode: intent.how.as_ref().map(|how| how.mode().as_str().to_owned()).unwrap_or_default(),
        stale_guard: intent.payload.is_stale_guard(),
        recorded_at: intent.recorded_at,
    }
}
