//! What each refusal means for whoever was refused: try again, or do something.

/// What a client does after a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// The same may work in a moment, signed anew.
    Again,
    /// It stays so until somebody does something.
    Never,
}

/// What to do after a refusal. The reason decides; where it is not known, the status.
pub(crate) fn next(status: u16, reason: &str) -> Next {
    const PASSING: [&str; 19] = [
        "rate_limited",
        "busy",
        "no_room",
        "not_ready",
        "stale_view",
        "stopping",
        "no_checkpoint",
        "checking",
        "unavailable",
        "broken_off",
        "too_slow",
        "upload_in_progress",
        "signature_reused",
        "origin_block",
        "range_unsatisfiable",
        "offset_mismatch",
        "checksum_mismatch",
        "upload_locked",
        "upload_elsewhere",
    ];
    if PASSING.contains(&reason) || is_of_upload(reason) {
        return Next::Again;
    }
    by_status(status, reason)
}

/// Whether the refusal is of one upload and not of the file: another upload may be begun.
pub(crate) fn is_of_upload(reason: &str) -> bool {
    const OVER: [&str; 5] =
        ["no_upload", "upload_expired", "upload_replaced", "upload_terminated", "upload_lost"];
    OVER.contains(&reason)
}

fn by_status(status: u16, reason: &str) -> Next {
    match status {
        // 416: what lies here is not of this file; 423: another request holds the upload.
        408 | 416 | 423 | 425 | 429 | 460 => Next::Again,
        // Of a proxy before the gateway, or of a reason that is newer than this client.
        500 | 502 | 503 | 504 => Next::Again,
        409 if reason.is_empty() => Next::Again,
        _ => Next::Never,
    }
}

/// What a miner can do about a refusal or a failure with this reason. Empty when there is nothing to say.
#[must_use]
pub fn advice(reason: &str) -> &'static str {
    match reason {
        "token_missing" => "this gateway asks for a bearer token: set AUTH_TOKEN",
        "token_wrong" => "the bearer token is not this gateway's: ask its operator, set AUTH_TOKEN",
        "no_route" | "no_method" => "is this the address of a validator's gateway?",
        "not_submission_phase" | "uploads_closed" => {
            "wait for the Submission phase: `connito miner status` tells how many blocks that is"
        }
        "round_closed" => "the round takes nothing more; submit earlier in the next one",
        "wrong_target" => "the validator behind this address has changed: try again",
        "request_signature" => "the wallet's hotkey is not the one that it says it is",
        "block_hex" | "missing_field" | "repeated_field" | "invalid_field" | "missing_file"
        | "malformed_form" => "the gateway does not understand this client: is it of its version?",
        "not_on_roster" => {
            "this hotkey is not a miner of the round: is it registered, and of this validator's group?"
        }
        "not_assigned" => "another validator evaluates this miner in this round: submit there",
        "nothing_committed" => {
            "commit the signature in MinerCommit1 and the hash in MinerCommit2, before submitting"
        }
        "commitment_incomplete" => {
            "commit hash, signature, version and group, and announce an axon"
        }
        "version_out_of_range" => "download the present model at the beginning of the cycle",
        "wrong_group" => "submit to a validator that evaluates this miner's group",
        "bad_signature" => {
            "sign the ASCII of the lower-case hex of the hash that is revealed in MinerCommit2"
        }
        "hash_mismatch" => "submit the very file whose hash was committed",
        "malformed" => "write .safetensors, or .pt with {\"model_state_dict\": {name: tensor}}",
        "missing_tensor" => "send every tensor of the group's slice",
        "foreign_tensor" => "send the group's own experts and nothing else",
        "wrong_shape" => "keep the shapes of the slice that was downloaded",
        "wrong_dtype" => "convert to float32, bfloat16 or float16",
        "shared_weights" => "send experts only",
        "non_finite" => "look for NaN and infinity before committing; float16 overflows easily",
        "forbidden_pickle" => "save tensors only, or use .safetensors",
        "unsafe_file_name" | "unknown_extension" => {
            "name the file with ASCII letters and digits, ending in .safetensors or .pt"
        }
        "too_large" => "send the group's tensors only, at most float32",
        "too_slow" => {
            "the connection is too slow for the file; bfloat16 is half as large as float32"
        }
        "already_submitted" => "one submission per miner and round: nothing is left to do",
        "upload_in_progress" | "upload_locked" | "upload_replaced" => {
            "another upload of this hotkey is under way: does it run twice?"
        }
        "no_slice" => "`connito miner status` lists what the validator serves",
        "no_checkpoint" => "the validator has no model yet: try later, or another validator",
        "rate_limited" | "busy" | "no_room" | "not_ready" | "stale_view" | "stopping"
        | "checking" | "unavailable" => {
            "the validator is busy or in trouble: try again in a minute"
        }
        "unreachable" => "check the address and the network; the validator may be restarting",
        "corrupt" => "try again; if it stays so, tell the validator's operator",
        "strange_answer" => "is this the address of a validator's gateway?",
        "bad_address" => "give http://host:port or https://host",
        "unknown_round" => "the round is the first block of a Submission phase that has begun",
        "not_yours" => "a receipt is for the miner alone: take that miner's wallet",
        "locked" => "wait for the other process, or name another file",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_for_good_is_not_tried_again_and_what_passes_is() {
        for (status, reason) in [
            (400, "hash_mismatch"),
            (400, "non_finite"),
            (403, "not_on_roster"),
            (409, "already_submitted"),
            (409, "not_submission_phase"),
            (409, "round_closed"),
            (413, "too_large"),
            (401, "token_missing"),
            (404, ""),
        ] {
            assert_eq!(next(status, reason), Next::Never, "{reason}");
        }
        for (status, reason) in [
            (503, "busy"),
            (503, "of a later version"),
            (502, ""),
            (429, "rate_limited"),
            (409, "upload_in_progress"),
            (410, "upload_expired"),
            (404, "no_upload"),
            (409, "offset_mismatch"),
            (423, "upload_in_progress"),
            (403, "signature_reused"),
            (400, "broken_off"),
        ] {
            assert_eq!(next(status, reason), Next::Again, "{reason}");
        }
    }
}
