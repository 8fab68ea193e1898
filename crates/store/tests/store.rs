//! One suite for every engine of the store: what holds in memory must hold in Redis.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use store::{Lease, Store, StoreError, Write};
use testkit::RedisServer;

/// Long enough that a slow machine does not end it by accident.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(150);

/// Runs `test` on each engine, under a fresh namespace.
async fn on_both<F, Fut>(test: F)
where
    F: Fn(Store) -> Fut,
    Fut: Future<Output = ()>,
{
    test(Store::in_memory()).await;
    let redis = RedisServer::start().await.unwrap();
    test(Store::open(&redis.url(), "suite").unwrap()).await;
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn taken(store: &Store, name: &str, ttl: Duration) -> Lease {
    store.acquire(name, ttl).await.unwrap().expect("nobody else holds it")
}

/// Waits for the lease or key to have ended, however long the engine's clock takes.
async fn eventually<F, Fut>(what: &str, mut holds: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    for _ in 0..500 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what}: not after 10 s");
}

#[tokio::test]
async fn a_lease_has_one_holder_until_it_is_given_back() {
    on_both(async |store: Store| {
        let first = taken(&store, "leader", LONG).await;
        assert_eq!((first.name(), first.fence()), ("leader", 1));
        assert_eq!(store.acquire("leader", LONG).await.unwrap(), None);
        assert!(store.acquire("another", LONG).await.unwrap().is_some(), "names are apart");
        assert!(store.renew(&first, LONG).await.unwrap());
        assert!(store.release(first).await.unwrap());

        let second = taken(&store, "leader", LONG).await;
        assert_eq!(second.fence(), 2, "a fence is never given out twice");
        assert_eq!(store.fence("leader").await.unwrap(), 2);
        assert_eq!(store.fence("never").await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn fences_keep_growing_when_leases_expire() {
    on_both(async |store: Store| {
        let mut last = 0;
        for _ in 0..3 {
            let lease = taken(&store, "leader", SHORT).await;
            assert!(lease.fence() > last, "{} after {last}", lease.fence());
            last = lease.fence();
            eventually("the lease expires", async || {
                !store.renew(&lease, SHORT.min(Duration::from_millis(1))).await.unwrap()
            })
            .await;
        }
        assert_eq!(store.fence("leader").await.unwrap(), last);
    })
    .await;
}

#[tokio::test]
async fn a_lost_lease_can_neither_be_renewed_nor_given_back_nor_write() {
    on_both(async |store: Store| {
        let old = taken(&store, "leader", SHORT).await;
        store.put_fenced(&old, "state", bytes("old")).await.unwrap();
        let mut new = None;
        eventually("the lease is free", async || {
            let got = store.acquire("leader", LONG).await.unwrap();
            let free = got.is_some();
            if let Some(lease) = got {
                store.put_fenced(&lease, "state", bytes("new")).await.unwrap();
                assert!(store.release(lease).await.unwrap());
            }
            free
        })
        .await;
        new.replace(taken(&store, "leader", LONG).await);
        let new = new.unwrap();

        assert!(!store.renew(&old, LONG).await.unwrap());
        let refused = StoreError::Fenced {
            lease: "leader".to_owned(),
            held: old.fence(),
            newest: new.fence(),
        };
        let late = store.put_fenced(&old, "state", bytes("late")).await;
        assert_eq!(late, Err(refused.clone()));
        assert_eq!(store.delete_fenced(&old, "state").await, Err(refused.clone()));
        assert!(refused.is_fenced() && !refused.is_unavailable());
        assert!(!store.release(old).await.unwrap());

        assert_eq!(store.get("state").await.unwrap(), Some(bytes("new")));
        assert!(store.renew(&new, LONG).await.unwrap(), "the old holder has not hurt the new one");
    })
    .await;
}

#[tokio::test]
async fn an_expired_lease_writes_nothing_even_if_nobody_took_it() {
    on_both(async |store: Store| {
        let lease = taken(&store, "leader", SHORT).await;
        eventually("the write is refused", async || {
            match store.put_fenced(&lease, "beat", bytes("x")).await {
                Ok(()) => false,
                Err(error) => {
                    assert!(error.is_fenced(), "{error}");
                    true
                }
            }
        })
        .await;
        let error = store.put_fenced(&lease, "late", bytes("x")).await.unwrap_err();
        assert_eq!(
            error,
            StoreError::Fenced { lease: "leader".to_owned(), held: 1, newest: 1 },
            "nobody took it since"
        );
        assert_eq!(store.get("late").await.unwrap(), None);
    })
    .await;
}

#[tokio::test]
async fn a_guarded_batch_is_made_whole_or_not_at_all() {
    on_both(async |store: Store| {
        let lease = taken(&store, "leader", LONG).await;
        store.put_fenced(&lease, "effects/1", bytes("todo")).await.unwrap();
        let step = |state: &str| {
            vec![
                Write::Put("state".to_owned(), bytes(state)),
                Write::Delete("effects/1".to_owned()),
                Write::Put("effects/2".to_owned(), bytes("todo")),
                Write::Delete("effects/none".to_owned()),
            ]
        };
        store.write_fenced(&lease, step("two")).await.unwrap();
        let all = vec![("effects/2".to_owned(), bytes("todo")), ("state".to_owned(), bytes("two"))];
        assert_eq!(store.list("").await.unwrap(), all);

        let bad = vec![
            Write::Put("state".to_owned(), bytes("three")),
            Write::Put("not a key".to_owned(), bytes("x")),
        ];
        let error = store.write_fenced(&lease, bad).await.unwrap_err();
        assert_eq!(error, StoreError::Name { name: "not a key".to_owned() });
        assert_eq!(store.list("").await.unwrap(), all, "a refused key refuses the whole batch");

        let lost = taken(&store, "other", LONG).await;
        let fence = lost.fence();
        store.release(lost).await.unwrap();
        let stale = taken(&store, "other", SHORT).await;
        assert!(stale.fence() > fence);
        eventually("the lease expires", async || store.write_fenced(&stale, vec![]).await.is_err())
            .await;
        assert!(store.write_fenced(&stale, step("four")).await.is_err());
        assert_eq!(store.list("").await.unwrap(), all, "a lost lease changes nothing");
    })
    .await;
}

#[tokio::test]
async fn of_many_at_once_exactly_one_uses_up_a_nonce_and_exactly_one_gets_a_lease() {
    on_both(async |store: Store| {
        let store = Arc::new(store);
        let tries: Vec<_> = (0..32)
            .map(|i| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    let value = bytes(&i.to_string());
                    let nonce = store.put_if_absent("nonce/a", value, Some(LONG)).await.unwrap();
                    let lease = store.acquire("leader", LONG).await.unwrap();
                    (nonce.then_some(i), lease)
                })
            })
            .collect();
        let (mut nonces, mut leases) = (Vec::new(), Vec::new());
        for task in tries {
            let (nonce, lease) = task.await.unwrap();
            nonces.extend(nonce);
            leases.extend(lease);
        }
        assert_eq!((nonces.len(), leases.len()), (1, 1));
        let kept = store.get("nonce/a").await.unwrap();
        assert_eq!(kept, Some(bytes(&nonces[0].to_string())), "the winner's value stays");
    })
    .await;
}

#[tokio::test]
async fn a_mark_with_a_time_to_live_can_be_set_again_once_it_has_ended() {
    on_both(async |store: Store| {
        assert!(store.put_if_absent("nonce/a", bytes("1"), Some(SHORT)).await.unwrap());
        assert!(store.put_if_absent("nonce/forever", bytes("1"), None).await.unwrap());
        eventually("the mark ends", async || {
            store.put_if_absent("nonce/a", bytes("2"), Some(SHORT)).await.unwrap()
        })
        .await;
        eventually("the list forgets it", async || {
            store.list("nonce/").await.unwrap() == [("nonce/forever".to_owned(), bytes("1"))]
        })
        .await;
        assert_eq!(store.get("nonce/a").await.unwrap(), None);
        assert!(!store.put_if_absent("nonce/forever", bytes("2"), None).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn what_is_put_for_a_time_is_the_last_word_until_its_end() {
    on_both(async |store: Store| {
        store.put_for("told/a", bytes("1"), LONG).await.unwrap();
        store.put_for("told/a", bytes("2"), LONG).await.unwrap();
        assert_eq!(store.get("told/a").await.unwrap(), Some(bytes("2")));
        assert!(!store.put_if_absent("told/a", bytes("3"), None).await.unwrap());
        assert_eq!(store.list("told/").await.unwrap(), [("told/a".to_owned(), bytes("2"))]);
        // A shorter time counts as well, and over what was for good.
        assert!(store.put_if_absent("told/b", bytes("1"), None).await.unwrap());
        for key in ["told/a", "told/b"] {
            store.put_for(key, bytes("4"), SHORT).await.unwrap();
        }
        eventually("both end", async || store.list("told/").await.unwrap().is_empty()).await;
        assert_eq!(store.get("told/b").await.unwrap(), None);
        assert!(store.put_if_absent("told/a", bytes("5"), None).await.unwrap());
    })
    .await;
}

#[tokio::test]
async fn a_guarded_put_makes_a_mark_stay() {
    on_both(async |store: Store| {
        assert!(store.put_if_absent("seat", bytes("1"), Some(SHORT)).await.unwrap());
        let lease = taken(&store, "leader", LONG).await;
        store.put_fenced(&lease, "seat", bytes("2")).await.unwrap();
        // Another mark that ends shows when the time has passed on the engine's clock.
        assert!(store.put_if_absent("clock", bytes(""), Some(SHORT)).await.unwrap());
        eventually("the time passes", async || store.get("clock").await.unwrap().is_none()).await;
        assert!(store.put_if_absent("sweep", bytes(""), Some(SHORT)).await.unwrap());
        assert_eq!(store.get("seat").await.unwrap(), Some(bytes("2")));
        assert_eq!(store.list("seat").await.unwrap(), [("seat".to_owned(), bytes("2"))]);
    })
    .await;
}

#[tokio::test]
async fn a_list_has_what_begins_with_the_prefix_in_order_and_nothing_else() {
    on_both(async |store: Store| {
        let lease = taken(&store, "leader", LONG).await;
        // Characters around the separator, a pattern's characters, and more than one chunk.
        let mut keys: Vec<String> = (0..2500).map(|i| format!("jobs/7/{i:04}")).collect();
        let others =
            ["jobs/70", "jobs/7", "jobs/6/1", "jobs0", "jobs/*", "jobs/[a]", "job", "JOBS/7/1"];
        let writes = keys
            .iter()
            .map(String::as_str)
            .chain(others)
            .map(|key| Write::Put(key.to_owned(), bytes(key)))
            .collect();
        store.write_fenced(&lease, writes).await.unwrap();
        let names = async |prefix: &str| -> Vec<String> {
            let found = store.list(prefix).await.unwrap();
            assert!(found.iter().all(|(key, value)| key.as_bytes() == value), "own values");
            found.into_iter().map(|(key, _)| key).collect()
        };

        assert_eq!(names("jobs/7/").await, keys);
        assert_eq!(names("jobs/*").await, ["jobs/*"]);
        assert_eq!(names("jobs/[").await, ["jobs/[a]"]);
        assert!(names("nothing").await.is_empty());
        keys.extend(others.map(ToOwned::to_owned));
        keys.sort_unstable();
        assert_eq!(names("").await, keys);
    })
    .await;
}

#[tokio::test]
async fn values_are_any_bytes_and_deletion_is_seen() {
    on_both(async |store: Store| {
        let lease = taken(&store, "leader", LONG).await;
        let all: Bytes = (0..=255).collect::<Vec<u8>>().into();
        for value in [all, Bytes::new(), Bytes::from(vec![0; 1 << 20])] {
            store.put_fenced(&lease, "key", value.clone()).await.unwrap();
            assert_eq!(store.get("key").await.unwrap(), Some(value));
        }
        store.delete_fenced(&lease, "key").await.unwrap();
        assert_eq!(store.get("key").await.unwrap(), None);
        assert!(store.list("").await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn names_that_could_break_out_of_the_namespace_are_refused() {
    on_both(async |store: Store| {
        let long = "a".repeat(513);
        for name in ["", "a b", "a\n", "{x}", "a}", "ä", "a\0", &long] {
            assert!(matches!(store.get(name).await, Err(StoreError::Name { .. })), "{name:?}");
            assert!(matches!(store.acquire(name, LONG).await, Err(StoreError::Name { .. })));
            if !name.is_empty() {
                assert!(matches!(store.list(name).await, Err(StoreError::Name { .. })));
            }
        }
    })
    .await;
    assert!(matches!(Store::open("memory://", "a}b"), Err(StoreError::Name { .. })));
}

#[tokio::test]
async fn namespaces_and_named_memories_are_apart_and_shared_by_name() {
    let redis = RedisServer::start().await.unwrap();
    for url in [redis.url(), "memory://apart".to_owned()] {
        let (one, same, other) = (
            Store::open(&url, "one").unwrap(),
            Store::open(&url, "one").unwrap(),
            Store::open(&url, "other").unwrap(),
        );
        assert!(one.put_if_absent("key", bytes("1"), None).await.unwrap());
        assert!(!same.put_if_absent("key", bytes("2"), None).await.unwrap(), "{url}");
        assert_eq!(other.get("key").await.unwrap(), None, "{url}");
        let lease = taken(&one, "leader", LONG).await;
        assert!(same.renew(&lease, LONG).await.unwrap(), "{url}");
        assert!(other.acquire("leader", LONG).await.unwrap().is_some(), "{url}");
    }
    let elsewhere = Store::open("memory://elsewhere", "one").unwrap();
    assert_eq!(elsewhere.get("key").await.unwrap(), None);
}

#[test]
fn a_url_of_no_engine_is_refused_without_its_password() {
    for url in ["", "redis", "postgres://user:hunter2@host/db", "redis://:hunter2@host:port"] {
        let error = Store::open(url, "test").unwrap_err();
        assert!(matches!(error, StoreError::Url { .. }), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error:?}");
    }
}
