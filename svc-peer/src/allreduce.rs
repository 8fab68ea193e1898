//! The all-reduce among agreed members: a butterfly. Each member reduces the slice that it owns and
//! gives it to all others, so that all end with the same bits; then they compare digests.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use domain::Hotkey;
use futures::{
    StreamExt as _,
    future::{join_all, try_join_all},
    stream::FuturesUnordered,
};
use tokio::sync::{mpsc, watch};
use tracing::{instrument, warn};

use crate::{
    calls::{CallError, Caller},
    members::Members,
    messages::What,
    plan::Timetable,
    reduce::{self, Slices},
    report::{Failure, LeftOut, SliceDigest},
    round::{Heard, Shown},
};

/// The reduced vector, and where its parts are from.
#[derive(Debug)]
pub(crate) struct Whole {
    /// The mean of the members' gradients.
    pub(crate) vector: Vec<f32>,
    /// BLAKE3 of its bytes.
    pub(crate) digest: [u8; 32],
    /// Its slices.
    pub(crate) slices: Vec<SliceDigest>,
    /// Members whose gradient could not be had for the slice of this validator.
    pub(crate) dropped: Vec<LeftOut>,
}

/// An all-reduce that one member takes part in.
#[derive(Debug)]
pub(crate) struct AllReduce<'a> {
    /// How the others are called.
    pub(crate) caller: &'a Caller,
    /// This validator.
    pub(crate) me: &'a Hotkey,
    /// Everybody.
    pub(crate) members: &'a Members,
    /// When what must be over.
    pub(crate) times: Timetable,
}

impl AllReduce<'_> {
    fn set(&self) -> BTreeSet<Hotkey> {
        self.members.all().iter().cloned().collect()
    }

    fn others(&self) -> impl Iterator<Item = &Hotkey> {
        self.members.all().iter().filter(|member| *member != self.me)
    }

    /// Reduces the own slice, shows it to the others, and gathers theirs: vectors of `len` values.
    #[instrument(skip_all, fields(members = self.members.all().len(), values = len))]
    pub(crate) async fn run(
        &self,
        gradient: Option<&[f32]>,
        len: usize,
        shown: &watch::Sender<Shown>,
    ) -> Result<Whole, Failure> {
        let slices = Slices { len, parts: self.members.all().len() };
        let Some(mine) = self.members.index_of(self.me) else {
            return Err(Failure::NoAgreement { met: 0, expected: slices.parts });
        };
        let (own, dropped) = self.reduce_own(mine, gradient, slices).await?;
        let own = Arc::new(own);
        shown.send_modify(|shown| shown.reduced = Some(Arc::clone(&own)));

        let gathered = self.members.all().iter().enumerate().map(|(slice, owner)| {
            let own = &own;
            async move {
                if slice == mine {
                    return Ok((own.to_vec(), reduce::digest(own)));
                }
                let (set, len) = (self.set(), slices.range(slice).len());
                let pull = || self.caller.pull(owner, What::Reduced, slice, len, &set);
                let pulled = self.caller.insist(self.times.end(), pull).await;
                pulled.map(|pulled| (pulled.values, pulled.digest)).map_err(|error| {
                    let why = error.to_string();
                    Failure::SliceMissing { slice, owner: owner.clone(), why }
                })
            }
        });
        let parts = try_join_all(gathered).await?;
        let digests = self.members.all().iter().zip(&parts).map(|(owner, (_, digest))| {
            SliceDigest { owner: owner.clone(), digest: hex::encode(digest) }
        });
        let slices = digests.collect();
        let join = move || {
            let mut vector = Vec::with_capacity(len);
            parts.iter().for_each(|(values, _)| vector.extend_from_slice(values));
            let digest = reduce::digest(&vector);
            (vector, digest)
        };
        let joined = tokio::task::spawn_blocking(join).await;
        let (vector, digest) = joined.map_err(|error| Failure::Aggregate(error.to_string()))?;
        Ok(Whole { vector, digest, slices, dropped })
    }

    /// The mean of the members' gradients over the own slice. A member whose gradient does not come
    /// in time, or is not usable, costs its own contribution only.
    async fn reduce_own(
        &self,
        mine: usize,
        gradient: Option<&[f32]>,
        slices: Slices,
    ) -> Result<(Vec<f32>, Vec<LeftOut>), Failure> {
        let range = slices.range(mine);
        let set = &self.set();
        let pulls = self.members.givers().iter().map(|giver| {
            let range = range.clone();
            async move {
                if giver == self.me {
                    let own = gradient.and_then(|gradient| gradient.get(range));
                    return (giver, own.map(<[f32]>::to_vec).ok_or(CallError::CutShort));
                }
                let pull = || self.caller.pull(giver, What::Gradient, mine, range.len(), set);
                let pulled = self.caller.insist(self.times.gradients(), pull).await;
                (giver, pulled.map(|pulled| pulled.values))
            }
        });
        // In the order of the members, whatever the order of arrival.
        let (mut parts, mut dropped) = (Vec::new(), Vec::new());
        for (giver, pulled) in join_all(pulls).await {
            match pulled {
                Ok(values) => parts.push(values),
                Err(error) => {
                    warn!(peer = %giver, slice = mine, %error, "gradient left out of the slice");
                    dropped.push(LeftOut {
                        hotkey: giver.clone(),
                        reason: error.reason().to_owned(),
                        detail: format!("slice {mine}: {error}"),
                    });
                }
            }
        }
        if parts.is_empty() {
            return Err(Failure::SliceEmpty { slice: mine });
        }
        let reduce = move || reduce::mean(&parts);
        let mean = tokio::task::spawn_blocking(reduce).await;
        Ok((mean.map_err(|error| Failure::Aggregate(error.to_string()))?, dropped))
    }

    /// Compares digests with every other member: asked, or told by them.
    #[instrument(skip_all)]
    pub(crate) async fn confirm(
        &self,
        digest: [u8; 32],
        heard: &mut mpsc::Receiver<Heard>,
    ) -> Result<(), Failure> {
        let mut open: BTreeSet<&Hotkey> = self.others().collect();
        let mut asked: FuturesUnordered<_> = self
            .others()
            .map(|member| async move {
                let ask = || self.caller.confirm(member, digest);
                (member, self.caller.insist(self.times.end(), ask).await)
            })
            .collect();
        let mut silent = BTreeMap::new();
        while !open.is_empty() {
            let (member, answer) = tokio::select! {
                Some(answer) = asked.next() => answer,
                Some(said) = heard.recv() => match said {
                    Heard::Digest(member, digest) => {
                        let Some(member) = open.get(&member) else { continue };
                        (*member, Ok(digest))
                    }
                    Heard::Hello(..) => continue,
                },
                () = tokio::time::sleep_until(self.times.end()) => break,
            };
            match answer {
                Ok(theirs) if theirs == digest => {
                    open.remove(member);
                }
                Ok(theirs) => {
                    let (ours, theirs) = (hex::encode(digest), hex::encode(theirs));
                    return Err(Failure::DigestsDiffer { member: member.clone(), ours, theirs });
                }
                Err(error) if error.lasts() => {
                    let why = error.to_string();
                    return Err(Failure::NotConfirmed { member: member.clone(), why });
                }
                Err(error) => {
                    silent.insert(member, error);
                }
            }
        }
        match open.into_iter().next() {
            None => Ok(()),
            Some(member) => {
                let why = silent.get(member).map_or("too late".to_owned(), ToString::to_string);
                Err(Failure::NotConfirmed { member: member.clone(), why })
            }
        }
    }
}
