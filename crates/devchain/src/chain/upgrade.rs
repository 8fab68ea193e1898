//! The runtime that changes under way.

use super::Chain;
use crate::{
    block::Block,
    encode,
    runtime::{MetadataError, Runtime},
};

impl Chain {
    /// The runtime of a block.
    pub(crate) fn runtime_of(&self, block: &Block) -> &Runtime {
        &self.runtimes[block.runtime]
    }

    /// Lets the next block change to a runtime of this metadata.
    pub(crate) fn upgrade(&mut self, metadata: Vec<u8>) -> Result<(), MetadataError> {
        let runtime = Runtime::new(metadata)?;
        // What every block begins with: without it the next block would be the end of the chain.
        encode::timestamp(&runtime, 0)?;
        encode::event(&runtime, "System", "ExtrinsicSuccess", &encode::success())?;
        self.next_runtime = Some(self.runtimes.len());
        self.runtimes.push(runtime);
        Ok(())
    }
}
