//! The helper of processes itself: its waits end, and say what was there instead.

use std::time::Duration;

use testkit::{Process, unused_addr};

const SOON: Duration = Duration::from_secs(20);
const NOW: Duration = Duration::from_millis(300);

fn shell(script: &str) -> Process {
    Process::new("sh").args(["-c", script])
}

#[tokio::test]
async fn lines_of_both_outputs_are_heard_even_those_from_before_the_question() {
    let mut process = shell("echo one; echo two >&2; exec sleep 60").spawn().unwrap();
    assert_eq!(process.says("tw", SOON).await.unwrap(), "two");
    assert_eq!(process.says("one", SOON).await.unwrap(), "one");
    let error = process.says("three", NOW).await.unwrap_err();
    assert!(format!("{error:#}").contains("two"), "what it did say is told: {error:#}");
}

#[tokio::test]
async fn a_process_that_ends_is_not_waited_for() {
    let mut process = shell("echo sorry; exit 3").spawn().unwrap();
    let error = process.says("welcome", SOON).await.unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("sorry") && error.contains("it ended"), "{error}");
    let error = process.listens(unused_addr().unwrap(), SOON).await.unwrap_err();
    assert!(format!("{error:#}").contains("it ended"), "{error:#}");
    assert_eq!(process.ends(SOON).await.unwrap().code(), Some(3));
}

#[tokio::test]
async fn a_clean_stop_is_told_from_a_dirty_one_and_from_none() {
    let clean = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";
    let dirty = "trap 'echo no; exit 7' TERM; echo up; while :; do sleep 0.05; done";
    let deaf = "trap '' TERM; echo up; while :; do sleep 0.05; done";
    let up = async |script: &str| {
        let mut process = shell(script).spawn().unwrap();
        process.says("up", SOON).await.unwrap();
        process
    };
    up(clean).await.stops_cleanly(SOON).await.unwrap();
    let error = up(dirty).await.stops_cleanly(SOON).await.unwrap_err();
    assert!(format!("{error:#}").contains('7'), "{error:#}");
    let error = up(deaf).await.stops_cleanly(NOW).await.unwrap_err();
    assert!(format!("{error:#}").contains("still runs"), "{error:#}");
}

#[tokio::test]
async fn a_dropped_handle_kills() {
    let mut process = shell("echo up; exec sleep 60").spawn().unwrap();
    process.says("up", SOON).await.unwrap();
    let entry = format!("/proc/{}/stat", process.id().unwrap());
    drop(process);
    for _ in 0..500 {
        // Gone, or dead and not reaped yet.
        match std::fs::read_to_string(&entry) {
            Ok(stat) if !stat.contains(") Z ") => {}
            Ok(_) | Err(_) => return,
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it still runs");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let error = Process::new("no-such-program").spawn().unwrap_err();
    assert!(format!("{error:#}").contains("no-such-program"), "{error:#}");
}

#[tokio::test]
async fn nobody_listening_is_said_so() {
    let addr = unused_addr().unwrap();
    let error = testkit::connects(addr, NOW).await.unwrap_err();
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
}
