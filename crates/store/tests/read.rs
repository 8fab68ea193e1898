//! Artifacts read in ranges where they lie, on every engine.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use store::{ArtifactError, Artifacts};
use testkit::{TempDir, tempdir};

/// Every engine there is; S3 among them where `CONNITO_TEST_S3_URL` names a bucket.
fn engines(folder: &TempDir) -> Vec<Artifacts> {
    let path = folder.path();
    let fresh = path.file_name().unwrap().to_str().unwrap().trim_start_matches('.');
    let mut urls =
        vec![format!("file:{}", path.join("artifacts").display()), "memory://".to_owned()];
    if let Ok(bucket) = std::env::var("CONNITO_TEST_S3_URL") {
        urls.push(format!("{bucket}/read{fresh}"));
    }
    urls.iter().map(|url| Artifacts::open(url, &path.join("cache")).unwrap()).collect()
}

#[tokio::test]
async fn any_range_of_a_file_is_read_where_it_lies() {
    let folder = tempdir().unwrap();
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n / 5) as u8).collect();
    for artifacts in engines(&folder) {
        artifacts.put_bytes("a/b", content.clone().into()).await.unwrap();
        let found = artifacts.find("a/b").await.unwrap();
        assert_eq!(found.len(), 1_000_000);
        assert!(found.modified().is_some());
        for (from, to) in [(0, 1_000_000), (0, 1), (999_999, 1_000_000), (123, 456_789)] {
            let read = found.read(from as u64..to as u64).await.unwrap();
            assert!(read == content[from..to], "{from}..{to}");
        }
        // Not the half of what was asked for.
        assert!(found.read(999_999..1_000_001).await.is_err());
        assert!(found.read(1_000_000..1_000_001).await.is_err());
        let missing = artifacts.find("a/none").await.unwrap_err();
        assert!(missing.is_not_found(), "{missing}");
        assert_eq!(artifacts.find("../a").await.unwrap_err().reason(), "artifact_key");
    }
}

#[tokio::test]
async fn what_was_found_and_is_another_content_by_now_is_not_read() {
    let folder = tempdir().unwrap();
    let artifacts = Artifacts::open("memory://", folder.path()).unwrap();
    artifacts.put_bytes("a/b", vec![1; 10].into()).await.unwrap();
    let found = artifacts.find("a/b").await.unwrap();
    artifacts.delete_prefix("a").await.unwrap();
    assert!(found.read(0..10).await.unwrap_err().is_not_found());
    artifacts.put_bytes("a/b", vec![2; 10].into()).await.unwrap();
    let conflict = ArtifactError::Conflict { key: "a/b".to_owned() };
    assert_eq!(found.read(0..10).await, Err(conflict));
}

#[tokio::test]
async fn a_folder_and_memory_have_no_signed_urls() {
    let folder = tempdir().unwrap();
    let file = format!("file:{}", folder.path().display());
    for url in [file.as_str(), "memory://"] {
        let artifacts = Artifacts::open(url, &folder.path().join("cache")).unwrap();
        assert_eq!(artifacts.signed_url("a/b", Duration::from_secs(60)).await, Ok(None));
    }
}
