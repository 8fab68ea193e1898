//! Draws from local folders of every format.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeSet, io::Write as _, path::Path, sync::Arc};

use data::{Draw, Drawer, Drawn, IGNORED_LABEL, Settings, Source, Sources, Tokenizer, digest};
use domain::{GlobalVersion, Hotkey, Seed};

fn tokenizer() -> Tokenizer {
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors");
    Tokenizer::open(&Path::new(vectors).join("numerics/tokenizer.json")).unwrap()
}

fn lines(from: usize, to: usize) -> String {
    (from..to).map(|n| format!("{{\"n\":{n},\"text\":\"text number {n}, and so on\"}}\n")).collect()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

/// Two folders, `a` of three shards and `b` of one.
fn corpus(folder: &Path) -> Vec<Source> {
    let write = |path: &str, bytes: &[u8]| {
        let path = folder.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    };
    write("a/1.jsonl", lines(0, 30).as_bytes());
    write("a/deep/2.json.gz", &gzip(&lines(30, 60)));
    write("a/3.jsonl.zst", &zstd::encode_all(lines(60, 90).as_bytes(), 1).unwrap());
    write("a/readme.md", b"not a shard");
    write("b/whole.txt", "the one text of this folder, which is long. ".repeat(40).as_bytes());
    let yaml = "data_sources: [a, {folder: b, weight: 0.5}]";
    data::parse_sources(yaml).unwrap()
}

fn settings(folder: &Path) -> Settings {
    Settings { base: folder.to_owned(), ..Settings::new(folder.join("cache")) }
}

async fn open(folder: &Path) -> Sources {
    Sources::open(&corpus(folder), &settings(folder)).await.unwrap()
}

fn rows(drawn: &Drawn) -> Vec<Vec<i64>> {
    let rows = drawn.batches.iter().flat_map(|batch| batch.ids().chunks(batch.length()));
    rows.map(<[_]>::to_vec).collect()
}

#[tokio::test]
async fn the_same_seed_draws_the_same_rows_wherever_the_folders_are() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let by = Draw::new(Seed([3; 32]), 4, 8, 16);
    let (here, there) = (open(one.path()).await, open(other.path()).await);
    let drawn = here.draw(&by, &tokenizer(), 0).await.unwrap();
    assert_eq!(drawn, there.draw(&by, &tokenizer(), 0).await.unwrap());
    assert_eq!(here.digest(), there.digest());
    assert_eq!(drawn.digest, digest(&drawn.batches));
    let distinct: BTreeSet<_> = rows(&drawn).into_iter().collect();
    assert_eq!((distinct.len(), drawn.picks.len()), (32, 32));
    let other = Draw::new(Seed([4; 32]), 4, 8, 16);
    assert_ne!(here.draw(&other, &tokenizer(), 0).await.unwrap().digest, drawn.digest);
}

#[tokio::test]
async fn a_pick_says_where_a_row_is_from() {
    let dir = tempfile::tempdir().unwrap();
    let sources = open(dir.path()).await;
    let tokenizer = tokenizer();
    let drawn = sources.draw(&Draw::new(Seed([5; 32]), 8, 8, 12), &tokenizer, 0).await.unwrap();
    let (mut shards, mut of_b) = (BTreeSet::new(), 0);
    for (row, pick) in rows(&drawn).iter().zip(&drawn.picks) {
        shards.insert(pick.shard.as_str());
        let text = match pick.source {
            0 => {
                let from = ["1.jsonl", "deep/2.json.gz", "3.jsonl.zst"];
                let at = from.iter().position(|shard| *shard == pick.shard).unwrap() as u64;
                format!("text number {}, and so on", at * 30 + pick.row)
            }
            _ => {
                of_b += 1;
                assert_eq!(pick.row, 0);
                std::fs::read_to_string(dir.path().join("b/whole.txt")).unwrap()
            }
        };
        let tokens = tokenizer.encode(&text).unwrap();
        let wanted: Vec<_> =
            tokens[pick.start..].iter().take(12).map(|id| i64::from(*id)).collect();
        assert_eq!(row[..wanted.len()], wanted, "{pick:?}");
    }
    assert_eq!(shards.len(), 4, "{shards:?}");
    // A third of the rows: 0.5 of 1.5.
    assert!((10..34).contains(&of_b), "{of_b} of 64");
}

#[tokio::test]
async fn what_was_drawn_is_read_back_by_the_next_process_and_not_when_it_was_changed() {
    let dir = tempfile::tempdir().unwrap();
    let by = Draw::new(Seed([6; 32]), 2, 4, 30);
    let drawer = Drawer::new(open(dir.path()).await, tokenizer(), 7);
    let both = tokio::join!(drawer.draw(&by), drawer.draw(&by));
    let drawn = both.0.unwrap();
    assert!(Arc::ptr_eq(&drawn, &both.1.unwrap()), "drawn twice");
    assert!(drawn.batches.iter().any(|batch| batch.labels().contains(&IGNORED_LABEL)));

    // The folders are gone: what is drawn can only come from the disk.
    let sources = open(dir.path()).await;
    std::fs::remove_dir_all(dir.path().join("a")).unwrap();
    let next = Drawer::new(sources.clone(), tokenizer(), 7);
    assert_eq!(*next.draw(&by).await.unwrap(), *drawn);
    let kept: Vec<_> = std::fs::read_dir(dir.path().join("cache/batches")).unwrap().collect();
    assert_eq!(kept.len(), 1);

    let path = kept[0].as_ref().unwrap().path();
    let good = std::fs::read(&path).unwrap();
    for place in [0, 20, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[place] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        let next = Drawer::new(sources.clone(), tokenizer(), 7);
        assert_eq!(next.draw(&by).await.unwrap_err().reason(), "file", "{place}");
    }
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    assert!(Drawer::new(sources.clone(), tokenizer(), 7).draw(&by).await.is_err());
    std::fs::write(&path, &good).unwrap();
    // Another draw, or other filling, is not what was kept.
    let other = Draw { length: 29, ..by.clone() };
    assert!(Drawer::new(sources.clone(), tokenizer(), 7).draw(&other).await.is_err());
    assert!(Drawer::new(sources, tokenizer(), 8).draw(&by).await.is_err());
}

#[tokio::test]
async fn only_the_newest_draws_stay_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut few = settings(dir.path());
    few.limits.saved_draws = 2;
    let sources = Sources::open(&corpus(dir.path()), &few).await.unwrap();
    let drawer = Drawer::new(sources, tokenizer(), 0);
    let draws: Vec<_> = (0..4).map(|n| Draw::new(Seed([n; 32]), 1, 2, 12)).collect();
    for by in &draws {
        drawer.draw(by).await.unwrap();
    }
    let kept = std::fs::read_dir(dir.path().join("cache/batches")).unwrap().count();
    assert_eq!(kept, 2);
    std::fs::remove_dir_all(dir.path().join("a")).unwrap();
    let sources = Drawer::new(drawer.sources().clone(), tokenizer(), 0);
    sources.draw(&draws[3]).await.unwrap();
}

#[tokio::test]
async fn a_name_is_the_folder_that_the_settings_give_it() {
    let dir = tempfile::tempdir().unwrap();
    let by_path = Sources::open(&corpus(dir.path()), &settings(dir.path())).await.unwrap();
    let mut named = settings(&dir.path().join("nowhere"));
    named.names =
        ["a", "b"].map(|name| (name.to_owned(), dir.path().join(name))).into_iter().collect();
    let sources = data::parse_sources("data_sources: [a, b]").unwrap();
    let sources = Sources::open(&sources, &named).await.unwrap();
    let folders = [dir.path().join("a").into(), dir.path().join("b").into()];
    let folders = Sources::open(&folders, &settings(dir.path())).await.unwrap();
    assert_eq!(sources.digest(), folders.digest());
    // The weight is another.
    assert_ne!(sources.digest(), by_path.digest());
}

#[tokio::test]
async fn a_folder_that_changed_after_it_was_opened_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let sources = open(dir.path()).await;
    let path = dir.path().join("b/whole.txt");
    let text = std::fs::read_to_string(&path).unwrap().replace("one", "two");
    std::fs::write(&path, text).unwrap();
    let by = Draw::new(Seed([5; 32]), 2, 8, 12);
    let error = sources.draw(&by, &tokenizer(), 0).await.unwrap_err();
    assert_eq!(error.reason(), "shard_changed");
    assert!(error.to_string().contains("whole.txt"), "{error}");
}

#[tokio::test]
async fn a_source_that_runs_out_or_has_nothing_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let sources = open(dir.path()).await;
    let by = Draw::new(Seed([5; 32]), 100, 30, 8000);
    let error = sources.draw(&by, &tokenizer(), 0).await.unwrap_err();
    assert_eq!(error.reason(), "source_ran_out");
    assert!(error.to_string().contains('b'), "{error}");

    let mut long = settings(dir.path());
    long.minimum_text_length = 100;
    let sources = Sources::open(&corpus(dir.path()), &long).await.unwrap();
    let by = Draw::new(Seed([5; 32]), 1, 1, 16);
    let error = sources.draw(&by, &tokenizer(), 0).await.unwrap_err();
    assert_eq!(error.reason(), "source_empty");
    assert!(error.to_string().contains("a has nothing"), "{error}");

    let none = data::parse_sources("data_sources: [{folder: a, files: '*.parquet'}]").unwrap();
    let error = Sources::open(&none, &settings(dir.path())).await.unwrap_err();
    assert_eq!(error.reason(), "source_empty");
    let missing = data::parse_sources("data_sources: [nowhere]").unwrap();
    assert_eq!(Sources::open(&missing, &settings(dir.path())).await.unwrap_err().reason(), "file");
}

#[tokio::test]
async fn own_data_is_of_a_hotkey_and_a_version_and_shares_its_shards() {
    let dir = tempfile::tempdir().unwrap();
    let mut few = settings(dir.path());
    few.shards_per_round = 1;
    let sources = Sources::open(&corpus(dir.path()), &few).await.unwrap();
    let round = Draw::new(Seed([9; 32]), 1, 4, 16);
    let (mut digests, mut shards) = (BTreeSet::new(), BTreeSet::new());
    for hotkey in 0..8 {
        let own = round.own(&Hotkey::from_public_key([hotkey; 32]), GlobalVersion(3), 2);
        let drawn = sources.draw(&own, &tokenizer(), 0).await.unwrap();
        assert_eq!(drawn.batches.len(), 2);
        digests.insert(drawn.digest);
        shards
            .extend(drawn.picks.into_iter().filter(|pick| pick.source == 0).map(|pick| pick.shard));
    }
    assert_eq!((digests.len(), shards.len()), (8, 1));
}
