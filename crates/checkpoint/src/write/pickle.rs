//! The pickle of a `.pt` file, protocol 2: `{"model_state_dict": {name: tensor}}`.

use std::collections::BTreeMap;

use crate::tensor::TensorSpec;

/// Storage `n` of the archive is the `n`-th tensor in ascending order of name.
pub(super) fn pickle(specs: &BTreeMap<String, TensorSpec>) -> Vec<u8> {
    let mut out = b"\x80\x02}".to_vec();
    text(&mut out, "model_state_dict");
    out.extend(b"}(");
    for (nth, (name, spec)) in specs.iter().enumerate() {
        text(&mut out, name);
        tensor(&mut out, nth, spec);
    }
    out.extend(b"us.");
    out
}

/// `_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, backward_hooks)`.
fn tensor(out: &mut Vec<u8>, nth: usize, spec: &TensorSpec) {
    out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
    text(out, "storage");
    out.extend(b"ctorch\n");
    out.extend(spec.dtype.storage().as_bytes());
    out.push(b'\n');
    text(out, &nth.to_string());
    text(out, "cpu");
    integer(out, spec.elements());
    out.extend(b"tQ");
    integer(out, 0);
    let mut strides = vec![1; spec.shape.len()];
    for axis in (1..strides.len()).rev() {
        strides[axis - 1] = strides[axis] * spec.shape[axis].max(1);
    }
    tuple(out, &spec.shape);
    tuple(out, &strides);
    out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
}

fn tuple(out: &mut Vec<u8>, items: &[usize]) {
    out.push(b'(');
    items.iter().for_each(|item| integer(out, *item));
    out.push(b't');
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn integer(out: &mut Vec<u8>, n: usize) {
    let bytes = (n as u64).to_le_bytes();
    match n {
        0..=0xff => out.extend([b'K', bytes[0]]),
        0x100..=0xffff => out.extend([b'M', bytes[0], bytes[1]]),
        0x1_0000..=0x7fff_ffff => {
            out.push(b'J');
            out.extend(&bytes[..4]);
        }
        _ => {
            out.extend(b"\x8a\x08");
            out.extend(bytes);
        }
    }
}
