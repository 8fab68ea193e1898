//! Redis goes away and comes back.

use std::time::Duration;

use bytes::Bytes;
use store::{Store, StoreError};
use testkit::RedisServer;

const LONG: Duration = Duration::from_secs(600);

async fn recovers(store: &Store) {
    for _ in 0..300 {
        match store.ping().await {
            Ok(()) => return,
            Err(error) => assert!(error.is_unavailable(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the store does not recover");
}

#[tokio::test]
async fn a_crash_of_redis_is_unavailable_until_it_is_back_with_its_fences_and_leases() {
    let mut redis = RedisServer::start().await.unwrap();
    let store = Store::open(&redis.url(), "test").unwrap();
    let lease = store.acquire("leader", LONG).await.unwrap().unwrap();
    store.put_fenced(&lease, "state", Bytes::from_static(b"1")).await.unwrap();

    redis.kill();
    for error in [
        store.ping().await.unwrap_err(),
        store.get("state").await.unwrap_err(),
        store.acquire("leader", LONG).await.unwrap_err(),
        store.renew(&lease, LONG).await.unwrap_err(),
        store.put_fenced(&lease, "state", Bytes::new()).await.unwrap_err(),
        store.put_if_absent("nonce", Bytes::new(), Some(LONG)).await.unwrap_err(),
        store.put_for("told", Bytes::new(), LONG).await.unwrap_err(),
        store.list("").await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    }

    redis.revive().await.unwrap();
    recovers(&store).await;
    assert_eq!(store.get("state").await.unwrap(), Some(Bytes::from_static(b"1")));
    assert_eq!(store.acquire("leader", LONG).await.unwrap(), None, "the lease is still held");
    assert!(store.renew(&lease, LONG).await.unwrap());
    assert!(store.release(lease).await.unwrap());
    assert_eq!(store.acquire("leader", LONG).await.unwrap().unwrap().fence(), 2);
}

#[tokio::test]
async fn a_redis_that_does_not_answer_is_unavailable_and_not_waited_for_forever() {
    let redis = RedisServer::start().await.unwrap();
    let store = Store::open(&redis.url(), "test").unwrap();
    store.ping().await.unwrap();
    redis.freeze().unwrap();
    let error = store.get("state").await.unwrap_err();
    assert!(error.is_unavailable(), "{error}");
    redis.thaw().unwrap();
    recovers(&store).await;
}

#[tokio::test]
async fn a_store_may_be_opened_before_its_redis_is_up() {
    let mut redis = RedisServer::start().await.unwrap();
    redis.kill();
    let store = Store::open(&redis.url(), "test").unwrap();
    assert!(store.ping().await.unwrap_err().is_unavailable());
    redis.revive().await.unwrap();
    recovers(&store).await;
    assert!(store.acquire("leader", LONG).await.unwrap().is_some());
}

#[tokio::test]
async fn a_restart_of_redis_between_two_calls_is_not_noticed() {
    let mut redis = RedisServer::start().await.unwrap();
    let store = Store::open(&redis.url(), "test").unwrap();
    let lease = store.acquire("leader", LONG).await.unwrap().unwrap();
    redis.revive().await.unwrap();
    store.put_fenced(&lease, "state", Bytes::from_static(b"1")).await.unwrap();
    redis.revive().await.unwrap();
    assert_eq!(store.get("state").await.unwrap(), Some(Bytes::from_static(b"1")));
    redis.revive().await.unwrap();
    assert_eq!(store.acquire("other", LONG).await.unwrap().unwrap().fence(), 1);
}
