//! Readiness: `grpc.health.v1` of one gRPC server, and its handle.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use futures::StreamExt as _;
use tokio::sync::watch;
use tokio_stream::{Stream, wrappers::WatchStream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server,
};

type Statuses = BTreeMap<String, bool>;

/// Which gRPC services of one server are ready.
///
/// A service that was added to a server is ready unless said otherwise: set it to false before
/// serving, and to true once what it depends on is there. The empty name asks for all of them.
#[derive(Debug, Clone)]
pub struct Health(Arc<watch::Sender<Statuses>>);

impl Default for Health {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Statuses::new())))
    }
}

impl Health {
    /// Sets whether `service_name` (as in `connito.chain.v1.ChainService`) is ready.
    pub fn set(&self, service_name: &str, ready: bool) {
        self.0.send_if_modified(|statuses| {
            statuses.insert(service_name.to_owned(), ready) != Some(ready)
        });
    }

    /// Sets all services at once.
    pub fn set_all(&self, ready: bool) {
        self.0.send_modify(|statuses| statuses.values_mut().for_each(|value| *value = ready));
    }

    /// Returns whether every service is ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.borrow().values().all(|ready| *ready)
    }

    /// Names a service that has no status yet.
    pub(crate) fn introduce(&self, service_name: &str) {
        self.0.send_modify(|statuses| {
            statuses.entry(service_name.to_owned()).or_insert(true);
        });
    }

    pub(crate) fn service(&self) -> health_server::HealthServer<impl health_server::Health> {
        health_server::HealthServer::new(Handler(self.clone()))
    }
}

/// The gRPC face of [`Health`].
struct Handler(Health);

fn status(statuses: &Statuses, service: &str) -> Option<ServingStatus> {
    let ready = match service {
        "" => statuses.values().all(|ready| *ready),
        name => *statuses.get(name)?,
    };
    Some(if ready { ServingStatus::Serving } else { ServingStatus::NotServing })
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl health_server::Health for Handler {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match status(&self.0.0.borrow(), &service) {
            Some(status) => Ok(Response::new(response(status))),
            None => Err(Status::not_found("service not registered")),
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let mut last = None;
        let changes = WatchStream::new(self.0.0.subscribe()).filter_map(move |statuses| {
            let now = status(&statuses, &service).unwrap_or(ServingStatus::ServiceUnknown);
            let changed = last.replace(now) != Some(now);
            std::future::ready(changed.then(|| Ok(response(now))))
        });
        Ok(Response::new(Box::pin(changes)))
    }
}
