//! Model files of the subnet: read from strangers without trust, written for strangers without surprise.
//!
//! Two formats (`.safetensors` and Python's `.pt`), the model hash, the checks that decide whether a miner's file
//! can be evaluated, made of a whole file or of one that is still arriving, the slices in which a global model is
//! published, and the arithmetic of a merge: the weighted pseudo-gradient, how slices of it travel and are reduced, and
//! the outer step. Plain CPU code over mapped files, on all cores where there is much to do; it knows no tensors library,
//! no network and no clock.

mod aggregate;
mod checkpoint;
mod codec;
mod dtype;
mod finite;
mod groups;
mod hash;
mod hub;
mod layout;
mod manifest;
mod map;
mod optimizer;
mod overlay;
mod publish;
mod read;
mod reduce;
mod refusal;
mod sketch;
mod source;
mod state_file;
mod stream;
mod tensor;
mod vector;
mod verify;
mod write;

pub use aggregate::{AggregateError, Contribution, GradientError, PseudoGradient};
pub use checkpoint::{Checkpoint, Format, Limits, open};
pub use codec::{Codec, CodecError, Encoded, Feedback, FeedbackError, NextFeedback};
pub use dtype::{Dtype, decode_f32, encode_f32};
pub use groups::ExpertGroups;
pub use hash::model_hash;
pub use hub::{HubModel, SubnetForm, subnet_form};
pub use layout::{SliceId, SliceLayout};
pub use manifest::{Manifest, ManifestError, Slice};
pub use optimizer::{OptimizerState, OuterSgd, OuterStep, StateError, StepError, UnequalLengths};
pub use overlay::{Overlay, overlay};
pub use publish::{Publication, PublishError, PublishedModel, publish_model};
pub use reduce::{Excluded, Exclusion, Influence, Member, ReduceError, Reduced, Reduction, Rule};
pub use refusal::{Flaw, Refusal};
pub use sketch::sketch;
pub use source::{MemoryTensors, TensorSource};
pub use state_file::StateFileError;
pub use stream::{Outcome, Reread, RereadReason, Stream, Streamed};
pub use tensor::{TensorInfo, TensorSpec};
pub use vector::{
    CHUNK, ChunkDigests, DigestError, LayoutDigest, ReadError, Segment, Values, VectorLayout,
    WrongChunk,
};
pub use verify::{Verified, verify};
pub use write::{FileInfo, WriteError, write_pt, write_safetensors};
