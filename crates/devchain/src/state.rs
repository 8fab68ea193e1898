//! The state of one block: what history says, and over it what the block in the making writes.

use bytes::Bytes;
use codec::{Compact, Encode as _};
use scale_decode::DecodeAsType;
use scale_value::Value;
use subxt::ext::scale_encode::EncodeAsType;

use crate::{
    encode,
    history::{Changes, History},
    runtime::{MetadataError, Runtime},
};

/// An account: an sr25519 public key.
pub(crate) type Account = [u8; 32];

/// A key part or a value that is a number.
pub(crate) fn number(value: impl Into<u128>) -> Value {
    Value::u128(value.into())
}

/// A key part or a value that is an account.
pub(crate) fn account(key: &Account) -> Value {
    Value::from_bytes(key)
}

/// Reads at a block, and writes into the next one.
pub(crate) struct State<'a> {
    runtime: &'a Runtime,
    history: &'a History,
    /// The block whose end is read below the layers.
    base: u32,
    /// The block that is being made, or `base` where nothing is.
    block: u32,
    /// What earlier extrinsics of this block left.
    done: Changes,
    /// What the current extrinsic wrote so far; thrown away when it fails.
    current: Changes,
    events: Vec<Vec<u8>>,
    current_events: Vec<Vec<u8>>,
}

impl<'a> State<'a> {
    /// The state at the end of `block`, to read.
    pub(crate) fn at(runtime: &'a Runtime, history: &'a History, block: u32) -> Self {
        Self {
            runtime,
            history,
            base: block,
            block,
            done: Changes::new(),
            current: Changes::new(),
            events: Vec::new(),
            current_events: Vec::new(),
        }
    }

    /// The state of a block of an abandoned branch: `base` is where the branch begins, and `over`
    /// is what the branch wrote.
    pub(crate) fn beside(
        runtime: &'a Runtime,
        history: &'a History,
        base: u32,
        block: u32,
        over: Changes,
    ) -> Self {
        Self { block, done: over, ..Self::at(runtime, history, base) }
    }

    /// The state in which the block after `base` is made; `staged` is written first.
    pub(crate) fn after(
        runtime: &'a Runtime,
        history: &'a History,
        base: u32,
        staged: Changes,
    ) -> Self {
        Self { block: base + 1, done: staged, ..Self::at(runtime, history, base) }
    }

    pub(crate) fn runtime(&self) -> &'a Runtime {
        self.runtime
    }

    pub(crate) fn block(&self) -> u32 {
        self.block
    }

    fn raw(&self, key: &[u8]) -> Option<&Bytes> {
        match self.current.get(key).or_else(|| self.done.get(key)) {
            Some(written) => written.as_ref(),
            None => self.history.get(key, self.base),
        }
    }

    /// A storage item, or its default; `None` where it has neither, or where this runtime does
    /// not know the item at all.
    pub(crate) fn get<T: DecodeAsType>(
        &self,
        pallet: &str,
        entry: &str,
        keys: &[Value],
    ) -> Result<Option<T>, MetadataError> {
        let Some((type_id, default)) = self.runtime.entry(pallet, entry) else { return Ok(None) };
        let key = self.runtime.key(pallet, entry, keys)?;
        match self.raw(&key).map(|b| &b[..]).or(default) {
            Some(bytes) => self.runtime.decode(entry, bytes, type_id).map(Some),
            None => Ok(None),
        }
    }

    /// Writes a storage item; nothing where this runtime has no such item.
    pub(crate) fn put(
        &mut self,
        pallet: &str,
        entry: &str,
        keys: &[Value],
        value: &impl EncodeAsType,
    ) -> Result<(), MetadataError> {
        if let Some((type_id, _)) = self.runtime.entry(pallet, entry) {
            let bytes = self.runtime.encode(entry, value, type_id)?;
            self.current.insert(self.runtime.key(pallet, entry, keys)?, Some(bytes.into()));
        }
        Ok(())
    }

    /// Removes a storage item.
    pub(crate) fn remove(
        &mut self,
        pallet: &str,
        entry: &str,
        keys: &[Value],
    ) -> Result<(), MetadataError> {
        if self.runtime.entry(pallet, entry).is_some() {
            self.current.insert(self.runtime.key(pallet, entry, keys)?, None);
        }
        Ok(())
    }

    /// Says that something happened, if the current extrinsic succeeds.
    pub(crate) fn emit(
        &mut self,
        pallet: &str,
        event: &str,
        fields: &[Value],
    ) -> Result<(), MetadataError> {
        self.current_events.push(encode::event(self.runtime, pallet, event, fields)?);
        Ok(())
    }

    /// Keeps what was written since the last call; its events are of extrinsic `index`.
    pub(crate) fn keep(&mut self, index: u32) {
        self.done.append(&mut self.current);
        for event in self.current_events.drain(..) {
            // Phase::ApplyExtrinsic(index), the event, no topics.
            self.events.push([&[0][..], &index.to_le_bytes(), &event, &[0]].concat());
        }
    }

    /// Forgets what was written since the last call to [`State::keep`].
    pub(crate) fn undo(&mut self) {
        self.current.clear();
        self.current_events.clear();
    }

    /// What the block wrote, its events included.
    pub(crate) fn finish(mut self) -> Result<Changes, MetadataError> {
        self.done.append(&mut self.current);
        let mut events = Compact(self.events.len() as u32).encode();
        events.extend(self.events.concat());
        self.done.insert(self.runtime.key("System", "Events", &[])?, Some(events.into()));
        Ok(self.done)
    }

    /// What was written, without events: for what happens outside of blocks.
    pub(crate) fn into_changes(mut self) -> Changes {
        self.done.append(&mut self.current);
        self.done
    }
}
