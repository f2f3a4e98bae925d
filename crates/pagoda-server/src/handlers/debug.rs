//! `GET /debug/kv`: where the KV blocks are, and whether every law of the engine holds.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::{Readiness, ServerState};

/// Checks every law on the engine thread. 200 whatever the verdict: the check itself has succeeded.
pub(crate) async fn kv(State(state): State<Arc<ServerState>>) -> Result<Json<Value>, ApiError> {
    let model = state.model.get().ok_or_else(|| state.unavailable(Readiness::Loading))?;
    let integrity = match model.engine.check_integrity().await {
        Ok(report) => json!({
            "is_intact": true,
            "num_sequences_running": report.num_sequences_running,
            "num_sequences_waiting": report.num_sequences_waiting,
            "kv_blocks_total": report.kv_blocks_total,
            "kv_blocks_referenced": report.kv_blocks_referenced,
            "kv_blocks_cached": report.kv_blocks_cached,
            "kv_blocks_free": report.kv_blocks_free,
            "num_steps_in_flight": report.num_steps_in_flight,
        }),
        Err(error) => json!({"is_intact": false, "error": error.to_string()}),
    };
    let stats = model.engine.stats();
    Ok(Json(json!({
        "integrity": integrity,
        "num_unfinished_requests": model.engine.num_unfinished(),
        "num_requests_running": stats.num_requests_running,
        "num_requests_waiting": stats.num_requests_waiting,
        "num_steps": stats.num_steps,
        "num_preemptions": stats.num_preemptions,
        "num_aborted_requests": stats.num_aborted_requests,
        "num_block_copies": stats.num_copies,
        "kv_waste": stats.kv_waste(),
    })))
}
