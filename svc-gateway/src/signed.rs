//! Requests that a hotkey signs to be told something: downloads and receipts (protocol, section 8).
//!
//! Their fields come as the URL-encoded body of a GET, as today's miners send them, or as the query.

use axum::body::{Body, to_bytes};
use domain::{BlockNumber, Hotkey, block_message};
use tokio::time::timeout;

use crate::{
    admit::{Fields, check_target},
    app::App,
    auth::Signature,
    error::Error,
    view::View,
};

/// Longest form, in bytes.
pub(crate) const MAX_FORM: usize = 16 << 10;

/// The fields of the form and of the query; the form's word counts.
pub(crate) async fn fields(app: &App, query: &str, body: Body) -> Result<Fields, Error> {
    let limit = app.config.header_timeout;
    let form = timeout(limit, to_bytes(body, MAX_FORM))
        .await
        .map_err(|_| Error::TooSlow { limit })?
        .map_err(|_| Error::TooLarge { limit: MAX_FORM as u64 })?;
    Ok(read(&form, query))
}

/// The fields of a form and a query, both URL-encoded. Any bytes are a form.
pub(crate) fn read(form: &[u8], query: &str) -> Fields {
    let mut fields = Fields::default();
    for (name, value) in
        form_urlencoded::parse(form).chain(form_urlencoded::parse(query.as_bytes()))
    {
        fields.add(&name, &value);
    }
    fields
}

/// Whoever signed the block message to this validator, lately.
pub(crate) fn hotkey(fields: &Fields, view: &View, app: &App) -> Result<Hotkey, Error> {
    for field in ["target_hotkey_ss58", "origin_hotkey_ss58", "origin_block", "signature"] {
        fields.text(field)?;
    }
    let target = check_target(fields, view)?;
    let hotkey: Hotkey = fields.parse("origin_hotkey_ss58")?;
    let origin = BlockNumber(fields.parse("origin_block")?);
    let signature: Signature = fields.parse("signature")?;
    if !signature.is_of(&hotkey, &block_message(&target, origin)) {
        return Err(Error::RequestSignature { hotkey, message: "block message" });
    }
    let (first, last) = origins(view, app);
    if (first..=last).contains(&origin) {
        Ok(hotkey)
    } else {
        Err(Error::OriginBlock { origin, first, last })
    }
}

/// The blocks that may be signed now, first and last.
pub(crate) fn origins(view: &View, app: &App) -> (BlockNumber, BlockNumber) {
    let age = app.config.max_origin_age_blocks.unwrap_or_else(|| view.schedule.cycle_length());
    let first = view.block.0.saturating_sub(age);
    let last = view.block.0.saturating_add(app.config.max_origin_ahead_blocks);
    (BlockNumber(first), BlockNumber(last))
}
