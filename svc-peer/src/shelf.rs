//! What of a round's bytes is here: own chunks, pieces of others' gradients, reduced slices, transfers
//! that broke off, and single chunks that show what somebody did.
//!
//! It keeps what others have checked; it checks nothing and asks for nothing.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use domain::Hotkey;
use merge::{Data, Digest};
use tracing::warn;

use crate::{
    chunks::{Chunks, Filling},
    spool::Spool,
};

/// The bytes of one round, in one folder.
#[derive(Debug)]
pub(crate) struct Shelf {
    folder: PathBuf,
    /// Files made so far: no two have the same name.
    files: AtomicU64,
    here: Mutex<Here>,
}

#[derive(Debug, Default)]
struct Here {
    own: Option<Chunks>,
    held: BTreeMap<Data, Chunks>,
    broken_off: BTreeMap<Data, Filling>,
    lists: BTreeMap<Hotkey, Arc<[Digest]>>,
    evidence: BTreeMap<(Hotkey, u32), Evidence>,
}

#[derive(Debug, Clone)]
struct Evidence {
    spool: Arc<Spool>,
    len: usize,
}

impl Shelf {
    /// An empty shelf. Whatever is in `folder`, of a run before, is deleted.
    pub(crate) fn new(folder: PathBuf) -> io::Result<Self> {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, files: AtomicU64::new(0), here: Mutex::default() })
    }

    /// Where the round's files are.
    #[cfg(test)]
    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.folder
    }

    /// Where to fill a file with these bytes: another place every time, since two transfers of the
    /// same may overlap.
    pub(crate) fn path(&self, data: &Data) -> PathBuf {
        self.file(match data {
            Data::Piece { giver, slice } => format!("piece-{giver}-{slice}"),
            Data::Reduced(statement) => format!("reduced-{statement}"),
        })
    }

    /// These bytes are here. What is here already stays.
    pub(crate) fn put(&self, data: Data, chunks: Chunks) {
        let mut here = self.lock();
        here.broken_off.remove(&data);
        here.held.entry(data).or_insert(chunks);
    }

    /// These bytes, if they are here.
    pub(crate) fn get(&self, data: &Data) -> Option<Chunks> {
        self.lock().held.get(data).cloned()
    }

    /// This validator's whole gradient, of which its pieces are served.
    pub(crate) fn own(&self) -> Option<Chunks> {
        self.lock().own.clone()
    }

    /// Sets this validator's whole gradient.
    pub(crate) fn set_own(&self, chunks: Chunks) {
        self.lock().own = Some(chunks);
    }

    /// A transfer of these bytes that broke off, to go on with.
    pub(crate) fn take_filling(&self, data: &Data) -> Option<Filling> {
        self.lock().broken_off.remove(data)
    }

    /// Keeps a transfer that broke off, unless there is one that came further.
    pub(crate) fn keep_filling(&self, data: Data, filling: Filling) {
        let due = |filling: &Filling| filling.next().unwrap_or(u32::MAX);
        let mut here = self.lock();
        if here.broken_off.get(&data).is_none_or(|other| due(other) < due(&filling)) {
            here.broken_off.insert(data, filling);
        }
    }

    /// The digests of a member's whole gradient, as it has committed to them.
    pub(crate) fn list_of(&self, giver: &Hotkey) -> Option<Arc<[Digest]>> {
        self.lock().lists.get(giver).cloned()
    }

    /// Keeps the digests of a member's whole gradient.
    pub(crate) fn keep_list(&self, giver: &Hotkey, list: Arc<[Digest]>) {
        self.lock().lists.insert(giver.clone(), list);
    }

    /// A single encoded chunk of a member's gradient that was kept to show what came of it.
    pub(crate) fn evidence(&self, giver: &Hotkey, chunk: u32) -> Option<Bytes> {
        let Evidence { spool, len } = self.lock().evidence.get(&(giver.clone(), chunk)).cloned()?;
        match spool.read_at(0, len) {
            Ok(bytes) => Some(bytes.into()),
            Err(error) => {
                warn!(%error, %giver, chunk, "evidence cannot be read");
                None
            }
        }
    }

    /// Keeps a single encoded chunk of a member's gradient.
    pub(crate) fn keep_evidence(&self, giver: &Hotkey, chunk: u32, bytes: &[u8]) -> io::Result<()> {
        let spool = Spool::create(self.file(format!("evidence-{giver}-{chunk}")))?;
        spool.write_at(0, bytes)?;
        let evidence = Evidence { spool: Arc::new(spool), len: bytes.len() };
        self.lock().evidence.insert((giver.clone(), chunk), evidence);
        Ok(())
    }

    /// A new place in the folder.
    pub(crate) fn file(&self, name: impl std::fmt::Display) -> PathBuf {
        let nth = self.files.fetch_add(1, Ordering::Relaxed);
        self.folder.join(format!("{name}.{nth}"))
    }

    /// Nothing panics while it holds the lock; should something, the maps are whole still.
    fn lock(&self) -> MutexGuard<'_, Here> {
        self.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::{CHUNK, Codec};

    use super::*;
    use crate::chunks::{Cut, Writing};

    const CUT: Cut = Cut { elements: 2 * CHUNK + 3, chunk: CHUNK, codec: Codec::Bfloat16 };

    fn hotkey(n: u8) -> Hotkey {
        Hotkey::from_public_key([n; 32])
    }

    fn piece(giver: u8, slice: u16) -> Data {
        Data::Piece { giver: hotkey(giver), slice }
    }

    fn written(shelf: &Shelf, fill: u8) -> Chunks {
        let mut writing = Writing::create(shelf.file("own"), CUT, 0..3).unwrap();
        (0..3).for_each(|chunk| writing.push(&vec![fill; CUT.bytes_of(chunk)]).unwrap());
        writing.finish().unwrap()
    }

    fn filling(shelf: &Shelf, data: &Data, of: &Chunks, chunks: u32) -> Filling {
        let (list, committed) = (of.list().clone(), Digest::of_chunks(of.list()));
        let mut filling =
            Filling::begin(shelf.path(data), CUT, 0..3, 0..3, list, committed).unwrap();
        (0..chunks).for_each(|chunk| filling.push(&of.read(chunk).unwrap()).unwrap());
        filling
    }

    fn files(folder: &std::path::Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn what_is_put_is_had_under_its_own_name_only() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().join("round")).unwrap();
        let (one, two) = (written(&shelf, 1), written(&shelf, 2));
        assert!(shelf.own().is_none() && shelf.get(&piece(1, 0)).is_none());
        shelf.set_own(one.clone());
        shelf.put(piece(1, 0), one.clone());
        shelf.put(Data::Reduced(Digest([7; 32])), two.clone());
        assert_eq!(shelf.own().unwrap().list(), one.list());
        assert_eq!(shelf.get(&piece(1, 0)).unwrap().list(), one.list());
        assert_eq!(shelf.get(&Data::Reduced(Digest([7; 32]))).unwrap().list(), two.list());
        assert!(shelf.get(&piece(1, 1)).is_none() && shelf.get(&piece(2, 0)).is_none());
        shelf.put(piece(1, 0), two);
        assert_eq!(shelf.get(&piece(1, 0)).unwrap().list(), one.list(), "the first stays");
    }

    #[test]
    fn the_transfer_that_came_furthest_is_gone_on_with() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().join("round")).unwrap();
        let (source, data) = (written(&shelf, 1), piece(1, 0));
        shelf.keep_filling(data.clone(), filling(&shelf, &data, &source, 2));
        shelf.keep_filling(data.clone(), filling(&shelf, &data, &source, 1));
        let mut kept = shelf.take_filling(&data).unwrap();
        assert_eq!(kept.next(), Some(2));
        assert!(shelf.take_filling(&data).is_none(), "it is one's own now");
        kept.push(&source.read(2).unwrap()).unwrap();
        shelf.put(data.clone(), kept.finish().unwrap());
        assert_eq!(shelf.get(&data).unwrap().read(2).unwrap(), source.read(2).unwrap());
    }

    #[test]
    fn lists_and_evidence_are_kept_by_giver() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(folder.path().join("round")).unwrap();
        let list: Arc<[Digest]> = [Digest([1; 32])].into();
        shelf.keep_list(&hotkey(1), Arc::clone(&list));
        assert_eq!(shelf.list_of(&hotkey(1)), Some(list));
        assert_eq!(shelf.list_of(&hotkey(2)), None);
        shelf.keep_evidence(&hotkey(1), 4, b"bytes").unwrap();
        shelf.keep_evidence(&hotkey(1), 4, b"other").unwrap();
        assert_eq!(shelf.evidence(&hotkey(1), 4).as_deref(), Some(b"other".as_slice()));
        assert!(shelf.evidence(&hotkey(1), 5).is_none() && shelf.evidence(&hotkey(2), 4).is_none());
    }

    #[test]
    fn a_new_shelf_is_empty_and_an_old_one_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let round = folder.path().join("round");
        fs::create_dir(&round).unwrap();
        fs::write(round.join("of-a-run-before"), "x").unwrap();
        let shelf = Shelf::new(round.clone()).unwrap();
        assert_eq!(files(shelf.folder()), 0);
        let own = written(&shelf, 1);
        shelf.set_own(own.clone());
        shelf.keep_evidence(&hotkey(1), 4, b"bytes").unwrap();
        shelf.keep_filling(piece(1, 0), filling(&shelf, &piece(1, 0), &own, 1));
        assert_eq!(files(&round), 3);
        drop(shelf);
        assert_eq!(files(&round), 1, "what somebody still sends is still there");
        drop(own);
        assert_eq!(files(&round), 0);
    }
}
