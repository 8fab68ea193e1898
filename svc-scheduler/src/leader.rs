//! Takes and keeps the lead: of several schedulers one works, the others stand by.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use domain::{Event, ExpertGroup, Hotkey, ModelHash, ModelRef, Policy, State};
use kit::{Common, Health, Shutdown};
use proto::chain::v1::GetIdentityRequest;
use store::{Artifacts, Lease, Store};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{
    Config,
    effects::Outside,
    engine::{self, Engine},
    metrics,
};

/// Name of the lease.
const LEASE: &str = "scheduler";
/// Key of the state.
pub(crate) const STATE: &str = "scheduler/state";
/// Bound of a manifest, in bytes.
const MAX_MANIFEST: u64 = 64 << 20;
/// How long giving the lead back may take when the scheduler stops.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// The engine while this scheduler leads, else why it does not.
pub(crate) type Lead = Result<Engine, String>;

/// What the lead is taken with.
pub(crate) struct Leader {
    config: Config,
    policy: Arc<Policy>,
    store: Store,
    artifacts: Artifacts,
    outside: Outside,
    engine: watch::Sender<Lead>,
}

impl Leader {
    pub(crate) fn new(
        config: Config,
        common: Common,
        policy: Policy,
        store: Store,
        artifacts: Artifacts,
    ) -> anyhow::Result<Self> {
        let policy = Arc::new(policy);
        let outside = Outside::new(&config, &common, Arc::clone(&policy), artifacts.clone())?;
        let engine = watch::Sender::new(Err("it has just started".to_owned()));
        Ok(Self { config, policy, store, artifacts, outside, engine })
    }

    /// The engine while this scheduler leads.
    pub(crate) fn engine(&self) -> watch::Receiver<Lead> {
        self.engine.subscribe()
    }

    /// Stands by, leads, and stands by again when the lead is lost, until `shutdown`.
    pub(crate) async fn run(self, health: Health, shutdown: Shutdown) {
        health.set_all(true);
        let mut told = String::new();
        while !shutdown.is_cancelled() {
            metrics::leads(false);
            let turn = shutdown.child();
            let result = self.lead_once(&turn).await;
            turn.cancel();
            if self.engine.borrow().is_ok() {
                told.clear();
            }
            let why = match &result {
                Ok(()) => "another one leads".to_owned(),
                Err(error) => format!("{error:#}"),
            };
            if why != told && !shutdown.is_cancelled() {
                match result {
                    Ok(()) => info!("standing by: another scheduler leads"),
                    Err(_) => warn!(error = why, "not leading"),
                }
                told.clone_from(&why);
            }
            self.engine.send_modify(|lead| *lead = Err(why));
            let pause = self.config.leader_ttl / 10;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    /// Tries to take the lead and works until it is lost or `turn` is over; gives it back then, so
    /// that another scheduler need not wait for it to run out.
    async fn lead_once(&self, turn: &Shutdown) -> anyhow::Result<()> {
        let ttl = self.config.leader_ttl;
        let acquired = tokio::select! {
            acquired = self.store.acquire(LEASE, ttl) => acquired.context("take the lead")?,
            () = turn.cancelled() => return Ok(()),
        };
        let Some(lease) = acquired else { return Ok(()) };
        let lease = Arc::new(lease);
        let result = tokio::select! {
            result = self.lead(&lease, turn) => result,
            () = turn.cancelled() => Ok(()),
        };
        turn.cancel();
        let Some(lease) = Arc::into_inner(lease) else { return result };
        match tokio::time::timeout(GIVE_BACK, self.store.release(lease)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                warn!(%error, "the lead could not be given back: it runs out by itself");
            }
            Err(_) => warn!("the lead could not be given back in time: it runs out by itself"),
        }
        result
    }

    async fn lead(&self, lease: &Arc<Lease>, turn: &Shutdown) -> anyhow::Result<()> {
        let state = tokio::select! {
            state = self.load() => state?,
            () = self.keep(lease) => anyhow::bail!("the lead was lost while the state was read"),
        };
        info!(
            hotkey = %state.hotkey,
            block = %state.block,
            base = state.base.as_ref().map(|base| base.model_hash.to_hex()),
            fence = lease.fence(),
            "leading"
        );
        metrics::leads(true);
        let (engine, driver) = engine::new(
            state,
            Arc::clone(&self.policy),
            self.store.clone(),
            Arc::clone(lease),
            self.outside.clone(),
        );
        self.engine.send_modify(|lead| *lead = Ok(engine.clone()));
        turn.spawn(engine::follow_blocks(engine.clone(), self.outside.clone(), turn.clone()));
        tokio::select! {
            result = driver.run(turn.clone()) => result,
            // Never ends by itself.
            () = self.find_first_model(&engine) => Ok(()),
            () = self.keep(lease) => anyhow::bail!("the lead was lost"),
        }
    }

    /// Renews the lease; returns when it is lost.
    async fn keep(&self, lease: &Lease) {
        let ttl = self.config.leader_ttl;
        let mut last = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(ttl / 3).await;
            match self.store.renew(lease, ttl).await {
                Ok(true) => last = tokio::time::Instant::now(),
                Ok(false) => return,
                Err(error) => {
                    warn!(%error, "the lead could not be renewed");
                    if last.elapsed() >= ttl {
                        return;
                    }
                }
            }
        }
    }

    /// The saved state, or the first one.
    async fn load(&self) -> anyhow::Result<State> {
        let identity = self
            .outside
            .chain()
            .get_identity(GetIdentityRequest {})
            .await
            .context("ask the chain service who this validator is")?
            .into_inner();
        let hotkey: Hotkey = identity.hotkey.parse()?;
        if let Some(bytes) = self.store.get(STATE).await.context("read the saved state")? {
            let state: State = serde_json::from_slice(&bytes).context(
                "the saved state cannot be read: it is of another version, or damaged; \
                 keep it and ask, or start with another `common.namespace`",
            )?;
            if state.hotkey != hotkey || state.expert_group != self.config.group() {
                anyhow::bail!(
                    "the saved state is of hotkey {} and expert group {}, this validator has {} and {}: \
                     start with another `common.namespace`",
                    state.hotkey,
                    state.expert_group,
                    hotkey,
                    self.config.group(),
                );
            }
            return Ok(state);
        }
        let base = self.first_model(self.config.group()).await?;
        Ok(State::new(hotkey, self.config.group(), base))
    }

    /// Waits for a first model beside the other validators' one, while there is none; never ends.
    async fn find_first_model(&self, engine: &Engine) {
        let views = engine.view();
        let mut told = String::new();
        while views.borrow().base.is_none() {
            let found = match self.first_model(self.config.group()).await {
                Ok(Some(model)) => {
                    let event = Event::ModelFound { model };
                    engine.apply(event).await.map(|_| ()).map_err(anyhow::Error::from)
                }
                Ok(None) => Err(anyhow::anyhow!(
                    "there is no first model at `{}`: it comes from the other validators when the \
                     cycle is over, or import one with `connito model import`",
                    self.first_prefix()
                )),
                Err(error) => Err(error),
            };
            if let Err(error) = found
                && told != format!("{error:#}")
            {
                told = format!("{error:#}");
                warn!(error = told, "no rounds without a model");
            }
            tokio::time::sleep(self.config.leader_ttl / 10).await;
        }
        std::future::pending::<()>().await;
    }

    fn first_prefix(&self) -> String {
        format!("models/{}", self.config.first_version())
    }

    /// The model to begin with, from its manifest; `None` where there is none.
    async fn first_model(&self, group: ExpertGroup) -> anyhow::Result<Option<ModelRef>> {
        let (global_version, prefix) = (self.config.first_version(), self.first_prefix());
        let key = format!("{prefix}/manifest.json");
        if !self.artifacts.exists(&key).await.with_context(|| format!("look for `{key}`"))? {
            return Ok(None);
        }
        let bytes = self.artifacts.get_bytes(&key, MAX_MANIFEST).await;
        let bytes = bytes.with_context(|| format!("read `{key}`"))?;
        let manifest: serde_json::Value =
            serde_json::from_slice(&bytes).with_context(|| format!("`{key}` is not a manifest"))?;
        let hash = manifest["slices"][group.to_string()]["model_hash"]
            .as_str()
            .with_context(|| format!("`{key}` has no slice of expert group {group}"))?;
        let model_hash: ModelHash = hash.parse().with_context(|| format!("`{key}`"))?;
        Ok(Some(ModelRef { global_version, model_hash, prefix }))
    }
}

/// Waits a little longer each time, up to `most`.
pub(crate) fn pause(attempt: u32, most: Duration) -> Duration {
    let base = Duration::from_millis(100) * 2u32.saturating_pow(attempt.min(10));
    base.min(most)
}
