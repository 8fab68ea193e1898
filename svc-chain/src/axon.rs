//! The address on the chain is the configured one: looked at now and then, served where it is not.
//!
//! The chain forgets an address when the hotkey loses its slot, and a new slot begins without one.
//! What is served is an intent like any other; this only finds out when one is needed.

use std::net::SocketAddr;

use domain::{Hotkey, RoundId};
use kit::Shutdown;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::{
    chain::{Block, BlockId, Chain},
    error::Error,
    outbox::{Key, Kind, Outbox, Payload, State},
    read,
};

/// Blocks between two looks: as many as the chain lets pass between two addresses.
const EVERY: u64 = 50;

/// Keeps `axon` on the chain until `shutdown`, or until the chain refuses it for good: another one
/// comes with another configuration, and so with another start.
pub(crate) async fn keep(
    axon: SocketAddr,
    hotkey: Hotkey,
    chain: Chain,
    outbox: Outbox,
    mut newest: watch::Receiver<Option<Block>>,
    shutdown: Shutdown,
) {
    let mut next = 0;
    let mut asked: Option<Key> = None;
    loop {
        let block = *newest.borrow_and_update();
        if let Some(block) = block.filter(|block| block.number.0 >= next) {
            next = block.number.0 + EVERY;
            match look(axon, &hotkey, &chain, &outbox, block, &mut asked).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    debug!(%error, "the address on the chain could not be looked at");
                    next = block.number.0 + 1;
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = newest.changed() => if changed.is_err() { return },
        }
    }
}

/// Has the address served where the chain has another one. Returns whether it is worth looking
/// again.
async fn look(
    axon: SocketAddr,
    hotkey: &Hotkey,
    chain: &Chain,
    outbox: &Outbox,
    block: Block,
    asked: &mut Option<Key>,
) -> Result<bool, Error> {
    if let Some(key) = asked {
        let intent = outbox.get(*key).await;
        match intent.map(|intent| intent.state) {
            Ok(State::Failed { note, .. }) => {
                warn!(%axon, note, "the address is not served until the next start");
                return Ok(false);
            }
            Ok(State::Done { .. }) | Err(Error::NoSuchIntent(_)) => *asked = None,
            Ok(State::Recorded { .. } | State::Submitted { .. } | State::Included { .. }) => {
                return Ok(true);
            }
            Err(error) => return Err(error),
        }
    }
    let at = chain.at(BlockId::Hash(block.hash)).await?;
    if read::uid_of(chain, &at, hotkey).await?.is_none() {
        debug!(%axon, "not served: the hotkey is not registered");
        return Ok(true);
    }
    let served = read::axon_of(chain, &at, hotkey).await?.and_then(|axon| axon.address());
    if served == Some(axon) {
        return Ok(true);
    }
    let key = Key { round: RoundId(block.number.0), kind: Kind::Axon };
    outbox.submit(key, Payload::Axon { ip: axon.ip(), port: axon.port() }).await?;
    info!(%axon, ?served, "the chain has another address: the configured one is served");
    *asked = Some(key);
    Ok(true)
}
