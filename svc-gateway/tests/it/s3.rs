//! Downloads out of a bucket: streamed, copied first, or left to the bucket by a signed URL.
//!
//! Runs where `CONNITO_TEST_S3_URL` names a bucket (and the environment says how to get at it), as the tests
//! of the artifact store do.

use checkpoint::{Format, Manifest, SliceId};
use kit::{Common, Shutdown};
use store::Artifacts;
use svc_gateway::{Config, Gateway, RemoteDownloads};

use crate::common::{NOW, World, keypair, published};

/// The world's model in the bucket, under a prefix of its own.
async fn bucket(world: &World) -> Option<String> {
    let bucket = std::env::var("CONNITO_TEST_S3_URL").ok()?;
    let fresh = world.disk.path().file_name().unwrap().to_str().unwrap();
    let url = format!("{bucket}/gateway{fresh}");
    let artifacts = Artifacts::open(&url, &world.disk.path().join("cache")).unwrap();
    let models = world.disk.path().join("artifacts/models/100");
    for entry in std::fs::read_dir(models).unwrap() {
        let entry = entry.unwrap();
        let key = format!("models/100/{}", entry.file_name().to_str().unwrap());
        artifacts.put_file(&key, &entry.path()).await.unwrap();
    }
    assert!(artifacts.exists(&format!("models/100/{}", Manifest::FILE_NAME)).await.unwrap());
    Some(url)
}

/// A gateway of this world that reads from the bucket; its URL.
async fn gateway(
    world: &World,
    bucket: &str,
    mode: RemoteDownloads,
    shutdown: &Shutdown,
) -> String {
    let any = ([127, 0, 0, 1], 0).into();
    let config =
        Config { http_addr: any, grpc_addr: any, remote_downloads: mode, ..Config::default() };
    let common = Common {
        store_url: world.store_url.clone(),
        artifacts_url: bucket.to_owned(),
        data_dir: world.disk.path().join(format!("{mode:?}")),
        scheduler_url: world.scheduler.url.clone(),
        ..Common::default()
    };
    let gateway = Gateway::bind(config, common).await.unwrap();
    let url = format!("http://{}", gateway.http_addr());
    shutdown.spawn(gateway.serve(shutdown.clone()));
    let status = format!("{url}/status");
    world
        .until("the gateway has a model", || async {
            let response = world.http.get(&status).send().await;
            response.is_ok_and(|response| response.status() == 200)
        })
        .await;
    url
}

#[tokio::test]
async fn a_file_of_a_bucket_is_the_same_streamed_copied_and_redirected_to() {
    let world = World::new(&[]).await;
    let Some(bucket) = bucket(&world).await else { return };
    let shutdown = Shutdown::default();
    let whole = published(&world, SliceId::Full, Format::Pt);
    let form = world.download_form(&keypair(1), NOW);
    let direct = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    let direct = direct.build().unwrap();
    let mut dates = Vec::new();
    for mode in [RemoteDownloads::Stream, RemoteDownloads::Copy, RemoteDownloads::Redirect] {
        let url = gateway(&world, &bucket, mode, &shutdown).await;
        let url = format!("{url}/get-checkpoint");
        let first = direct.get(&url).query(&form).send().await.unwrap();
        let redirected = mode == RemoteDownloads::Redirect;
        assert_eq!(first.status(), if redirected { 307 } else { 200 }, "{mode:?}");
        let etag = first.headers()["etag"].clone();
        dates.push(first.headers()["last-modified"].clone());
        assert_eq!(first.headers().contains_key("location"), redirected);
        // Followed where need be.
        let all = world.http.get(&url).query(&form).send().await.unwrap();
        assert!(all.bytes().await.unwrap() == whole, "{mode:?}");
        let some = world.http.get(&url).query(&form).header("range", "bytes=1000-");
        let some = some.send().await.unwrap();
        assert_eq!(some.status(), 206);
        assert!(some.bytes().await.unwrap() == whole[1000..], "{mode:?}");
        // With our tag, which the bucket does not know, or on the client's word: from the gateway.
        let ours = direct.get(&url).query(&form).header("range", "bytes=5-9");
        let ours = ours.header("if-range", etag).send().await.unwrap();
        assert_eq!(ours.status(), 206);
        assert_eq!(ours.bytes().await.unwrap(), whole[5..10]);
        let word = direct.get(&url).query(&form).query(&[("redirect", "no")]).send().await.unwrap();
        assert_eq!(word.status(), 200);
        assert!(word.bytes().await.unwrap() == whole);
    }
    // The bucket's date, and not that of a copy.
    assert!(dates.iter().all(|date| *date == dates[0]), "{dates:?}");
    shutdown.cancel();
}
