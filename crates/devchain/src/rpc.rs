//! The JSON-RPC methods that subxt's legacy backend and the chain's other clients call.
//!
//! A method reads its parameters, asks the chain once, and writes the answer as a Substrate node
//! does. Whatever the parameters are, the answer is a value or an error.

mod author;
mod chain;
mod params;
mod state;
mod system;

use std::sync::Arc;

use jsonrpsee::{
    Methods, RpcModule, SubscriptionSink,
    core::RegisterMethodError,
    server::SubscriptionMessage,
    types::{ErrorObjectOwned, Params, error::INTERNAL_ERROR_CODE},
};
use serde_json::{Value as Json, json};
use tokio::sync::watch;

use crate::{
    chain::{Chain, NoState, Tips},
    faults::{Faults, Outlook},
    node::{Node, Stopped},
    runtime::MetadataError,
    runtime_api::CallError,
    view::View,
};

/// What every method has at hand.
struct Context {
    node: Node,
    faults: Arc<Faults>,
}

impl Context {
    /// Asks the chain.
    async fn ask<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Chain) -> R + Send + 'static,
    ) -> Result<R, ErrorObjectOwned> {
        self.node.with(job).await.map_err(|Stopped| internal(Stopped))
    }

    /// Looks at the chain as this node sees it.
    async fn see<R: Send + 'static>(
        &self,
        look: impl FnOnce(&View<'_>) -> R + Send + 'static,
    ) -> Result<R, ErrorObjectOwned> {
        let outlook = self.faults.outlook();
        self.ask(move |chain| look(&chain.view(outlook))).await
    }

    /// What this node sees, as it changes.
    fn watch(&self) -> Watch {
        Watch { tips: self.node.tips(), outlooks: self.faults.outlooks() }
    }
}

/// Wakes up whenever a node may see something new.
struct Watch {
    tips: watch::Receiver<Tips>,
    outlooks: watch::Receiver<Outlook>,
}

impl Watch {
    /// Waits for news since the last call. False where there will be none: the chain has stopped,
    /// or the listener is gone.
    async fn changed(&mut self, sink: &SubscriptionSink) -> bool {
        tokio::select! {
            () = sink.closed() => false,
            changed = self.tips.changed() => changed.is_ok(),
            changed = self.outlooks.changed() => changed.is_ok(),
        }
    }
}

type Module = RpcModule<Context>;
type Answer = Result<Json, ErrorObjectOwned>;

/// All methods.
pub(crate) fn methods(node: Node, faults: Arc<Faults>) -> Result<Methods, RegisterMethodError> {
    let mut module = RpcModule::new(Context { node, faults });
    author::register(&mut module)?;
    chain::register(&mut module)?;
    state::register(&mut module)?;
    system::register(&mut module)?;
    let mut names: Vec<&str> = module.method_names().chain(["rpc_methods"]).collect();
    names.sort_unstable();
    let names = json!({ "methods": names });
    module.register_method("rpc_methods", move |_, _, _| names.clone())?;
    Ok(module.into())
}

/// Registers a method that answers after the latency that a test may have asked for.
fn method<F, Fut>(
    module: &mut Module,
    name: &'static str,
    answer: F,
) -> Result<(), RegisterMethodError>
where
    F: Fn(Params<'static>, Arc<Context>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Answer> + Send,
{
    module.register_async_method(name, move |params, context, _| {
        let answer = answer.clone();
        async move {
            context.faults.delay(name).await;
            let answer = answer(params, Arc::clone(&context)).await;
            context.faults.voice().await;
            answer
        }
    })?;
    Ok(())
}

/// Whoever listened is gone.
struct Gone;

/// Sends something to a subscriber, as soon as the node has a voice.
async fn send(sink: &SubscriptionSink, faults: &Faults, value: &Json) -> Result<(), Gone> {
    let message = serde_json::value::to_raw_value(value).map_err(|_| Gone)?;
    faults.voice().await;
    sink.send(SubscriptionMessage::from(message)).await.map_err(|_| Gone)
}

fn internal(error: impl std::fmt::Display) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(INTERNAL_ERROR_CODE, error.to_string(), None::<()>)
}

/// A node's code for what its state cannot answer.
const STATE_ERROR: i32 = 4003;

fn client_error(error: impl std::fmt::Display) -> ErrorObjectOwned {
    ErrorObjectOwned::owned(STATE_ERROR, format!("Client error: {error}"), None::<()>)
}

impl From<NoState> for ErrorObjectOwned {
    fn from(error: NoState) -> Self {
        client_error(error)
    }
}

impl From<CallError> for ErrorObjectOwned {
    fn from(error: CallError) -> Self {
        client_error(format!("Execution failed: {error}"))
    }
}

impl From<MetadataError> for ErrorObjectOwned {
    fn from(error: MetadataError) -> Self {
        client_error(format!("Execution failed: {error}"))
    }
}
