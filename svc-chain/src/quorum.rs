//! Reads that decide money: independent endpoints must agree on them.
//!
//! As many endpoints as the quorum asks for are asked, and the others only where those do not
//! agree. [`decide`] holds the rule; what is read is the caller's business.

use std::collections::BTreeMap;

use domain::BlockNumber;
use futures::future::join_all;

use crate::{
    chain::Chain,
    config::OnDisagreement,
    degradations::{Degradation, Degradations, Kind},
    error::Error,
    metrics,
};

/// Equal for equal answers.
pub(crate) type Digest = [u8; 32];

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Quorum {
    /// Endpoints that must agree.
    wanted: usize,
    policy: OnDisagreement,
    degradations: Degradations,
}

/// An answer, and how many gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agreed<T> {
    pub(crate) value: T,
    /// Endpoints that were asked and agree.
    pub(crate) by: u32,
    pub(crate) degradations: Vec<Degradation>,
}

impl<T> Agreed<T> {
    /// What one endpoint says.
    pub(crate) fn by_one(value: T) -> Self {
        Self { value, by: 1, degradations: Vec::new() }
    }
}

/// What follows from the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Enough of them, and more than half, say this.
    Agreed(Digest),
    /// There are enough of them, and they differ.
    Differ,
    /// There are too few of them.
    TooFew,
}

/// A majority of at least `wanted` equal answers decides.
fn decide(answers: impl Iterator<Item = Digest>, wanted: usize) -> Verdict {
    let mut counts: BTreeMap<Digest, usize> = BTreeMap::new();
    for answer in answers {
        *counts.entry(answer).or_insert(0) += 1;
    }
    let total: usize = counts.values().sum();
    match counts.iter().max_by_key(|(_, count)| **count) {
        Some((answer, count)) if *count >= wanted && 2 * count > total => Verdict::Agreed(*answer),
        Some(_) if total >= wanted && counts.len() > 1 => Verdict::Differ,
        Some(_) | None => Verdict::TooFew,
    }
}

/// The answers of one question.
struct Round<T> {
    /// By rank, in the order of preference.
    answers: Vec<(usize, Digest, T)>,
    failures: Vec<Error>,
}

impl Quorum {
    pub(crate) fn new(wanted: usize, policy: OnDisagreement, degradations: Degradations) -> Self {
        Self { wanted, policy, degradations }
    }

    /// Endpoints that must agree.
    pub(crate) fn wanted(&self) -> usize {
        self.wanted
    }

    /// Reads what is named `what`, as of `block`, until enough endpoints agree on it.
    pub(crate) async fn ask<T, F>(
        &self,
        chain: &Chain,
        what: &'static str,
        block: BlockNumber,
        digest: fn(&T) -> Digest,
        read: impl Fn(Chain) -> F,
    ) -> Result<Agreed<T>, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let order = chain.nodes().order();
        let (first, rest) = order.split_at(self.wanted.min(order.len()));
        let mut round = Round { answers: Vec::new(), failures: Vec::new() };
        let mut verdict = Verdict::TooFew;
        for ranks in [first, rest] {
            let asked = ranks.iter().map(|rank| async {
                let only = chain.only(*rank).await?;
                Ok((*rank, read(only).await?))
            });
            for answer in join_all(asked).await {
                match answer {
                    Ok((rank, value)) => round.answers.push((rank, digest(&value), value)),
                    Err(error) => round.failures.push(error),
                }
            }
            verdict = decide(round.answers.iter().map(|(_, digest, _)| *digest), self.wanted);
            if matches!(verdict, Verdict::Agreed(_)) {
                break;
            }
        }
        self.conclude(chain, what, block, round, verdict)
    }

    fn conclude<T>(
        &self,
        chain: &Chain,
        what: &'static str,
        block: BlockNumber,
        mut round: Round<T>,
        verdict: Verdict,
    ) -> Result<Agreed<T>, Error> {
        let url = |rank: &usize| chain.nodes().url(*rank).to_owned();
        match verdict {
            Verdict::Agreed(decided) => {
                metrics::quorum("agreed");
                let others = round.answers.iter().filter(|(_, digest, _)| *digest != decided);
                let detail = |(rank, digest, _): &(usize, Digest, T)| {
                    let (told, decided) = (short(digest), short(&decided));
                    format!(
                        "{}: {what} as of block {block}: it says {told}, others {decided}",
                        url(rank)
                    )
                };
                let details: Vec<String> = others.map(detail).collect();
                let degradations = self.note(Kind::EndpointDisagrees, details, block);
                round.answers.retain(|(_, digest, _)| *digest == decided);
                let by = u32::try_from(round.answers.len()).unwrap_or(u32::MAX);
                let value = round.answers.into_iter().next().map(|(_, _, value)| value);
                value
                    .map(|value| Agreed { value, by, degradations })
                    .ok_or_else(|| Error::Unreadable { what, why: "nobody answered".to_owned() })
            }
            Verdict::Differ => {
                metrics::quorum("disagreement");
                let told = round
                    .answers
                    .iter()
                    .map(|(rank, digest, _)| format!("{} says {}", url(rank), short(digest)));
                let told = told.collect::<Vec<_>>().join(", ");
                let detail = format!("{what} as of block {block}: {told}");
                match self.policy {
                    OnDisagreement::Hold => {
                        self.note(Kind::EndpointDisagrees, vec![detail], block);
                        Err(Error::Disagreement { what, wanted: self.wanted, told })
                    }
                    OnDisagreement::Best => {
                        let (_, best, value) = round.answers.remove(0);
                        let same = round.answers.iter().filter(|(_, digest, _)| *digest == best);
                        let by = 1 + u32::try_from(same.count()).unwrap_or(u32::MAX - 1);
                        let degradations = self.note(Kind::NoQuorum, vec![detail], block);
                        Ok(Agreed { value, by, degradations })
                    }
                }
            }
            Verdict::TooFew => {
                metrics::quorum("no_quorum");
                let telling = |error: &&Error| {
                    matches!(
                        error,
                        Error::NoSuchBlock(_) | Error::StateDiscarded(_) | Error::NoSuchSubnet(_)
                    )
                };
                // Nobody has it: that is an answer of its own.
                if round.answers.is_empty()
                    && let Some(error) = round.failures.iter().find(telling)
                {
                    return Err(error.clone());
                }
                let why = match round.failures.as_slice() {
                    [] => "the others are left alone for a while".to_owned(),
                    failures => {
                        let failures: Vec<_> = failures.iter().map(Error::to_string).collect();
                        failures.join("; ")
                    }
                };
                Err(Error::NoQuorum { what, wanted: self.wanted, got: round.answers.len(), why })
            }
        }
    }

    fn note(&self, kind: Kind, details: Vec<String>, block: BlockNumber) -> Vec<Degradation> {
        let note = |detail: String| {
            self.degradations.note(kind, detail.clone(), block);
            Degradation::new(kind, detail, block)
        };
        details.into_iter().map(note).collect()
    }
}

/// Enough of a digest for a person to tell it from another.
fn short(digest: &Digest) -> String {
    hex::encode(&digest[..6])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(answers: &[u8], wanted: usize) -> Verdict {
        decide(answers.iter().map(|answer| [*answer; 32]), wanted)
    }

    #[test]
    fn a_majority_of_enough_equal_answers_decides() {
        assert_eq!(of(&[1, 1], 2), Verdict::Agreed([1; 32]));
        assert_eq!(of(&[1, 2, 1], 2), Verdict::Agreed([1; 32]));
        assert_eq!(of(&[1], 1), Verdict::Agreed([1; 32]));
    }

    #[test]
    fn too_few_are_told_from_those_that_differ() {
        assert_eq!(of(&[], 2), Verdict::TooFew);
        assert_eq!(of(&[1], 2), Verdict::TooFew);
        assert_eq!(of(&[1, 1], 3), Verdict::TooFew);
        assert_eq!(of(&[1, 2], 2), Verdict::Differ);
        assert_eq!(of(&[1, 1, 2, 2], 2), Verdict::Differ, "half is no majority");
        assert_eq!(of(&[1, 1, 2], 3), Verdict::Differ);
    }

    proptest! {
        /// What is decided was said by enough, and by more than said anything else.
        #[test]
        fn no_minority_decides(answers in prop::collection::vec(0u8..4, 0..9), wanted in 1usize..5) {
            if let Verdict::Agreed(decided) = of(&answers, wanted) {
                let same = answers.iter().filter(|answer| [**answer; 32] == decided).count();
                prop_assert!(same >= wanted);
                prop_assert!(same > answers.len() - same);
            }
        }
    }
}
