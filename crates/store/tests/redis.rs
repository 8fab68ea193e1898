//! What only Redis could get wrong: it must do what memory does, and not fill up.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use bytes::Bytes;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use store::{Lease, Store, StoreError, Write};
use testkit::RedisServer;

const LONG: Duration = Duration::from_secs(3600);

/// A step that any client may take. Leases are named by the order in which they were got.
#[derive(Debug, Clone)]
enum Step {
    Acquire(&'static str),
    Renew(usize),
    Release(usize),
    Write(usize, Vec<Write>),
    PutIfAbsent(&'static str, u8, bool),
    PutFor(&'static str, u8),
    Get(&'static str),
    List(&'static str),
}

/// What came of a step, in words.
fn said<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    format!("{result:?}")
}

async fn take(store: &Store, leases: &mut Vec<Lease>, step: &Step) -> String {
    match step {
        Step::Acquire(name) => match store.acquire(name, LONG).await.unwrap() {
            Some(lease) => {
                let fence = lease.fence();
                leases.push(lease);
                format!("{name} {fence}")
            }
            None => "held".to_owned(),
        },
        Step::Renew(at) => match leases.get(*at) {
            Some(lease) => said(store.renew(lease, LONG).await),
            None => String::new(),
        },
        Step::Release(at) if *at < leases.len() => {
            said(store.release(leases.swap_remove(*at)).await)
        }
        Step::Release(_) => String::new(),
        Step::Write(at, writes) => match leases.get(*at) {
            Some(lease) => said(store.write_fenced(lease, writes.clone()).await),
            None => String::new(),
        },
        Step::PutIfAbsent(key, value, ends) => {
            let value = Bytes::from(vec![*value]);
            said(store.put_if_absent(key, value, ends.then_some(LONG)).await)
        }
        Step::PutFor(key, value) => said(store.put_for(key, Bytes::from(vec![*value]), LONG).await),
        Step::Get(key) => said(store.get(key).await),
        Step::List(prefix) => said(store.list(prefix).await),
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || prop::sample::select(vec!["a", "a/1", "a/2", "ab", "b/*", "b/?"]);
    let lease = || 0..4_usize;
    let write = prop_oneof![
        (key(), any::<u8>())
            .prop_map(|(key, value)| Write::Put(key.to_owned(), vec![value].into())),
        key().prop_map(|key| Write::Delete(key.to_owned())),
    ];
    let step = prop_oneof![
        prop::sample::select(vec!["leader", "nonce"]).prop_map(Step::Acquire),
        lease().prop_map(Step::Renew),
        lease().prop_map(Step::Release),
        (lease(), prop::collection::vec(write, 0..4))
            .prop_map(|(lease, writes)| Step::Write(lease, writes)),
        (key(), any::<u8>(), any::<bool>())
            .prop_map(|(key, value, ends)| Step::PutIfAbsent(key, value, ends)),
        (key(), any::<u8>()).prop_map(|(key, value)| Step::PutFor(key, value)),
        key().prop_map(Step::Get),
        prop::sample::select(vec!["", "a", "a/", "b/*", "c"]).prop_map(Step::List),
    ];
    prop::collection::vec(step, 1..40)
}

#[test]
fn any_sequence_of_steps_has_the_same_results_as_in_memory() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let redis = runtime.block_on(RedisServer::start()).unwrap();
    let cases = std::cell::Cell::new(0);
    let mut runner =
        TestRunner::new(Config { failure_persistence: None, ..Config::with_cases(96) });
    let result = runner.run(&(steps(),), |(steps,)| {
        let case = cases.replace(cases.get() + 1);
        runtime.block_on(async {
            let memory = Store::in_memory();
            let redis = Store::open(&redis.url(), &format!("case-{case}")).unwrap();
            let (mut in_memory, mut in_redis) = (Vec::new(), Vec::new());
            for step in &steps {
                let expected = take(&memory, &mut in_memory, step).await;
                let got = take(&redis, &mut in_redis, step).await;
                prop_assert_eq!(got, expected, "{:?}", step);
            }
            Ok(())
        })
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[tokio::test]
async fn nonces_that_have_ended_leave_nothing_behind() {
    let server = RedisServer::start().await.unwrap();
    let store = Store::open(&server.url(), "test").unwrap();
    let ttl = Duration::from_millis(1);
    for i in 0..500 {
        let put = store.put_if_absent(&format!("nonce/{i}"), Bytes::new(), Some(ttl)).await;
        assert!(put.unwrap());
    }
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    // Redis forgets the values in its own time; the sorted sets beside them are ours.
    let mut count = async || -> usize {
        let command = redis::cmd("EVAL")
            .arg(
                "local n = 0 for _, k in ipairs(redis.call('KEYS', '*')) do \
                  if redis.call('TYPE', k).ok == 'zset' then n = n + redis.call('ZCARD', k) end \
                  end return n",
            )
            .arg(0)
            .to_owned();
        command.query_async(&mut connection).await.unwrap()
    };
    // The last one may still live; each further one clears up to sixteen.
    for i in 0..100 {
        if count().await <= 8 {
            return;
        }
        // So that not more than this one is alive, however fast the engine is.
        tokio::time::sleep(ttl * 3).await;
        store.put_if_absent(&format!("later/{i}"), Bytes::new(), Some(ttl)).await.unwrap();
    }
    panic!("{} entries are left", count().await);
}
