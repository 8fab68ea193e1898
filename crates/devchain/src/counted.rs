//! What a runtime that counts epochs does once, when it comes after one that did not: it goes on
//! counting where the block number stood, so that commits under way keep their epochs.

use crate::{
    epoch::{self, Rule},
    runtime::MetadataError,
    state::{Account, State, account, number},
    subnet::{self, SUBTENSOR},
};

/// Begins the count, unless it has begun or this runtime does not count.
pub(crate) fn begin(state: &mut State<'_>, netuid: u16) -> Result<(), MetadataError> {
    let key = [number(netuid)];
    let begun = !state.keys(SUBTENSOR, "SubnetEpochIndex", &key)?.is_empty();
    if epoch::rule(state) == Rule::Modulo || begun {
        return Ok(());
    }
    let epoch = epoch::index_of(state, netuid, state.block().into())?;
    let (first, _) = epoch::blocks_of(state, netuid, epoch)?;
    state.put(SUBTENSOR, "SubnetEpochIndex", &key, &epoch)?;
    state.put(SUBTENSOR, "LastEpochBlock", &key, &first)?;
    for mecid in 0..subnet::mechanisms(state, netuid)? {
        restamp(state, netuid, subnet::index(netuid, mecid))?;
    }
    Ok(())
}

/// Commits of hashes had the block of the commit where they now have its epoch.
fn restamp(state: &mut State<'_>, netuid: u16, index: u16) -> Result<(), MetadataError> {
    for key in state.keys(SUBTENSOR, "WeightCommits", &[number(index)])? {
        // The key ends with the account as it is.
        let Some(who) = key.last_chunk::<32>() else { continue };
        let keys = [number(index), account(who)];
        let commits: Option<Vec<(Account, u64, u64, u64)>> =
            state.get(SUBTENSOR, "WeightCommits", &keys)?;
        let mut counted = Vec::new();
        for (hash, block, ..) in commits.unwrap_or_default() {
            counted.push((hash, epoch::index_of(state, netuid, block)?, block, 0u64));
        }
        state.put(SUBTENSOR, "WeightCommits", &keys, &counted)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Genesis, history::History, runtime::Runtime};

    #[test]
    fn a_count_begins_where_the_block_number_stands_and_commits_keep_their_epochs() {
        let Some(folder) = std::env::var_os("CONNITO_METADATA_DIR") else {
            eprintln!("skipped: CONNITO_METADATA_DIR does not say where metadata is");
            return;
        };
        let path = std::path::Path::new(&folder).join("subtensor_finney_spec424_v16.scale");
        let runtime = Runtime::new(std::fs::read(path).unwrap()).unwrap();
        let genesis = Genesis { tempo: 10, ..Genesis::default() };
        let (netuid, key) = (genesis.netuid, [number(genesis.netuid)]);
        let mut history = History::default();
        history.append(0, genesis.changes(&runtime).unwrap());

        // As the older runtime left it at block 50: block 48 was in epoch (48 + 103) / 11.
        let mut state = State::after(&runtime, &history, 50, Default::default());
        state.remove(SUBTENSOR, "SubnetEpochIndex", &key).unwrap();
        state.remove(SUBTENSOR, "LastEpochBlock", &key).unwrap();
        let commits = [number(netuid), account(&[5; 32])];
        let old = vec![([1u8; 32], 48u64, 51u64, 61u64)];
        state.put(SUBTENSOR, "WeightCommits", &commits, &old).unwrap();

        begin(&mut state, netuid).unwrap();
        let counted: Vec<(Account, u64, u64, u64)> =
            state.get(SUBTENSOR, "WeightCommits", &commits).unwrap().unwrap();
        assert_eq!(counted, [([1; 32], 13, 48, 0)]);
        let item = |entry| subnet::item::<u64>(&state, entry, netuid).unwrap().unwrap();
        assert_eq!((item("SubnetEpochIndex"), item("LastEpochBlock")), (14, 51));
        assert_eq!(epoch::next(&state, netuid).unwrap(), Some(61), "where it would have ended");

        state.put(SUBTENSOR, "SubnetEpochIndex", &key, &99u64).unwrap();
        begin(&mut state, netuid).unwrap();
        assert_eq!(subnet::item(&state, "SubnetEpochIndex", netuid).unwrap(), Some(99u64), "once");
    }
}
