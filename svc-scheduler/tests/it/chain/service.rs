//! What the chain service answers.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use kit::Shutdown;
use proto::{
    chain::v1::{
        self as chain, IntentState, at, chain_event::Event, chain_service_server::ChainService,
        sign_request::Purpose, submit_intent_request::Payload,
    },
    common::v1::Degradation,
};
use tonic::{Request, Response, Status};

use super::{Fault, Shared};
use crate::subnet::{self, CYCLE, hotkey, keypair};

pub(super) struct Handler {
    pub(super) shared: Arc<Shared>,
    pub(super) stop: Shutdown,
}

type Answer<T> = Result<Response<T>, Status>;

impl Handler {
    /// Height of the block that a read is made at, which must be named and there.
    fn height(&self, at: Option<chain::At>) -> Result<u64, Status> {
        if self.shared.fault == Fault::Blind {
            return Err(Status::unavailable("the node does not answer"));
        }
        let number = match at.and_then(|at| at.block) {
            Some(at::Block::Number(number)) => number,
            Some(at::Block::Hash(hash)) => {
                let story = self.shared.story.borrow();
                let same = |number: &u64| story.block(*number).hash == hash;
                (0..=story.head).rev().find(same).unwrap_or(u64::MAX)
            }
            None => return Err(Status::invalid_argument("`at` must be given")),
        };
        if number > self.head() {
            return Err(Status::not_found(format!("no block {number}")));
        }
        Ok(number)
    }

    fn head(&self) -> u64 {
        self.shared.story.borrow().head
    }

    /// What every answer says beside what was asked.
    fn degradations(&self) -> Vec<Degradation> {
        let (kind, detail) = ("archive_used".to_owned(), "ws://archive:9944".to_owned());
        let told = self.shared.fault == Fault::TellsDegradations;
        told.then_some(Degradation { kind, detail, block: self.head() }).into_iter().collect()
    }

    /// Who may have something signed or written shows the token of the host, as at the real one.
    fn known<T>(&self, request: &Request<T>) -> Result<(), Status> {
        match request.metadata().contains_key("authorization") {
            true => Ok(()),
            false => Err(Status::unauthenticated("no header `authorization`")),
        }
    }

    /// What the validator has written for `round`, where that has landed.
    fn own(&self, round: u64, kind: &str) -> Option<Vec<u8>> {
        let book = self.shared.book.lock().unwrap();
        let (payload, _) = book.intents.get(&(round, kind.to_owned()))?;
        match payload {
            Payload::Commitment(own) => Some(own.data.to_vec()),
            Payload::Weights(_) | Payload::Axon(_) => None,
        }
    }
}

#[tonic::async_trait]
impl ChainService for Handler {
    type WatchBlocksStream = Pin<Box<dyn Stream<Item = Result<chain::ChainEvent, Status>> + Send>>;

    async fn get_identity(
        &self,
        _: Request<chain::GetIdentityRequest>,
    ) -> Answer<chain::GetIdentityResponse> {
        let hotkey = hotkey(self.shared.seed).to_string();
        Ok(Response::new(chain::GetIdentityResponse { hotkey, uid: Some(0), ..Default::default() }))
    }

    async fn watch_blocks(
        &self,
        request: Request<chain::WatchBlocksRequest>,
    ) -> Answer<Self::WatchBlocksStream> {
        let known = request.into_inner().known;
        let story = self.shared.story.borrow().clone();
        let (was, next) = match known {
            None => (story.clone(), story.head),
            Some(known) => {
                let was = story.when(&known);
                let was = was.ok_or_else(|| Status::invalid_argument("no such block was told"))?;
                (was, known.number + 1)
            }
        };
        self.shared.book.lock().unwrap().watchers += 1;
        let (shared, stop) = (Arc::clone(&self.shared), self.stop.clone());
        let mut story = shared.story.subscribe();
        let say = |event| Ok(chain::ChainEvent { event: Some(event) });
        let stream = async_stream::stream! {
            let (mut was, mut next) = (was, next);
            loop {
                let now = story.borrow_and_update().clone();
                for ancestor in &now.forks[was.forks.len()..] {
                    if ancestor + 1 >= next {
                        continue;
                    }
                    let (ancestor, abandoned) = (was.block(*ancestor), was.block(next - 1));
                    next = ancestor.number + 1;
                    yield say(Event::Reorganisation(chain::Reorganisation {
                        ancestor: Some(ancestor),
                        abandoned: Some(abandoned),
                    }));
                }
                for told in &now.told[was.told.len()..] {
                    yield say(Event::Degradation(told.clone()));
                }
                while next <= now.head {
                    let stutters = shared.fault == Fault::Stutters;
                    let send = if stutters { vec![next, next, next - 1] } else { vec![next] };
                    for number in send {
                        shared.book.lock().unwrap().sent.push(number);
                        yield say(Event::Block(now.block(number)));
                    }
                    next += 1;
                }
                was = now;
                tokio::select! {
                    changed = story.changed() => if changed.is_err() { break },
                    () = stop.cancelled() => break,
                }
            }
        };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn get_status(
        &self,
        _: Request<chain::GetStatusRequest>,
    ) -> Answer<chain::GetStatusResponse> {
        Err(Status::unimplemented("no scheduler asks"))
    }

    async fn list_intents(
        &self,
        _: Request<chain::ListIntentsRequest>,
    ) -> Answer<chain::ListIntentsResponse> {
        Err(Status::unimplemented("no scheduler asks"))
    }

    async fn get_block(
        &self,
        request: Request<chain::GetBlockRequest>,
    ) -> Answer<chain::GetBlockResponse> {
        let (request, story) = (request.into_inner(), self.shared.story.borrow().clone());
        let number = request.number.unwrap_or(story.head);
        if number > story.head {
            return Err(Status::not_found(format!("no block {number}")));
        }
        story.agreed(request.agreed, number)?;
        Ok(Response::new(chain::GetBlockResponse {
            block: Some(story.block(number)),
            agreed_by: 2,
            degradations: self.degradations(),
        }))
    }

    async fn get_metagraph(
        &self,
        request: Request<chain::GetMetagraphRequest>,
    ) -> Answer<chain::Metagraph> {
        let number = self.height(request.into_inner().at)?;
        Ok(Response::new(chain::Metagraph {
            block: number,
            block_hash: self.shared.story.borrow().block(number).hash,
            neurons: subnet::neurons(
                number,
                self.shared.fault == Fault::NeverPaid,
                self.shared.story.borrow().reveals.map(|(_, _, stake)| stake),
            ),
            weights_rate_limit: 1,
            min_allowed_weights: 1,
            ..chain::Metagraph::default()
        }))
    }

    async fn get_weights(
        &self,
        request: Request<chain::GetWeightsRequest>,
    ) -> Answer<chain::GetWeightsResponse> {
        self.height(request.into_inner().at)?;
        // The other validator votes for the third miner.
        let weights = vec![chain::Weight { uid: 4, value: 65_535 }];
        let rows = match self.shared.fault == Fault::NeverPaid {
            true => vec![chain::WeightRow { uid: 1, weights }],
            false => Vec::new(),
        };
        Ok(Response::new(chain::GetWeightsResponse { rows }))
    }

    async fn get_commitments(
        &self,
        request: Request<chain::GetCommitmentsRequest>,
    ) -> Answer<chain::GetCommitmentsResponse> {
        let request = request.into_inner();
        let number = self.height(request.at)?;
        let story = self.shared.story.borrow().clone();
        story.agreed(request.agreed, number)?;
        let commitments = match number % CYCLE {
            12 => {
                let mut all = subnet::first_commitments(self.own(number + 4, "seed"));
                let validators = [subnet::ME, subnet::OTHER];
                all.retain(|(seed, _)| {
                    self.shared.fault != Fault::Seedless || !validators.contains(seed)
                });
                all
            }
            16 => subnet::second_commitments(),
            32 => subnet::signatures(self.own(number - 16, "signed_hash"), story.reveals),
            0 => subnet::reveals(self.own(number - 20, "model_hash"), story.reveals),
            _ => return Err(Status::invalid_argument(format!("nobody asks for block {number}"))),
        };
        let commitments = commitments.into_iter().map(|(seed, data)| chain::Commitment {
            hotkey: hotkey(seed).to_string(),
            block: number - 1,
            data: data.into(),
            kind: String::new(),
        });
        Ok(Response::new(chain::GetCommitmentsResponse {
            commitments: commitments.collect(),
            block: Some(story.block(number)),
            degradations: self.degradations(),
            ..chain::GetCommitmentsResponse::default()
        }))
    }

    async fn submit_intent(
        &self,
        request: Request<chain::SubmitIntentRequest>,
    ) -> Answer<chain::Intent> {
        self.known(&request)?;
        let chain::SubmitIntentRequest { key: Some(key), payload: Some(payload) } =
            request.into_inner()
        else {
            return Err(Status::invalid_argument("key and payload"));
        };
        let name = (key.round, key.kind.clone());
        let mut book = self.shared.book.lock().unwrap();
        book.submitted.push((name.clone(), payload.clone()));
        if self.shared.fault == Fault::RefusesWeights && key.kind == "weights" {
            return Err(Status::failed_precondition("superseded by a newer round"));
        }
        let (known, asked) = book.intents.entry(name).or_insert((payload.clone(), 0));
        if *known != payload {
            return Err(Status::already_exists("another payload under the same key"));
        }
        Ok(Response::new(intent(key, *asked)))
    }

    async fn get_intent(&self, request: Request<chain::GetIntentRequest>) -> Answer<chain::Intent> {
        let key = request.into_inner().key.ok_or_else(|| Status::invalid_argument("key"))?;
        let name = (key.round, key.kind.clone());
        let mut book = self.shared.book.lock().unwrap();
        if self.shared.fault == Fault::Forgetful && !book.forgotten.contains(&name) {
            book.intents.remove(&name);
            book.forgotten.push(name);
            return Err(Status::not_found("no such intent"));
        }
        let lands = self.shared.fault != Fault::NeverLands;
        let Some((_, asked)) = book.intents.get_mut(&name) else {
            return Err(Status::not_found("no such intent"));
        };
        *asked += u32::from(lands);
        Ok(Response::new(intent(key, *asked)))
    }

    async fn sign(&self, request: Request<chain::SignRequest>) -> Answer<chain::SignResponse> {
        self.known(&request)?;
        let message = match request.into_inner().purpose {
            Some(Purpose::ModelHash(hash)) => hash.into_bytes(),
            Some(Purpose::RecordDigest(digest)) => [b"connito.record.v1:", &digest[..]].concat(),
            Some(Purpose::PeerDigest(_)) | None => {
                return Err(Status::invalid_argument("not a scheduler's purpose"));
            }
        };
        let signature = keypair(self.shared.seed).sign_simple(b"substrate", &message);
        let signature = signature.to_bytes().to_vec().into();
        Ok(Response::new(chain::SignResponse { signature }))
    }
}

/// An intent that lands while it is asked about.
fn intent(key: chain::IntentKey, asked: u32) -> chain::Intent {
    let state = match asked {
        0 => IntentState::Recorded,
        1 => IntentState::Submitted,
        2 => IntentState::Included,
        _ => IntentState::Done,
    };
    let (extrinsic_hash, block) = match asked {
        0 => (Vec::new(), 0),
        1 => (vec![7; 32], 0),
        _ => (vec![7; 32], key.round),
    };
    let extrinsic_hash = extrinsic_hash.into();
    chain::Intent {
        key: Some(key),
        state: state.into(),
        extrinsic_hash,
        block,
        ..Default::default()
    }
}
