//! What an encoding loses comes later.

use std::{collections::BTreeMap, fs, path::Path};

use checkpoint::{
    Codec, CodecError, Dtype, Feedback, FeedbackError, NextFeedback, StateFileError, TensorSpec,
    VectorLayout,
};

fn layout(len: usize) -> VectorLayout {
    let spec = TensorSpec { dtype: Dtype::BF16, shape: vec![len] };
    VectorLayout::new(&BTreeMap::from([("t".to_owned(), spec)]))
}

fn gradient(len: usize) -> Vec<f32> {
    (0..len).map(|n| 1e-3 / (1.0 + (n % 977) as f32)).collect()
}

/// One round over slices of `part` elements; what the receivers decode.
fn round(codec: Codec, before: &Feedback, next: &Path, part: usize) -> Vec<f32> {
    let layout = layout(LEN);
    let mut next = NextFeedback::create(next, &layout).unwrap();
    let mut sent = gradient(LEN);
    for (nth, values) in sent.chunks_mut(part).enumerate() {
        let mut bytes = vec![0; codec.encoded_len(values.len())];
        before.encode(codec, nth * part, values, &mut bytes, &mut next).unwrap();
        let mut decoded = vec![0.0; values.len()];
        codec.decode(&bytes, &mut decoded).unwrap();
        assert_eq!(decoded, values, "the sender goes on with what the receivers have");
    }
    next.finish().unwrap();
    sent
}

const LEN: usize = 5000;

#[test]
fn over_rounds_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (true_values, layout) = (gradient(LEN), layout(LEN));
    for codec in [Codec::Bfloat16, Codec::Int8] {
        let mut before = Feedback::none(&layout);
        let mut sums = vec![0.0f64; LEN];
        let (mut first, mut last) = (0.0, 0.0);
        for n in 1..=40 {
            let path = folder.path().join(format!("{codec}-{n}"));
            let sent = round(codec, &before, &path, 1777);
            sums.iter_mut().zip(&sent).for_each(|(sum, x)| *sum += f64::from(*x));
            before = Feedback::load(&path, &layout).unwrap();
            let off = |(sum, x): (&f64, &f32)| (sum / f64::from(n) - f64::from(*x)).abs();
            last = sums.iter().zip(&true_values).map(off).fold(0.0, f64::max);
            if n == 1 {
                first = last;
            }
        }
        assert!(first > 0.0 && last <= first / 20.0, "{codec}: {first} became {last}");
    }
}

#[test]
fn an_exact_encoding_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(LEN);
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    round(Codec::Int8, &Feedback::none(&layout), &one, LEN);
    let sent = round(Codec::Float32, &Feedback::load(&one, &layout).unwrap(), &two, LEN);
    assert_ne!(sent, gradient(LEN), "what the last round lost is in it");
    let sent = round(Codec::Float32, &Feedback::load(&two, &layout).unwrap(), &one, LEN);
    assert_eq!(sent, gradient(LEN));
}

#[test]
fn a_residual_that_was_changed_cut_or_made_for_others_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("residual");
    round(Codec::Int8, &Feedback::none(&layout(LEN)), &path, LEN);
    let good = fs::read(&path).unwrap();
    assert!(Feedback::load(&path, &layout(LEN)).is_ok());
    let other = Feedback::load(&path, &layout(LEN + 1)).unwrap_err();
    assert!(matches!(other, FeedbackError::Layout { .. }), "{other}");
    // Data, version, binding and digest, whatever byte it is.
    let tail = good.len() - 100;
    for at in [600, 5000, tail, tail + 30, tail + 60, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, &bad).unwrap();
        assert!(Feedback::load(&path, &layout(LEN)).is_err(), "byte {at}");
    }
    for len in [0, 7, 100, good.len() - 1] {
        fs::write(&path, &good[..len]).unwrap();
        assert!(Feedback::load(&path, &layout(LEN)).is_err(), "cut to {len}");
    }
    fs::write(&path, [&good[..], &[0]].concat()).unwrap();
    assert!(Feedback::load(&path, &layout(LEN)).is_err(), "longer");
}

#[test]
fn a_residual_with_holes_or_beyond_the_vector_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("residual");
    let layout = layout(100);
    let mut next = NextFeedback::create(&path, &layout).unwrap();
    next.keep(0, &[0.0; 60]).unwrap();
    let beyond = next.keep(60, &[0.0; 41]).unwrap_err();
    assert!(matches!(beyond, FeedbackError::Range { start: 60, end: 101, len: 100 }));
    let mut values = vec![f32::NAN; 40];
    let mut bytes = vec![0; Codec::Int8.encoded_len(40)];
    let none = Feedback::none(&layout);
    let nan = none.encode(Codec::Int8, 60, &mut values, &mut bytes, &mut next).unwrap_err();
    assert!(matches!(nan, FeedbackError::Encode(CodecError::NonFinite { index: 0 })));
    let holes = next.finish().unwrap_err();
    let incomplete = StateFileError::Incomplete { written: 60, expected: 100 };
    assert_eq!(holes.to_string(), incomplete.to_string());
    assert!(crate::setup::file_names(folder.path()).is_empty(), "nothing stays");
}
