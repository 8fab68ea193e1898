//! What the tests ask of `/files`.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::{Method, RequestBuilder, Response};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::common::{Miner, World, name_of};

/// The metadata of an honest creation.
pub(super) fn metadata(fields: &[(&str, String)], name: &str) -> String {
    let name = ("filename", name.to_owned());
    let pairs = fields.iter().chain([&name]);
    let pairs = pairs.map(|(key, value)| format!("{key} {}", BASE64_STANDARD.encode(value)));
    pairs.collect::<Vec<_>>().join(",")
}

pub(super) fn content(miner: &Miner) -> Vec<u8> {
    std::fs::read(&miner.file).unwrap()
}

impl World {
    /// A request of tus to this path or URL.
    pub(super) fn tus(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let url =
            if path.starts_with("http") { path.to_owned() } else { format!("{}{path}", self.url) };
        self.http.request(method, url).header("Tus-Resumable", "1.0.0")
    }

    /// The honest creation of an upload of this many bytes.
    pub(super) fn creation(&self, miner: &Miner, length: usize) -> RequestBuilder {
        self.tus("POST", "/files")
            .header("Upload-Length", length)
            .header("Upload-Metadata", metadata(&self.fields(miner), &name_of(&miner.file)))
    }

    /// Creates an upload of the miner's file and returns its path.
    pub(super) async fn create(&self, miner: &Miner) -> String {
        let response = self.creation(miner, content(miner).len()).send().await.unwrap();
        assert_eq!(response.status(), 201);
        header(&response, "location").unwrap()
    }

    /// Appends.
    pub(super) fn append(&self, path: &str, offset: usize, bytes: &[u8]) -> RequestBuilder {
        self.tus("PATCH", path)
            .header("Upload-Offset", offset)
            .header("Content-Type", "application/offset+octet-stream")
            .body(bytes.to_vec())
    }

    /// Opens a connection, and sends the head of a request that is to append `length` bytes.
    pub(super) async fn begin_append(&self, path: &str, offset: usize, length: usize) -> TcpStream {
        let addr = self.url.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let head = format!(
            "PATCH {path} HTTP/1.1\r\nHost: gateway\r\nTus-Resumable: 1.0.0\r\n\
             Content-Type: application/offset+octet-stream\r\nUpload-Offset: {offset}\r\n\
             Content-Length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    /// The same with the first bytes, once the gateway has begun to take them.
    pub(super) async fn stalled_append(&self, path: &str, length: usize, sent: &[u8]) -> TcpStream {
        let mut stream = self.begin_append(path, 0, length).await;
        stream.write_all(sent).await.unwrap();
        self.until("bytes have come", || async {
            let parts = self.parts();
            parts
                .iter()
                .any(|part| std::fs::metadata(part).is_ok_and(|m| is_part(part) && m.len() > 0))
        })
        .await;
        stream
    }

    /// How much has come.
    pub(super) async fn offset(&self, path: &str) -> usize {
        let response = self.tus("HEAD", path).send().await.unwrap();
        assert_eq!(response.status(), 200);
        header(&response, "upload-offset").unwrap().parse().unwrap()
    }

    /// What is left of unfinished uploads on the disk.
    pub(super) fn parts(&self) -> Vec<std::path::PathBuf> {
        let mut found = self.below("data/parts");
        found.extend(self.below("data2/parts"));
        found
    }
}

pub(super) fn header(response: &Response, name: &str) -> Option<String> {
    Some(response.headers().get(name)?.to_str().unwrap().to_owned())
}

fn is_part(path: &std::path::Path) -> bool {
    path.extension().is_some_and(|end| end == "part")
}
