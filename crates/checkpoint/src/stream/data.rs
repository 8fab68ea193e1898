//! The data of tensors as they pass: every value is looked at, and hashed where the order allows it.

use std::collections::BTreeMap;

use bytes::Bytes;
use domain::ModelHash;

use super::lane::Lane;
use crate::{
    dtype::Dtype,
    finite::first_non_finite,
    refusal::Refusal,
    tensor::{TensorInfo, TensorSpec},
};

/// No element is larger.
const MAX_ELEMENT: usize = 8;

/// A tensor's contiguous data in a region of the file.
#[derive(Debug)]
struct Segment {
    name: String,
    dtype: Dtype,
    start: usize,
    end: usize,
}

/// A part of the file that is passing, and the tensors in it.
#[derive(Debug)]
pub(super) struct Region {
    /// In reverse order of place; no two overlap and none is empty.
    segments: Vec<Segment>,
    at: usize,
    /// An element of which only the first bytes have come.
    carry: [u8; MAX_ELEMENT],
    carried: usize,
}

impl Region {
    /// A region that begins at byte `at`, from which the places of the tensors are counted as well. `None` when a
    /// tensor is not contiguous or shares bytes with another one: they cannot be followed one after the other.
    pub(super) fn new<'a>(
        at: usize,
        tensors: impl Iterator<Item = (&'a str, &'a TensorInfo)>,
    ) -> Option<Self> {
        let mut segments = Vec::new();
        for (name, info) in tensors.filter(|(_, info)| info.bytes() > 0) {
            if !info.contiguous() {
                return None;
            }
            let (start, end) = (info.start(), info.start().checked_add(info.bytes())?);
            segments.push(Segment { name: name.to_owned(), dtype: info.dtype(), start, end });
        }
        segments.sort_unstable_by_key(|segment| std::cmp::Reverse(segment.start));
        let apart =
            |pair: &[Segment]| matches!(pair, [later, earlier] if earlier.end <= later.start);
        segments.windows(2).all(apart).then_some(Self {
            segments,
            at,
            carry: [0; MAX_ELEMENT],
            carried: 0,
        })
    }

    /// Whether all tensors have passed.
    pub(super) fn is_done(&self) -> bool {
        self.segments.is_empty()
    }

    /// The next bytes, and what they are a part of if that may be kept. `non_finite` as soon as such a value is
    /// complete.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        of: Option<&Bytes>,
        hash: &mut OrderedHash,
    ) -> Result<(), Refusal> {
        while let Some(segment) = self.segments.last() {
            let skipped = segment.start.saturating_sub(self.at).min(bytes.len());
            let (_, data) = bytes.split_at(skipped);
            self.at += skipped;
            let (data, rest) =
                data.split_at(data.len().min(segment.end - self.at.min(segment.end)));
            if data.is_empty() {
                return Ok(());
            }
            if self.at == segment.start {
                hash.begin(&segment.name);
            }
            hash.data(data, of);
            scan(segment, self.at, data, &mut self.carry, &mut self.carried)?;
            self.at += data.len();
            bytes = rest;
            if self.at == segment.end {
                self.segments.pop();
            }
        }
        self.at += bytes.len();
        Ok(())
    }
}

/// Looks at the elements that are complete with these bytes of a tensor, and keeps the beginning of the next one.
fn scan(
    segment: &Segment,
    at: usize,
    mut data: &[u8],
    carry: &mut [u8; MAX_ELEMENT],
    carried: &mut usize,
) -> Result<(), Refusal> {
    let size = segment.dtype.size();
    let refuse = |index, value: &str| Refusal::NonFinite {
        name: segment.name.clone(),
        index,
        value: value.to_owned(),
    };
    let first = (at - segment.start) / size;
    let mut index = first;
    if *carried > 0 {
        let (part, rest) = data.split_at((size - *carried).min(data.len()));
        for (to, from) in carry.iter_mut().skip(*carried).zip(part) {
            *to = *from;
        }
        *carried += part.len();
        data = rest;
        if *carried < size {
            return Ok(());
        }
        let element = carry.get(..size).unwrap_or_default();
        if let Some((_, value)) = first_non_finite(segment.dtype, element) {
            return Err(refuse(first, value));
        }
        index += 1;
    }
    if let Some((nth, value)) = first_non_finite(segment.dtype, data) {
        return Err(refuse(index + nth, value));
    }
    let (_, ragged) = data.split_at(data.len() - data.len() % size);
    for (to, from) in carry.iter_mut().zip(ragged) {
        *to = *from;
    }
    *carried = ragged.len();
    Ok(())
}

/// The model hash, for as long as the tensors come in ascending order of name.
#[derive(Debug)]
pub(super) struct OrderedHash {
    /// Every tensor that is still to come, last name first, and whether it has no data.
    names: Vec<(String, bool)>,
    /// `None` once one came out of order.
    lane: Option<Lane>,
}

impl OrderedHash {
    pub(super) fn new(specs: &BTreeMap<String, TensorSpec>) -> Self {
        let names = specs.iter().rev().map(|(name, spec)| (name.clone(), spec.bytes() == 0));
        Self { names: names.collect(), lane: Some(Lane::default()) }
    }

    /// For tensors that are known not to come in order.
    pub(super) fn out_of_order() -> Self {
        Self { names: Vec::new(), lane: None }
    }

    /// A tensor passes that cannot be hashed, or in another order.
    pub(super) fn give_up(&mut self) {
        *self = Self::out_of_order();
    }

    /// The data of this tensor come next. Those before it by name have passed, or have no data.
    fn begin(&mut self, name: &str) {
        while let (Some((next, empty)), Some(lane)) = (self.names.pop(), &mut self.lane) {
            lane.update(next.as_bytes(), None);
            if next == name {
                return;
            }
            if !empty {
                break;
            }
        }
        self.give_up();
    }

    fn data(&mut self, bytes: &[u8], of: Option<&Bytes>) {
        if let Some(lane) = &mut self.lane {
            lane.update(bytes, of);
        }
    }

    /// Nothing more of what is shared comes for now.
    pub(super) fn let_go(&mut self) {
        if let Some(lane) = &mut self.lane {
            lane.share_now();
        }
    }

    /// The hash of all tensors; `None` when they did not come in order, or not all.
    pub(super) fn finish(self) -> Option<ModelHash> {
        let mut lane = self.lane?;
        for (name, empty) in self.names.into_iter().rev() {
            if !empty {
                return None;
            }
            lane.update(name.as_bytes(), None);
        }
        Some(lane.finish()?.finish())
    }
}
