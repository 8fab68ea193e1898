//! A member that follows the protocol but for one lie: it costs its own contribution, or the merge
//! by name; never the model.

use std::pin::Pin;

use bytes::Bytes;
use domain::{ExpertGroup, Hotkey};
use futures::{Stream, StreamExt as _, stream};
use kit::{GrpcServer, Shutdown, Tls};
use proto::peer::v1::{
    self as wire, MergeStatus,
    chunk::Part,
    peer_service_server::{PeerService, PeerServiceServer},
};
use svc_peer::{
    messages::{Body as _, Confirm, Envelope, Hello, Kind, Offer, SliceRequest, What},
    reduce::{self, Slices},
};
use tonic::{Request, Response, Status};

use crate::{
    hostile::{HONEST, LIAR, STRANGER, both, envelope, place, sealed},
    network::{Member, NEW_VERSION, hotkey, miner, sign},
};

/// How a lying member lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    Nothing,
    AnswersAnotherHello,
    AnswersInTheNameOfAnother,
    GradientNotFinite,
    GradientTooShort,
    GradientTooLong,
    GradientNotSigned,
    GradientCutShort,
    ReducedNotFinite,
    ReducedOtherBits,
    OtherDigest,
}

/// A peer service that follows the protocol but for one lie.
struct Liar {
    lie: Lie,
    honest: String,
    slices: Slices,
}

type Chunks = Pin<Box<dyn Stream<Item = Result<wire::Chunk, Status>> + Send>>;

impl Liar {
    /// The slice as it would be sent, and a valid end for it.
    fn chunks(&self, request: &Bytes, values: &[f32], lie: Option<Lie>) -> Chunks {
        let mut data = reduce::to_bytes(values).to_vec();
        match lie {
            Some(Lie::GradientTooShort) => data.truncate(data.len() - 4),
            Some(Lie::GradientTooLong) => data.extend([0; 4]),
            _ => {}
        }
        let digest: [u8; 32] = blake3::hash(&data).into();
        let by = if lie == Some(Lie::GradientNotSigned) { STRANGER } else { LIAR };
        let signature = sign(by, &Kind::Chunk.digest(&[request, &digest])).to_vec().into();
        let digest = Bytes::copy_from_slice(&digest);
        let mut parts: Vec<Part> =
            data.chunks(9_999).map(|c| Part::Data(Bytes::copy_from_slice(c))).collect();
        if lie != Some(Lie::GradientCutShort) {
            parts.push(Part::End(wire::ChunkEnd { digest, signature }));
        }
        stream::iter(parts.into_iter().map(|part| Ok(wire::Chunk { part: Some(part) }))).boxed()
    }

    fn ones(&self, slice: usize) -> Vec<f32> {
        vec![1.0; self.slices.range(slice).len()]
    }
}

#[tonic::async_trait]
impl PeerService for Liar {
    type GetGradientStream = Chunks;
    type GetReducedStream = Chunks;

    async fn hello(
        &self,
        request: Request<wire::SignedHello>,
    ) -> Result<Response<wire::SignedHello>, Status> {
        let asked = Hello::open(&request.get_ref().body, &request.get_ref().signature).unwrap();
        let mut answer = Hello {
            envelope: Envelope { in_reply_to: Some(asked.envelope.nonce), ..envelope(7) },
            offer: Offer { has_gradient: true, ..asked.offer },
            met: both(),
        };
        if self.lie == Lie::AnswersAnotherHello {
            answer.envelope.in_reply_to = Some([0; 16]);
        }
        let other = self.lie == Lie::AnswersInTheNameOfAnother;
        let (body, signature) = sealed(if other { STRANGER } else { LIAR }, &answer);
        Ok(Response::new(wire::SignedHello { body, signature }))
    }

    async fn get_gradient(
        &self,
        request: Request<wire::SliceRequest>,
    ) -> Result<Response<Chunks>, Status> {
        let mut values = self.ones(place(HONEST));
        if self.lie == Lie::GradientNotFinite {
            values[1] = f32::NAN;
        }
        Ok(Response::new(self.chunks(&request.get_ref().body, &values, Some(self.lie))))
    }

    async fn get_reduced(
        &self,
        request: Request<wire::SliceRequest>,
    ) -> Result<Response<Chunks>, Status> {
        let mine = place(LIAR);
        let nonce = rand::random();
        let ask = SliceRequest {
            envelope: Envelope { nonce, ..envelope(0) },
            slice: mine,
            members: both(),
            what: What::Gradient,
        };
        let (body, signature) = sealed(LIAR, &ask);
        let channel = kit::channel(&self.honest, &Tls::default()).unwrap();
        let mut client = wire::peer_service_client::PeerServiceClient::new(channel);
        let mut stream =
            client.get_gradient(wire::SliceRequest { body, signature }).await?.into_inner();
        let mut reader = reduce::Reader::default();
        while let Some(wire::Chunk { part: Some(Part::Data(data)) }) = stream.message().await? {
            reader.push(&data);
        }
        let mut parts = vec![reader.into_values(), self.ones(mine)];
        if mine == 0 {
            parts.reverse();
        }
        let mut values = reduce::mean(&parts);
        if self.lie == Lie::ReducedNotFinite {
            values[1] = f32::INFINITY;
        } else if self.lie == Lie::ReducedOtherBits {
            values[1] += 1.0;
        }
        Ok(Response::new(self.chunks(&request.get_ref().body, &values, None)))
    }

    async fn confirm(
        &self,
        request: Request<wire::SignedConfirm>,
    ) -> Result<Response<wire::SignedConfirm>, Status> {
        let asked = Confirm::open(&request.get_ref().body, &request.get_ref().signature).unwrap();
        let envelope = Envelope { in_reply_to: Some(asked.envelope.nonce), ..envelope(9) };
        // It has reduced to what it likes to have reduced to, except for whom it sent other bits.
        let lies = matches!(self.lie, Lie::OtherDigest | Lie::ReducedOtherBits);
        let digest = if lies { [9; 32] } else { asked.digest };
        let (body, signature) = sealed(LIAR, &Confirm { envelope, digest });
        Ok(Response::new(wire::SignedConfirm { body, signature }))
    }
}

/// Number of values in the honest validator's vectors.
fn len(honest: &Member) -> usize {
    let folder = honest.artifacts().join(&honest.base.prefix);
    let manifest = checkpoint::Manifest::read(&folder).unwrap();
    let layout = manifest.layout(ExpertGroup(0)).unwrap();
    layout.tensors.values().map(checkpoint::TensorSpec::elements).sum()
}

/// The honest validator's end of a merge with a liar, and its folder.
async fn merge_with(lie: Lie) -> (Member, MergeStatus) {
    let mut honest = Member::new(HONEST, 0.0).await;
    let server = GrpcServer::bind("127.0.0.1:0".parse().unwrap(), &Tls::default()).await.unwrap();
    let url = format!("http://{}", server.local_addr());
    honest.config.peer_urls.insert(hotkey(LIAR), url);
    let slices = Slices { len: len(&honest), parts: 2 };
    let liar = Liar { lie, honest: honest.url(), slices };
    let server = server.add(PeerServiceServer::new(liar));
    let shutdown = Shutdown::default();
    let stop = shutdown.clone();
    let serving = shutdown.spawn(async move { kit::serve(server, stop).await.unwrap() });

    honest.start().await;
    let miners = [miner(11, "miner1_g0.safetensors", 1.0)];
    let mut request = honest.request(&[hotkey(LIAR)], &miners);
    request.deadline_ms = 10_000;
    let status = honest.merge(request).await;
    honest.kill().await;
    shutdown.cancel();
    serving.await.unwrap();
    (honest, status)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_liar_is_believed_while_it_does_not_lie() {
    let (_, status) = merge_with(Lie::Nothing).await;
    assert_eq!(status.outcome, "merged", "{}", status.detail);
    assert_eq!(status.detail, "");
    let both: Vec<String> = both().iter().map(Hotkey::to_string).collect();
    assert_eq!(status.members, both);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_the_askeds_to_the_question_is_no_meeting() {
    for lie in [Lie::AnswersAnotherHello, Lie::AnswersInTheNameOfAnother] {
        let (_, status) = merge_with(lie).await;
        assert_eq!(status.outcome, "failed", "{lie:?}");
        let named = format!("{} (not_reached)", hotkey(LIAR));
        assert!(status.detail.contains(&named), "{lie:?}: {}", status.detail);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_garbage_gradient_costs_only_its_own_contribution() {
    for (lie, reason) in [
        (Lie::GradientNotFinite, "non_finite"),
        (Lie::GradientTooShort, "garbage"),
        (Lie::GradientTooLong, "garbage"),
        (Lie::GradientNotSigned, "untrusted"),
        (Lie::GradientCutShort, "cut_short"),
    ] {
        let (honest, status) = merge_with(lie).await;
        assert_eq!(status.outcome, "merged", "{lie:?}: {}", status.detail);
        let named = format!("gradients dropped: {} ({reason})", hotkey(LIAR));
        assert!(status.detail.contains(&named), "{lie:?}: {}", status.detail);
        assert!(honest.artifacts().join(format!("models/{NEW_VERSION}/manifest.json")).exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reduced_slice_or_digest_that_is_not_right_fails_the_merge_and_names_the_member() {
    for (lie, why) in [
        (Lie::ReducedNotFinite, "not finite"),
        (Lie::ReducedOtherBits, "has reduced to"),
        (Lie::OtherDigest, "has reduced to"),
    ] {
        let (honest, status) = merge_with(lie).await;
        assert_eq!(status.outcome, "failed", "{lie:?}");
        assert!(status.detail.contains(why), "{lie:?}: {}", status.detail);
        assert!(status.detail.contains(hotkey(LIAR).as_str()), "{lie:?}: {}", status.detail);
        assert_eq!(status.model.as_ref(), Some(&honest.base));
        assert!(!honest.artifacts().join(format!("models/{NEW_VERSION}")).exists());
    }
}
