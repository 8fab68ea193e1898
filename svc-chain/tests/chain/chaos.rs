//! Everything at once, by chance: whatever happens in whatever order, an intent lands exactly once
//! or fails with a named reason and leaves nothing on the chain.
//!
//! `CONNITO_SEED` repeats the choices of one run. Their timing is the machine's own.

use std::{fmt, time::Duration};

use devchain::{DevChain, Genesis, Production, Taken};
use proto::chain::v1::{self, IntentState};
use store::Store;
use svc_chain::{Config, Preference};
use tokio::time::sleep;

use crate::{
    net,
    rig::{self, Running},
};

/// Runs in the suite, as many of them at once, and what happens in each.
const SEEDS: u64 = 20;
const AT_ONCE: usize = 5;
const STEPS: usize = 20;

/// SplitMix64: the same choices for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }

    async fn pause(&mut self) {
        sleep(Duration::from_millis(self.below(180))).await;
    }
}

#[derive(Debug, Clone, Copy)]
enum Trouble {
    Kill,
    Cut,
    Away,
    Reorganise(u32, Taken),
    Refuse(u32),
    LoseAnswer,
    DropInSilence,
    StallFinality(bool),
    HoldPool(bool),
}

impl Trouble {
    fn by(chance: &mut Chance) -> Self {
        match chance.below(12) {
            0 | 1 => Self::Kill,
            2 => Self::Cut,
            3 => Self::Away,
            4..=6 => {
                let taken = match chance.below(3) {
                    0 => Taken::Back,
                    1 => Taken::Later(1 + chance.below(8) as u32),
                    _ => Taken::Lost,
                };
                Self::Reorganise(1 + chance.below(6) as u32, taken)
            }
            7 => Self::Refuse(1 + chance.below(2) as u32),
            8 => Self::LoseAnswer,
            9 => Self::DropInSilence,
            10 => Self::StallFinality(chance.below(2) == 0),
            _ => Self::HoldPool(chance.below(2) == 0),
        }
    }
}

/// One run: its chain, and the service on it.
struct Run {
    chain: DevChain,
    store: Store,
    config: Config,
    service: Option<Running>,
    /// What was done, for whoever has to understand a failure.
    log: Vec<Trouble>,
    seed: u64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CONNITO_SEED={}: {:?}", self.seed, self.log)
    }
}

impl Run {
    async fn start(seed: u64) -> Self {
        let chain = rig::start(Genesis {
            production: Production::Interval(Duration::from_millis(60)),
            finality_lag: 6,
            rate_limit: 0,
            tempo: 40,
            commit_reveal: seed % 2 == 1,
            ..rig::genesis()
        })
        .await;
        let config = Config {
            mortality: 16,
            lease_ttl: Duration::from_millis(200),
            commit_reveal: Preference::HashCommit,
            ..rig::config(&chain)
        };
        let store = Store::in_memory();
        let service = Some(Running::start(config.clone(), &store).await);
        Self { chain, store, config, service, log: Vec::new(), seed }
    }

    fn service(&mut self) -> &mut Running {
        self.service.as_mut().unwrap()
    }

    async fn suffers(&mut self, trouble: Trouble, chance: &mut Chance) {
        self.log.push(trouble);
        match trouble {
            Trouble::Kill => {
                self.service.take().unwrap().kill();
                chance.pause().await;
                self.service = Some(Running::launch(self.config.clone(), &self.store).await);
            }
            Trouble::Cut => self.chain.drop_connections(),
            Trouble::Away => {
                self.chain.set_offline(true);
                chance.pause().await;
                self.chain.set_offline(false);
            }
            Trouble::Reorganise(depth, taken) => {
                // Of fewer blocks, where so many are not reversible.
                let _ = self.chain.reorganise(depth, taken).await;
            }
            Trouble::Refuse(n) => self.chain.refuse_submits(n),
            Trouble::LoseAnswer => self.chain.lose_answers(1),
            Trouble::DropInSilence => self.chain.node().drop_next_submits(1),
            Trouble::StallFinality(on) => self.chain.set_finality_paused(on).await.unwrap(),
            Trouble::HoldPool(on) => self.chain.hold_pool(on).await.unwrap(),
        }
    }

    async fn heals(&mut self) {
        self.chain.set_finality_paused(false).await.unwrap();
        self.chain.hold_pool(false).await.unwrap();
        self.chain.refuse_submits(0);
        self.chain.lose_answers(0);
        self.chain.node().drop_next_submits(0);
    }

    /// Records an intent, as a caller does that tries until it is answered.
    async fn submit(&mut self, request: &v1::SubmitIntentRequest) {
        let mut client = self.service().client.clone();
        let what = format!("{:?} is recorded: {self}", request.key);
        net::until(&what, || {
            let (mut client, request) = (client.clone(), request.clone());
            async move { client.submit_intent(request).await.ok() }
        })
        .await;
        let key = request.key.clone();
        client.get_intent(v1::GetIntentRequest { key }).await.unwrap();
    }

    /// Successful extrinsics of a kind that the best chain holds.
    async fn landed(&self, calls: &[&str]) -> usize {
        let journal = self.chain.extrinsics().await.unwrap();
        let here = |x: &&devchain::Included| calls.contains(&x.call.as_str()) && x.error.is_none();
        journal.iter().filter(here).count()
    }

    /// Every intent is over, and the chain holds what they say and nothing else.
    async fn adds_up(&mut self) {
        let open = |i: &v1::Intent| !matches!(i.state(), IntentState::Done | IntentState::Failed);
        let client = self.service().client.clone();
        let list = async || {
            let listed = client.clone().list_intents(v1::ListIntentsRequest::default()).await;
            listed.ok().map(|listed| listed.into_inner().intents)
        };
        let over = async || list().await.filter(|intents| !intents.iter().any(open));
        net::until(&format!("all intents are over: {self}"), over).await;
        // What a reorganisation took away comes back late, and in vain.
        let head = self.chain.head().await.unwrap().number;
        self.chain.wait_for_block(head + 20).await.unwrap();
        let intents = list().await.unwrap();
        let mut expected = [0; 3];
        for intent in &intents {
            let slot = match intent.key.as_ref().unwrap().kind.as_str() {
                "weights" => 0,
                "reveal" => 1,
                _ => 2,
            };
            if intent.state() == IntentState::Done {
                expected[slot] += 1;
            } else {
                assert!(!intent.reason.is_empty(), "{intent:?}: {self}");
            }
        }
        let found = [
            self.landed(&["set_mechanism_weights", "commit_mechanism_weights"]).await,
            self.landed(&["reveal_mechanism_weights"]).await,
            self.landed(&["set_commitment"]).await,
        ];
        let journal = self.chain.extrinsics().await.unwrap();
        assert_eq!(found, expected, "{self}\n{intents:#?}\n{journal:#?}");
        for intent in intents.iter().filter(|i| i.state() == IntentState::Done) {
            let here = journal.iter().filter(|x| x.hash.to_vec() == intent.extrinsic_hash);
            assert_eq!(here.count(), 1, "{intent:?}: {self}");
        }
        let nonces: Vec<_> = journal.iter().map(|x| x.nonce).collect();
        assert!(nonces.is_sorted_by(|a, b| a < b), "{nonces:?}: {self}");
    }
}

async fn happens(seed: u64) {
    let mut chance = Chance(seed);
    let mut run = Run::start(seed).await;
    let mut waiting = vec![
        rig::weights(2, &[(2, 1.0)]),
        rig::commitment(1, "model_hash", "h"),
        rig::weights(1, &[(1, 1.0)]),
        rig::commitment(1, "seed", "s"),
    ];
    for step in 0..STEPS {
        if step % 5 == 1
            && let Some(request) = waiting.pop()
        {
            run.submit(&request).await;
        }
        let trouble = Trouble::by(&mut chance);
        run.suffers(trouble, &mut chance).await;
        chance.pause().await;
    }
    run.heals().await;
    run.adds_up().await;
    run.service.take().unwrap().stop().await;
}

#[tokio::test]
async fn whatever_happens_an_intent_lands_once_or_fails_by_name() {
    if let Ok(seed) = std::env::var("CONNITO_SEED") {
        return happens(seed.parse().unwrap()).await;
    }
    let seeds: Vec<u64> = (1..=SEEDS).collect();
    for seeds in seeds.chunks(AT_ONCE) {
        eprintln!("seeds {seeds:?}");
        futures::future::join_all(seeds.iter().copied().map(happens)).await;
    }
}
