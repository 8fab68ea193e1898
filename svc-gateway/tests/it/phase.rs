//! The phase API and the validator's own pages, over HTTP.

use kit::{Common, Shutdown};
use proto::{
    gateway::v1::{GetStatusRequest, gateway_service_client::GatewayServiceClient},
    scheduler::v1 as wire,
};
use serde_json::{Value, json};
use svc_gateway::{Config, Gateway};

use crate::common::{FakeScheduler, NOW, ROUND, World, assert_refused, vectors};

fn read(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(vectors().join(name)).unwrap()).unwrap()
}

#[tokio::test]
async fn vectors_of_phases_are_answered_over_http() {
    let world = World::new(&[]).await;
    let vectors = read("phases.json");
    let mut checked = 0;
    for schedule in vectors.as_array().unwrap() {
        let length = |name: &str| schedule["schedule"][format!("{name}_period")].as_u64().unwrap();
        let commit = length("commit");
        let lengths = vec![
            length("distribute"),
            length("train"),
            commit,
            commit,
            length("submission"),
            length("validate"),
            length("merge"),
            commit,
            commit,
        ];
        for case in schedule["cases"].as_array().unwrap() {
            let block = case["block"].as_u64().unwrap();
            let mut view = world.scheduler.view().unwrap();
            view.block = block;
            view.schedule = Some(wire::Schedule { lengths: lengths.clone() });
            world.scheduler.set(view);
            world
                .until("the new block is there", || async {
                    world.get("/get_phase").await == case["phase"]
                })
                .await;
            assert_eq!(world.get("/blocks_until_next_phase").await, case["until_next"]);
            assert_eq!(world.get("/previous_phase_blocks").await, case["previous"]);
            checked += 1;
        }
    }
    assert!(checked > 80, "only {checked} blocks were checked");
}

#[tokio::test]
async fn the_owner_api_lists_the_validators_and_where_peers_are() {
    let config = Config {
        advertised_peer_url: "http://validator:50055".into(),
        advertised_http_url: "http://validator:8091".into(),
        netuid: Some(102),
        ..Config::default()
    };
    let world = World::with(&[], config).await;
    let validator = world.validator.to_string();
    assert_eq!(world.get("/get_validator_whitelist").await, json!([validator]));
    assert_eq!(world.get("/get_init_peer_id").await, json!(["http://validator:50055"]));
    let index = world.get("/").await;
    assert_eq!(index["hotkey"], json!(validator));
    assert_eq!(index["netuid"], 102);
    assert_eq!(index["service"], "connito-gateway");
    let endpoints = json!({ "http": "http://validator:8091", "peer": "http://validator:50055" });
    assert_eq!(index["endpoints"], endpoints);
}

#[tokio::test]
async fn the_status_says_where_the_validator_stands() {
    let world = World::new(&[]).await;
    let status = world.get("/status").await;
    assert_eq!(status["block"], NOW);
    assert_eq!(status["phase"], "Submission");
    assert_eq!(status["round"], ROUND);
    assert_eq!(status["uploads_open"], true);
    assert_eq!(status["global_version"], 100);
    assert_eq!(status["model_hash"], world.manifest.model_hash.to_hex());
    assert_eq!(world.get("/ping").await, json!({ "status": "ok" }));
}

#[tokio::test]
async fn operators_see_the_gateway_over_grpc() {
    let world = World::new(&[]).await;
    let url = format!("http://{}", world.grpc);
    let mut client = GatewayServiceClient::connect(url).await.unwrap();
    let status = client.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.block, NOW);
    assert_eq!(format!("http://{}", status.http_addr), world.url);
    assert_eq!(status.model_hash, world.manifest.model_hash.to_hex());
    assert_eq!((status.uploads, status.stored, status.refused), (0, 0, 0));
}

#[tokio::test]
async fn an_unknown_route_is_404_and_a_wrong_method_405_in_json() {
    let world = World::new(&[]).await;
    let unknown = world.http.get(format!("{}/nothing", world.url)).send().await.unwrap();
    assert_refused(unknown, 404, "no_route").await;
    let wrong = world.http.post(format!("{}/status", world.url)).send().await.unwrap();
    assert_refused(wrong, 405, "no_method").await;
}

#[tokio::test]
async fn without_its_token_a_request_is_401_and_with_a_wrong_one_403() {
    let config = Config { auth_token: Some("secret".into()), ..Config::default() };
    let world = World::with(&[], config).await;
    for route in ["/", "/ping", "/status", "/get_phase", "/get-checkpoint", "/nothing"] {
        let url = format!("{}{route}", world.url);
        let response = world.http.get(&url).send().await.unwrap();
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        assert_refused(response, 401, "token_missing").await;
        let wrong = world.http.get(&url).bearer_auth("guess").send().await.unwrap();
        assert_refused(wrong, 403, "token_wrong").await;
    }
    let right = world.http.get(format!("{}/ping", world.url)).bearer_auth("secret");
    assert_eq!(right.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn too_many_requests_are_429_with_the_time_to_wait() {
    let config = Config { requests_per_address: 1, burst_per_address: 5, ..Config::default() };
    let world = World::with(&[], config).await;
    let mut refused = None;
    for _ in 0..10 {
        let response = world.http.get(format!("{}/ping", world.url)).send().await.unwrap();
        if response.status() == 429 {
            refused = Some(response);
        }
    }
    let refused = refused.expect("ten requests at once are too many");
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_refused(refused, 429, "rate_limited").await;
}

#[tokio::test]
async fn before_the_first_view_the_gateway_is_503_but_alive() {
    kit::install_crypto();
    let scheduler = FakeScheduler::start().await;
    let disk = tempfile::tempdir().unwrap();
    let any = ([127, 0, 0, 1], 0).into();
    let config = Config { http_addr: any, grpc_addr: any, ..Config::default() };
    let common = Common {
        store_url: "memory://gateway-test-empty".into(),
        artifacts_url: format!("file:{}", disk.path().join("artifacts").display()),
        data_dir: disk.path().join("data"),
        scheduler_url: scheduler.url.clone(),
        ..Common::default()
    };
    let shutdown = Shutdown::default();
    let gateway = Gateway::bind(config, common).await.unwrap();
    let url = format!("http://{}", gateway.http_addr());
    shutdown.spawn(gateway.serve(shutdown.clone()));
    let get = async |path: &str| reqwest::get(format!("{url}{path}")).await.unwrap();
    assert_eq!(get("/ping").await.status(), 200);
    assert_eq!(get("/").await.json::<Value>().await.unwrap()["hotkey"], Value::Null);
    for route in ["/status", "/get_phase", "/get-checkpoint"] {
        let response = get(route).await;
        assert!(response.headers().contains_key("retry-after"));
        assert_refused(response, 503, "not_ready").await;
    }
    shutdown.cancel();
}

#[tokio::test]
async fn the_gateway_follows_a_scheduler_that_comes_back() {
    let world = World::new(&[]).await;
    world.scheduler.die();
    // What is known is still told.
    assert_eq!(world.get("/status").await["block"], NOW);
    let mut view = world.scheduler.view().unwrap();
    view.block = NOW + 7;
    world.scheduler.set(view);
    world.scheduler.come_back().await;
    world
        .until("the gateway has the new block", || async {
            world.get("/status").await["block"] == NOW + 7
        })
        .await;
}
