use blake2::{Blake2b, Digest as _, digest::consts::U32};

use crate::DataError;

/// Label of a position that is not predicted: padding.
pub const IGNORED_LABEL: i64 = -100;

/// Rows of token ids of one length. A position is padding where its label is [`IGNORED_LABEL`]:
/// it is neither predicted nor looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    length: usize,
    ids: Vec<i64>,
    labels: Vec<i64>,
}

impl Batch {
    /// A batch of `ids` and `labels`, both `[rows, length]` in row-major order. Labels are not
    /// shifted: the loss compares the prediction at `t` with the label at `t + 1`.
    ///
    /// # Errors
    ///
    /// The lengths do not agree, or a row is shorter than two tokens.
    pub fn new(length: usize, ids: Vec<i64>, labels: Vec<i64>) -> Result<Self, DataError> {
        let bad = |why: String| Err(DataError::Batch { why });
        if length < 2 {
            return bad(format!("rows of {length} tokens predict nothing"));
        }
        if ids.is_empty() || !ids.len().is_multiple_of(length) || ids.len() != labels.len() {
            return bad(format!("{} ids, {} labels, rows of {length}", ids.len(), labels.len()));
        }
        Ok(Self { length, ids, labels })
    }

    /// A batch of `rows`, filled up on the right to `length` with `pad`.
    pub fn from_rows(rows: &[Vec<u32>], length: usize, pad: u32) -> Result<Self, DataError> {
        let mut ids = Vec::with_capacity(rows.len() * length);
        let mut labels = Vec::with_capacity(rows.len() * length);
        for row in rows {
            let row = row.get(..length).unwrap_or(row);
            let filling = length - row.len();
            ids.extend(row.iter().map(|id| i64::from(*id)));
            ids.extend(std::iter::repeat_n(i64::from(pad), filling));
            labels.extend(row.iter().map(|id| i64::from(*id)));
            labels.extend(std::iter::repeat_n(IGNORED_LABEL, filling));
        }
        Self::new(length, ids, labels)
    }

    /// Sequences.
    pub fn rows(&self) -> usize {
        self.ids.len() / self.length
    }

    /// Tokens of a sequence.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Token ids, `[rows, length]`.
    pub fn ids(&self) -> &[i64] {
        &self.ids
    }

    /// Labels, `[rows, length]`.
    pub fn labels(&self) -> &[i64] {
        &self.labels
    }

    pub fn padded(&self) -> bool {
        self.labels.contains(&IGNORED_LABEL)
    }

    /// Refuses ids that the embedding does not have, and a batch without a token to predict.
    pub fn check(&self, vocabulary: i64) -> Result<(), DataError> {
        let known = |id: &i64| (0..vocabulary).contains(id);
        if let Some(id) = self.ids.iter().find(|id| !known(id)) {
            return Err(DataError::Batch { why: format!("token id {id} of {vocabulary}") });
        }
        let label = |id: &i64| *id == IGNORED_LABEL || known(id);
        if let Some(id) = self.labels.iter().find(|id| !label(id)) {
            return Err(DataError::Batch { why: format!("label {id} of {vocabulary}") });
        }
        let predicts = |row: &[i64]| row.iter().skip(1).any(|label| *label != IGNORED_LABEL);
        if !self.labels.chunks(self.length).any(predicts) {
            return Err(DataError::Batch { why: "nothing to predict".to_owned() });
        }
        Ok(())
    }
}

/// BLAKE2b-256 over the batches' shapes, token ids and labels, as hex: two workers with the same
/// digest measured on the same tokens.
pub fn digest(batches: &[Batch]) -> String {
    let mut hash = Blake2b::<U32>::new();
    for batch in batches {
        hash.update((batch.rows() as u64).to_le_bytes());
        hash.update((batch.length() as u64).to_le_bytes());
        for id in batch.ids.iter().chain(&batch.labels) {
            hash.update(id.to_le_bytes());
        }
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_rows_are_filled_up_and_the_filling_is_not_predicted() {
        let batch = Batch::from_rows(&[vec![5, 6], vec![7, 8, 9, 4, 3]], 4, 0).unwrap();
        assert_eq!(batch.ids(), [5, 6, 0, 0, 7, 8, 9, 4]);
        assert_eq!(batch.labels(), [5, 6, -100, -100, 7, 8, 9, 4]);
        assert!(batch.padded());
        batch.check(10).unwrap();
        assert!(batch.check(9).unwrap_err().to_string().contains("token id 9"));
    }

    #[test]
    fn a_batch_that_predicts_nothing_is_refused() {
        assert!(Batch::new(1, vec![1], vec![1]).is_err());
        assert!(Batch::new(4, vec![1; 6], vec![1; 6]).is_err());
        let nothing = Batch::new(3, vec![1; 3], vec![1, -100, -100]).unwrap();
        assert!(nothing.check(4).unwrap_err().to_string().contains("nothing to predict"));
    }

    #[test]
    fn the_digest_tells_shapes_ids_and_labels_apart() {
        let of = |length, ids: [i64; 4], labels: [i64; 4]| {
            digest(&[Batch::new(length, ids.to_vec(), labels.to_vec()).unwrap()])
        };
        let one = of(4, [1, 2, 3, 4], [1, 2, 3, 4]);
        assert_eq!(one, of(4, [1, 2, 3, 4], [1, 2, 3, 4]));
        assert_ne!(one, of(2, [1, 2, 3, 4], [1, 2, 3, 4]));
        assert_ne!(one, of(4, [1, 2, 3, 5], [1, 2, 3, 4]));
        assert_ne!(one, of(4, [1, 2, 3, 4], [1, 2, 3, -100]));
    }
}
