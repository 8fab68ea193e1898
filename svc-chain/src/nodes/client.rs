//! The nodes as `subxt` asks for them.

use subxt::rpcs::client::{RawRpcFuture, RawRpcSubscription, RawValue, RpcClientT};

use super::{
    Nodes,
    connection::{Call, Subscribe},
    lost,
};

/// Calls go to the endpoint in use, or to another one if that fails.
pub(super) struct Routed(pub(super) Nodes);

impl RpcClientT for Routed {
    fn request_raw<'a>(
        &'a self,
        method: &'a str,
        params: Option<Box<RawValue>>,
    ) -> RawRpcFuture<'a, Box<RawValue>> {
        Box::pin(self.0.call(Call { method, params }))
    }

    fn subscribe_raw<'a>(
        &'a self,
        sub: &'a str,
        params: Option<Box<RawValue>>,
        unsub: &'a str,
    ) -> RawRpcFuture<'a, RawRpcSubscription> {
        Box::pin(self.0.subscribe(Subscribe { method: sub, params, unsubscribe: unsub }))
    }
}

/// Calls go to one endpoint and to no other.
pub(super) struct Only(pub(super) Nodes, pub(super) usize);

impl RpcClientT for Only {
    fn request_raw<'a>(
        &'a self,
        method: &'a str,
        params: Option<Box<RawValue>>,
    ) -> RawRpcFuture<'a, Box<RawValue>> {
        Box::pin(async move {
            let call = Call { method, params };
            self.0.ask(self.1, &call).await.map_err(lost)
        })
    }

    fn subscribe_raw<'a>(
        &'a self,
        sub: &'a str,
        params: Option<Box<RawValue>>,
        unsub: &'a str,
    ) -> RawRpcFuture<'a, RawRpcSubscription> {
        Box::pin(async move {
            let subscribe = Subscribe { method: sub, params, unsubscribe: unsub };
            self.0.ask(self.1, &subscribe).await.map_err(lost)
        })
    }
}
