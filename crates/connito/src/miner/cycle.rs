//! One miner's cycles, act by act.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use checkpoint::{Format, SliceId};
use client::{ClientError, MinerClient, Signer};
use domain::{
    ExpertGroup, GlobalVersion, Hotkey, MinerCommitment, ModelHash, Phase, PhaseRecord,
    SignedHashCommitment, model_hash_message,
};
use kit::Shutdown;
use model::GroupExperts;
use proto::chain::v1::{
    CommitmentPayload, GetBlockRequest, GetCommitmentsRequest, GetIntentRequest,
    GetMetagraphRequest, IntentKey, IntentState, SubmitIntentRequest,
    submit_intent_request::Payload,
};

use super::{
    Behaviour, Chain, MinerConfig, Voice,
    craft::{self, Base, Crafted},
};

/// A miner at work.
#[derive(Debug)]
pub struct Miner {
    config: MinerConfig,
    experts: GroupExperts,
    group: ExpertGroup,
    hotkey: Hotkey,
    chain: Chain,
    voice: Voice,
    shutdown: Shutdown,
}

/// Tells blocking work to end when whoever waits for it goes away.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A validator as a miner sees it.
#[derive(Debug)]
struct Door {
    name: String,
    client: MinerClient,
}

impl Miner {
    pub(super) fn new(
        config: MinerConfig,
        experts: GroupExperts,
        group: ExpertGroup,
        chain: Chain,
        voice: Voice,
        shutdown: Shutdown,
    ) -> Self {
        let hotkey = config.key.hotkey().clone();
        Self { config, experts, group, hotkey, chain, voice, shutdown }
    }

    /// Works cycle after cycle until `shutdown`.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let shutdown = self.shutdown.clone();
        let mut next = 0;
        while !shutdown.is_cancelled() {
            let work = async {
                let now = self.now().await?;
                let cycle = now.cycle_index.0;
                if cycle < next || now.phase_name > Phase::Train {
                    tokio::time::sleep(self.config.poll).await;
                    return anyhow::Ok(next);
                }
                if let Err(error) = self.cycle(cycle).await {
                    self.voice.say(cycle, format!("gave the cycle up: {error:#}"));
                }
                Ok(cycle + 1)
            };
            tokio::select! {
                done = work => match done {
                    Ok(cycle) => next = cycle,
                    Err(error) => {
                        tracing::debug!(error = format!("{error:#}"), "no gateway yet");
                        tokio::time::sleep(self.config.poll).await;
                    }
                },
                () = shutdown.cancelled() => {}
            }
        }
        Ok(())
    }

    async fn cycle(&self, cycle: u64) -> anyhow::Result<()> {
        let (base, version) = self.download(cycle).await?;
        let crafted = self.craft(&base, cycle).await?;

        self.reach(cycle, Phase::MinerCommit1).await?;
        let signed = match self.config.behaviour {
            // It does not know yet what it is going to copy.
            Behaviour::Copy => ModelHash([7; 24]),
            Behaviour::Honest | Behaviour::Idle | Behaviour::Nan | Behaviour::Absent => {
                crafted.hash
            }
        };
        let signature = self.sign(&model_hash_message(&signed));
        let commitment =
            SignedHashCommitment { signature: Some(BASE64_URL_SAFE_NO_PAD.encode(signature)) };
        self.commit(cycle, "signed_hash", commitment.to_json()?).await?;

        self.reach(cycle, Phase::MinerCommit2).await?;
        let crafted = match self.config.behaviour {
            Behaviour::Copy => self.steal(cycle).await?,
            Behaviour::Honest | Behaviour::Idle | Behaviour::Nan | Behaviour::Absent => crafted,
        };
        let commitment = MinerCommitment {
            block: Some(self.now().await?.block),
            group: Some(self.group),
            model_hash: Some(crafted.hash),
            version: Some(version),
            inner_step: Some(crafted.steps),
            ..MinerCommitment::default()
        };
        // As with a hub: the file is there before its hash is revealed, and nobody can ask for it by
        // name until then.
        if self.config.behaviour == Behaviour::Honest {
            self.leak(&crafted).await;
        }
        self.commit(cycle, "model_hash", commitment.to_json()?).await?;

        self.reach(cycle, Phase::Submission).await?;
        if self.config.behaviour == Behaviour::Absent {
            self.voice.say(cycle, "committed, and submits nothing");
            return Ok(());
        }
        for door in self.doors().await? {
            self.submit(cycle, &door, &crafted).await?;
        }
        Ok(())
    }

    /// The files of the global model, from the first validator that has them.
    async fn download(&self, cycle: u64) -> anyhow::Result<(Base, GlobalVersion)> {
        loop {
            for door in self.doors().await? {
                match self.fetch(&door).await {
                    Ok(found) => return Ok(found),
                    Err(error) => {
                        let what = format!("no model from {} yet: {error:#}", door.name);
                        tracing::info!(miner = self.voice.miner, cycle, what, "miner");
                    }
                }
            }
            let now = self.now().await?;
            anyhow::ensure!(
                now.cycle_index.0 == cycle && now.phase_name <= Phase::Train,
                "no validator served a model in Distribute or Train"
            );
            tokio::time::sleep(self.config.poll).await;
        }
    }

    async fn fetch(&self, door: &Door) -> anyhow::Result<(Base, GlobalVersion)> {
        let path = |slice: SliceId| self.config.folder.join(slice.file_name(Format::Safetensors));
        let (shared, experts) = (SliceId::Shared, SliceId::Group(self.group));
        let base = Base { shared: path(shared), experts: path(experts) };
        door.client.download(shared, Format::Safetensors, &base.shared).await?;
        let slice = door.client.download(experts, Format::Safetensors, &base.experts).await?;
        let found = checkpoint::open(&base.experts, checkpoint::Limits::default())?;
        let hash = checkpoint::model_hash(&found)?;
        anyhow::ensure!(
            hash == slice.model_hash,
            "the slice has hash {hash}, the validator announced {}",
            slice.model_hash
        );
        Ok((base, slice.global_version))
    }

    async fn craft(&self, base: &Base, cycle: u64) -> anyhow::Result<Crafted> {
        let (base, config, experts) = (base.clone(), self.config.clone(), self.experts.clone());
        let stop = StopOnDrop(Arc::new(AtomicBool::new(false)));
        let asked = Arc::clone(&stop.0);
        let work = tokio::task::spawn_blocking(move || {
            let train = || {
                craft::trained(&base, &config, &experts, cycle, || asked.load(Ordering::Relaxed))
            };
            match config.behaviour {
                Behaviour::Honest | Behaviour::Absent => train(),
                Behaviour::Nan => craft::poisoned(&train()?, &config.folder, config.format),
                Behaviour::Idle | Behaviour::Copy => {
                    craft::unchanged(&base, &config.folder, config.format)
                }
            }
        });
        // A process must not end in the middle of a computation: the shutdown waits for it.
        let work = self.shutdown.spawn(work);
        tokio::pin!(work);
        let crafted = tokio::select! {
            done = &mut work => done,
            _ = self.reach(cycle, Phase::MinerCommit1) => {
                stop.0.store(true, Ordering::Relaxed);
                work.await
            }
        };
        let crafted = crafted?.context("the training panicked")??;
        if self.config.behaviour != Behaviour::Copy {
            self.voice.say(cycle, crafted.story.clone());
        }
        Ok(crafted)
    }

    /// Waits for another miner's revealed hash, and takes its file.
    async fn steal(&self, cycle: u64) -> anyhow::Result<Crafted> {
        loop {
            let request = GetCommitmentsRequest { at: Some(at(self.head().await?)), agreed: false };
            let answer = self.chain.clone().get_commitments(request).await?.into_inner();
            let found = answer
                .commitments
                .iter()
                .filter(|commitment| commitment.hotkey != self.hotkey.as_str())
                .filter_map(|commitment| MinerCommitment::parse(&commitment.data).ok()?.model_hash)
                .find_map(|hash| self.loot(&hash).map(|path| (hash, path)));
            if let Some((hash, path)) = found {
                let story = format!("takes another miner's file {hash} as its own");
                self.voice.say(cycle, story.clone());
                return Ok(Crafted { path, hash, story, steps: 1 });
            }
            let now = self.now().await?;
            anyhow::ensure!(
                now.cycle_index.0 == cycle && now.phase_name == Phase::MinerCommit2,
                "found nothing to copy"
            );
            tokio::time::sleep(self.config.poll).await;
        }
    }

    fn loot(&self, hash: &ModelHash) -> Option<PathBuf> {
        [Format::Pt, Format::Safetensors]
            .map(|format| self.config.loot.join(format!("{hash}.{}", format.extension())))
            .into_iter()
            .find(|path| path.exists())
    }

    /// Leaves the file where others may find it, under its hash, as a public hub would have it.
    async fn leak(&self, crafted: &Crafted) {
        let name = format!("{}.{}", crafted.hash, self.config.format.extension());
        let target = self.config.loot.join(name);
        let copied = async {
            tokio::fs::create_dir_all(&self.config.loot).await?;
            let part = target.with_extension("part");
            tokio::fs::copy(&crafted.path, &part).await?;
            tokio::fs::rename(&part, &target).await
        };
        if let Err(error) = copied.await {
            tracing::warn!(%error, "the file could not be published");
        }
    }

    async fn submit(&self, cycle: u64, door: &Door, crafted: &Crafted) -> anyhow::Result<()> {
        loop {
            let error = match door.client.submit(&crafted.path, crafted.hash).await {
                Ok(_) => {
                    self.voice.say(cycle, format!("submitted to {}", door.name));
                    return Ok(());
                }
                Err(error) => error,
            };
            // The gateway opens a block or two after the phase begins.
            let early = matches!(error.reason(), "not_submission_phase" | "uploads_closed");
            if !early {
                let what = if let ClientError::Refused(refusal) = &error {
                    format!("refused by {}: {}", door.name, refusal.reason)
                } else {
                    format!("could not submit to {}: {error}", door.name)
                };
                // The other validators get it all the same.
                self.voice.say(cycle, what);
                return Ok(());
            }
            let now = self.now().await?;
            anyhow::ensure!(
                now.cycle_index.0 == cycle && now.phase_name == Phase::Submission,
                "{} took no uploads during Submission: {error}",
                door.name
            );
            tokio::time::sleep(self.config.poll).await;
        }
    }

    /// Height of the current block.
    async fn head(&self) -> anyhow::Result<u64> {
        let answer = self.chain.clone().get_block(GetBlockRequest::default()).await?;
        let block = answer.into_inner().block.context("the chain service names no block")?;
        Ok(block.number)
    }

    /// The validators that have announced an address, most stake first.
    async fn doors(&self) -> anyhow::Result<Vec<Door>> {
        let request = GetMetagraphRequest { at: Some(at(self.head().await?)) };
        let metagraph = self.chain.clone().get_metagraph(request).await?.into_inner();
        let mut neurons: Vec<_> = metagraph
            .neurons
            .into_iter()
            .filter(|neuron| neuron.validator_permit && !neuron.axon.is_empty())
            .collect();
        neurons.sort_by_key(|neuron| (std::cmp::Reverse(neuron.stake), neuron.uid));
        anyhow::ensure!(!neurons.is_empty(), "no validator has announced an address");
        let door = |neuron: proto::chain::v1::Neuron| -> anyhow::Result<Door> {
            let hotkey: Hotkey = neuron.hotkey.parse()?;
            let url = format!("http://{}", neuron.axon);
            let client = MinerClient::new(&url, self.hotkey.clone(), self.signer(), None)?;
            Ok(Door { name: format!("validator {}", hotkey.short()), client })
        };
        neurons.into_iter().map(door).collect()
    }

    /// Where the chain is in the cycle, as the first validator that answers says.
    async fn now(&self) -> anyhow::Result<PhaseRecord> {
        let mut last = anyhow::anyhow!("there is no validator");
        for door in self.doors().await? {
            match door.client.phase().await {
                Ok(record) => return Ok(record),
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    /// Waits until `phase` of `cycle` has begun. An error when it is over already.
    async fn reach(&self, cycle: u64, phase: Phase) -> anyhow::Result<()> {
        loop {
            if let Ok(now) = self.now().await {
                anyhow::ensure!(
                    now.cycle_index.0 == cycle && now.phase_name <= phase,
                    "{phase} of cycle {cycle} is over"
                );
                if now.phase_name == phase {
                    return Ok(());
                }
            }
            tokio::time::sleep(self.config.poll).await;
        }
    }

    /// Puts a commitment on the chain and waits until it is there.
    async fn commit(&self, cycle: u64, kind: &str, json: String) -> anyhow::Result<()> {
        let key = Some(IntentKey { round: cycle, kind: kind.to_owned() });
        let payload = Payload::Commitment(CommitmentPayload { data: json.into_bytes().into() });
        let request = SubmitIntentRequest { key: key.clone(), payload: Some(payload) };
        let mut intent = self.chain.clone().submit_intent(request).await?.into_inner();
        loop {
            match intent.state() {
                IntentState::Done => return Ok(()),
                IntentState::Failed => {
                    anyhow::bail!("{kind}: {} ({})", intent.detail, intent.reason)
                }
                IntentState::Unspecified
                | IntentState::Recorded
                | IntentState::Submitted
                | IntentState::Included => {}
            }
            tokio::time::sleep(self.config.poll.min(Duration::from_secs(1))).await;
            let request = GetIntentRequest { key: key.clone() };
            intent = self.chain.clone().get_intent(request).await?.into_inner();
        }
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signer()(message)
    }

    fn signer(&self) -> Signer {
        let key = Arc::clone(&self.config.key);
        Arc::new(move |message| key.sign(message))
    }
}

fn at(number: u64) -> proto::chain::v1::At {
    proto::chain::v1::At { block: Some(proto::chain::v1::at::Block::Number(number)) }
}
