//! Blocking work, on threads of its own.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use crate::DataError;

/// Whether anybody still waits for the work.
#[derive(Debug, Clone)]
pub(crate) struct Wanted(Arc<AtomicBool>);

impl Wanted {
    /// Ends work that nobody waits for: a process that is told to stop does not read on.
    pub(crate) fn check(&self) -> Result<(), DataError> {
        if self.0.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(DataError::Broken { why: "nobody waits for it".to_owned() })
    }
}

/// Runs blocking work that is soon done.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DataError> + Send + 'static,
) -> Result<T, DataError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(DataError::Broken { why: error.to_string() }))
}

/// Runs blocking work that looks, now and then, whether it is still wanted; it is not any more once
/// this future is dropped.
pub(crate) async fn blocking_while_wanted<T: Send + 'static>(
    work: impl FnOnce(&Wanted) -> Result<T, DataError> + Send + 'static,
) -> Result<T, DataError> {
    struct OnDrop(Wanted);

    impl Drop for OnDrop {
        fn drop(&mut self) {
            self.0.0.store(false, Ordering::Relaxed);
        }
    }

    let wanted = Wanted(Arc::new(AtomicBool::new(true)));
    let _waiting = OnDrop(wanted.clone());
    blocking(move || work(&wanted)).await
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn work_that_nobody_waits_for_ends() {
        let (started, has_started) = mpsc::channel();
        let (ended, has_ended) = mpsc::channel();
        let work = blocking_while_wanted::<()>(move |wanted| {
            started.send(()).unwrap();
            while wanted.check().is_ok() {
                std::thread::yield_now();
            }
            ended.send(()).unwrap();
            Ok(())
        });
        let mut work = Box::pin(work);
        assert!(futures::poll!(&mut work).is_pending());
        let wait = |of: mpsc::Receiver<()>| blocking(move || of.recv().map_err(|e| panic!("{e}")));
        wait(has_started).await.unwrap();
        drop(work);
        wait(has_ended).await.unwrap();
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error() {
        let error = blocking::<()>(|| panic!("as expected")).await.unwrap_err();
        assert_eq!(error.reason(), "broken_off");
    }
}
