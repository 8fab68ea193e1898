//! Work outside, done until an event says that it is done. Every call is idempotent by name at the
//! service that gets it, so a crash between the call and the event repeats nothing.

use std::{sync::Arc, time::Duration};

use domain::{
    BlockNumber, Cause, Degradation, Effect, Event, LeftOut, Payload, Policy, Reply, RoundId, Uid,
    WriteKind, WriteState, WriteStatus,
};
use kit::{Channel, Common};
use proto::{
    InvalidField,
    chain::v1::{
        self as chain, GetBlockRequest, GetIntentRequest, Intent, IntentKey, IntentState,
        SignRequest, SubmitIntentRequest, WatchBlocksRequest, chain_event::Event as ChainEvent,
        chain_service_client::ChainServiceClient, sign_request::Purpose, submit_intent_request,
    },
    convert,
    peer::v1::{
        merge_service_client::MergeServiceClient, resync_service_client::ResyncServiceClient,
    },
};
use store::Artifacts;
use tonic::{Code, Status};
use tracing::{info, warn};

use crate::{
    Config, Retention, engine::Engine, freeze, leader::pause, merge, metrics, record, resync,
    reveals,
};

/// Everything outside the scheduler that effects reach.
#[derive(Clone)]
pub(crate) struct Outside {
    chain: ChainServiceClient<Channel>,
    merge: MergeServiceClient<Channel>,
    resync: ResyncServiceClient<Channel>,
    artifacts: Artifacts,
    policy: Arc<Policy>,
    block_time: Duration,
    merge_share: f64,
    retention: Retention,
}

/// Why an effect has to be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{}: {}", .0.code(), .0.message())]
    Call(#[from] Status),
    #[error("the answer cannot be used: {0}")]
    Answer(#[from] InvalidField),
    #[error(transparent)]
    Artifacts(#[from] store::ArtifactError),
    #[error("{}: {}", cause.reason, cause.detail)]
    Resync { cause: Cause, blamed: Vec<LeftOut> },
    #[error("{0}")]
    Other(String),
}

impl Outside {
    pub(crate) fn new(
        config: &Config,
        common: &Common,
        policy: Arc<Policy>,
        artifacts: Artifacts,
    ) -> anyhow::Result<Self> {
        const MAX_ANSWER: usize = 64 << 20;
        let chain = ChainServiceClient::new(kit::auth::channel(&common.chain_url, common)?)
            .max_decoding_message_size(MAX_ANSWER);
        let peer = kit::channel(&common.peer_url, &common.tls)?;
        let merge = MergeServiceClient::new(peer.clone());
        let resync = ResyncServiceClient::new(peer);
        Ok(Self {
            chain,
            merge,
            resync,
            artifacts,
            policy,
            block_time: config.block_time,
            merge_share: config.policy.merge_share,
            retention: config.retention.clone(),
        })
    }

    pub(crate) fn chain(&self) -> ChainServiceClient<Channel> {
        self.chain.clone()
    }

    pub(crate) fn merge(&self) -> MergeServiceClient<Channel> {
        self.merge.clone()
    }

    pub(crate) fn resync(&self) -> ResyncServiceClient<Channel> {
        self.resync.clone()
    }

    /// How long `blocks` take, for waits: what is late is decided in blocks.
    pub(crate) fn time_of(&self, blocks: u64) -> Duration {
        self.block_time.saturating_mul(u32::try_from(blocks).unwrap_or(u32::MAX))
    }

    /// How long to wait before a service is asked again how far it is.
    pub(crate) fn poll(&self, least: Duration) -> Duration {
        (self.block_time / 4).max(least)
    }

    /// Share of Merge after which the other validators are not waited for any more.
    pub(crate) fn merge_share(&self) -> f64 {
        self.merge_share.clamp(0.05, 1.0)
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn artifacts(&self) -> &Artifacts {
        &self.artifacts
    }

    pub(crate) fn retention(&self) -> &Retention {
        &self.retention
    }

    /// Hands what happens on the chain to `engine`, in its order, until the stream ends; returns
    /// how many blocks there were. It begins after the block that the saved state holds, so that
    /// one that was taken back meanwhile is told.
    pub(crate) async fn watch_blocks(&self, engine: &Engine) -> Result<u64, Status> {
        let known = engine.newest().map(|seen| chain::Block {
            number: seen.number.0,
            hash: seen.hash.0.to_vec().into(),
            ..chain::Block::default()
        });
        // What lies before the present is caught up with and not acted upon: a seed or weights for
        // a phase that is over would be written now.
        let present = match known {
            Some(_) => {
                let newest = self.chain().get_block(GetBlockRequest::default()).await?.into_inner();
                convert::required("block", newest.block)
                    .map_err(|error| Status::internal(error.to_string()))?
                    .number
            }
            None => 0,
        };
        let request = WatchBlocksRequest { known, ..WatchBlocksRequest::default() };
        let mut events = self.chain().watch_blocks(request).await?.into_inner();
        let mut seen = 0;
        while let Some(event) = events.message().await? {
            // One of a later version of the contract is none of this scheduler's business.
            let Some(event) = event.event else { continue };
            if let ChainEvent::Block(block) = &event {
                seen += 1;
                if block.number < present {
                    continue;
                }
            }
            let event = heard(event).map_err(|error| Status::internal(error.to_string()))?;
            engine.apply(event).await.map_err(Status::from)?;
        }
        Ok(seen)
    }
}

/// What the chain service tells, as an event.
fn heard(event: ChainEvent) -> Result<Event, InvalidField> {
    Ok(match event {
        ChainEvent::Block(block) => Event::Block {
            number: BlockNumber(block.number),
            hash: convert::block_hash("hash", &block.hash)?,
            // 53 bits: every JSON reader keeps them.
            entropy: rand::random::<u64>() >> 11,
            traceparent: kit::trace::root(),
        },
        ChainEvent::Reorganisation(reorganisation) => {
            let ancestor = convert::required("ancestor", reorganisation.ancestor)?;
            let abandoned = convert::required("abandoned", reorganisation.abandoned)?;
            warn!(ancestor = ancestor.number, abandoned = abandoned.number, "blocks taken back");
            Event::Reorganised {
                ancestor: BlockNumber(ancestor.number),
                ancestor_hash: convert::block_hash("ancestor", &ancestor.hash)?,
                abandoned: BlockNumber(abandoned.number),
            }
        }
        ChainEvent::Degradation(told) => {
            let Degradation { kind, detail, block } = convert::degradation(told);
            Event::Degraded { kind, detail, block }
        }
    })
}

/// Does `effect` until it is done, however often that takes.
pub(crate) async fn run(effect: Effect, engine: Engine, outside: Outside) {
    let (id, name) = (effect.id(), name(&effect));
    let mut attempt = 0;
    loop {
        match once(&effect, &engine, &outside).await {
            Ok(()) => return,
            Err(failure) => {
                metrics::effect_retried(name);
                warn!(effect = id, attempt, error = %failure, "will be tried again");
                held(&effect, &failure, &engine).await;
            }
        }
        tokio::time::sleep(pause(attempt, outside.block_time)).await;
        attempt += 1;
    }
}

/// Who waits for something says why.
async fn held(effect: &Effect, failure: &Failure, engine: &Engine) {
    let event = match effect {
        Effect::Freeze { round, .. } => Event::Held { round: *round, why: why(failure) },
        Effect::Reveals { cycle, .. } => {
            let cause = Cause { reason: "unreadable".to_owned(), detail: why(failure) };
            Event::ResyncFailed { cycle: *cycle, cause, blamed: Vec::new() }
        }
        Effect::Resync(plan) => {
            let (cause, blamed) = resync::cause(failure);
            Event::ResyncFailed { cycle: plan.cycle, cause, blamed }
        }
        Effect::Merge(_) | Effect::SignHash { .. } | Effect::Write { .. } | Effect::Record(_) => {
            return;
        }
    };
    if let Err(error) = engine.apply(event).await {
        info!(%error, "nobody waits for this any more");
    }
}

/// Of a call that failed, what the other end says is enough.
fn why(failure: &Failure) -> String {
    match failure {
        Failure::Call(status) if !status.message().is_empty() => status.message().to_owned(),
        Failure::Call(_)
        | Failure::Answer(_)
        | Failure::Artifacts(_)
        | Failure::Resync { .. }
        | Failure::Other(_) => failure.to_string(),
    }
}

fn name(effect: &Effect) -> &'static str {
    match effect {
        Effect::Freeze { .. } => "freeze",
        Effect::Merge(_) => "merge",
        Effect::SignHash { .. } => "sign_hash",
        Effect::Write { .. } => "write",
        Effect::Record(_) => "record",
        Effect::Reveals { .. } => "reveals",
        Effect::Resync(_) => "resync",
    }
}

async fn once(effect: &Effect, engine: &Engine, outside: &Outside) -> Result<(), Failure> {
    match effect {
        Effect::Freeze { round, block, branch } => {
            let inputs = Box::new(freeze::read(outside, *round, *block).await?);
            done(engine, Event::Frozen { round: *round, branch: *branch, inputs }).await
        }
        Effect::Merge(plan) => {
            let outcome = merge::run(plan, engine, outside).await?;
            done(engine, Event::Merged { round: plan.round, outcome }).await
        }
        Effect::SignHash { round, model_hash } => {
            let purpose = Some(Purpose::ModelHash(model_hash.to_hex()));
            let signed = outside.chain().sign(SignRequest { purpose }).await?.into_inner();
            let signature = record::base64_url(&signed.signature);
            done(engine, Event::HashSigned { round: *round, signature }).await
        }
        Effect::Write { round, kind, payload } => {
            write(*round, *kind, payload, engine, outside).await
        }
        Effect::Reveals { cycle, asked, .. } => {
            let (cycle, asked) = (*cycle, *asked);
            let reveals = Box::new(reveals::read(outside, cycle).await?);
            done(engine, Event::Revealed { cycle, asked, reveals }).await
        }
        Effect::Resync(plan) => {
            let here = resync::run(plan, engine, outside).await?;
            done(engine, here).await
        }
        Effect::Record(unsigned) => {
            record::store(unsigned, outside).await?;
            info!(round = unsigned.round.0, "record written");
            // Before the event, which ends this task.
            record::retain(unsigned, outside).await;
            done(engine, Event::EffectDone { effect: effect.id() }).await
        }
    }
}

/// Hands in what came of an effect. A rejection means that nobody waits for it any more.
async fn done(engine: &Engine, event: Event) -> Result<(), Failure> {
    match engine.apply(event).await {
        Ok(Reply::Applied | Reply::Ignored | Reply::Granted(_) | Reply::Renewed(_)) => Ok(()),
        Err(crate::error::Error::Rejected(rejection)) => {
            info!(%rejection, "came too late");
            Ok(())
        }
        Err(error) => Err(Failure::Other(error.to_string())),
    }
}

async fn write(
    round: RoundId,
    kind: WriteKind,
    payload: &Payload,
    engine: &Engine,
    outside: &Outside,
) -> Result<(), Failure> {
    let key = Some(IntentKey { round: round.0, kind: kind.as_str().to_owned() });
    let wire = match payload {
        Payload::Commitment(data) => {
            submit_intent_request::Payload::Commitment(chain::CommitmentPayload {
                data: data.clone().into(),
            })
        }
        Payload::Weights(weights) => {
            submit_intent_request::Payload::Weights(shares(weights, false))
        }
        Payload::StaleWeights(weights) => {
            submit_intent_request::Payload::Weights(shares(weights, true))
        }
    };
    let request = SubmitIntentRequest { key: key.clone(), payload: Some(wire) };
    let mut intent = match outside.chain().submit_intent(request).await {
        Ok(intent) => intent.into_inner(),
        Err(status) if is_final(status.code()) => refused(&status),
        Err(status) => return Err(status.into()),
    };
    loop {
        let status = write_status(&intent);
        let over = status.state.is_terminal();
        done(engine, Event::Written { round, kind, status }).await?;
        if over {
            return Ok(());
        }
        tokio::time::sleep(outside.poll(Duration::from_millis(20))).await;
        intent =
            outside.chain().get_intent(GetIntentRequest { key: key.clone() }).await?.into_inner();
    }
}

fn shares(weights: &[(Uid, f64)], stale_guard: bool) -> chain::WeightsPayload {
    let share = |(uid, value): &(Uid, f64)| chain::FloatWeight { uid: uid.0.into(), value: *value };
    chain::WeightsPayload { weights: weights.iter().map(share).collect(), stale_guard }
}

/// Whether asking again cannot change the answer.
fn is_final(code: Code) -> bool {
    matches!(code, Code::AlreadyExists | Code::InvalidArgument | Code::FailedPrecondition)
}

fn refused(status: &Status) -> Intent {
    Intent {
        state: IntentState::Failed.into(),
        reason: status.message().to_owned(),
        ..Intent::default()
    }
}

fn write_status(intent: &Intent) -> WriteStatus {
    let extrinsic_hash = match intent.extrinsic_hash.is_empty() {
        true => String::new(),
        false => format!("0x{}", record::hex(&intent.extrinsic_hash)),
    };
    let state = match intent.state() {
        IntentState::Unspecified | IntentState::Recorded => WriteState::Pending,
        IntentState::Submitted => WriteState::Submitted,
        IntentState::Included => WriteState::Included,
        IntentState::Done => WriteState::Done,
        IntentState::Failed => WriteState::Failed,
    };
    let reason = match intent.detail.is_empty() {
        true => intent.reason.clone(),
        false => format!("{}: {}", intent.reason, intent.detail),
    };
    let block = BlockNumber(intent.block);
    WriteStatus { state, extrinsic_hash, block, reason }
}
