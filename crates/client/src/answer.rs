//! Reads answers without trusting whoever sent them: bounded, in time, and never more than is needed.

use std::time::Duration;

use reqwest::{
    Response,
    header::{HeaderMap, RETRY_AFTER},
};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::error::{ClientError, Refusal};

/// Longest body of an answer that is not a file, in bytes.
const LONGEST: usize = 1 << 20;
/// Longest text of a stranger that is shown, in characters.
const SHOWN: usize = 500;

/// The answer, if it is not a refusal.
pub(crate) async fn accepted(
    response: Response,
    silence: Duration,
) -> Result<Response, ClientError> {
    if response.status().is_success() {
        Ok(response)
    } else {
        Err(ClientError::Refused(refusal(response, silence).await?))
    }
}

/// The JSON of an answer.
pub(crate) async fn json<T: DeserializeOwned>(
    response: Response,
    silence: Duration,
) -> Result<T, ClientError> {
    let body = body(response, silence).await?;
    serde_json::from_slice(&body).map_err(|error| ClientError::Strange(error.to_string()))
}

/// What a refusal says.
pub(crate) async fn refusal(response: Response, silence: Duration) -> Result<Refusal, ClientError> {
    #[derive(serde::Deserialize)]
    struct Words {
        #[serde(default)]
        detail: String,
        #[serde(default)]
        reason: String,
    }
    let status = response.status().as_u16();
    let retry_after = retry_after(response.headers());
    // The answer to HEAD has no body that could tell it.
    let reason = header(response.headers(), "x-reason").unwrap_or_default().to_owned();
    let body = body(response, silence).await?;
    let words = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Words { detail: String::from_utf8_lossy(&body).into_owned(), reason });
    let (reason, detail) = (clean(&words.reason), clean(&words.detail));
    Ok(Refusal { status, reason, detail, retry_after })
}

/// A header's text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A stranger's words as a terminal and a log may show them.
pub(crate) fn clean(text: &str) -> String {
    let shown = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.trim().chars().take(SHOWN).map(shown).collect()
}

async fn body(mut response: Response, silence: Duration) -> Result<Vec<u8>, ClientError> {
    let mut body = Vec::new();
    loop {
        let piece = timeout(silence, response.chunk()).await;
        let Some(piece) = piece.map_err(|_| ClientError::Silent(silence))?? else {
            return Ok(body);
        };
        if body.len() + piece.len() > LONGEST {
            return Err(ClientError::Strange(format!("it is longer than {LONGEST} bytes")));
        }
        body.extend(piece);
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    header(headers, RETRY_AFTER.as_str())?.trim().parse().ok().map(Duration::from_secs)
}
