//! The routes, as one table. A route is a row with its policy: there is no other way to add one, so none can be open by
//! oversight.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use http::{HeaderMap, Method, header};

use crate::error::ApiError;
use crate::exchange::Exchange;
use crate::handlers::{debug, embeddings, generations, health, metrics, models, tokenize};
use crate::keys::{Caller, KeyRole};
use crate::state::ServerState;

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Everyone, always.
    Public,
    /// Whoever has a key, if keys are configured.
    Key,
    /// Whoever has an admin key, if keys are configured.
    Admin,
}

/// What the route does while the server drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhileDraining {
    /// It answers: somebody watches the drain through it.
    Answer,
    /// It refuses with 503.
    Refuse,
}

/// One row of the table, without its handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteInfo {
    /// The method that it answers.
    pub method: &'static str,
    /// The path's pattern.
    pub path: &'static str,
    /// Who may call it.
    pub policy: Policy,
    /// Whether it answers while the server drains.
    pub while_draining: WhileDraining,
}

struct Route {
    info: RouteInfo,
    handler: MethodRouter<Arc<ServerState>>,
}

fn table() -> Vec<Route> {
    use Policy::{Admin, Key, Public};
    use WhileDraining::{Answer, Refuse};
    let route = |method: Method, path, (policy, while_draining), handler| {
        let method = if method == Method::GET { "GET" } else { "POST" };
        Route { info: RouteInfo { method, path, policy, while_draining }, handler }
    };
    let (get_, post_) = (Method::GET, Method::POST);
    vec![
        route(get_.clone(), "/health", (Public, Answer), get(health::ready)),
        route(get_.clone(), "/health/ready", (Public, Answer), get(health::ready)),
        route(get_.clone(), "/health/live", (Public, Answer), get(health::live)),
        route(get_.clone(), "/version", (Key, Answer), get(health::version)),
        route(get_.clone(), "/metrics", (Key, Answer), get(metrics::metrics)),
        route(get_.clone(), "/v1/models", (Key, Refuse), get(models::list)),
        route(get_.clone(), "/v1/models/{*id}", (Key, Refuse), get(models::one)),
        route(get_.clone(), "/models", (Key, Refuse), get(models::list)),
        route(get_.clone(), "/props", (Key, Refuse), get(models::props)),
        route(get_.clone(), "/api/v0/models", (Key, Refuse), get(models::states)),
        route(post_.clone(), "/v1/chat/completions", (Key, Refuse), post(generations::chat)),
        route(post_.clone(), "/v1/completions", (Key, Refuse), post(generations::completions)),
        route(post_.clone(), "/v1/embeddings", (Key, Refuse), post(embeddings::embeddings)),
        route(post_.clone(), "/tokenize", (Key, Refuse), post(tokenize::tokenize)),
        route(post_, "/detokenize", (Key, Refuse), post(tokenize::detokenize)),
        route(get_.clone(), "/debug/kv", (Admin, Answer), get(debug::kv)),
        route(get_, "/debug/prefix-cache", (Admin, Answer), get(debug::prefix_cache)),
    ]
}

/// The table, for tests and documentation.
pub fn routes() -> Vec<RouteInfo> {
    table().into_iter().map(|route| route.info).collect()
}

/// What the guard of a route must know.
#[derive(Clone)]
struct Guard {
    state: Arc<ServerState>,
    policy: Policy,
    while_draining: WhileDraining,
}

/// All routes behind their guards. Unknown paths and methods are guarded too: without a key, nobody learns which exist.
pub(crate) fn router(state: &Arc<ServerState>) -> Router {
    let guard = |policy, while_draining| {
        let guard = Guard { state: Arc::clone(state), policy, while_draining };
        from_fn_with_state(guard, admit)
    };
    let mut router = Router::new();
    for Route { info, handler } in table() {
        let handler = handler.fallback(method_not_allowed).layer(guard(info.policy, info.while_draining));
        router = router.route(info.path, handler);
    }
    let unknown = MethodRouter::new().fallback(unknown_route);
    let unknown = unknown.layer(guard(Policy::Key, WhileDraining::Refuse));
    router.fallback_service(unknown.with_state(Arc::clone(state))).with_state(Arc::clone(state))
}

async fn unknown_route() -> ApiError {
    ApiError::UnknownRoute
}

async fn method_not_allowed() -> ApiError {
    ApiError::MethodNotAllowed
}

/// Lets a request through to its handler, or answers for it.
async fn admit(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let caller = match authorise(&guard, request.headers()) {
        Ok(caller) => caller,
        Err(error) => return error.into_response(),
    };
    if let Some(exchange) = request.extensions().get::<Exchange>() {
        exchange.note_caller(caller);
    }
    if guard.state.is_draining() && guard.while_draining == WhileDraining::Refuse {
        return guard.state.unavailable(crate::state::Readiness::Draining).into_response();
    }
    request.extensions_mut().insert(caller);
    next.run(request).await
}

fn authorise(guard: &Guard, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let keys = &guard.state.config.api_keys;
    if guard.policy == Policy::Public || keys.is_empty() {
        return Ok(Caller::Open);
    }
    let header = headers.get(header::AUTHORIZATION).ok_or(ApiError::MissingKey)?;
    let key = bearer(header.as_bytes()).ok_or(ApiError::BadKey)?;
    match keys.find(key) {
        None => Err(ApiError::BadKey),
        Some(Caller::Key { role: KeyRole::User, .. }) if guard.policy == Policy::Admin => {
            Err(ApiError::Forbidden)
        }
        Some(caller) => Ok(caller),
    }
}

fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = header.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}
