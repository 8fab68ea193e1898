use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::OnceCell;

use crate::DataError;

/// Values by key, each made once however many ask at the same time; the one that was asked for the
/// longest ago is dropped first.
#[derive(Debug)]
pub(crate) struct Kept<K, V> {
    most: usize,
    entries: Mutex<VecDeque<(K, Arc<OnceCell<V>>)>>,
}

impl<K: Clone + PartialEq, V: Clone> Kept<K, V> {
    /// Keeps `most` values.
    pub(crate) fn new(most: usize) -> Self {
        Self { most: most.max(1), entries: Mutex::default() }
    }

    /// The value of `key`, made by `make` where it is not there. A failure is not kept.
    pub(crate) async fn get_or_make(
        &self,
        key: &K,
        make: impl Future<Output = Result<V, DataError>>,
    ) -> Result<V, DataError> {
        let cell = self.cell(key);
        cell.get_or_try_init(|| make).await.cloned()
    }

    fn cell(&self, key: &K) -> Arc<OnceCell<V>> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let at = entries.iter().position(|(known, _)| known == key);
        let entry = at.and_then(|at| entries.remove(at));
        let (_, cell) = entry.unwrap_or_else(|| (key.clone(), Arc::default()));
        entries.push_back((key.clone(), cell.clone()));
        while entries.len() > self.most {
            entries.pop_front();
        }
        cell
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn what_many_ask_for_at_once_is_made_once_and_a_failure_is_made_again() {
        let kept = Kept::<u8, u8>::new(2);
        let made = AtomicUsize::new(0);
        let make = |value: u8| {
            let made = &made;
            async move {
                made.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                match value {
                    0 => Err(DataError::Broken { why: "zero".to_owned() }),
                    value => Ok(value),
                }
            }
        };
        let both = tokio::join!(kept.get_or_make(&1, make(5)), kept.get_or_make(&1, make(6)));
        assert_eq!((both.0.unwrap(), both.1.unwrap()), (5, 5));
        assert_eq!(made.load(Ordering::Relaxed), 1);
        assert!(kept.get_or_make(&2, make(0)).await.is_err());
        assert_eq!(kept.get_or_make(&2, make(7)).await.unwrap(), 7);
        // 1 is the oldest, and gone once a third is there.
        assert_eq!(kept.get_or_make(&3, make(8)).await.unwrap(), 8);
        assert_eq!(kept.get_or_make(&1, make(9)).await.unwrap(), 9);
    }
}
