//! Stopping: a token that says when, and a tracker of what still runs.

use std::{
    fmt,
    future::Future,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{info, warn};

use crate::Health;

/// Tells tasks to stop, and waits for those spawned through it.
///
/// Clones are handles to the same thing; [`Self::child`] makes a part of it that can be stopped
/// alone.
#[derive(Clone, Default)]
pub struct Shutdown {
    token: CancellationToken,
    tasks: TaskTracker,
    /// Trackers of the handles that this one is a child of: they wait for its tasks too.
    ancestors: Vec<TaskTracker>,
    /// Health of every gRPC server of the process, for `/readyz`.
    health: Arc<Mutex<Vec<Health>>>,
}

impl Shutdown {
    /// Returns a handle that SIGINT and SIGTERM cancel.
    ///
    /// # Errors
    ///
    /// When the handlers can't be installed, or outside of a runtime.
    pub fn on_signal() -> io::Result<Self> {
        let this = Self::default();
        let (mut int, mut term) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let token = this.token.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = int.recv() => info!(signal = "SIGINT", "stopping"),
                _ = term.recv() => info!(signal = "SIGTERM", "stopping"),
                () = token.cancelled() => {}
            }
            token.cancel();
        });
        Ok(this)
    }

    /// Asks every task, and those of every child, to stop.
    pub fn cancel(&self) {
        self.token.cancel();
    }

    /// Completes once a stop was asked for.
    pub async fn cancelled(&self) {
        self.token.cancelled().await;
    }

    /// Returns whether a stop was asked for.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Returns a handle of its own: cancelled with this one, or alone.
    ///
    /// [`Self::drain`] of this handle waits for the child's tasks as well.
    #[must_use]
    pub fn child(&self) -> Self {
        let mut ancestors = self.ancestors.clone();
        ancestors.push(self.tasks.clone());
        Self {
            token: self.token.child_token(),
            tasks: TaskTracker::new(),
            ancestors,
            health: Arc::clone(&self.health),
        }
    }

    /// Spawns a task that [`Self::drain`] waits for. The task must watch [`Self::cancelled`].
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let held: Vec<_> = self.ancestors.iter().map(TaskTracker::token).collect();
        self.tasks.spawn(async move {
            let _held = held;
            task.await
        })
    }

    /// Cancels, then waits for the spawned tasks for at most `grace`.
    ///
    /// Returns whether all of them ended.
    pub async fn drain(&self, grace: Duration) -> bool {
        self.token.cancel();
        self.tasks.close();
        let ended = tokio::time::timeout(grace, self.tasks.wait()).await.is_ok();
        if !ended {
            warn!(?grace, tasks = self.tasks.len(), "tasks still running, leaving them");
        }
        ended
    }

    /// Makes `/readyz` of the process wait for `health`.
    pub(crate) fn watch_health(&self, health: Health) {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).push(health);
    }

    /// Returns whether every gRPC server of the process is ready; false while there is none, and
    /// once a stop was asked for.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let servers = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        !self.is_cancelled() && !servers.is_empty() && servers.iter().all(Health::is_ready)
    }
}

impl fmt::Debug for Shutdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shutdown")
            .field("cancelled", &self.is_cancelled())
            .field("tasks", &self.tasks.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_child_stops_alone_but_never_outlives_its_parent() {
        let parent = Shutdown::default();
        let (alone, with_parent) = (parent.child(), parent.child());
        alone.cancel();
        assert!(alone.is_cancelled() && !parent.is_cancelled() && !with_parent.is_cancelled());
        parent.cancel();
        with_parent.cancelled().await;
    }

    #[tokio::test(start_paused = true)]
    async fn draining_waits_for_the_tasks_of_children_too() {
        let parent = Shutdown::default();
        let child = parent.child().child();
        let (done, mut seen) = tokio::sync::oneshot::channel();
        child.spawn({
            let child = child.clone();
            async move {
                child.cancelled().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                done.send(()).unwrap();
            }
        });
        assert!(parent.drain(Duration::from_secs(2)).await);
        seen.try_recv().expect("the task had ended when the drain did");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_ignores_the_stop_is_left_after_the_grace() {
        let shutdown = Shutdown::default();
        let stubborn = shutdown.spawn(std::future::pending::<()>());
        assert!(!shutdown.drain(Duration::from_secs(1)).await);
        stubborn.abort();
    }
}
