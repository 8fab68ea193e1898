//! Keys of the simulation, and the truth about its bytes.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
};

use domain::Hotkey;
use merge::{Digest, Offer, Recompute, Said, Signature, Signed, Slice, Verified, Verify};

/// The hotkey of a member.
pub fn hotkey(index: usize) -> Hotkey {
    static ALL: OnceLock<Vec<Hotkey>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        (0..32_u8).map(|index| Hotkey::from_public_key(Digest::of(&[index]).0)).collect()
    });
    all[index].clone()
}

/// Signs for everybody, and knows which chunks of which reduced slices are wrong.
#[derive(Debug, Default)]
pub struct Keys {
    wrong: RefCell<BTreeMap<Digest, BTreeSet<u32>>>,
}

impl Keys {
    fn signature(author: &Hotkey, bytes: &[u8]) -> Signature {
        let half = blake3::keyed_hash(author.public_key(), bytes);
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(half.as_bytes());
        Signature(signature)
    }

    pub fn sign(&self, said: Said) -> Verified {
        let signature = Self::signature(&said.author, &said.bytes());
        Verified::new(Signed { said, signature }, self).unwrap()
    }

    /// What a slice of these contributors comes to.
    pub fn reduce(slice: u16, contributors: &[Hotkey]) -> Digest {
        Digest::of(format!("{slice} {contributors:?}").as_bytes())
    }

    /// The same with one chunk wrong.
    pub fn reduce_wrongly(&self, slice: u16, contributors: &[Hotkey], chunk: u32) -> Digest {
        let wrong = Digest::of(format!("{slice} {contributors:?} {chunk}").as_bytes());
        self.wrong.borrow_mut().insert(wrong, BTreeSet::from([chunk]));
        wrong
    }

    pub fn is_wrong(&self, slice: &Slice, chunk: u32) -> bool {
        if Self::reduce(slice.slice, &slice.contributors) == slice.chunks {
            return false;
        }
        let wrong = self.wrong.borrow();
        wrong.get(&slice.chunks).is_none_or(|chunks| chunks.contains(&chunk))
    }
}

impl Verify for Keys {
    fn verify(&self, author: &Hotkey, bytes: &[u8], signature: &Signature) -> bool {
        Self::signature(author, bytes) == *signature
    }
}

impl Recompute for Keys {
    fn is_right(&self, slice: &Slice, _: &[&Offer], chunk: u32) -> Option<bool> {
        Some(!self.is_wrong(slice, chunk))
    }
}
