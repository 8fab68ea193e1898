//! The crash matrix: the real program on a real Redis, killed a hundred times, and a second one
//! beside it.
//!
//! A kill comes right after the intent was seen in one of its states, or at a moment by chance; the
//! seed is printed, and CONNITO_SEED repeats it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use devchain::{DevChain, Genesis, Production};
use proto::chain::v1::{self, IntentState};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use testkit::{Process, RedisServer, Running};
use tokio::time::{sleep, timeout};

use crate::rig::{self, Client, PATIENCE};

const KILLS: u64 = 100;
/// Longer than it takes to send and to land, shorter than the patience of anybody.
const BY_CHANCE: Duration = Duration::from_millis(700);

/// Blocks every 60 ms, final two later; weights may be set in every block.
fn genesis() -> Genesis {
    Genesis {
        production: Production::Interval(Duration::from_millis(60)),
        finality_lag: 2,
        rate_limit: 0,
        commitment_space: u32::MAX,
        ..rig::genesis()
    }
}

fn spawn(chain: &DevChain, redis: &RedisServer, addr: SocketAddr) -> Running {
    Process::new(env!("CARGO_BIN_EXE_svc-chain"))
        .env("CONNITO_TOKEN", rig::TOKEN)
        .env("CONNITO_STORE_URL", redis.url())
        .env("CONNITO_CHAIN_GRPC_ADDR", addr.to_string())
        .env("CONNITO_CHAIN_ENDPOINTS", format!("[\"{}\"]", chain.url()))
        .env("CONNITO_CHAIN_WALLET_PATH", rig::wallets())
        .env("CONNITO_CHAIN_COLDKEY", "validator")
        .env("CONNITO_CHAIN_LEASE_TTL", "300ms")
        .env("CONNITO_CHAIN_KEEP_INTENTS", "20")
        .spawn()
        .unwrap()
}

/// Hands an intent in, as often as it takes until somebody is there to take it.
async fn hand_in(client: &mut Client, request: &v1::SubmitIntentRequest) {
    let taken = async {
        while client.submit_intent(request.clone()).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, taken).await.expect("the service takes an intent");
}

async fn state(client: &mut Client, key: &Option<v1::IntentKey>) -> Option<IntentState> {
    let request = v1::GetIntentRequest { key: key.clone() };
    client.get_intent(request).await.ok().map(|intent| intent.get_ref().state())
}

/// What is written in round `round`: a commitment and weights in turn, each of its own content.
fn intent(round: u64) -> v1::SubmitIntentRequest {
    match round % 2 {
        0 => rig::commitment(round, "seed", &format!("{{\"s\":{round}}}")),
        _ => rig::weights(round, &[(1, 1.0), (2, 1.0 / (round + 1) as f64)]),
    }
}

/// Successful extrinsics of the journal, by their call.
async fn landed(chain: &DevChain) -> BTreeMap<String, usize> {
    let mut calls = BTreeMap::new();
    for included in chain.extrinsics().await.unwrap() {
        assert_eq!(included.error, None, "{included:?}");
        *calls.entry(included.call).or_default() += 1;
    }
    calls
}

fn seed() -> u64 {
    let seed = std::env::var("CONNITO_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    eprintln!("CONNITO_SEED={seed}");
    seed
}

#[tokio::test]
async fn a_hundred_kills_at_every_state_lose_nothing_and_double_nothing() {
    let mut chance = ChaCha8Rng::seed_from_u64(seed());
    let chain = rig::start(genesis()).await;
    let redis = RedisServer::start().await.unwrap();
    let addr = testkit::unused_addr().unwrap();
    let mut client = rig::client(addr);
    let mut running = spawn(&chain, &redis, addr);
    let mut hit = BTreeMap::<String, u64>::new();
    for round in 1..=KILLS {
        let request = intent(round);
        let key = request.key.clone();
        hand_in(&mut client, &request).await;
        let wanted = match (round / 2) % 5 {
            0 => Some(IntentState::Recorded),
            1 => Some(IntentState::Submitted),
            2 => Some(IntentState::Included),
            3 => Some(IntentState::Done),
            _ => None,
        };
        match wanted {
            // It may be past that state already: then the kill comes at another one.
            Some(wanted) => {
                while state(&mut client, &key).await.is_none_or(|now| now < wanted) {
                    sleep(Duration::from_millis(1)).await;
                }
                sleep(chance.random_range(Duration::ZERO..Duration::from_millis(15))).await;
            }
            None => sleep(chance.random_range(Duration::ZERO..BY_CHANCE)).await,
        }
        let kind = key.as_ref().map(|key| key.kind.clone()).unwrap_or_default();
        if let Some(now) = state(&mut client, &key).await {
            *hit.entry(format!("{kind} {}", now.as_str_name())).or_default() += 1;
        }
        running.kill().unwrap();
        running.ends(PATIENCE).await.unwrap();

        running = spawn(&chain, &redis, addr);
        let done = rig::finished(&mut client, key).await;
        assert_eq!(done.state(), IntentState::Done, "round {round}: {done:?}");
        let calls = landed(&chain).await;
        let expected = usize::try_from(round).unwrap();
        assert_eq!(calls.values().sum::<usize>(), expected, "round {round}: {calls:?}");
    }
    eprintln!("killed at {hit:?}");
    for kind in ["seed", "weights"] {
        for state in ["RECORDED", "SUBMITTED", "INCLUDED", "DONE"] {
            let name = format!("{kind} INTENT_STATE_{state}");
            assert!(hit.contains_key(&name), "never killed at {name}: {hit:?}");
        }
    }
    let half = usize::try_from(KILLS / 2).unwrap();
    let expected = [("set_commitment", half), ("set_mechanism_weights", half)];
    assert_eq!(landed(&chain).await, expected.map(|(call, n)| (call.to_owned(), n)).into());
    running.stops_cleanly(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn of_two_programs_on_one_redis_the_other_goes_on_and_the_chain_sees_each_intent_once() {
    let chain = rig::start(genesis()).await;
    let redis = RedisServer::start().await.unwrap();
    let addrs = [testkit::unused_addr().unwrap(), testkit::unused_addr().unwrap()];
    let mut programs: Vec<Running> = addrs.map(|addr| spawn(&chain, &redis, addr)).into();
    for round in 1..=8 {
        let owner = owner(&addrs).await;
        let other = 1 - owner;
        // Handed to both, as two schedulers would at a change of the lead.
        let request = intent(round);
        for addr in addrs {
            hand_in(&mut rig::client(addr), &request).await;
        }
        programs[owner].kill().unwrap();
        programs[owner].ends(PATIENCE).await.unwrap();
        let done = rig::finished(&mut rig::client(addrs[other]), request.key.clone()).await;
        assert_eq!(done.state(), IntentState::Done, "round {round}: {done:?}");
        let calls = landed(&chain).await;
        assert_eq!(calls.values().sum::<usize>(), usize::try_from(round).unwrap(), "{calls:?}");
        programs[owner] = spawn(&chain, &redis, addrs[owner]);
    }
}

/// Which of two programs sends extrinsics: exactly one, sooner or later.
async fn owner(addrs: &[SocketAddr; 2]) -> usize {
    let known = async {
        loop {
            for (which, addr) in addrs.iter().enumerate() {
                let status = rig::client(*addr).get_status(v1::GetStatusRequest {}).await;
                if status.is_ok_and(|status| status.get_ref().nonce_owner) {
                    return which;
                }
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, known).await.expect("one of them sends")
}
