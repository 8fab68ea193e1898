//! The protocol, as clients use it.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::client::{content, header};
use crate::common::{Miner, ROUND, World, assert_refused, name_of};

#[tokio::test]
async fn a_file_that_comes_in_three_pieces_is_one_submission() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    assert_eq!(world.offset(&path).await, 0);
    let (third, two) = (content.len() / 3, content.len() / 3 * 2);
    for (from, to) in [(0, third), (third, two)] {
        let response = world.append(&path, from, &content[from..to]).send().await.unwrap();
        assert_eq!(response.status(), 204);
        assert_eq!(header(&response, "upload-offset").unwrap(), to.to_string());
        assert!(header(&response, "upload-expires").is_some());
        assert_eq!(header(&response, "x-stored-path"), None);
        assert_eq!(world.offset(&path).await, to);
    }
    let response = world.append(&path, two, &content[two..]).send().await.unwrap();
    assert_eq!(response.status(), 204);
    let key = format!("submissions/{ROUND}/{}/{}", miner.hotkey, name_of(&miner.file));
    let sha256 = hex::encode(Sha256::digest(&content));
    assert_eq!(header(&response, "upload-offset").unwrap(), content.len().to_string());
    assert_eq!(header(&response, "x-stored-path").unwrap(), key);
    assert_eq!(header(&response, "x-content-sha256").unwrap(), sha256);

    let stored = world.disk.path().join("artifacts").join(&key);
    assert_eq!(std::fs::read(stored).unwrap(), content);
    let reported = world.scheduler.submissions();
    assert_eq!(reported.len(), 1);
    assert_eq!((reported[0].key.as_str(), reported[0].sha256.as_str()), (&*key, &*sha256));
    assert_eq!(world.traces().len(), 2);
    world.until("the part is gone", || async { world.parts().is_empty() }).await;

    // Whoever has not heard the answer hears it again.
    let again = world.tus("HEAD", &path).send().await.unwrap();
    assert_eq!(again.status(), 200);
    assert_eq!(header(&again, "upload-offset").unwrap(), content.len().to_string());
    assert_eq!(header(&again, "x-stored-path").unwrap(), key);
    let again = world.append(&path, content.len(), b"").send().await.unwrap();
    assert_eq!(again.status(), 204);
    assert_eq!(header(&again, "x-content-sha256").unwrap(), sha256);
    let body: Value = world.get(&path).await;
    let bytes = content.len();
    assert_eq!(
        body,
        json!({ "status": "ok", "stored_path": key, "bytes": bytes, "sha256": sha256 })
    );
    assert_refused(world.creation(&miner, bytes).send().await.unwrap(), 409, "already_submitted")
        .await;
}
