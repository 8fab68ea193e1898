//! One suite for every engine of artifacts.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{fs, future::Future, io::Write as _, path::Path};

use bytes::Bytes;
use store::{ArtifactError, Artifacts};
use testkit::tempdir;

/// An engine under test, and a folder for the test's own files.
struct Bench {
    artifacts: Artifacts,
    folder: testkit::TempDir,
}

impl Bench {
    fn file(&self, name: &str, content: &[u8]) -> std::path::PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

/// Runs `test` on each engine; on S3 as well, where `CONNITO_TEST_S3_URL` names a bucket.
async fn on_both<F, Fut>(test: F)
where
    F: Fn(Bench) -> Fut,
    Fut: Future<Output = ()>,
{
    let folder = tempdir().unwrap();
    let url = format!("file:{}", folder.path().join("artifacts").display());
    let artifacts = Artifacts::open(&url, Path::new("unused")).unwrap();
    test(Bench { artifacts, folder }).await;

    let folder = tempdir().unwrap();
    let artifacts = Artifacts::open("memory://", &folder.path().join("cache")).unwrap();
    test(Bench { artifacts, folder }).await;

    if let Ok(bucket) = std::env::var("CONNITO_TEST_S3_URL") {
        let folder = tempdir().unwrap();
        let fresh = folder.path().file_name().unwrap().to_str().unwrap();
        let url = format!("{bucket}/{fresh}");
        let artifacts = Artifacts::open(&url, &folder.path().join("cache")).unwrap();
        test(Bench { artifacts, folder }).await;
    }
}

/// More than one part of an upload, and no two pages alike.
fn big() -> Vec<u8> {
    let mut content = vec![7; (20 << 20) + 5];
    for (i, page) in content.chunks_exact_mut(4096).enumerate() {
        page[..8].copy_from_slice(&i.to_le_bytes());
    }
    content
}

fn conflict(key: &str) -> ArtifactError {
    ArtifactError::Conflict { key: key.to_owned() }
}

#[tokio::test]
async fn what_was_put_is_read_back_as_bytes_and_as_a_file() {
    on_both(async |bench: Bench| {
        let Bench { artifacts, .. } = &bench;
        let big = big();
        let path = bench.file("big", &big);
        artifacts.put_file("models/7/model.pt", &path).await.unwrap();
        artifacts.put_bytes("models/7/manifest.json", Bytes::from_static(b"{}")).await.unwrap();
        artifacts.put_bytes("models/7/empty", Bytes::new()).await.unwrap();
        assert!(path.exists(), "a put leaves the caller's file");

        let copy = artifacts.local_file("models/7/model.pt").await.unwrap();
        assert!(copy.is_absolute() && fs::read(&copy).unwrap() == big);
        let small = artifacts.get_bytes("models/7/manifest.json", 2).await.unwrap();
        assert_eq!(small, Bytes::from_static(b"{}"));
        assert_eq!(artifacts.get_bytes("models/7/empty", 0).await.unwrap(), Bytes::new());
        assert_eq!(artifacts.size("models/7/model.pt").await.unwrap(), Some(big.len() as u64));
        assert!(artifacts.exists("models/7/empty").await.unwrap());
        let keys = ["models/7/empty", "models/7/manifest.json", "models/7/model.pt"];
        assert_eq!(artifacts.list("").await.unwrap(), keys);
    })
    .await;
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_not_there() {
    on_both(async |Bench { artifacts, .. }: Bench| {
        artifacts.put_bytes("a/b", Bytes::from_static(b"x")).await.unwrap();
        // Also the folder of a file, and a path through a file.
        for key in ["none", "a", "a/b/c", "a/none"] {
            let missing = ArtifactError::NotFound { key: key.to_owned() };
            assert_eq!(artifacts.local_file(key).await, Err(missing.clone()), "{key}");
            let read = artifacts.get_bytes(key, 10).await;
            assert!(read.as_ref().is_err_and(ArtifactError::is_not_found), "{key}: {read:?}");
            assert!(!artifacts.exists(key).await.unwrap(), "{key}");
        }
        assert!(artifacts.list("none").await.unwrap().is_empty());
        assert_eq!(artifacts.delete_prefix("none").await.unwrap(), 0);
    })
    .await;
}

#[tokio::test]
async fn content_never_changes_once_written() {
    on_both(async |bench: Bench| {
        let Bench { artifacts, .. } = &bench;
        let mut content = big();
        let same = bench.file("same", &content);
        artifacts.put_file("key", &same).await.unwrap();
        artifacts.put_file("key", &same).await.unwrap();
        artifacts.put_bytes("key", Bytes::from(content.clone())).await.unwrap();

        // As long, and different only at the end; shorter; longer.
        *content.last_mut().unwrap() ^= 1;
        for other in
            [content.clone(), content[..content.len() - 1].to_vec(), [&content[..], b"x"].concat()]
        {
            let path = bench.file("other", &other);
            assert_eq!(artifacts.put_file("key", &path).await, Err(conflict("key")));
            assert_eq!(artifacts.put_bytes("key", other.into()).await, Err(conflict("key")));
            assert_eq!(artifacts.move_file("key", &path).await, Err(conflict("key")));
            assert!(path.exists(), "what could not be moved is left");
        }
        let kept = artifacts.local_file("key").await.unwrap();
        assert!(fs::read(kept).unwrap() == fs::read(same).unwrap());
    })
    .await;
}

#[tokio::test]
async fn a_moved_file_is_gone_from_where_it_was() {
    on_both(async |bench: Bench| {
        let Bench { artifacts, .. } = &bench;
        for _ in 0..2 {
            // The second time the same content is there already.
            let path = bench.file("upload", b"tensor");
            artifacts.move_file("submissions/1/a.pt", &path).await.unwrap();
            assert!(!path.exists());
        }
        let got = artifacts.get_bytes("submissions/1/a.pt", 100).await.unwrap();
        assert_eq!(got, Bytes::from_static(b"tensor"));
    })
    .await;
}

#[tokio::test]
async fn a_file_is_not_moved_by_its_symlink() {
    on_both(async |bench: Bench| {
        let real = bench.file("real", b"tensor");
        let alias = bench.folder.path().join("alias");
        std::os::unix::fs::symlink(&real, &alias).unwrap();
        bench.artifacts.move_file("key", &alias).await.unwrap();
        fs::write(&real, b"changed").unwrap();
        let got = bench.artifacts.get_bytes("key", 100).await.unwrap();
        assert_eq!(got, Bytes::from_static(b"tensor"));
    })
    .await;
}

#[tokio::test]
async fn the_callers_file_may_change_after_it_was_put() {
    on_both(async |bench: Bench| {
        let path = bench.file("mine", b"first");
        bench.artifacts.put_file("key", &path).await.unwrap();
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b" and more").unwrap();
        let got = bench.artifacts.get_bytes("key", 100).await.unwrap();
        assert_eq!(got, Bytes::from_static(b"first"));
    })
    .await;
}

#[tokio::test]
async fn reading_stops_at_the_callers_limit() {
    on_both(async |Bench { artifacts, .. }: Bench| {
        artifacts.put_bytes("key", Bytes::from(vec![0; 1000])).await.unwrap();
        let error = artifacts.get_bytes("key", 999).await.unwrap_err();
        assert_eq!(error, ArtifactError::TooLarge { key: "key".to_owned(), len: 1000, max: 999 });
        assert_eq!(artifacts.get_bytes("key", 1000).await.unwrap().len(), 1000);
    })
    .await;
}

#[tokio::test]
async fn a_prefix_is_whole_segments() {
    on_both(async |Bench { artifacts, .. }: Bench| {
        for key in ["rounds/1/record.json", "rounds/12/record.json", "rounds/1/x/y"] {
            artifacts.put_bytes(key, Bytes::from_static(b"x")).await.unwrap();
        }
        for prefix in ["rounds/1", "rounds/1/"] {
            let keys = artifacts.list(prefix).await.unwrap();
            assert_eq!(keys, ["rounds/1/record.json", "rounds/1/x/y"]);
        }
        let copy = artifacts.local_file("rounds/1/x/y").await.unwrap();
        assert_eq!(artifacts.delete_prefix("rounds/1/").await.unwrap(), 2);
        assert_eq!(artifacts.list("").await.unwrap(), ["rounds/12/record.json"]);
        assert!(!copy.exists(), "the copy on this disk goes too");
        artifacts.put_bytes("rounds/1/record.json", Bytes::from_static(b"y")).await.unwrap();
        let again = artifacts.get_bytes("rounds/1/record.json", 1).await.unwrap();
        assert_eq!(again, Bytes::from_static(b"y"), "a deleted key is free again");
    })
    .await;
}

#[tokio::test]
async fn everything_refuses_keys_that_leave_the_store() {
    on_both(async |bench: Bench| {
        let Bench { artifacts, .. } = &bench;
        let path = bench.file("mine", b"x");
        for key in ["../escape", "/etc/passwd", "a/../../b", ".staging/x", "a//b", "a\0b"] {
            let refused = Err(ArtifactError::Key { key: key.to_owned() });
            assert_eq!(artifacts.put_bytes(key, Bytes::new()).await, refused);
            assert_eq!(artifacts.put_file(key, &path).await, refused);
            assert_eq!(artifacts.move_file(key, &path).await, refused);
            assert_eq!(artifacts.local_file(key).await.map(drop), refused);
            assert_eq!(artifacts.get_bytes(key, 1).await.map(drop), refused);
            assert_eq!(artifacts.exists(key).await.map(drop), refused);
            assert_eq!(artifacts.list(key).await.map(drop), refused);
            assert_eq!(artifacts.delete_prefix(key).await.map(drop), refused);
        }
        assert!(artifacts.delete_prefix("").await.is_err(), "not everything by accident");
        assert!(path.exists());
    })
    .await;
}

#[tokio::test]
async fn a_file_that_can_not_be_read_leaves_nothing_behind() {
    on_both(async |bench: Bench| {
        let missing = bench.folder.path().join("missing");
        let error = bench.artifacts.put_file("key", &missing).await.unwrap_err();
        assert_eq!(error.reason(), "artifact_file", "{error}");
        assert!(bench.artifacts.move_file("key", &missing).await.is_err());
        assert!(bench.artifacts.list("").await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test]
async fn of_two_contents_put_at_once_one_stays_and_the_other_is_refused() {
    on_both(async |Bench { artifacts, .. }: Bench| {
        let puts: Vec<_> = (0..16_u8)
            .map(|i| {
                let artifacts = artifacts.clone();
                tokio::spawn(async move {
                    artifacts.put_bytes("race", Bytes::from(vec![i; 100_000])).await
                })
            })
            .collect();
        let mut won = Vec::new();
        for (i, put) in puts.into_iter().enumerate() {
            match put.await.unwrap() {
                Ok(()) => won.push(u8::try_from(i).unwrap()),
                Err(error) => assert_eq!(error, conflict("race")),
            }
        }
        assert_eq!(won.len(), 1);
        let kept = artifacts.get_bytes("race", 100_000).await.unwrap();
        assert_eq!(kept, vec![won[0]; 100_000]);
    })
    .await;
}

#[tokio::test]
async fn many_readers_of_one_remote_file_get_one_whole_copy() {
    let folder = tempdir().unwrap();
    let artifacts = Artifacts::open("memory://", folder.path()).unwrap();
    let content = Bytes::from(big());
    artifacts.put_bytes("key", content.clone()).await.unwrap();
    let reads: Vec<_> = (0..8)
        .map(|_| {
            let artifacts = artifacts.clone();
            tokio::spawn(async move { fs::read(artifacts.local_file("key").await.unwrap()) })
        })
        .collect();
    for read in reads {
        assert!(read.await.unwrap().unwrap() == content);
    }
    assert_eq!(fs::read_dir(folder.path().join(".staging")).unwrap().count(), 0);

    // A copy that was cut off, by a full disk say, is not taken for the file.
    let copy = artifacts.local_file("key").await.unwrap();
    fs::write(&copy, b"cut").unwrap();
    assert!(fs::read(artifacts.local_file("key").await.unwrap()).unwrap() == content);
}

#[tokio::test]
async fn what_a_killed_writer_left_is_swept_but_not_what_a_living_one_stages() {
    let folder = tempdir().unwrap();
    let staging = folder.path().join(".staging");
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("dead"), b"half a file").unwrap();
    let alive = fs::File::create(staging.join("alive")).unwrap();
    alive.lock().unwrap();

    let url = format!("file://{}", folder.path().display());
    let artifacts = Artifacts::open(&url, Path::new("unused")).unwrap();
    assert!(!staging.join("dead").exists() && staging.join("alive").exists());
    assert!(artifacts.list("").await.unwrap().is_empty(), "what is staged is not seen");
}

#[test]
fn urls_of_no_engine_are_refused() {
    for url in ["", "file:", "s3://", "http://host/x", "/plain/path", "memory://named"] {
        let refused = Artifacts::open(url, Path::new("unused"));
        assert!(matches!(refused, Err(ArtifactError::Url { .. })), "{url}: {refused:?}");
    }
}
