//! Zip archives and pickles made by hand, honest or not.

/// An entry as the archive's directory tells of it.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) data: Vec<u8>,
    /// 0 is stored, 8 is deflated.
    pub(crate) method: u16,
    /// 1 is encrypted, 8 is described: the sizes follow the data.
    pub(crate) flags: u16,
}

impl Entry {
    pub(crate) fn stored(name: &str, data: &[u8]) -> Self {
        Self { name: name.to_owned(), data: data.to_vec(), method: 0, flags: 0 }
    }
}

/// A zip archive of these entries.
pub(crate) fn zip(entries: &[Entry]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let described = entry.flags & 8 != 0;
        let size = (entry.data.len() as u32).to_le_bytes();
        let common = |size: [u8; 4]| {
            let mut common = Vec::new();
            for word in [20, entry.flags, entry.method, 0, 0x21] {
                common.extend(u16::to_le_bytes(word));
            }
            common.extend([0; 4]);
            common.extend(size);
            common.extend(size);
            common.extend((entry.name.len() as u16).to_le_bytes());
            common.extend([0; 2]);
            common
        };
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(common(size));
        directory.extend([0; 10]);
        directory.extend((file.len() as u32).to_le_bytes());
        directory.extend(entry.name.as_bytes());
        file.extend(b"PK\x03\x04");
        file.extend(common(if described { [0; 4] } else { size }));
        file.extend(entry.name.as_bytes());
        file.extend(&entry.data);
        if described {
            file.extend(b"PK\x07\x08\0\0\0\0");
            file.extend(size);
            file.extend(size);
        }
    }
    let count = (entries.len() as u16).to_le_bytes();
    let start = (file.len() as u32).to_le_bytes();
    let len = (directory.len() as u32).to_le_bytes();
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(count);
    file.extend(count);
    file.extend(len);
    file.extend(start);
    file.extend([0; 2]);
    file
}

/// A `.pt` file with this pickle and a storage `0` of these bytes.
pub(crate) fn pt(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    zip(&[Entry::stored("a/data.pkl", pickle), Entry::stored("a/data/0", storage)])
}
