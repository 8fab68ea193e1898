//! One node of the chain, as tests hold it: an address of its own, and its own ways to fail.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use crate::{
    faults::{Faults, Lie},
    node::Node,
};

/// As many blocks a node forges at once when it begins to lie about hashes.
const FORGED: u32 = 16;

/// A node of a development chain. Clones are the same node; it ends with its chain.
#[derive(Clone)]
pub struct DevNode {
    pub(crate) node: Node,
    pub(crate) faults: Arc<Faults>,
    pub(crate) address: SocketAddr,
}

impl fmt::Debug for DevNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevNode").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl DevNode {
    /// Where clients connect.
    pub fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Every call takes this much longer.
    pub fn set_latency(&self, each_call: Duration) {
        self.faults.set_latency(each_call);
    }

    /// Cuts every open connection. New ones are welcome.
    pub fn drop_connections(&self) {
        self.faults.cut();
    }

    /// `true` cuts every connection and accepts none.
    pub fn set_offline(&self, offline: bool) {
        self.faults.set_offline(offline);
    }

    /// The next `n` submissions are refused with 1016, "Immediately Dropped".
    pub fn refuse_submits(&self, n: u32) {
        self.faults.refuse_submits(n);
    }

    /// The next `n` submissions are taken, and all connections are cut before their answer.
    pub fn lose_answers(&self, n: u32) {
        self.faults.lose_answers(n);
    }

    /// The next `n` valid submissions are answered as if they were taken, but no pool has them.
    pub fn drop_next_submits(&self, n: u32) {
        self.faults.drop_submits(n);
    }

    /// `true` carries out calls and answers none of them; streams are silent. What was held back
    /// is sent when the node has its voice again.
    pub fn set_mute(&self, mute: bool) {
        self.faults.set_mute(mute);
    }

    /// Serves the chain as it was this many blocks ago. Streams go on once the node is past what
    /// they have sent.
    pub fn set_lag(&self, blocks: u32) {
        self.faults.set_outlook(|outlook| outlook.lag = blocks);
    }

    /// `true` stays at the present tip: connections are fine, streams are open and silent.
    pub fn set_stuck(&self, stuck: bool) {
        let tips = *self.node.tips().borrow();
        self.faults.set_outlook(|outlook| {
            outlook.stuck = stuck.then(|| outlook.stuck.unwrap_or(tips));
        });
    }

    /// `Some(n)`: the state of blocks more than `n` behind the head is not answered, as on a
    /// pruned node. `None` is an archive.
    pub fn set_keep_states(&self, blocks: Option<u32>) {
        self.faults.set_outlook(|outlook| outlook.keep_states = blocks);
    }

    /// Begins to lie, or to say the truth again.
    pub fn set_lie(&self, lie: Option<Lie>) {
        let honest = self.node.tips().borrow().best.number.saturating_sub(FORGED);
        self.faults.set_outlook(|outlook| outlook.lie = lie.map(|lie| (lie, honest)));
    }

    /// `true` announces only the tip of a branch that takes the place of another one, as a live node
    /// does; `false` announces each of its blocks.
    pub fn set_announce_tip_only(&self, tip_only: bool) {
        self.faults.set_outlook(|outlook| outlook.tip_only = tip_only);
    }

    /// How often each JSON-RPC method was called, subscriptions included.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.faults.calls()
    }
}
