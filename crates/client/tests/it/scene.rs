//! What the tests have in common: clients of miners, gateways that stop and come back.

use std::{path::PathBuf, sync::Arc, time::Duration};

use client::{MinerClient, Patience, Signer};
use kit::{Common, Shutdown};
use schnorrkel::Keypair;
use svc_gateway::{Config, Gateway};

use crate::common::{Miner, World};

/// Signs as the holder of these keys.
pub(crate) fn signer(keys: Keypair) -> Signer {
    Arc::new(move |message| keys.sign_simple(b"substrate", message).to_bytes())
}

/// Trying again without waiting for long.
pub(crate) fn quick() -> Patience {
    Patience {
        tries: 20,
        first_pause: Duration::from_millis(2),
        longest_pause: Duration::from_millis(50),
        ..Patience::default()
    }
}

pub(crate) fn client(url: &str, miner: &Miner) -> MinerClient {
    let sign = signer(miner.keys.clone());
    MinerClient::new(url, miner.hotkey.clone(), sign, None).unwrap().with_patience(quick())
}

/// The same settings, with limits that a test's many requests do not meet.
pub(crate) fn patient() -> Config {
    Config { burst_per_hotkey: 10_000, burst_per_address: 10_000, ..Config::default() }
}

/// The miner's file under a name of its own, where a test may leave something beside it.
pub(crate) fn own_copy(world: &World, miner: &Miner) -> PathBuf {
    let name = miner.file.file_name().unwrap();
    let path = world.disk.path().join("miner");
    std::fs::create_dir_all(&path).unwrap();
    let path = path.join(name);
    std::fs::copy(&miner.file, &path).unwrap();
    path
}

/// A gateway that can be stopped alone.
pub(crate) struct Alone {
    pub(crate) url: String,
    shutdown: Shutdown,
}

impl Alone {
    /// Starts one in this world on the data folder that the world's own does not use.
    pub(crate) async fn start(world: &World, config: Config) -> Self {
        let any = ([127, 0, 0, 1], 0).into();
        let config = Config { http_addr: any, grpc_addr: any, ..config };
        let common = Common {
            store_url: world.store_url.clone(),
            artifacts_url: format!("file:{}", world.disk.path().join("artifacts").display()),
            data_dir: world.disk.path().join("data2"),
            scheduler_url: world.scheduler.url.clone(),
            ..Common::default()
        };
        let gateway = Gateway::bind(config, common).await.unwrap();
        let url = format!("http://{}", gateway.http_addr());
        let shutdown = Shutdown::default();
        shutdown.spawn(gateway.serve(shutdown.clone()));
        let this = Self { url, shutdown };
        world
            .until("the gateway is ready", || async {
                let status = world.http.get(format!("{}/status", this.url)).send().await;
                status.is_ok_and(|response| response.status() == 200)
            })
            .await;
        this
    }

    /// Stops it and waits until it has.
    pub(crate) async fn stop(self) {
        assert!(self.shutdown.drain(Duration::from_secs(20)).await);
    }
}
