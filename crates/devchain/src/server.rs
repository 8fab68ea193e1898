//! Sockets: accepts connections and hands them to the JSON-RPC methods.

use std::sync::Arc;

use jsonrpsee::server::{
    BatchRequestConfig, Server, ServerConfig, serve_with_graceful_shutdown, stop_channel,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    faults::{Faults, Severable},
    node::Node,
    rpc,
};

/// The largest message that is read: an extrinsic of the largest size, in hex, twice over.
const MAX_REQUEST_BYTES: u32 = 1024 * 1024;
const MAX_BATCH: u32 = 64;
const MAX_CONNECTIONS: u32 = 1000;
const MAX_SUBSCRIPTIONS: u32 = 1024;

/// Serves until `stop`; every connection is a task of `tasks`.
pub(crate) async fn serve(
    listener: TcpListener,
    node: Node,
    faults: Arc<Faults>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let methods = match rpc::methods(node, Arc::clone(&faults)) {
        Ok(methods) => methods,
        Err(error) => {
            tracing::error!(%error, "the development chain has two methods of one name");
            return;
        }
    };
    let config = ServerConfig::builder()
        .max_connections(MAX_CONNECTIONS)
        .max_request_body_size(MAX_REQUEST_BYTES)
        .max_subscriptions_per_connection(MAX_SUBSCRIPTIONS)
        .set_batch_request_config(BatchRequestConfig::Limit(MAX_BATCH))
        .build();
    let builder = Server::builder().set_config(config).to_service_builder();
    let (stopping, server) = stop_channel();
    loop {
        let socket = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    tracing::warn!(%error, "the development chain cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        if faults.is_offline() || socket.set_nodelay(true).is_err() {
            continue;
        }
        let connection = Severable::new(socket, faults.connection());
        let service = builder.clone().build(methods.clone(), stopping.clone());
        let stopped = stopping.clone().shutdown();
        tasks.spawn(async move {
            if let Err(error) = serve_with_graceful_shutdown(connection, service, stopped).await {
                tracing::debug!(%error, "a connection to the development chain broke");
            }
        });
    }
    drop(server);
    faults.cut();
}
