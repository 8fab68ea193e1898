//! What must hold of any bytes: they are a checkpoint, all of which can be read, or they are refused by name.
//! The fuzz targets run the same functions.

use checkpoint::{Checkpoint, Limits, SliceLayout, TensorSource as _, model_hash, verify};

use crate::archive;

/// Small enough that a file which makes the reader allocate is found by its size.
pub(crate) const LIMITS: Limits =
    Limits { max_file_bytes: 1 << 24, max_header_bytes: 1 << 20, max_tensors: 1000 };

/// The bytes as a file of either format. True when they are a checkpoint.
pub(crate) fn file(bytes: &[u8]) -> bool {
    let checkpoint = match Checkpoint::from_bytes(bytes.to_vec(), LIMITS) {
        Ok(checkpoint) => checkpoint,
        Err(refusal) => {
            assert!(refusal.is_miners_fault(), "{refusal}");
            assert!(refusal.to_string().starts_with(refusal.reason()), "{refusal}");
            return false;
        }
    };
    assert!(!checkpoint.tensors().is_empty());
    let mut total = 0;
    for (name, info) in checkpoint.tensors() {
        let data = checkpoint.bytes(name).expect("what was opened can be read");
        assert_eq!(data.len(), info.bytes(), "{name}");
        total += data.len();
        let floats = checkpoint.to_f32(name);
        assert_eq!(floats.is_ok(), info.dtype().is_float(), "{name}");
    }
    assert!(total <= 4 * bytes.len(), "{total} bytes of tensors in {} of file", bytes.len());
    let layout = SliceLayout { tensors: checkpoint.specs().clone(), ..SliceLayout::default() };
    match verify(&checkpoint, &layout, None) {
        Ok(verified) => assert_eq!(Ok(verified.model_hash), model_hash(&checkpoint)),
        Err(refusal) => assert!(["non_finite", "wrong_dtype"].contains(&refusal.reason())),
    }
    true
}

/// The bytes as the pickle of an otherwise correct `.pt` file.
pub(crate) fn pickle(bytes: &[u8]) -> bool {
    file(&archive::pt(bytes, &[0x3c; 64]))
}

/// The bytes as a safetensors header of the right length, with some data.
pub(crate) fn header(bytes: &[u8]) -> bool {
    let mut file = (bytes.len() as u64).to_le_bytes().to_vec();
    file.extend(bytes);
    file.extend([0x3c; 64]);
    self::file(&file)
}
