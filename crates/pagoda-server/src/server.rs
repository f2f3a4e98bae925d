//! The server: created before the model is there, given the model when it is, served until told to end.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Method, header};
use tokio::net::TcpListener;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, CorsLayer};

use crate::embedding::{EmbeddingSource, Embeddings};
use crate::error::ApiError;
use crate::exchange::{REQUEST_ID, track};
use crate::listener::{Acceptor, DrainReport};
use crate::model::{LoadedModel, ServedModel};
use crate::state::ServerState;
use crate::{ServerConfig, routes};

/// A configuration that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// There is no name under which the model could be asked for.
    #[error("at least one served model name is needed, and none may be empty")]
    NoModelName,
    /// An origin that a browser could never send.
    #[error("{origin:?} is not an origin; give scheme://host:port")]
    BadOrigin {
        /// What was given.
        origin: String,
    },
}

/// A server. Clones are the same server.
#[derive(Clone)]
pub struct Server {
    state: Arc<ServerState>,
    cors: Option<CorsLayer>,
}

impl Server {
    /// A server without a model: every guarded route answers 503 until [`Server::attach`].
    pub fn new(config: ServerConfig) -> Result<Self, ServerError> {
        let names = &config.served_model_names;
        if names.is_empty() || names.iter().any(String::is_empty) {
            return Err(ServerError::NoModelName);
        }
        let cors = cors(&config.cors_origins)?;
        Ok(Server { state: Arc::new(ServerState::new(config)), cors })
    }

    /// Hands over the loaded model; the server is ready from now on. A server takes one model in its life: a second one
    /// is dropped.
    pub fn attach(&self, model: LoadedModel) {
        let model = ServedModel::new(model, &self.state.config);
        if self.state.model.set(Arc::new(model)).is_err() {
            tracing::error!("a model is being served already");
        }
        if self.state.is_draining() {
            self.state.start_draining();
        }
    }

    /// Names the embedding model, which is loaded when it is first asked for. A server takes one in its life: a second
    /// one is dropped.
    ///
    /// # Errors
    /// [`ServerError::NoModelName`] without a name.
    pub fn attach_embeddings(&self, source: EmbeddingSource) -> Result<(), ServerError> {
        if source.names.is_empty() || source.names.iter().any(String::is_empty) {
            return Err(ServerError::NoModelName);
        }
        let config = &self.state.config;
        let max_queued_inputs = config.requests.max_queued_embedding_inputs;
        let embeddings = Embeddings::new(source, max_queued_inputs, config.drain.retry_after);
        if self.state.embeddings.set(Arc::new(embeddings)).is_err() {
            tracing::error!("an embedding model is being served already");
        }
        Ok(())
    }

    /// All routes with their guards, for callers that bring their own connection.
    pub fn router(&self) -> Router {
        self.layered(routes::router(&self.state))
    }

    /// What stands before every route.
    fn layered(&self, mut router: Router) -> Router {
        if let Some(cors) = &self.cors {
            router = router.layer(cors.clone());
        }
        router
            .layer(CatchPanicLayer::custom(panicked))
            .layer(from_fn_with_state(Arc::clone(&self.state), track))
    }

    /// Serves until `shutdown` is ready, then drains: the listener stays open and refuses, what was accepted goes on for
    /// at most `drain_timeout`. Returns at the latest about a second after that, whatever the peers do.
    pub async fn serve(&self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> DrainReport {
        let acceptor = Acceptor::new(listener, self.router(), self.state.config.connections);
        acceptor.serve(&self.state, shutdown).await
    }
}

/// A handler's panic is that request's alone. The payload may quote the request and is dropped.
fn panicked(_payload: Box<dyn std::any::Any + Send>) -> Response {
    tracing::error!("a handler panicked");
    ApiError::Internal.into_response()
}

/// How long a browser need not ask again.
const PREFLIGHT_AGE: Duration = Duration::from_secs(600);

/// Headers for the listed origins; none at all without a list.
fn cors(origins: &[String]) -> Result<Option<CorsLayer>, ServerError> {
    if origins.is_empty() {
        return Ok(None);
    }
    let origins: Result<Vec<HeaderValue>, ServerError> =
        origins.iter().map(|origin| parse_origin(origin)).collect();
    let layer = CorsLayer::new()
        .allow_origin(origins?)
        .allow_methods([Method::GET, Method::POST])
        // Those that are asked for: the OpenAI SDK sends a dozen of its own with every call.
        .allow_headers(AllowHeaders::mirror_request())
        .max_age(PREFLIGHT_AGE)
        .expose_headers([REQUEST_ID, header::RETRY_AFTER]);
    Ok(Some(layer))
}

fn parse_origin(origin: &str) -> Result<HeaderValue, ServerError> {
    let wrong = || ServerError::BadOrigin { origin: origin.to_owned() };
    let uri: http::Uri = origin.parse().map_err(|_| wrong())?;
    let is_origin = uri.scheme().is_some() && uri.authority().is_some() && !origin.ends_with('/');
    let has_path = uri.path_and_query().is_some_and(|rest| rest.as_str() != "/");
    if !is_origin || has_path {
        return Err(wrong());
    }
    HeaderValue::from_str(origin).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::routing::get;
    use http::{Request, StatusCode};
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    async fn panics() -> &'static str {
        panic!("a secret of the request")
    }

    /// Where a test's log goes.
    #[derive(Clone, Default)]
    struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_is_logged_on_the_way_names_its_request() {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let server = Server::new(ServerConfig::new(vec!["tiny".into()])).unwrap();
        let speaks = async || {
            let parts = futures_util::stream::once(async {
                tracing::warn!("in the middle of the answer");
                Ok::<_, std::io::Error>("text")
            });
            Body::from_stream(parts)
        };
        let app = server.layered(Router::new().route("/panics", get(panics)).route("/speaks", get(speaks)));
        for (path, line) in [("/panics", "a handler panicked"), ("/speaks", "in the middle of the answer")] {
            let id = format!("agent{}", path.replace('/', "-"));
            let request = Request::get(path).header(REQUEST_ID, &id).body(Body::empty()).unwrap();
            let answer = app.clone().oneshot(request).await.unwrap();
            answer.into_body().collect().await.unwrap();
            let bytes = log.0.lock().unwrap().clone();
            let text = String::from_utf8_lossy(&bytes);
            let line =
                text.lines().find(|text| text.contains(line)).unwrap_or_else(|| panic!("{line}: {text}"));
            assert!(line.contains(&id), "{line}");
        }
    }

    #[tokio::test]
    async fn a_panic_is_that_requests_alone_and_tells_nothing() {
        let server = Server::new(ServerConfig::new(vec!["tiny".into()])).unwrap();
        let app =
            server.layered(Router::new().route("/panics", get(panics)).route("/fine", get(async || "fine")));
        let get = |path: &str| Request::get(path).body(Body::empty()).unwrap();
        let answer = app.clone().oneshot(get("/panics")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(answer.headers()["x-should-retry"], "false");
        assert!(answer.headers().contains_key(REQUEST_ID));
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        let text = std::str::from_utf8(&body).unwrap();
        assert!(text.contains("internal_error") && !text.contains("secret"), "{text}");
        let answer = app.oneshot(get("/fine")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        drop(answer);
        assert_eq!(*server.state.num_in_flight.borrow(), 0);
    }
}
