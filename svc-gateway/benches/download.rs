//! How fast a gateway gives out a file of 1 GiB, beside nginx (`sendfile on`) with the same file, in turn, to
//! one client and to sixteen at once, over loopback; and what memory the gateway took for it.
//!
//! `make bench-gateway` runs it. nginx is `nginx-light` of Debian; without it there is nothing to compare
//! with, and that is said. `BENCH_MIB` and `BENCH_RUNS` make it smaller, `BENCH_GATEWAY` takes another binary.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark is for reading")]

#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../tests/it/common/mod.rs"]
mod common;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use checkpoint::{Format, SliceId};
use common::{NOW, World, keypair, republish};
use testkit::{Process, Running, unused_addr};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep},
};

const WITHIN: Duration = Duration::from_secs(60);
const FILE: (SliceId, Format) = (SliceId::Full, Format::Safetensors);
const NGINX: &str = "/usr/sbin/nginx";

/// A server, and the request that gets the file from it.
struct Server {
    name: &'static str,
    addr: SocketAddr,
    request: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mib: u64 = number("BENCH_MIB", 1024)?;
    let runs = number("BENCH_RUNS", 5)? as usize;
    let world = World::new(&[]).await;
    let file = large_file(&world, mib)?;
    let (process, gateway) = gateway(&world).await?;
    let nginx = nginx(&world, &file).await?;
    let Some((mut master, nginx)) = nginx else {
        println!(
            "SKIPPED: no nginx at {NGINX} (apt-get install nginx-light): nothing to compare with"
        );
        return Ok(());
    };

    println!("a file of {mib} MiB over loopback, {runs} runs in turn, medians");
    for clients in [1, 16] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for run in 0..=runs {
            let pair = (rate(&gateway, clients, mib).await?, rate(&nginx, clients, mib).await?);
            // The first one warms up.
            if run > 0 {
                ours.push(pair.0);
                theirs.push(pair.1);
                println!(
                    "  {clients:>2} clients: gateway {:.0}, nginx {:.0} MiB/s",
                    pair.0, pair.1
                );
            }
        }
        let (ours, theirs) = (median(ours), median(theirs));
        println!(
            "{clients:>2} clients: gateway {ours:.0} MiB/s, nginx {theirs:.0} MiB/s, ratio {:.2}",
            ours / theirs
        );
    }
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", process.id().context("it runs")?))?;
    let memory =
        status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"));
    println!("the gateway's memory: {}", memory.collect::<Vec<_>>().join(", "));
    process.terminate()?;
    // Killed, it would leave its workers behind.
    master.terminate()?;
    master.ends(WITHIN).await?;
    Ok(())
}

fn number(name: &str, default: u64) -> anyhow::Result<u64> {
    std::env::var(name).map_or(Ok(default), |text| text.parse().with_context(|| name.to_owned()))
}

/// Publishes a file without holes as the whole model.
fn large_file(world: &World, mib: u64) -> anyhow::Result<PathBuf> {
    let path = world.disk.path().join("large");
    let mut file = std::fs::File::create(&path)?;
    let mut block = vec![0_u8; 1 << 20];
    for n in 0..mib {
        for (word, at) in block.chunks_exact_mut(8).zip(0_u64..) {
            word.copy_from_slice(&(n << 20 | at).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
        }
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let (base, manifest) = republish(world, 101, FILE, &path);
    let name = &manifest.slice(FILE.0).context("the slice")?.files[&FILE.1].name;
    let mut view = world.scheduler.view().context("a view")?;
    view.base = Some(base);
    world.scheduler.set(view);
    Ok(world.disk.path().join("artifacts/models/101").join(name))
}

/// The gateway's own binary, in this world.
async fn gateway(world: &World) -> anyhow::Result<(Running, Server)> {
    let (addr, grpc) = (unused_addr()?, unused_addr()?);
    let artifacts = format!("file:{}", world.disk.path().join("artifacts").display());
    let program = std::env::var_os("BENCH_GATEWAY");
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_svc-gateway").into());
    let mut running = Process::new(program)
        .env("CONNITO_SCHEDULER_URL", &world.scheduler.url)
        .env("CONNITO_ARTIFACTS_URL", artifacts)
        .env("CONNITO_DATA_DIR", world.disk.path().join("bench"))
        .env("CONNITO_GATEWAY_HTTP_ADDR", addr.to_string())
        .env("CONNITO_GATEWAY_GRPC_ADDR", grpc.to_string())
        .env("CONNITO_GATEWAY_REQUESTS_PER_HOTKEY", "100000")
        .env("CONNITO_GATEWAY_BURST_PER_HOTKEY", "100000")
        .spawn()?;
    running.listens(addr, WITHIN).await?;
    let mut form = world.download_form(&keypair(1), NOW);
    form.insert("format".into(), FILE.1.extension().into());
    form.insert("expert_group_id".into(), FILE.0.to_string());
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
    let request = format!(
        "GET /get-checkpoint?{query} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"
    );
    let ready = async {
        loop {
            let status = reqwest::get(format!("http://{addr}/status")).await;
            if let Ok(status) = status
                && status.text().await.is_ok_and(|text| text.contains("\"global_version\":101"))
            {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(WITHIN, ready).await.context("the gateway serves the file")?;
    Ok((running, Server { name: "gateway", addr, request }))
}

/// nginx with the folder of the file, where it is installed.
async fn nginx(world: &World, file: &Path) -> anyhow::Result<Option<(Running, Server)>> {
    if !Path::new(NGINX).exists() {
        return Ok(None);
    }
    let folder = world.disk.path().join("nginx");
    std::fs::create_dir_all(&folder)?;
    let addr = unused_addr()?;
    let root = file.parent().context("a folder")?;
    let config = format!(
        "daemon off; worker_processes auto; pid {folder}/pid; error_log {folder}/error.log;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; sendfile on; default_type application/octet-stream;\n\
         client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n\
         fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;\n\
         scgi_temp_path {folder}/scgi;\n\
         server {{ listen {addr}; location / {{ root {root}; }} }} }}\n",
        folder = folder.display(),
        root = root.display(),
    );
    // Its workers are another user when it is started as root.
    let config = match is_root() {
        true => format!("user root;\n{config}"),
        false => config,
    };
    let path = folder.join("nginx.conf");
    std::fs::write(&path, config)?;
    let mut running = Process::new(NGINX).arg("-p").arg(&folder).arg("-c").arg(&path).spawn()?;
    running.listens(addr, WITHIN).await?;
    let name = file.file_name().and_then(|name| name.to_str()).context("a name")?;
    let request = format!("GET /{name} HTTP/1.1\r\nHost: nginx\r\nConnection: close\r\n\r\n");
    Ok(Some((running, Server { name: "nginx", addr, request })))
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| {
        use std::os::unix::fs::MetadataExt as _;
        meta.uid() == 0
    })
}

/// All clients together, in MiB per second.
async fn rate(server: &Server, clients: usize, mib: u64) -> anyhow::Result<f64> {
    let begin = Instant::now();
    let downloads: Vec<_> = (0..clients)
        .map(|_| {
            let (addr, request) = (server.addr, server.request.clone());
            spawn_blocking(move || download(addr, &request))
        })
        .collect();
    for download in downloads {
        let bytes = download.await??;
        ensure!(bytes == mib << 20, "{} sent {bytes} bytes", server.name);
    }
    Ok((mib * clients as u64) as f64 / begin.elapsed().as_secs_f64())
}

/// The length of the body.
fn download(addr: SocketAddr, request: &str) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(addr)?;
    stream.write_all(request.as_bytes())?;
    let mut buffer = vec![0; 1 << 20];
    let (mut read, mut head) = (0, None);
    loop {
        let some = stream.read(&mut buffer[..])?;
        if some == 0 {
            break;
        }
        if head.is_none() {
            let text = String::from_utf8_lossy(&buffer[..some.min(2048)]).into_owned();
            ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
            let end = buffer.windows(4).position(|four| four == b"\r\n\r\n");
            head = Some(end.context("the head in one piece")? as u64 + 4);
        }
        read += some as u64;
    }
    Ok(read - head.unwrap_or_default())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}
