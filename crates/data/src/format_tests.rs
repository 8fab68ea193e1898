use std::io::{Seek as _, Write as _};

use proptest::prelude::*;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn read(name: &str, bytes: &[u8], limits: &Limits) -> Result<Vec<(u64, String)>, DataError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    let format = Format::of(name).unwrap();
    let mut found = Vec::new();
    Reading { name, format, field: "text", limits }.run(file, &mut |row, text| {
        found.push((row, text.to_owned()));
        Ok(())
    })?;
    Ok(found)
}

fn why(name: &str, bytes: &[u8]) -> String {
    let error = read(name, bytes, &Limits::default()).unwrap_err();
    assert_eq!(error.reason(), "shard_content", "{error}");
    error.to_string()
}

const LINES: &str = concat!(
    "{\"id\":[1,{\"text\":\"inner\"}],\"text\":\"one\"}\n",
    "\n",
    "{\"text\":null}\r\n",
    "{\"text\":\"zwei\\n\\u00e4\",\"n\":1e3}"
);

#[test]
fn lines_are_read_in_every_packing_with_their_numbers() {
    let expected = [(0, "one".to_owned()), (3, "zwei\nä".to_owned())];
    let lines = LINES.as_bytes();
    let (packed, zpacked) = (gzip(lines), zstd(lines));
    for (name, bytes) in [
        ("a.jsonl", lines),
        ("a.jsonl.gz", &packed),
        ("a.json.gz", &packed),
        ("a.jsonl.zst", &zpacked),
        ("a.json.zst", &zpacked),
    ] {
        assert_eq!(read(name, bytes, &Limits::default()).unwrap(), expected, "{name}");
    }
    // A packed file may be several, one after the other.
    let twice = [packed.clone(), gzip(b"\n{\"text\":\"more\"}")].concat();
    assert_eq!(read("a.json.gz", &twice, &Limits::default()).unwrap()[2], (4, "more".to_owned()));
    assert_eq!(read("a.txt", lines, &Limits::default()).unwrap(), [(0, LINES.to_owned())]);
}

#[test]
fn names_tell_formats_and_others_are_no_shards() {
    for name in ["a.parquet", "x/b.txt", "c.jsonl", "c.json.gz"] {
        assert!(Format::of(name).is_some(), "{name}");
    }
    for name in ["a.json", "README.md", "parquet", "a.jsonl.xz", "a.parquet.gz", "a.JSONL", ""] {
        assert!(Format::of(name).is_none(), "{name}");
    }
}

#[test]
fn a_line_that_is_no_text_is_named_by_its_number() {
    for (line, expected) in [
        ("{\"txt\":1}", "no `text`"),
        ("{\"text\":1}", "invalid type"),
        ("{\"text\":[\"a\"]}", "invalid type"),
        ("{\"text\":\"a\",\"text\":\"b\"}", "twice"),
        ("[\"text\"]", "object"),
        ("{\"text\":\"a\"} {}", "trailing"),
        ("{\"text\":\"a", "control character"),
        ("{\"text\":\"\\ud800\"}", "hex escape"),
        ("\u{feff}{\"text\":\"a\"}", "line 2"),
    ] {
        let error = why("a.jsonl", format!("{{\"text\":\"good\"}}\n{line}\n").as_bytes());
        assert!(error.contains(expected) && error.contains("line 2"), "{line}: {error}");
    }
    assert!(why("a.jsonl", b"{\"text\":\"\xff\"}").contains("line 1"));
    assert!(why("a.txt", b"\xff").contains("utf-8"));
    let deep = format!("{{\"a\":{}1{},\"text\":\"x\"}}", "[".repeat(100_000), "]".repeat(100_000));
    // What is passed over takes no stack.
    let limits = Limits::default();
    assert_eq!(read("a.jsonl", deep.as_bytes(), &limits).unwrap(), [(0, "x".to_owned())]);
    let packed = gzip(LINES.as_bytes());
    why("a.json.gz", &packed[..packed.len() - 9]);
    why("a.json.gz", LINES.as_bytes());
    why("a.json.zst", &packed);
}

#[test]
fn what_unpacks_to_more_than_the_limits_ends_there() {
    let limits =
        Limits { piece_bytes: 1 << 16, unpacked_bytes: 1 << 20, rows: 50, ..Limits::default() };
    let line = format!("{{\"text\":\"{}\"}}\n", "a".repeat(40_000));
    let endless = vec![b' '; 8 << 20];
    for (name, bytes, what) in [
        ("a.json.gz", gzip(&endless), "a line"),
        ("a.json.zst", zstd(&endless), "a line"),
        ("a.jsonl", endless.clone(), "a line"),
        ("a.txt", endless, "its text"),
        ("a.json.gz", gzip(line.repeat(40).as_bytes()), "unpacked"),
        ("a.json.zst", zstd("\n".repeat(60).as_bytes()), "number of lines"),
    ] {
        let error = read(name, &bytes, &limits).unwrap_err();
        assert_eq!(error.reason(), "shard_limit", "{name}: {error}");
        assert!(error.to_string().contains(what), "{name}: {error}");
    }
}

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "a.jsonl",
        "a.json.gz",
        "a.jsonl.gz",
        "a.json.zst",
        "a.jsonl.zst",
        "a.txt",
        "a.parquet",
    ])
}

proptest! {
    #[test]
    fn any_bytes_are_texts_or_a_named_refusal(name in name(), bytes: Vec<u8>) {
        let limits = Limits { piece_bytes: 1 << 20, ..Limits::default() };
        if let Err(error) = read(name, &bytes, &limits) {
            prop_assert!(["shard_content", "shard_limit"].contains(&error.reason()), "{}", error);
        }
    }

    #[test]
    fn damaged_packing_is_texts_or_a_named_refusal(
        gz: bool,
        at: prop::sample::Index,
        byte: u8,
        cut: prop::sample::Index,
    ) {
        let lines = LINES.as_bytes().repeat(20);
        let (name, mut bytes) =
            if gz { ("a.json.gz", gzip(&lines)) } else { ("a.json.zst", zstd(&lines)) };
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes.truncate(bytes.len().max(2) - cut.index(2) * cut.index(bytes.len()));
        let limits = Limits { piece_bytes: 1 << 20, ..Limits::default() };
        if let Err(error) = read(name, &bytes, &limits) {
            prop_assert!(["shard_content", "shard_limit"].contains(&error.reason()), "{}", error);
        }
    }

    #[test]
    fn any_texts_come_back(texts in proptest::collection::vec(".{0,40}", 0..20)) {
        let lines: String =
            texts.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect();
        let expected: Vec<_> = (0..).zip(texts).collect();
        let found = read("a.json.zst", &zstd(lines.as_bytes()), &Limits::default()).unwrap();
        prop_assert_eq!(found, expected);
    }
}
