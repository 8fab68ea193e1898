//! Data sets of a hub that does not always tell the truth.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![expect(clippy::wildcard_enum_match_arm, reason = "most lies are of one request only")]

mod liar;

use std::{io::Write as _, path::Path, time::Duration};

use blake2::{Blake2b, digest::consts::U32};
use data::{DataError, Draw, Drawn, HubSettings, Limits, Settings, Source, Sources, Tokenizer};
use domain::Seed;
use liar::{Hub, Lie, REVISION};
use sha2::Digest as _;

fn tokenizer() -> Tokenizer {
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors");
    Tokenizer::open(&Path::new(vectors).join("numerics/tokenizer.json")).unwrap()
}

fn lines(from: usize, to: usize) -> Vec<u8> {
    let line = |n| format!("{{\"text\":\"text number {n}, of {}\"}}\n", n * 7919);
    (from..to).map(line).collect::<String>().into_bytes()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Three shards, one of them of more than 300 kB, and a file that is none.
fn files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"# texts".to_vec()),
        ("data/1.jsonl", lines(0, 40)),
        ("data/2.json.gz", gzip(&lines(40, 8000))),
        ("other/3.jsonl", lines(8000, 8020)),
    ]
}

fn source(files: &str) -> Vec<Source> {
    let yaml =
        format!("data_sources: [{{hub: some/texts, revision: {REVISION}, files: '{files}'}}]");
    data::parse_sources(&yaml).unwrap()
}

fn settings(hub: &Hub, cache: &Path) -> Settings {
    Settings {
        hub: HubSettings {
            url: hub.url(),
            token: None,
            timeout: Duration::from_secs(20),
            tries: 3,
            backoff: Duration::from_millis(1),
        },
        ..Settings::new(cache.to_owned())
    }
}

async fn draw(files: &str, settings: &Settings) -> Result<Drawn, DataError> {
    let sources = Sources::open(&source(files), settings).await?;
    sources.draw(&Draw::new(Seed([8; 32]), 4, 4, 10), &tokenizer(), 0).await
}

#[tokio::test]
async fn a_data_set_is_listed_once_and_each_shard_fetched_once() {
    let hub = Hub::start(Lie::Honest, &files()).await;
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&hub, dir.path());
    let drawn = draw("**", &settings).await.unwrap();
    let shards: std::collections::BTreeSet<_> =
        drawn.picks.iter().map(|pick| pick.shard.as_str()).collect();
    assert_eq!(shards.len(), 3, "{shards:?}");
    let asked = hub.requests();
    assert_eq!((asked.len(), hub.file_requests().len()), (5, 3), "{asked:?}");
    assert!(asked.iter().all(|request| request.token.is_none()));

    // The next process needs no hub.
    hub.lie(Lie::Down);
    assert_eq!(draw("**", &settings).await.unwrap(), drawn);
    assert_eq!(hub.requests().len(), 5);
    let kept = dir.path().join("hub/some/texts").join(REVISION).join("data/1.jsonl");
    assert_eq!(std::fs::read(&kept).unwrap(), files()[1].1);

    // Unless its disk has lost a bit.
    hub.lie(Lie::Honest);
    let mut bad = files()[1].1.clone();
    bad[10] ^= 1;
    std::fs::write(&kept, bad).unwrap();
    assert_eq!(draw("**", &settings).await.unwrap(), drawn);
    assert_eq!((hub.requests().len(), hub.file_requests().len()), (6, 4));
}

#[tokio::test]
async fn the_digest_of_a_hub_s_source_is_of_what_it_lists() {
    let hub = Hub::start(Lie::Honest, &files()).await;
    let dir = tempfile::tempdir().unwrap();
    let sources = Sources::open(&source("data/*"), &settings(&hub, dir.path())).await.unwrap();
    let files = files();
    let (small, large) = (&files[1].1, &files[2].1);
    let blob = format!("blob {}\0", small.len());
    let small_id = sha1::Sha1::new().chain_update(blob).chain_update(small).finalize();
    let description = format!(
        "connito-data 1\nminimum_text_length 16\nshards_per_round 4\n\
         source hub some/texts {REVISION}\nweight 1000000\ntext_field text\n\
         shard git:{} {} data/1.jsonl\nshard sha256:{} {} data/2.json.gz\n",
        hex::encode(small_id),
        small.len(),
        hex::encode(sha2::Sha256::digest(large)),
        large.len(),
    );
    let expected = Blake2b::<U32>::digest(description);
    assert_eq!(sources.digest(), hex::encode(expected));
}

#[tokio::test]
async fn two_processes_with_one_cache_fetch_a_shard_once() {
    let hub = Hub::start(Lie::Honest, &files()).await;
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&hub, dir.path());
    let (one, other) = tokio::join!(draw("**.gz", &settings), draw("**.gz", &settings));
    assert_eq!(one.unwrap(), other.unwrap());
    assert_eq!(hub.file_requests().len(), 1);
}

#[tokio::test]
async fn a_fetch_that_is_cut_goes_on_where_it_was() {
    let hub = Hub::start(Lie::Cuts(100_000), &files()).await;
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&hub, dir.path());
    draw("**.gz", &settings).await.unwrap();
    let ranges: Vec<_> = hub.file_requests().into_iter().map(|request| request.range).collect();
    // More cuts than tries: each brought the fetch further.
    assert!(ranges.len() > settings.hub.tries, "{ranges:?}");
    assert_eq!(ranges[0], None);
    let starts: Vec<u64> = ranges[1..]
        .iter()
        .map(|range| range.as_deref().unwrap()[6..].trim_end_matches('-').parse().unwrap())
        .collect();
    assert!(starts.is_sorted_by(|one, next| one < next), "{starts:?}");
}

#[tokio::test]
async fn a_fetch_goes_on_in_the_next_process() {
    let hub = Hub::start(Lie::Cuts(50_000), &files()).await;
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&hub, dir.path());
    // A cut after less than counts as progress ends in an error after three tries.
    assert_eq!(draw("**.gz", &settings).await.unwrap_err().reason(), "hub_unreachable");
    hub.lie(Lie::Honest);
    draw("**.gz", &settings).await.unwrap();
    let last = hub.file_requests().pop().unwrap();
    assert_eq!(last.range.as_deref(), Some("bytes=150000-"));
}

#[tokio::test]
async fn a_hub_that_ignores_ranges_is_read_from_the_start() {
    let hub = Hub::start(Lie::IgnoresRanges(70_000), &files()).await;
    let dir = tempfile::tempdir().unwrap();
    draw("**.gz", &settings(&hub, dir.path())).await.unwrap();
    assert_eq!(hub.file_requests().len(), 2);
    assert_eq!(hub.file_requests()[1].range.as_deref(), Some("bytes=70000-"));
}

#[tokio::test]
async fn answers_that_cannot_be_right_are_named() {
    for (lie, why) in [
        (Lie::WrongContent, "its hash is"),
        (Lie::TooLong, "more than the"),
        (Lie::WrongRange(70_000), "the range"),
        (Lie::Endless, "no end"),
        (Lie::PageElsewhere, "another host"),
        (Lie::Circles, "too many redirects"),
        (Lie::Lists("{}"), "expected a sequence"),
        (Lie::Lists(r#"[{"type":"file","path":"a.txt","oid":"12","size":3}]"#), "a.txt"),
        (
            Lie::Lists(concat!(
                r#"[{"type":"file","path":"../../a.txt","size":3,"#,
                r#""oid":"0123456789abcdef0123456789abcdef01234567"}]"#
            )),
            "../../a.txt",
        ),
        (
            Lie::Lists(concat!(
                r#"[{"type":"file","path":"/etc/a.txt","size":3,"#,
                r#""oid":"0123456789abcdef0123456789abcdef01234567"}]"#
            )),
            "/etc/a.txt",
        ),
    ] {
        let hub = Hub::start(lie, &files()).await;
        let dir = tempfile::tempdir().unwrap();
        let error = draw("**", &settings(&hub, dir.path())).await.unwrap_err();
        assert_eq!(error.reason(), "hub_answer", "{lie:?}: {error}");
        assert!(error.to_string().contains(why), "{lie:?}: {error}");
        assert!(!dir.path().join("a.txt").exists());
    }
}

#[tokio::test]
async fn a_busy_hub_is_asked_again_and_one_that_is_down_is_given_up() {
    let hub = Hub::start(Lie::Busy(2), &files()).await;
    let dir = tempfile::tempdir().unwrap();
    let settings = settings(&hub, dir.path());
    draw("data/1*", &settings).await.unwrap();
    hub.lie(Lie::Down);
    let before = hub.requests().len();
    let error = draw("other/*", &settings).await.unwrap_err();
    assert_eq!((error.reason(), error.is_transient()), ("hub_unreachable", true));
    assert!(error.to_string().contains("503"), "{error}");
    assert_eq!(hub.requests().len() - before, 3);
}

#[tokio::test]
async fn what_is_not_there_and_what_is_for_others_is_told_apart() {
    let hub = Hub::start(Lie::Missing, &files()).await;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(&hub, dir.path());
    let error = draw("**", &settings).await.unwrap_err();
    assert_eq!((error.reason(), error.is_transient()), ("hub_missing", false));
    assert_eq!(hub.requests().len(), 1);

    hub.lie(Lie::Private);
    assert_eq!(draw("**", &settings).await.unwrap_err().reason(), "hub_refused");
    settings.hub.token = Some("hf_wrong".into());
    assert_eq!(draw("**", &settings).await.unwrap_err().reason(), "hub_refused");
    settings.hub.token = Some("hf_secret".into());
    draw("data/1*", &settings).await.unwrap();
    assert!(!format!("{settings:?}").contains("hf_secret"));
}

#[tokio::test]
async fn the_token_is_for_the_hub_alone() {
    let other = Hub::start(Lie::Honest, &files()).await;
    let hub = Hub::start(Lie::Private, &files()).await;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(&hub, dir.path());
    settings.hub.token = Some("hf_secret".into());
    let sources = Sources::open(&source("data/*"), &settings).await.unwrap();
    hub.lie(Lie::Redirects(other.port));
    sources.draw(&Draw::new(Seed([8; 32]), 2, 2, 10), &tokenizer(), 0).await.unwrap();
    assert!(hub.requests().iter().any(|request| request.token.is_some()));
    let elsewhere = other.requests();
    assert_eq!(elsewhere.len(), 2);
    assert!(elsewhere.iter().all(|request| request.token.is_none()), "{elsewhere:?}");
}

#[tokio::test]
async fn the_cache_keeps_to_its_bound_and_drops_nothing_in_use() {
    let many: Vec<_> = ["a", "b", "c", "d"]
        .into_iter()
        .enumerate()
        .map(|(n, name)| (name, lines(n * 50, n * 50 + 50)))
        .map(|(name, bytes)| (&*format!("{name}.jsonl").leak(), bytes))
        .collect();
    let size = many.iter().map(|(_, bytes)| bytes.len() as u64).max().unwrap();
    let hub = Hub::start(Lie::Honest, &many).await;
    let dir = tempfile::tempdir().unwrap();
    let mut settings = settings(&hub, dir.path());
    settings.limits = Limits { cache_bytes: 2 * size, ..Limits::default() };
    let kept = |name: &str| dir.path().join("hub/some/texts").join(REVISION).join(name);
    draw("a*", &settings).await.unwrap();
    // Someone reads it, as another process would.
    let reading = std::fs::File::open(kept("a.jsonl")).unwrap();
    reading.lock_shared().unwrap();
    for files in ["b*", "c*", "d*"] {
        draw(files, &settings).await.unwrap();
    }
    let left: Vec<_> =
        ["a", "b", "c", "d"].into_iter().filter(|n| kept(&format!("{n}.jsonl")).exists()).collect();
    assert_eq!(left, ["a", "d"]);
    let too_large = Limits { shard_bytes: 100, ..Limits::default() };
    settings.limits = too_large;
    assert_eq!(draw("**", &settings).await.unwrap_err().reason(), "shard_limit");
}
