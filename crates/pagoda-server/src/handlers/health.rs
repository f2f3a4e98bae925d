//! Whether the process lives, whether it serves, and what it is.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::{Readiness, ServerState};

/// The reactor answers, so the process lives.
pub(crate) async fn live() -> Json<Value> {
    Json(json!({"status": "live"}))
}

/// 200 if a request would be served now.
pub(crate) async fn ready(State(state): State<Arc<ServerState>>) -> Result<Json<Value>, ApiError> {
    match state.readiness(Instant::now()) {
        Readiness::Ready => Ok(Json(json!({"status": "ready"}))),
        readiness => Err(state.unavailable(readiness)),
    }
}

/// The version of the server.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}
