use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::*;

/// A parser, and requests that it takes.
type Case = (&'static str, fn(&[u8]) -> bool, Vec<Vec<u8>>);

fn forms() -> Vec<Vec<u8>> {
    let file = "--XyZ\r\nContent-Disposition: form-data; name=\"file\"; filename=\"m.pt\"\r\n\
                Content-Type: application/octet-stream\r\n\r\nPK\x03\x04--XyZ\r\n-\r\n--Xy\r\n";
    let field = "--XyZ\r\ncontent-disposition: form-data; name=origin_block\r\n\r\n340\r\n";
    let end = "--XyZ--\r\n";
    let long = format!(
        "--XyZ\r\nContent-Disposition: form-data; name=\"{}\"\r\n\r\n\r\n",
        "a".repeat(8140)
    );
    [
        format!("\u{7}{field}{file}{end}"),
        format!("\u{0}preamble\r\n{file}{field}{end}epilogue"),
        format!("\u{9}{}{end}", field.repeat(33)),
        format!("\u{63}{long}{field}{end}"),
        format!("\u{1}{}\r\n{field}{end}", "p".repeat(8185)),
        format!("\u{2}{end}"),
    ]
    .map(String::into_bytes)
    .into()
}

fn cases() -> Vec<Case> {
    let text = |all: &[&str]| all.iter().map(|text| text.as_bytes().to_vec()).collect();
    let signed = "target_hotkey_ss58=5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY&\
                  origin_hotkey_ss58=5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty&origin_block=340&\
                  model_hex=000102030405060708090a0b0c0d0e0f1011121314151617&block_hex=00&\
                  signature=AAAA&expert_group_id=shared&format=pt\0expert_group_id=%31&redirect=no";
    vec![
        ("multipart", multipart, forms()),
        ("multipart_written", multipart_written, forms()),
        (
            "boundary",
            boundary,
            text(&[
                "multipart/form-data; boundary=abc",
                "Multipart/Form-Data; charset=\"a\\\"b\"; boundary=\"a b\"",
            ]),
        ),
        ("form", form, text(&[signed, "a=1&a=2&b=%C3%A4%zz&=&&+=+\0a=3"])),
        (
            "file_name",
            file_name,
            text(&["model_expgroup_0.safetensors", "../../m.pt", "meta.json"]),
        ),
        (
            "tus",
            tus,
            text(&[
                "\0target_hotkey_ss58 NUdydw==,is_confidential,filename bS5wdA==",
                "\u{1}18446744073709551615",
                "\u{1} 007 ",
                "\u{2}sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=",
                "\u{3}00112233445566778899aabbccddeeff",
            ]),
        ),
        (
            "download",
            download,
            text(&[
                "\u{2}bytes=3-7\n\"tag\"\n*\n\"a\", W/\"b\"\n",
                "\u{4}bytes=-5\nTue, 14 Nov 2023 22:13:20 GMT\n\n\nTue, 14 Nov 2023 22:13:20 GMT",
                "\u{5}Bytes = 0-18446744073709551615, 5-\n\n\"tag\"\n\n\n\ntext/html;q=0.1, */*",
                "\u{3}bytes=0-\n\n\n\n\n\napplication/x-safetensors;q=0.5\nbytes=1-2",
            ]),
        ),
    ]
}

/// Changes a few bytes, cuts, repeats or moves.
fn bend(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    const SPECIAL: &[u8] = b"\r\n-\"\\;=%&, \0\t:*/.\xff09";
    for _ in 0..rng.random_range(1..5) {
        let len = bytes.len();
        if len == 0 {
            return;
        }
        let at = rng.random_range(0..len);
        let end = (at + rng.random_range(1..40)).min(len);
        match rng.random_range(0..8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => bytes[at] = rng.random(),
            3 => bytes[at] = SPECIAL[rng.random_range(0..SPECIAL.len())],
            4 => bytes.insert(at, SPECIAL[rng.random_range(0..SPECIAL.len())]),
            5 => bytes[at] ^= 1 << rng.random_range(0..8),
            6 => {
                let part = bytes[at..end].to_vec();
                let to = rng.random_range(0..len);
                bytes.splice(to..to, part);
            }
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
}

#[test]
fn thousands_of_bent_requests_are_read_or_refused_and_never_misread() {
    for (parser, holds, good) in cases() {
        let mut read = 0;
        for original in &good {
            read += usize::from(holds(original));
        }
        assert!(read > 0, "{parser}: no good request is taken");
        let mut counts = [0, 0];
        for seed in 0..1500 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut bytes = good[rng.random_range(0..good.len())].clone();
            bend(&mut bytes, &mut rng);
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
            let found = std::panic::catch_unwind(|| holds(&bytes));
            let found = found.unwrap_or_else(|_| panic!("{parser}, seed {seed}: {shown:?}"));
            counts[usize::from(found)] += 1;
        }
        assert!(counts[1] > 20, "{parser}: of the bent requests {counts:?} are refused and taken");
    }
}
