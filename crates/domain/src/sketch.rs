//! A short summary of what a submission changed in the base model, from which near-copies are
//! recognised without having both files at hand.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A count sketch of a difference of models: [`Self::LENGTH`] signed sums of its elements, under a
/// seed that nobody knew when the model was committed (Charikar, Chen and Farach-Colton, 2002). Inner
/// products of sketches estimate inner products of differences; for nearly parallel differences the
/// error vanishes with the angle between them.
///
/// As text it is the hex of its little-endian float32.
#[derive(Clone, PartialEq)]
pub struct Sketch(Box<[f32; Self::LENGTH]>);

impl Sketch {
    /// Sums of a sketch.
    pub const LENGTH: usize = 256;
    /// Bytes of a sketch.
    pub const BYTES: usize = Self::LENGTH * size_of::<f32>();

    /// A sketch of these sums; `None` when one is not finite.
    pub fn new(sums: [f32; Self::LENGTH]) -> Option<Self> {
        sums.iter().all(|sum| sum.is_finite()).then(|| Self(Box::new(sums)))
    }

    /// Its little-endian bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|sum| sum.to_le_bytes()).collect()
    }

    /// Reads [`Self::to_bytes`]; `None` when there are not [`Self::BYTES`], or a sum is not finite.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut sums = [0.0; Self::LENGTH];
        let (words, rest) = bytes.as_chunks();
        if words.len() != sums.len() || !rest.is_empty() {
            return None;
        }
        for (sum, word) in sums.iter_mut().zip(words) {
            *sum = f32::from_le_bytes(*word);
        }
        Self::new(sums)
    }

    /// Cosine of the angle between two differences, as the sketches estimate it: 1 for a copy, whether
    /// or not it was scaled, and about 0 for unrelated ones. `None` where one of them changed nothing.
    pub fn cosine(&self, other: &Self) -> Option<f64> {
        let dot = |a: &Self, b: &Self| {
            a.0.iter().zip(&*b.0).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let norms = (dot(self, self) * dot(other, other)).sqrt();
        (norms > 0.0).then(|| (dot(self, other) / norms).clamp(-1.0, 1.0))
    }
}

impl fmt::Debug for Sketch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second, ..] = &*self.0;
        write!(f, "Sketch({first}, {second}, …)")
    }
}

impl Serialize for Sketch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.to_bytes()))
    }
}

impl<'de> Deserialize<'de> for Sketch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = hex::decode(text).map_err(D::Error::custom)?;
        Self::from_bytes(&bytes).ok_or_else(|| D::Error::custom("not a sketch"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sketch(of: impl Fn(usize) -> f32) -> Sketch {
        Sketch::new(std::array::from_fn(of)).unwrap()
    }

    #[test]
    fn a_scaled_copy_is_parallel_and_an_opposite_is_not() {
        let one = sketch(|n| n as f32 - 100.0);
        assert!((one.cosine(&sketch(|n| 3.0 * (n as f32 - 100.0))).unwrap() - 1.0).abs() < 1e-12);
        assert!(one.cosine(&sketch(|n| 100.0 - n as f32)).unwrap() < -0.999);
        assert_eq!(one.cosine(&sketch(|_| 0.0)), None);
    }

    #[test]
    fn it_survives_bytes_and_text_and_nonsense_does_not() {
        let one = sketch(|n| (n as f32).sin());
        assert_eq!(Sketch::from_bytes(&one.to_bytes()), Some(one.clone()));
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Sketch>(&text).unwrap(), one);
        assert_eq!(Sketch::from_bytes(&[0; 7]), None);
        let mut bytes = one.to_bytes();
        bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        assert_eq!(Sketch::from_bytes(&bytes), None);
        assert!(serde_json::from_str::<Sketch>("\"zz\"").is_err());
    }
}
