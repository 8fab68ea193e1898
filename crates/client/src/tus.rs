//! The client's half of tus 1.0 (core, creation): what is said to `/files` and how its answers are read.
//!
//! An upload's address is a capability that the gateway gave out. It may name another gateway of the same
//! validator, and a gateway that does not have an upload may say who has: the token goes there too.

use std::collections::BTreeMap;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_TYPE, LOCATION},
};

use crate::{
    advice::{Next, is_of_upload},
    answer::{self, header},
    error::{ClientError, Refusal},
    gateway::MinerClient,
    retry::Tries,
    source::{Moved, Source},
    submit::Stored,
};

const VERSION: &str = "1.0.0";
const RESUMABLE: &str = "tus-resumable";
const OFFSET: &str = "upload-offset";
const LENGTH: &str = "upload-length";
/// How often a request is sent elsewhere, at most.
const MOST_REDIRECTS: usize = 3;

/// A gateway that takes uploads by tus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Largest upload, where it says.
    pub(crate) largest: Option<u64>,
}

/// Where an upload stands.
#[derive(Debug)]
pub(crate) enum Standing {
    /// So many bytes are there, at this address. With the last of them it is not told yet how it ended.
    At(Url, u64),
    /// The file is the miner's submission.
    Stored(Stored),
    /// It ended otherwise, or there never was such an upload.
    Over(Refusal),
}

impl MinerClient {
    /// Whether the gateway takes uploads by tus. One that has no such route does not.
    pub(crate) async fn tus_offer(&self) -> Result<Option<Offer>, ClientError> {
        let response = self
            .gateway
            .send(self.gateway.http().request(Method::OPTIONS, self.gateway.url("/files")))
            .await?;
        let status = response.status();
        if matches!(
            status,
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
        ) {
            return Ok(None);
        }
        let response = answer::accepted(response, self.gateway.patience.silence).await?;
        let lists = |name: &str, wanted: &str| {
            header(response.headers(), name)
                .is_some_and(|list| list.split(',').any(|word| word.trim() == wanted))
        };
        let spoken = lists("tus-version", VERSION) && lists("tus-extension", "creation");
        let largest = header(response.headers(), "tus-max-size").and_then(|n| n.parse().ok());
        Ok(spoken.then_some(Offer { largest }))
    }

    /// Begins an upload: the signed request for a file of so many bytes. Returns its address.
    pub(crate) async fn tus_create(
        &self,
        fields: &BTreeMap<&'static str, String>,
        bytes: u64,
    ) -> Result<Url, ClientError> {
        let request = self
            .gateway
            .http()
            .post(self.gateway.url("/files"))
            .header(RESUMABLE, VERSION)
            .header(LENGTH, bytes)
            .header("upload-metadata", metadata(fields))
            .header(CONTENT_LENGTH, 0);
        let response = self.gateway.send(request).await?;
        let response = answer::accepted(response, self.gateway.patience.silence).await?;
        address(&response)
    }

    /// Asks how much of an upload is there.
    pub(crate) async fn tus_standing(
        &self,
        url: &Url,
        bytes: u64,
    ) -> Result<Standing, ClientError> {
        let mut url = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let request = self.gateway.http().head(url.clone()).header(RESUMABLE, VERSION);
            let response = self.gateway.send(request).await?;
            if response.status().is_redirection() {
                url = address(&response)?;
                continue;
            }
            if !response.status().is_success() {
                let refusal = answer::refusal(response, self.gateway.patience.silence).await?;
                let over = refusal.next() == Next::Never || is_of_upload(&refusal.reason);
                return match over {
                    true => Ok(Standing::Over(self.in_words(&url, refusal).await)),
                    false => Err(ClientError::Refused(refusal)),
                };
            }
            if let Some(stored) = Stored::told_by(response.headers()) {
                return Ok(Standing::Stored(stored));
            }
            let number = |name| header(response.headers(), name).and_then(|n| n.parse().ok());
            let offset: Option<u64> = number(OFFSET);
            return match (offset, number(LENGTH)) {
                (_, Some(length)) if length != bytes => {
                    let why = format!("the upload is of {length} bytes, not {bytes}");
                    Err(ClientError::Strange(why))
                }
                (Some(offset), _) if offset <= bytes => Ok(Standing::At(url, offset)),
                _ => Err(ClientError::Strange("it has no upload-offset".to_owned())),
            };
        }
        Err(ClientError::Strange("sent elsewhere again and again".to_owned()))
    }

    /// The refusal with what it says to people, where the gateway tells that to who asks by GET.
    async fn in_words(&self, url: &Url, refusal: Refusal) -> Refusal {
        let asked = self.gateway.send(self.gateway.http().get(url.clone())).await;
        let Ok(response) = asked else { return refusal };
        if response.status().as_u16() != refusal.status {
            return refusal;
        }
        let words = answer::refusal(response, self.gateway.patience.silence).await;
        words.ok().filter(|words| words.reason == refusal.reason).unwrap_or(refusal)
    }

    /// Sends the file from `offset` on. Returns the answer and how much of the file left.
    pub(crate) async fn tus_append(
        &self,
        url: &Url,
        source: &Source,
        offset: u64,
        tries: &Tries,
    ) -> (Result<Response, ClientError>, Moved) {
        let rest = source.bytes.saturating_sub(offset);
        let (body, moved) = match source.body(offset, &self.progress).await {
            Ok(body) => body,
            Err(error) => return (Err(error), Moved::default()),
        };
        let request = self
            .gateway
            .http()
            .patch(url.clone())
            .header(RESUMABLE, VERSION)
            .header(OFFSET, offset)
            .header(CONTENT_TYPE, "application/offset+octet-stream")
            .header(CONTENT_LENGTH, rest)
            .body(body);
        (self.send_file(request, &moved, rest, tries.until()).await, moved)
    }
}

/// The offset that an answer tells.
pub(crate) fn offset(response: &Response) -> Option<u64> {
    header(response.headers(), OFFSET)?.parse().ok()
}

/// Fields as tus carries them: names, and values in base64.
fn metadata(fields: &BTreeMap<&'static str, String>) -> String {
    let pairs: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{name} {}", BASE64_STANDARD.encode(value)))
        .collect();
    pairs.join(",")
}

/// Where an answer leads: never from https to http.
pub(crate) fn address(response: &Response) -> Result<Url, ClientError> {
    let strange = |why: &str| ClientError::Strange(format!("it leads {why}"));
    let location =
        header(response.headers(), LOCATION.as_str()).ok_or_else(|| strange("nowhere"))?;
    let url = response.url().join(location).map_err(|_| strange("to something else than a URL"))?;
    match url.scheme() {
        "https" => Ok(url),
        "http" if response.url().scheme() == "http" => Ok(url),
        _ => Err(strange("out of https")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_are_names_and_base64() {
        let fields = [("filename", "a b.pt".to_owned()), ("origin_block", "340".to_owned())];
        assert_eq!(metadata(&fields.into()), "filename YSBiLnB0,origin_block MzQw");
        let fields = [("empty", String::new())];
        assert_eq!(metadata(&fields.into()), "empty ");
    }
}
