//! Several gateways, and what dead ones left.

use std::path::Path;

use svc_gateway::Config;
use testkit::unused_addr;

use super::client::{content, header};
use crate::common::{Miner, ROUND, World, assert_refused, name_of};

pub(super) async fn until_serves(world: &World, url: &str) {
    world
        .until("the gateway is ready", || async {
            let status = reqwest::get(format!("{url}/status")).await;
            status.is_ok_and(|response| response.status() == 200)
        })
        .await;
}

#[tokio::test]
async fn a_gateway_leads_to_the_one_that_has_the_upload_where_it_knows_its_address() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let first = unused_addr().unwrap();
    let config = Config { advertised_http_url: format!("http://{first}/"), ..Config::default() };
    let (owner, _) = world.gateway_at("data2", first, config).await;
    until_serves(&world, &owner).await;
    let creation = world.creation(&miner, content.len()).build().unwrap();
    let mut request = creation.try_clone().unwrap();
    *request.url_mut() = format!("{owner}/files").parse().unwrap();
    let created = world.http.execute(request).await.unwrap();
    assert_eq!(created.status(), 201);
    let url = header(&created, "location").unwrap();
    let path = url.strip_prefix(&owner).unwrap();

    let plain = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none());
    let plain = plain.build().unwrap();
    for method in ["HEAD", "PATCH", "DELETE"] {
        let request = world.append(path, 0, b"PK").build().unwrap();
        let mut request = request.try_clone().unwrap();
        *request.method_mut() = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let response = plain.execute(request).await.unwrap();
        assert_eq!(response.status(), 307, "{method}");
        assert_eq!(header(&response, "location").unwrap(), url);
    }
    // The client follows.
    let response = world.append(path, 0, &content).send().await.unwrap();
    assert_eq!(response.status(), 204);
    assert!(header(&response, "x-stored-path").is_some());
    // What became of it every gateway knows.
    let here = plain.execute(world.tus("HEAD", path).build().unwrap()).await.unwrap();
    assert_eq!(here.status(), 200);
    assert_eq!(world.scheduler.submissions().len(), 1);
}

#[tokio::test]
async fn an_upload_on_a_gateway_without_address_is_404_and_one_begun_anew_elsewhere_is_replaced() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let (second, _) = world.gateway("data2", Config::default()).await;
    until_serves(&world, &second).await;
    let path = world.create(&miner).await;
    assert_eq!(world.append(&path, 0, &content[..5000]).send().await.unwrap().status(), 204);
    let there = format!("{second}{path}");
    let response = world.append(&there, 5000, &content[5000..]).send().await.unwrap();
    assert_refused(response, 404, "upload_elsewhere").await;
    assert_eq!(world.offset(&path).await, 5000);

    let mut request = world.creation(&miner, content.len()).build().unwrap();
    *request.url_mut() = format!("{second}/files").parse().unwrap();
    let created = world.http.execute(request).await.unwrap();
    let newer = format!("{second}{}", header(&created, "location").unwrap());
    let old = world.append(&path, 5000, &content[5000..]).send().await.unwrap();
    assert_refused(old, 410, "upload_replaced").await;
    assert_eq!(world.append(&newer, 0, &content).send().await.unwrap().status(), 204);
    world.until("no part is left", || async { world.parts().is_empty() }).await;
    assert_eq!(world.scheduler.submissions().len(), 1);
}

#[tokio::test]
async fn an_upload_whose_last_byte_came_before_its_gateway_died_is_stored_by_the_next_one() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let content = content(&miner);
    let path = world.create(&miner).await;
    assert_eq!(world.append(&path, 0, &content[..5000]).send().await.unwrap().status(), 204);
    // As its files would lie after the last byte, before the verification has ended.
    let left = world.disk.path().join("data2/parts/gateway-left");
    copy_parts(&world, &left, |part| {
        std::fs::write(part, &content).unwrap();
    });
    let (second, _) = world.gateway("data2", Config::default()).await;
    until_serves(&world, &second).await;
    world.until("it is stored", || async { world.scheduler.submissions().len() == 1 }).await;
    let key = format!("artifacts/submissions/{ROUND}/{}/{}", miner.hotkey, name_of(&miner.file));
    assert_eq!(std::fs::read(world.disk.path().join(key)).unwrap(), content);
    world.until("what it left is gone", || async { world.below("data2/parts").is_empty() }).await;
}

#[tokio::test]
async fn what_is_dead_is_gone_after_the_start() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let path = world.create(&miner).await;
    assert_eq!(world.append(&path, 0, &content(&miner)[..99]).send().await.unwrap().status(), 204);
    let spoilt: [(&str, Spoil); 4] = [
        ("another run of the machine", |info| {
            let (before, boot) = info.split_once("\"boot\":\"").unwrap();
            format!("{before}\"boot\":\"0{}", &boot[1..])
        }),
        ("another length", |info| info.replace("\"length\":", "\"length\":98,\"was\":")),
        ("no JSON", |info| info[..info.len() / 2].to_owned()),
        ("nothing", |_| String::new()),
    ];
    for (number, (what, spoil)) in spoilt.into_iter().enumerate() {
        let data = format!("data2/spoilt{number}");
        let folder = world.disk.path().join(&data).join("parts/gateway-left");
        copy_parts(&world, &folder, |part| {
            let info = part.with_extension("json");
            let text = std::fs::read_to_string(&info).unwrap();
            std::fs::write(info, spoil(&text)).unwrap();
            std::fs::write(part.with_file_name("stray.whole"), "left").unwrap();
        });
        let (url, _) = world.gateway(&data, Config::default()).await;
        until_serves(&world, &url).await;
        assert!(world.below(&format!("{data}/parts")).is_empty(), "{what}");
    }
    // Of a round that is over: it is looked at once the chain's state is known.
    let folder = world.disk.path().join("data2/late/parts/gateway-left");
    copy_parts(&world, &folder, |_| {});
    world.change(|view| view.block = 357).await;
    let (url, _) = world.gateway("data2/late", Config::default()).await;
    until_serves(&world, &url).await;
    world
        .until("the late one is gone", || async { world.below("data2/late/parts").is_empty() })
        .await;
}

/// Makes a description into one that is of no use.
type Spoil = fn(&str) -> String;

/// Copies the unfinished uploads of the first gateway, as if a dead process had left them.
fn copy_parts(world: &World, to: &Path, change: impl Fn(&Path)) {
    std::fs::create_dir_all(to).unwrap();
    let mut part = None;
    for file in world.below("data/parts") {
        let copy = to.join(file.file_name().unwrap());
        std::fs::copy(&file, &copy).unwrap();
        if copy.extension().unwrap() == "part" {
            part = Some(copy);
        }
    }
    change(&part.unwrap());
}
