//! What coldkeys own: the free balance of an account, in rao.

use scale_decode::DecodeAsType;
use scale_value::Value;

use crate::{
    runtime::MetadataError,
    state::{Account, State, account, number},
};

#[derive(DecodeAsType)]
struct Info {
    nonce: u32,
    consumers: u32,
    providers: u32,
    sufficients: u32,
    data: Data,
}

#[derive(DecodeAsType)]
struct Data {
    free: u64,
    reserved: u64,
    frozen: u64,
    flags: Value,
}

/// The free balance of an account.
pub(crate) fn free(state: &State<'_>, who: &Account) -> Result<u64, MetadataError> {
    let info: Option<Info> = state.get("System", "Account", &[account(who)])?;
    Ok(info.map_or(0, |info| info.data.free))
}

/// Sets the free balance of an account, which exists from then on.
pub(crate) fn set(state: &mut State<'_>, who: &Account, free: u64) -> Result<(), MetadataError> {
    let key = [account(who)];
    let Some(info) = state.get::<Info>("System", "Account", &key)? else { return Ok(()) };
    let data = Value::named_composite([
        ("free", number(free)),
        ("reserved", number(info.data.reserved)),
        ("frozen", number(info.data.frozen)),
        ("flags", info.data.flags),
    ]);
    let info = Value::named_composite([
        ("nonce", number(info.nonce)),
        ("consumers", number(info.consumers)),
        ("providers", number(info.providers.max(1))),
        ("sufficients", number(info.sufficients)),
        ("data", data),
    ]);
    state.put("System", "Account", &key, &info)
}
