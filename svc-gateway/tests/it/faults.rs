//! What breaks under an upload: the connection, the disk, the artifact store. Nothing is left of it, and the miner
//! may come again.

use std::{io::Write as _, path::PathBuf, time::Duration};

use testkit::{Process, unused_addr};
use tokio::{io::AsyncWriteExt as _, time::timeout};

use crate::{
    common::{Miner, ROUND, World, assert_refused},
    connections::read_answer,
    process::{PROGRAM, start_as},
};

const LONG: Duration = Duration::from_secs(60);

/// Numbers that look random: xorshift.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

#[tokio::test]
async fn a_connection_cut_at_any_byte_leaves_nothing_two_hundred_times() {
    let miner = Miner::new(1, "miner0_g0.safetensors");
    // Every cut signs, and is counted.
    let config = svc_gateway::Config { burst_per_hotkey: 1000, ..svc_gateway::Config::default() };
    let world = World::with(&[&miner], config).await;
    let fields = world.fields(&miner);
    let content = std::fs::read(&miner.file).unwrap();
    let (body, boundary) = world.raw_form(&fields, &content);
    let seed = 0x00c0_ffee;
    eprintln!("seed {seed:#x}");
    let mut numbers = Numbers(seed);
    for _ in 0..200 {
        // The last two bytes end the line behind the form, which is whole by then.
        let cut = numbers.below(body.len() - 3);
        let mut stream = world.begin_raw(&boundary, body.len()).await;
        // In two pieces, so that what was written meanwhile differs.
        let first = numbers.below(cut + 1);
        stream.write_all(&body[..first]).await.unwrap();
        if numbers.below(2) == 0 {
            tokio::task::yield_now().await;
        }
        // It may be refused while it writes: the one before may still be under way.
        let _ = stream.write_all(&body[first..cut]).await;
        // Closed, or reset with what was not read.
        if numbers.below(2) == 0 {
            stream.set_zero_linger().unwrap();
        }
    }
    world.until("no upload is left", || async { world.uploads().await == 0 }).await;
    world.until_no_traces().await;
    assert!(world.scheduler.submissions().is_empty());
    let response = world.submit_to(&world.url, fields, content, "m.safetensors").await;
    assert_eq!(response.status(), 200, "{}", response.text().await.unwrap());
    assert_eq!(world.traces().len(), 2);
}

#[tokio::test]
async fn while_the_artifact_store_fails_an_upload_is_503_and_then_the_same_is_taken() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let world = World::new(&[&miner]).await;
    let fields = world.fields(&miner);
    let submissions = world.disk.path().join("artifacts/submissions");
    // Where its folder should be there is a file.
    std::fs::write(&submissions, "in the way").unwrap();
    let refused = world.submit(fields.clone(), &miner.file, "m.pt").await;
    assert!(refused.headers().contains_key("retry-after"));
    assert_refused(refused, 503, "unavailable").await;
    assert!(world.scheduler.submissions().is_empty() && is_nobodys_fault(&world));
    std::fs::remove_file(&submissions).unwrap();
    world.until_no_traces().await;

    // The file can be stored, and what tells of it cannot.
    let folder = submissions.join(ROUND.to_string()).join(miner.hotkey.as_str());
    let in_the_way = folder.join("meta.json");
    std::fs::create_dir_all(&in_the_way).unwrap();
    let refused = world.submit(fields.clone(), &miner.file, "m.pt").await;
    assert_refused(refused, 503, "unavailable").await;
    world.until_no_traces().await;
    assert!(world.scheduler.submissions().is_empty() && is_nobodys_fault(&world));

    std::fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(world.submit(fields, &miner.file, "m.pt").await.status(), 200);
    assert_eq!(world.traces().len(), 2);
}

/// Whether whatever the scheduler was told is the validator's fault.
fn is_nobodys_fault(world: &World) -> bool {
    let told = world.scheduler.refusals();
    told.iter().all(|(_, reason)| {
        reason.parse::<domain::Reason>().is_ok_and(|reason| !reason.is_miners_fault())
    })
}

/// The shell that runs `script`, and in the end the gateway as `"$0"`.
fn in_shell(script: &str) -> Process {
    Process::new("sh").args(["-c", script, PROGRAM])
}

#[tokio::test]
async fn a_file_that_the_system_does_not_let_grow_is_503_an_error_in_the_log_and_nobodys_fault() {
    let miner = Miner::new(1, "miner0_g0.pt");
    let mut world = World::new(&[&miner]).await;
    let http = unused_addr().unwrap();
    // Files of at most 64 blocks, of 512 or 1024 bytes: a write fails as it does on a full disk.
    let mut process =
        start_as(&world, http, in_shell("trap '' XFSZ; ulimit -f 64; exec \"$0\"")).await;
    let url = std::mem::replace(&mut world.url, format!("http://{http}"));
    let fields = world.fields(&miner);
    for _ in 0..2 {
        // The same request twice: its signature is not used up.
        let refused = world.submit(fields.clone(), &miner.file, "m.pt").await;
        assert!(refused.headers().contains_key("retry-after"));
        assert_refused(refused, 503, "no_room").await;
        world.until_no_traces().await;
    }
    let log = process.says("disk is full", LONG).await.unwrap();
    assert!(log.contains("ERROR"), "{log}");
    assert!(is_nobodys_fault(&world) && world.scheduler.submissions().is_empty());
    // Another gateway of this validator has room.
    world.url = url;
    assert_eq!(world.submit(fields, &miner.file, "m.pt").await.status(), 200);
}

#[tokio::test]
async fn a_disk_that_runs_full_in_mid_upload_is_503_and_when_it_has_room_the_same_is_taken() {
    let script = "mount -t tmpfs -o size=8m spool \"$CONNITO_DATA_DIR\" && exec \"$0\"";
    let may_mount = tokio::process::Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", "mount -t tmpfs spool /mnt"])
        .output();
    if !may_mount.await.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "no file system may be mounted here: the test of files that may not grow has to do"
        );
        return;
    }
    let miner = Miner::new(1, "miner0_g0.pt");
    let mut world = World::new(&[&miner]).await;
    std::fs::create_dir_all(world.disk.path().join("data2")).unwrap();
    let http = unused_addr().unwrap();
    let program = Process::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, PROGRAM])
        .env("CONNITO_GATEWAY_MIN_FREE_BYTES", "0");
    let mut process = start_as(&world, http, program).await;
    world.url = format!("http://{http}");
    // Its disk, as it sees it.
    let data = world.disk.path().join("data2");
    let data = PathBuf::from(format!("/proc/{}/root{}", process.id().unwrap(), data.display()));

    let fields = world.fields(&miner);
    let content = std::fs::read(&miner.file).unwrap();
    let (body, boundary) = world.raw_form(&fields, &content);
    let mut stream = world.begin_raw(&boundary, body.len()).await;
    stream.write_all(&body[..body.len() / 4]).await.unwrap();
    let spooled = || {
        let folders = std::fs::read_dir(data.join("spool")).unwrap().flatten();
        let files = folders.filter_map(|folder| std::fs::read_dir(folder.path()).ok()).flatten();
        files.flatten().filter(|file| file.file_name() != "lock").count()
    };
    world.until("the file is being spooled", || async { spooled() == 1 }).await;
    let mut filler = std::fs::File::create(data.join("filler")).unwrap();
    while filler.write_all(&[0; 4096]).is_ok() {}
    let _ = stream.write_all(&body[body.len() / 4..]).await;
    let answer = timeout(LONG, read_answer(&mut stream)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("no_room"), "{answer}");
    assert!(answer.to_lowercase().contains("\r\nretry-after: "), "{answer}");
    assert_eq!(spooled(), 0);
    let log = process.says("disk is full", LONG).await.unwrap();
    assert!(log.contains("ERROR"), "{log}");
    // Before a byte is written, as there is no room to be set aside.
    let refused = world.submit(fields.clone(), &miner.file, "m.pt").await;
    assert_refused(refused, 503, "no_room").await;
    assert!(is_nobodys_fault(&world) && world.scheduler.submissions().is_empty());

    std::fs::remove_file(data.join("filler")).unwrap();
    drop(filler);
    assert_eq!(world.submit(fields, &miner.file, "m.pt").await.status(), 200);
}
