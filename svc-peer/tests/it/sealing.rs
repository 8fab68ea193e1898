//! Messages signed by whom a test likes, and what they are answered.

use bytes::Bytes;
use svc_peer::message::Body;
use tonic::{Code, Status};

use crate::network::sign;

/// A message with the signature of a seed.
pub(crate) fn sealed<M: Body>(by: u8, message: &M) -> (Bytes, Bytes) {
    let body = message.encode();
    let signature = sign(by, &M::digest(&body)).to_vec().into();
    (body, signature)
}

#[track_caller]
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    code: Code,
    reason: &str,
) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(status.message().starts_with(&format!("{reason}:")), "{}", status.message());
}
