//! The gateway as a process of its own: killed, stopped, frozen, or without its store in the middle of an
//! upload.

use std::{net::SocketAddr, time::Duration};

use svc_gateway::Config;
use testkit::{Process, RedisServer, Running, unused_addr};
use tokio::{io::AsyncWriteExt as _, time::sleep};

use super::{
    client::{content, header},
    gateways::until_serves,
};
use crate::common::{Miner, World};

const LONG: Duration = Duration::from_secs(30);
/// The lease on a miner's turn: short, as tests wait for its end.
const LEASE: Duration = Duration::from_millis(600);

/// Starts the binary in this world, and makes it the world's gateway.
async fn start(world: &mut World, redis: &RedisServer, admin: Option<SocketAddr>) -> Running {
    let artifacts = format!("file:{}", world.disk.path().join("artifacts").display());
    let (http, grpc) = (unused_addr().unwrap(), unused_addr().unwrap());
    world.url = format!("http://{http}");
    world.grpc = grpc;
    let mut process = Process::new(env!("CARGO_BIN_EXE_svc-gateway"))
        .env("CONNITO_SCHEDULER_URL", &world.scheduler.url)
        .env("CONNITO_STORE_URL", redis.url())
        .env("CONNITO_ARTIFACTS_URL", artifacts)
        .env("CONNITO_DATA_DIR", world.disk.path().join("data2"))
        .env("CONNITO_GATEWAY_HTTP_ADDR", http.to_string())
        .env("CONNITO_GATEWAY_GRPC_ADDR", grpc.to_string())
        .env("CONNITO_GATEWAY_ADVERTISED_HTTP_URL", &world.url)
        .env("CONNITO_GATEWAY_BURST_PER_HOTKEY", "1")
        .env("CONNITO_GATEWAY_UPLOAD_LEASE", format!("{}ms", LEASE.as_millis()));
    if let Some(admin) = admin {
        process = process.env("CONNITO_GATEWAY_ADMIN_ADDR", admin.to_string());
    }
    let mut running = process.spawn().unwrap();
    running.listens(http, LONG).await.unwrap();
    until_serves(world, &world.url).await;
    running
}

/// Sends what is left, as often as it is told that the miner's turn is another's or that it asks too often.
async fn finish(world: &World, path: &str, content: &[u8]) -> reqwest::Response {
    loop {
        let offset = world.offset(path).await;
        let response = world.append(path, offset, &content[offset..]).send().await.unwrap();
        if ![409, 423, 429].contains(&response.status().as_u16()) {
            return response;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// The path of an upload's URL.
fn path_of(world: &World, url: &str) -> String {
    url.strip_prefix(&world.url).unwrap().to_owned()
}

#[tokio::test]
async fn an_upload_goes_on_after_its_gateway_was_killed_or_stopped_in_the_middle_of_it() {
    let redis = RedisServer::start().await.unwrap();
    for (number, file, killed) in
        [(1, "miner0_g0.pt", true), (2, "miner1_g0.safetensors", true), (3, "miner2_g0.pt", false)]
    {
        let miner = Miner::new(number, file);
        let mut world = World::new(&[&miner]).await;
        let content = content(&miner);
        let mut process = start(&mut world, &redis, None).await;
        let path = path_of(&world, &world.create(&miner).await);
        let half = content.len() / 2;
        let _torn = world.stalled_append(&path, content.len(), &content[..half]).await;
        if killed {
            process.kill().unwrap();
            process.ends(LONG).await.unwrap();
        } else {
            process.terminate().unwrap();
            assert!(process.ends(LONG).await.unwrap().success());
        }

        // On another port: whoever has the folder has the upload.
        let process = start(&mut world, &redis, None).await;
        let offset = world.offset(&path).await;
        assert!(offset > 0 && offset <= half);
        let response = finish(&world, &path, &content).await;
        assert_eq!(response.status(), 204);
        assert_eq!(world.scheduler.submissions().len(), 1);
        let key = header(&response, "x-stored-path").unwrap();
        let stored = std::fs::read(world.disk.path().join("artifacts").join(key)).unwrap();
        assert!(stored == content);
        world.until("no part is left", || async { world.parts().is_empty() }).await;
        process.stops_cleanly(LONG).await.unwrap();
    }
}

#[tokio::test]
async fn an_upload_that_rests_is_read_again_when_it_goes_on_and_that_costs_a_request() {
    let redis = RedisServer::start().await.unwrap();
    let miner = Miner::new(1, "miner0_g0.pt");
    let mut world = World::new(&[&miner]).await;
    let content = content(&miner);
    let admin = unused_addr().unwrap();
    let _process = start(&mut world, &redis, Some(admin)).await;
    let path = path_of(&world, &world.create(&miner).await);
    let replayed = || async {
        let metrics = reqwest::get(format!("http://{admin}/metrics")).await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let line =
            metrics.lines().find(|line| line.starts_with("gateway_tus_replayed_bytes_total "));
        line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap())
    };
    let (half, more) = (content.len() / 2, content.len() / 2 + 1000);
    assert_eq!(world.append(&path, 0, &content[..half]).send().await.unwrap().status(), 204);
    // Soon after, the verification is still there.
    assert_eq!(world.append(&path, half, &content[half..more]).send().await.unwrap().status(), 204);
    assert_eq!(replayed().await, 0);
    sleep(Duration::from_secs(8)).await;
    // A minute's worth of requests is one here: the creation has used it, and it comes back.
    assert_eq!(finish(&world, &path, &content).await.status(), 204);
    assert_eq!(replayed().await, more);
}

#[tokio::test]
async fn a_gateway_that_stands_still_and_wakes_up_stores_nothing_beside_what_another_has_stored() {
    let redis = RedisServer::start().await.unwrap();
    let miner = Miner::new(1, "miner0_g0.pt");
    let mut world = World::new(&[&miner]).await;
    let content = content(&miner);
    let process = start(&mut world, &redis, None).await;
    let path = path_of(&world, &world.create(&miner).await);
    let half = content.len() / 2;
    let mut stream = world.stalled_append(&path, content.len(), &content[..half]).await;
    process.freeze().unwrap();
    world.store_url = redis.url();
    let (second, _) = world.gateway("data3", Config::default()).await;
    until_serves(&world, &second).await;
    // Its turn ends with its lease.
    let stored = loop {
        let response =
            world.submit_to(&second, world.fields(&miner), content.clone(), "form.pt").await;
        if response.status() != 409 {
            break response;
        }
        sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(stored.status(), 200);
    stream.write_all(&content[half..]).await.unwrap();
    process.thaw().unwrap();
    let answer = crate::connections::read_answer(&mut stream).await;
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");
    world
        .until("it knows that it was late", || async {
            let mut response = world.tus("HEAD", &path).send().await.unwrap();
            if let Some(offset) = header(&response, "upload-offset") {
                let offset: usize = offset.parse().unwrap();
                let rest = world.append(&path, offset, &content[offset..]);
                response = rest.send().await.unwrap();
            }
            assert_ne!(response.status(), 204);
            header(&response, "x-reason").as_deref() == Some("already_submitted")
        })
        .await;
    assert_eq!(world.scheduler.submissions().len(), 1);
    assert!(world.scheduler.submissions()[0].key.ends_with("/form.pt"));
    assert_eq!(world.below("artifacts/submissions").len(), 2);
}

#[tokio::test]
async fn an_upload_whose_last_byte_came_while_the_store_was_away_is_stored_when_it_is_back() {
    let mut redis = RedisServer::start().await.unwrap();
    let miner = Miner::new(1, "miner0_g0.pt");
    let mut world = World::new(&[&miner]).await;
    let content = content(&miner);
    let _process = start(&mut world, &redis, None).await;
    let path = path_of(&world, &world.create(&miner).await);
    let half = content.len() / 2;
    let mut stream = world.stalled_append(&path, content.len(), &content[..half]).await;
    redis.kill();
    stream.write_all(&content[half..]).await.unwrap();
    let answer = crate::connections::read_answer(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    redis.revive().await.unwrap();
    world.until("it is stored", || async { world.scheduler.submissions().len() == 1 }).await;
    world
        .until("the same name tells it", || async {
            let response = world.tus("HEAD", &path).send().await.unwrap();
            header(&response, "x-stored-path").is_some()
        })
        .await;
    assert_eq!(world.below("artifacts/submissions").len(), 2);
    world.until("no part is left", || async { world.parts().is_empty() }).await;
}
