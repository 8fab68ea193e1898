//! The part for weights: which road, whether the chain takes them, and what came of them.

use super::{Preflight, Verdict};
use crate::{
    chain::{AtBlock, Block},
    error::Error,
    failure::Failure,
    outbox::Intent,
    read,
    weights::{Commit, Mode, Opening, Reveal, Row, facts},
};

impl Preflight<'_> {
    pub(super) async fn weights(
        &self,
        at: &AtBlock,
        intent: &Intent,
        row: &Row,
        best: &Block,
    ) -> Result<Verdict, Error> {
        let mechanism = self.target.mechanism;
        let rules = match facts::rules(self.chain, at, self.hotkey, best, mechanism).await {
            Err(Error::NoSuchSubnet(_)) => return Ok(Verdict::Refuse(Failure::NoSuchSubnet)),
            rules => rules?,
        };
        let mode = match facts::offer(self.chain, at).await?.choose(self.preference) {
            Ok(mode) => mode,
            Err(failure) => return Ok(Verdict::Refuse(failure)),
        };
        let updated = rules.last_update;
        if mode == Mode::Plain
            && updated > intent.recorded_at
            && self.stored_row(at, row).await?.is_ok()
        {
            return self.there(updated).await;
        }
        // A node that refused an extrinsic and passed it on all the same made a commit of it.
        let committed = intent.how.as_ref().filter(|how| how.mode() != Mode::Plain);
        if committed.is_some()
            && let Ok(Some(_)) = self.stored_weights(at, row, false, committed).await?
        {
            return Ok(Verdict::AlreadyThere { block: *best });
        }
        match rules.check(row, self.target.version_key, best.number.0) {
            Ok(()) => self.how(at, mode, row, best).await,
            Err(failure @ Failure::RateLimited) => {
                let until = rules.allowed_at().unwrap_or(best.number.0 + 1);
                Ok(Verdict::Wait { until, why: Some(failure) })
            }
            Err(failure) => Ok(Verdict::Refuse(failure)),
        }
    }

    /// What goes to the chain in place of the weights.
    async fn how(
        &self,
        at: &AtBlock,
        mode: Mode,
        row: &Row,
        best: &Block,
    ) -> Result<Verdict, Error> {
        let version_key = self.target.version_key;
        let commit = match mode {
            Mode::Plain => Commit::Plain,
            Mode::HashCommit => {
                let index = self.chain.weights_index;
                Commit::by_hash(self.hotkey, index, row, version_key, rand::random())
            }
            Mode::Timelock => {
                let beacon = match facts::beacon(at, self.pinned_beacon).await? {
                    Ok(beacon) => beacon,
                    Err(failure) => return Ok(Verdict::Refuse(failure)),
                };
                let when = facts::when(self.chain, at, best).await?;
                let (hotkey, row) = (self.hotkey.clone(), row.clone());
                let seal = move || {
                    Commit::timelocked(&hotkey, &row, version_key, &beacon, when, rand::random())
                };
                // Some milliseconds of arithmetic: not for a thread that carries calls.
                let sealed = tokio::task::spawn_blocking(seal).await;
                match sealed.map_err(|error| error.to_string()) {
                    Ok(Ok(commit)) => commit,
                    Ok(Err(error)) => return Ok(refused(&error.to_string())),
                    Err(error) => return Ok(refused(&error)),
                }
            }
        };
        Ok(Verdict::Send { how: Some(commit) })
    }

    pub(super) async fn reveal(
        &self,
        at: &AtBlock,
        reveal: &Reveal,
        best: &Block,
    ) -> Result<Verdict, Error> {
        let number = best.number.0;
        let (opens, closes, lies) = match &reveal.opening {
            Opening::Extrinsic { hash, .. } => {
                let commits = facts::commits(self.chain, at, self.hotkey).await?;
                match commits.iter().find(|commit| commit.hash == *hash) {
                    Some(commit) => (commit.opens, commit.closes, true),
                    None => (reveal.opens, reveal.closes, false),
                }
            }
            Opening::Chain { sealed, .. } => {
                let lies = facts::is_sealed(self.chain, at, self.hotkey, sealed).await?;
                (reveal.opens, reveal.closes, lies)
            }
        };
        if !lies {
            return Ok(match self.stored_row(at, &reveal.weights).await? {
                Ok(()) => Verdict::AlreadyThere { block: *best },
                Err(_) if number > closes => Verdict::Refuse(Failure::RevealMissed),
                Err(found) => Verdict::Refuse(Failure::ReadBackMismatch {
                    detail: format!("the commit is gone from the chain, and {found}"),
                }),
            });
        }
        if number < opens {
            return Ok(Verdict::Wait { until: opens, why: None });
        }
        if number > closes {
            return Ok(Verdict::Refuse(Failure::RevealMissed));
        }
        Ok(match reveal.opening {
            Opening::Extrinsic { .. } => Verdict::Send { how: None },
            // The chain does it, in one of these blocks.
            Opening::Chain { .. } => Verdict::Wait { until: number + 1, why: None },
        })
    }

    pub(super) async fn stored_weights(
        &self,
        at: &AtBlock,
        row: &Row,
        stale_guard: bool,
        how: Option<&Commit>,
    ) -> Result<Result<Option<Reveal>, String>, Error> {
        let weights = row.clone();
        let reveal = match how {
            None | Some(Commit::Plain) => None,
            Some(Commit::Hashed { hash, salt, version_key }) => {
                let commits = facts::commits(self.chain, at, self.hotkey).await?;
                commits.iter().find(|commit| commit.hash == *hash).map(|commit| Reveal {
                    weights,
                    opens: commit.opens,
                    closes: commit.closes,
                    opening: Opening::Extrinsic {
                        hash: *hash,
                        salt: salt.clone(),
                        version_key: *version_key,
                    },
                    stale_guard,
                })
            }
            Some(Commit::Timelocked { sealed, round, opens, closes }) => {
                let lies = facts::is_sealed(self.chain, at, self.hotkey, sealed).await?;
                lies.then(|| Reveal {
                    weights,
                    opens: *opens,
                    closes: *closes,
                    opening: Opening::Chain { sealed: sealed.clone(), round: *round },
                    stale_guard,
                })
            }
        };
        if reveal.is_some() {
            return Ok(Ok(reveal));
        }
        // Plain, or committed so long ago that it was revealed meanwhile.
        Ok(self.stored_row(at, row).await?.map(|()| None))
    }

    /// Whether the chain's row of this validator is `row`, or what else it is.
    pub(super) async fn stored_row(
        &self,
        at: &AtBlock,
        row: &Row,
    ) -> Result<Result<(), String>, Error> {
        let Some(uid) = read::uid_of(self.chain, at, self.hotkey).await? else {
            return Ok(Err("the hotkey is no longer registered".to_owned()));
        };
        let mut found = read::weights_of(self.chain, at, uid).await?;
        found.sort_unstable();
        Ok(if found == *row { Ok(()) } else { Err(format!("the row holds {found:?}")) })
    }
}

fn refused(error: &str) -> Verdict {
    let detail = format!("the weights could not be sealed: {error}");
    Verdict::Refuse(Failure::NoCommitReveal { detail })
}
