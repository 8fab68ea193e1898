//! Extrinsics on their way into the pool, and whether those in it are still wanted.

use bytes::Bytes;
use tokio::sync::watch;

use super::{Chain, nonce};
use crate::{
    extrinsic::Extrinsic, pool::Statuses, refusal::Refusal, runtime::MetadataError, state::Account,
};

impl Chain {
    /// Checks an extrinsic as the pool does, and returns it with the next nonce of its signer.
    pub(crate) fn vet(&self, bytes: Bytes) -> Result<(Extrinsic, u32), Refusal> {
        let head = self.head();
        let extrinsic = Extrinsic::open(bytes, &self.runtimes[head.runtime])?;
        self.pool.check_known(&extrinsic.hash, head.head.number)?;
        let block = head.head.number + 1;
        extrinsic.verify(&self.facts(block, &|n| self.hash_of(n, block)))?;
        let state = self.next();
        let next = nonce(&state, &extrinsic.signer).map_err(trap)?;
        if extrinsic.nonce < next {
            return Err(Refusal::Stale);
        }
        extrinsic
            .call
            .check(&extrinsic.signer, &state, self.rules)
            .map_err(trap)?
            .map_err(Refusal::Custom)?;
        Ok((extrinsic, next))
    }

    /// Takes an extrinsic into the pool, or says why not.
    pub(crate) fn submit(
        &mut self,
        bytes: Bytes,
    ) -> Result<([u8; 32], watch::Receiver<Statuses>), Refusal> {
        let (extrinsic, next) = self.vet(bytes)?;
        Ok((extrinsic.hash, self.pool.insert(extrinsic, next)?))
    }

    /// Puts back what a reorganisation took away and whose time has come.
    pub(super) fn let_return(&mut self, newest: u32) -> Result<(), MetadataError> {
        let (due, later) = std::mem::take(&mut self.returning)
            .into_iter()
            .partition::<Vec<_>, _>(|(after, _)| *after <= newest);
        self.returning = later;
        if due.is_empty() {
            return Ok(());
        }
        self.pool.restore(due.into_iter().map(|(_, waiting)| waiting).collect());
        self.revalidate()
    }

    /// Throws out of the pool what the newest block made invalid: eras end, nonces are used up,
    /// runtimes change. Then decides what is ready.
    pub(super) fn revalidate(&mut self) -> Result<(), MetadataError> {
        let mut pool = std::mem::take(&mut self.pool);
        let result = self.sift(&mut pool);
        self.pool = pool;
        result
    }

    fn sift(&self, pool: &mut crate::pool::Pool) -> Result<(), MetadataError> {
        let head = self.head();
        let block = head.head.number + 1;
        let hash_of = |n| self.hash_of(n, block);
        let facts = self.facts(block, &hash_of);
        let state = self.next();
        let still_valid = |extrinsic: &Extrinsic| -> Result<bool, MetadataError> {
            Ok(extrinsic.verify(&facts).is_ok()
                && nonce(&state, &extrinsic.signer)? <= extrinsic.nonce
                && extrinsic.call.check(&extrinsic.signer, &state, self.rules)?.is_ok())
        };
        let mut failed = None;
        pool.retain(head.head.number, |extrinsic| {
            if head.upgraded {
                match Extrinsic::open(extrinsic.bytes.clone(), facts.runtime) {
                    Ok(opened) => *extrinsic = opened,
                    Err(_) => return false,
                }
            }
            still_valid(extrinsic).unwrap_or_else(|error| {
                failed = Some(error);
                true
            })
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let nexts: Result<Vec<(Account, u32)>, _> = pool
            .signers()
            .into_iter()
            .map(|signer| Ok::<_, MetadataError>((signer, nonce(&state, &signer)?)))
            .collect();
        for (signer, next) in nexts? {
            pool.settle(&signer, next);
        }
        Ok(())
    }
}

/// The live runtime traps where this one cannot encode or decode.
fn trap(error: MetadataError) -> Refusal {
    Refusal::Call(error.to_string())
}
