//! What became of a submission, in the gateway's words: `GET /submissions/<round>/<hotkey>`.

use domain::{ModelHash, RoundId};
use serde_json::Value;

use crate::{answer::clean, error::ClientError, gateway::MinerClient};

/// What the gateway knows of a miner's submission in a round.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    /// `absent`, `receiving`, `stored`, `refused`, or what the evaluation made of it.
    pub state: String,
    /// Stable reason, where there is one.
    pub reason: String,
    /// The same for a person.
    pub detail: String,
    /// All that the gateway said.
    pub whole: Value,
}

/// States in which no file is stored.
const WITHOUT: [&str; 6] = ["absent", "pending", "receiving", "refused", "not_evaluated", ""];

impl MinerClient {
    /// What became of this miner's submission in `round`.
    ///
    /// # Errors
    ///
    /// As [`Self::status`]; `no_route` from a gateway that does not tell.
    pub async fn receipt(&self, round: RoundId) -> Result<Receipt, ClientError> {
        let status = self.status().await?;
        let request = self
            .gateway
            .http()
            .get(self.gateway.url(&format!("/submissions/{round}/{}", self.hotkey())));
        let response = self.gateway.send(request.query(&self.signed(&status))).await?;
        let silence = self.gateway.patience.silence;
        let response = crate::answer::accepted(response, silence).await?;
        let whole: Value = crate::answer::json(response, silence).await?;
        if !whole.is_object() {
            return Err(ClientError::Strange("it is no object".to_owned()));
        }
        Ok(Receipt::new(whole))
    }
}

impl Receipt {
    fn new(whole: Value) -> Self {
        let text = |name: &str| clean(whole[name].as_str().unwrap_or_default());
        Self { state: text("state"), reason: text("reason"), detail: text("detail"), whole }
    }

    /// Whether a file of this model is stored. A gateway that does not say which one it is is believed: it stores
    /// what is committed, and nothing else.
    #[must_use]
    pub fn has_stored(&self, hash: &ModelHash) -> bool {
        let stored = match self.whole.get("file") {
            Some(file) => !file.is_null(),
            None => !WITHOUT.contains(&self.state.as_str()),
        };
        let of = self.find("model_hash").and_then(Value::as_str);
        stored && of.is_none_or(|of| of.eq_ignore_ascii_case(&hash.to_hex()))
    }

    /// A field by its name, wherever the gateway has put what it says of the file.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Value> {
        let inner = ["file", "submission", "stored"].map(|place| &self.whole[place][name]);
        std::iter::once(&self.whole[name]).chain(inner).find(|value| !value.is_null())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_stored_file_of_the_same_model_counts() {
        let hash = ModelHash([7; 24]);
        let (own, other) = (hash.to_hex(), ModelHash([8; 24]).to_hex());
        for (answer, stored) in [
            (json!({ "state": "stored" }), true),
            (json!({ "state": "stored", "model_hash": own }), true),
            (json!({ "state": "evaluating", "file": { "model_hash": own } }), true),
            (json!({ "state": "scored", "model_hash": other }), false),
            (json!({ "state": "stored", "file": { "model_hash": other } }), false),
            (json!({ "state": "not_evaluated", "file": { "model_hash": own } }), true),
            (json!({ "state": "not_evaluated", "file": null }), false),
            (json!({ "state": "invalid", "file": null }), false),
            (json!({ "state": "refused", "reason": "non_finite" }), false),
            (json!({ "state": "receiving" }), false),
            (json!({ "state": "absent" }), false),
            (json!({ "state": 7 }), false),
            (json!({}), false),
        ] {
            assert_eq!(Receipt::new(answer.clone()).has_stored(&hash), stored, "{answer}");
        }
    }
}
