//! A `.pt` file as it passes: the pickle first, then the storages it describes.

use std::{collections::BTreeMap, mem};

use bytes::Bytes;

use super::{
    Rules,
    data::{OrderedHash, Region},
};
use crate::{
    read::{
        Tensors, no_tensors, pt,
        walk::{Event, StorageSizes, Walk, pickle_folder},
    },
    refusal::{Flaw, Refusal},
    tensor::{TensorInfo, TensorSpec},
};

#[derive(Debug)]
pub(super) struct Archive {
    walk: Walk,
    pickle: Pickle,
    /// What the current entry's data are.
    content: Content,
    hash: OrderedHash,
    /// Every tensor whose storage has passed, by its place in the file.
    placed: Tensors,
    /// All the data that passed could be looked at.
    scanned: bool,
}

#[derive(Debug)]
enum Pickle {
    Awaited,
    Read(Described),
}

/// What the pickle said.
#[derive(Debug)]
struct Described {
    folder: String,
    specs: BTreeMap<String, TensorSpec>,
    /// By key; `None` once the storage has come.
    storages: BTreeMap<String, Option<Storage>>,
}

#[derive(Debug)]
struct Storage {
    bytes: usize,
    /// Placed from the storage's first byte.
    tensors: Vec<(String, TensorInfo)>,
}

#[derive(Debug)]
enum Content {
    Ignored,
    Pickle(Vec<u8>),
    Storage(Region),
}

/// What is known when an archive has passed; its directory decides whether it holds.
pub(super) struct Passed {
    pub(super) specs: BTreeMap<String, TensorSpec>,
    pub(super) placed: Tensors,
    pub(super) scanned: bool,
    pub(super) hash: OrderedHash,
}

impl Archive {
    pub(super) fn new(rules: &Rules) -> Self {
        Self {
            walk: Walk::new(rules.limits.max_header_bytes),
            pickle: Pickle::Awaited,
            content: Content::Ignored,
            hash: OrderedHash::out_of_order(),
            placed: Tensors::new(),
            scanned: true,
        }
    }

    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        of: Option<&Bytes>,
        rules: &Rules,
    ) -> Result<(), Refusal> {
        while let Some(event) = self.walk.next(&mut bytes)? {
            match event {
                Event::Entry => self.content = self.begin(rules)?,
                Event::Data(data) => self.data(data, of, rules)?,
                Event::End => self.end(rules)?,
                Event::Directory => self.directory()?,
            }
        }
        Ok(())
    }

    /// As [`OrderedHash::let_go`].
    pub(super) fn let_go(&mut self) {
        self.hash.let_go();
    }

    fn begin(&mut self, rules: &Rules) -> Result<Content, Refusal> {
        let entry = self.walk.entry();
        if pickle_folder(&entry.name).is_some() {
            if matches!(self.pickle, Pickle::Read(_)) {
                return Err(pt::no_single_pickle());
            }
            check_pickle_size(entry.size.unwrap_or_default(), rules)?;
            return Ok(Content::Pickle(Vec::new()));
        }
        let Pickle::Read(described) = &mut self.pickle else {
            // A storage before the pickle finds none waiting for it later.
            return Ok(Content::Ignored);
        };
        let key = entry.name.strip_prefix(&described.folder);
        let key = key.and_then(|rest| rest.strip_prefix("/data/"));
        let Some(slot) = key.and_then(|key| described.storages.get_mut(key)) else {
            return Ok(Content::Ignored);
        };
        let storage = slot.take().ok_or_else(|| Flaw::DuplicateEntry.with(&entry.name))?;
        if entry.size != Some(storage.bytes as u64) {
            let detail = format!("{}: {} bytes expected", entry.name, storage.bytes);
            return Err(Flaw::OutOfStorage.with(detail));
        }
        let region = Region::new(0, storage.tensors.iter().map(|(name, info)| (&**name, info)));
        if region.is_none() {
            self.scanned = false;
            self.hash.give_up();
        }
        let start = usize::try_from(entry.start).unwrap_or(usize::MAX);
        let placed = storage.tensors.into_iter();
        self.placed.extend(placed.map(|(name, info)| (name, info.moved_by(start))));
        Ok(region.map_or(Content::Ignored, Content::Storage))
    }

    fn data(&mut self, data: &[u8], of: Option<&Bytes>, rules: &Rules) -> Result<(), Refusal> {
        match &mut self.content {
            Content::Ignored => Ok(()),
            Content::Pickle(pickle) => {
                check_pickle_size((pickle.len() + data.len()) as u64, rules)?;
                pickle.extend_from_slice(data);
                Ok(())
            }
            Content::Storage(region) => region.feed(data, of, &mut self.hash),
        }
    }

    fn end(&mut self, rules: &Rules) -> Result<(), Refusal> {
        let Content::Pickle(bytes) = mem::replace(&mut self.content, Content::Ignored) else {
            return Ok(());
        };
        let Some(folder) = pickle_folder(&self.walk.entry().name) else { return Ok(()) };
        let described = pt::describe(&bytes, rules.limits)?;
        let folder = folder.to_owned();
        let sizes: StorageSizes = described.storages;
        let mut specs = BTreeMap::new();
        let mut storages = BTreeMap::new();
        for (name, stored) in described.tensors {
            specs.insert(name.clone(), stored.info.spec().clone());
            let slot = storages.entry(stored.key);
            let bytes = stored.storage_bytes;
            let storage =
                slot.or_insert_with(|| Some(Storage { bytes, tensors: Vec::new() })).as_mut();
            let Some(storage) = storage.filter(|storage| storage.bytes == bytes) else {
                return Err(Flaw::OutOfStorage.with(name));
            };
            storage.tensors.push((name, stored.info));
        }
        if specs.is_empty() {
            return Err(no_tensors());
        }
        rules.check_structure(&specs)?;
        // Each lies in the file on its own, before or behind the pickle.
        let total = storages.values().flatten().fold(0u64, |n, s| n.saturating_add(s.bytes as u64));
        rules.check_room(total)?;
        self.hash = OrderedHash::new(&specs);
        self.walk.learn(&folder, sizes);
        self.pickle = Pickle::Read(Described { folder, specs, storages });
        Ok(())
    }

    /// The directory has begun: nothing that is missing can still come.
    fn directory(&mut self) -> Result<(), Refusal> {
        let Pickle::Read(described) = &self.pickle else {
            return Err(pt::no_single_pickle());
        };
        // Those before the pickle have passed unseen, and are found by the directory.
        self.scanned &= described.storages.values().all(Option::is_none);
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Passed, Refusal> {
        self.walk.directory()?;
        let Pickle::Read(described) = self.pickle else {
            return Err(pt::no_single_pickle());
        };
        let Self { placed, scanned, hash, .. } = self;
        Ok(Passed { specs: described.specs, placed, scanned, hash })
    }
}

fn check_pickle_size(bytes: u64, rules: &Rules) -> Result<(), Refusal> {
    if bytes > rules.limits.max_header_bytes {
        return Err(Flaw::PickleTooLarge.with(format!("{bytes} bytes")));
    }
    Ok(())
}
