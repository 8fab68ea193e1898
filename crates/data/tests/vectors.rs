//! Draws that another implementation made from `docs/data.md` alone (`vectors/reference.py`), of
//! shards that other writers wrote.

use std::path::{Path, PathBuf};

use data::{Draw, Pick, Settings, Sources, Tokenizer, digest, held_out_seed, own_seed};
use domain::{GlobalVersion, Hotkey, Seed};
use serde::Deserialize;

#[derive(Deserialize)]
struct Vectors {
    minimum_text_length: usize,
    shards_per_round: usize,
    own: Own,
    sources_digest: String,
    draws: Vec<Expected>,
}

#[derive(Deserialize)]
struct Own {
    hotkey: String,
    version: u64,
}

#[derive(Deserialize)]
struct Expected {
    seed: Seed,
    shards: Seed,
    batches: usize,
    size: usize,
    length: usize,
    pad: u32,
    digest: String,
    picks: Vec<Pick>,
    rows: Vec<Vec<i64>>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

#[tokio::test]
async fn every_draw_is_the_reference_s() {
    let text = std::fs::read_to_string(folder().join("draws.json")).unwrap();
    let vectors: Vectors = serde_json::from_str(&text).unwrap();
    let yaml = std::fs::read_to_string(folder().join("config.yaml")).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let settings = Settings {
        base: folder(),
        minimum_text_length: vectors.minimum_text_length,
        shards_per_round: vectors.shards_per_round,
        ..Settings::new(cache.path().to_owned())
    };
    let sources = Sources::open(&data::parse_sources(&yaml).unwrap(), &settings).await.unwrap();
    assert_eq!(sources.digest(), vectors.sources_digest);
    let tokenizer = folder().join("../../../../tests/vectors/numerics/tokenizer.json");
    let tokenizer = Tokenizer::open(&tokenizer).unwrap();
    for expected in &vectors.draws {
        let by = Draw {
            shards: expected.shards,
            ..Draw::new(expected.seed, expected.batches, expected.size, expected.length)
        };
        let drawn = sources.draw(&by, &tokenizer, expected.pad).await.unwrap();
        assert_eq!(drawn.picks, expected.picks);
        let rows = drawn.batches.iter().flat_map(|batch| batch.ids().chunks(batch.length()));
        for (row, expected) in rows.zip(&expected.rows) {
            assert_eq!(row[..expected.len()], *expected);
        }
        assert_eq!(drawn.digest, expected.digest);
        assert_eq!(digest(&drawn.batches), expected.digest);
    }
    let [round, _, held_out, own] = vectors.draws.as_slice() else { panic!("four draws") };
    let like = |draw: &Expected| Draw::new(draw.seed, draw.batches, draw.size, draw.length);
    assert_eq!(like(round).held_out(2).seed, held_out.seed);
    assert_eq!(held_out_seed(), held_out.seed);
    let (hotkey, version): (Hotkey, _) =
        (vectors.own.hotkey.parse().unwrap(), GlobalVersion(vectors.own.version));
    assert_eq!(own_seed(&hotkey, version), own.seed);
    assert_eq!(like(own).own(&hotkey, version, 2).shards, own.shards);
}
