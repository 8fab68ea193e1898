//! Lines to the other validators of a round: found where they are configured, or by their axon,
//! kept while they work, and looked for again when they do not.

use std::{collections::BTreeMap, sync::Arc};

use domain::Hotkey;
use kit::Line;
use tokio::sync::Mutex;

use crate::{
    config::Config,
    discovery::{Discovery, DiscoveryError},
};

/// Why there is no line to a validator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoLine {
    #[error("not found: {0}")]
    NotFound(#[from] DiscoveryError),
    #[error("its URL is unusable: {0}")]
    Url(String),
}

/// One line to each validator.
#[derive(Debug)]
pub(crate) struct Lines {
    config: Arc<Config>,
    discovery: Discovery,
    others: BTreeMap<Hotkey, Other>,
}

#[derive(Debug)]
struct Other {
    axon: String,
    line: Mutex<Option<Line>>,
}

impl Lines {
    /// Lines to the validators with these axons (`ip:port`, empty where there is none).
    pub(crate) fn new(
        config: Arc<Config>,
        discovery: Discovery,
        axons: impl IntoIterator<Item = (Hotkey, String)>,
    ) -> Self {
        let other = |(hotkey, axon)| (hotkey, Other { axon, line: Mutex::default() });
        Self { config, discovery, others: axons.into_iter().map(other).collect() }
    }

    /// The line to a validator: the one that there is, or a new one. Nothing is called yet.
    pub(crate) async fn get(&self, to: &Hotkey) -> Result<Line, NoLine> {
        let other = self.others.get(to).ok_or(DiscoveryError::NoAxon)?;
        let mut line = other.line.lock().await;
        match &*line {
            Some(line) => Ok(line.clone()),
            None => Ok(line.insert(self.find(to, &other.axon).await?).clone()),
        }
    }

    /// Forgets a line that does not work: the other may have moved.
    pub(crate) async fn forget(&self, to: &Hotkey, broken: &Line) {
        if let Some(other) = self.others.get(to) {
            let mut line = other.line.lock().await;
            if line.as_ref().is_some_and(|line| line.is(broken)) {
                *line = None;
            }
        }
    }

    async fn find(&self, to: &Hotkey, axon: &str) -> Result<Line, NoLine> {
        let url = match self.config.peer_urls.get(to) {
            Some(url) => url.clone(),
            None => self.discovery.find(axon).await?,
        };
        Line::open(&url).map_err(|error| NoLine::Url(format!("{error:#}")))
    }
}
