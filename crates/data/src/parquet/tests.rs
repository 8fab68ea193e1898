use std::{io::Write as _, sync::Arc};

use ::parquet::{
    basic::{Compression, Encoding, GzipLevel, ZstdLevel},
    data_type::{ByteArray, ByteArrayType, Int32Type},
    file::{
        properties::{WriterProperties, WriterVersion},
        writer::SerializedFileWriter,
    },
    schema::parser::parse_message_type,
};
use proptest::prelude::*;

use crate::{
    DataError, Limits,
    format::{Format, Reading},
};

/// How a file is written.
#[derive(Debug, Clone)]
struct Way {
    compression: Compression,
    version: WriterVersion,
    dictionary: bool,
    page_rows: usize,
    group_rows: usize,
    required: bool,
}

fn way() -> impl Strategy<Value = Way> {
    let compression = prop_oneof![
        Just(Compression::UNCOMPRESSED),
        Just(Compression::SNAPPY),
        Just(Compression::GZIP(GzipLevel::default())),
        Just(Compression::ZSTD(ZstdLevel::default())),
    ];
    let version = prop_oneof![Just(WriterVersion::PARQUET_1_0), Just(WriterVersion::PARQUET_2_0)];
    (compression, version, any::<bool>(), 1usize..20, 1usize..40, any::<bool>()).prop_map(
        |(compression, version, dictionary, page_rows, group_rows, required)| Way {
            compression,
            version,
            dictionary,
            page_rows,
            group_rows,
            required,
        },
    )
}

/// A file of a number and a text column.
fn write(texts: &[Option<String>], way: &Way) -> Vec<u8> {
    let repetition = if way.required { "required" } else { "optional" };
    let schema = format!("message m {{ required int32 n; {repetition} binary text (UTF8); }}");
    let properties = WriterProperties::builder()
        .set_compression(way.compression)
        .set_writer_version(way.version)
        .set_dictionary_enabled(way.dictionary)
        .set_encoding(Encoding::PLAIN)
        .set_data_page_row_count_limit(way.page_rows)
        .set_write_batch_size(way.page_rows)
        .build();
    let schema = Arc::new(parse_message_type(&schema).unwrap());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties)).unwrap();
    for texts in texts.chunks(way.group_rows) {
        let mut group = writer.next_row_group().unwrap();
        let numbers = vec![7; texts.len()];
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int32Type>().write_batch(&numbers, None, None).unwrap();
        column.close().unwrap();
        let values: Vec<_> =
            texts.iter().flatten().map(|text| ByteArray::from(text.as_str())).collect();
        let levels: Vec<_> = texts.iter().map(|text| i16::from(text.is_some())).collect();
        let mut column = group.next_column().unwrap().unwrap();
        let levels = (!way.required).then_some(levels.as_slice());
        column.typed::<ByteArrayType>().write_batch(&values, levels, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
    }
    writer.into_inner().unwrap()
}

fn read(bytes: &[u8], field: &str, limits: &Limits) -> Result<Vec<(u64, String)>, DataError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    let reading = Reading { name: "x.parquet", format: Format::Parquet, field, limits };
    let mut found = Vec::new();
    reading.run(file, &mut |row, text| {
        found.push((row, text.to_owned()));
        Ok(())
    })?;
    Ok(found)
}

fn plain() -> Way {
    Way {
        compression: Compression::SNAPPY,
        version: WriterVersion::PARQUET_1_0,
        dictionary: true,
        page_rows: 10,
        group_rows: 20,
        required: false,
    }
}

fn some(count: usize) -> Vec<Option<String>> {
    (0..count).map(|n| Some(format!("text {n}"))).collect()
}

proptest! {
    #[test]
    fn texts_are_read_as_they_were_written(
        texts in proptest::collection::vec(proptest::option::weighted(0.8, ".{0,30}"), 0..60),
        way in way(),
    ) {
        let texts = if way.required {
            texts.into_iter().map(|text| Some(text.unwrap_or_default())).collect()
        } else {
            texts
        };
        let expected: Vec<_> = (0..)
            .zip(&texts)
            .filter_map(|(row, text)| Some((row, text.clone()?)))
            .collect();
        let found = read(&write(&texts, &way), "text", &Limits::default()).unwrap();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_damaged_file_is_texts_or_a_named_refusal(
        way in way(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in proptest::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut bytes = write(&some(50), &way);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            let cut = cut.index(bytes.len());
            bytes.drain(..cut);
        }
        let limits = Limits { piece_bytes: 1 << 20, rows: 10_000, ..Limits::default() };
        match read(&bytes, "text", &limits) {
            Ok(found) => prop_assert!(found.len() <= 10_000),
            Err(error) => {
                let named = ["shard_content", "shard_limit"].contains(&error.reason());
                prop_assert!(named, "{}", error);
            }
        }
    }
}

#[test]
fn pages_that_unpack_to_more_than_the_limit_are_refused_unread() {
    let bomb = vec![Some("a".repeat(3 << 20))];
    for compression in [
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
    ] {
        for dictionary in [true, false] {
            let bytes = write(&bomb, &Way { compression, dictionary, ..plain() });
            let limits = Limits { piece_bytes: 1 << 20, ..Limits::default() };
            let error = read(&bytes, "text", &limits).unwrap_err();
            assert!(error.to_string().contains("unpacked bytes"), "{error}");
            assert_eq!(read(&bytes, "text", &Limits::default()).unwrap().len(), 1);
        }
    }
    let many = write(&some(50), &plain());
    let limits = Limits { rows: 49, ..Limits::default() };
    assert_eq!(read(&many, "text", &limits).unwrap_err().reason(), "shard_limit");
    let limits = Limits { unpacked_bytes: 100, ..Limits::default() };
    assert_eq!(read(&many, "text", &limits).unwrap_err().reason(), "shard_limit");
}

#[test]
fn columns_that_are_no_texts_are_refused_by_name() {
    let bytes = write(&some(3), &plain());
    for (field, why) in [("n", "not of texts"), ("body", "no column `body`"), ("", "no column")] {
        let error = read(&bytes, field, &Limits::default()).unwrap_err();
        assert_eq!(error.reason(), "shard_content");
        assert!(error.to_string().contains(why), "{error}");
    }
    for bytes in [b"".as_slice(), b"PAR1", b"PAR1\xff\xff\xff\x7fPAR1", &[0; 100]] {
        assert_eq!(read(bytes, "text", &Limits::default()).unwrap_err().reason(), "shard_content");
    }
}
