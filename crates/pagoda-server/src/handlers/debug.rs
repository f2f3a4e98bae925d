//! `GET /debug/kv`: where the KV blocks are, and whether every law of the engine holds. `GET /debug/prefix-cache`: what the
//! prefix cache knew of the last prompts, and why it did not have more.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::dialect::usage::CacheMissFields;
use crate::error::ApiError;
use crate::prefix_log::{MAX_ENTRIES, PrefixEntry};
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

/// Counts of all requests by reason, and the last prompts one by one. Numbers and ids only.
pub(crate) async fn prefix_cache(State(state): State<Arc<ServerState>>) -> Result<Json<Value>, ApiError> {
    let model = state.model.get().ok_or_else(|| state.unavailable(Readiness::Loading))?;
    let stats = model.engine.stats();
    let recent: Vec<Value> = model.prefix_log.entries().iter().map(entry).collect();
    Ok(Json(json!({
        "requests": {
            "none": stats.prefix_cache_complete,
            "first_use": stats.prefix_cache_first_use,
            "evicted": stats.prefix_cache_evicted,
            "diverged": stats.prefix_cache_diverged,
            "salt": stats.prefix_cache_other_salt,
            "not_looked_up": stats.prefix_cache_not_asked,
        },
        "tokens": {
            "looked_up": stats.prefix_cache_queries,
            "cached": stats.prefix_cache_hits,
            "evicted": stats.prefix_cache_evicted_tokens,
        },
        "evicted_blocks_remembered": stats.kv_ghost_blocks,
        "max_recent": MAX_ENTRIES,
        "recent": recent,
    })))
}

fn entry(entry: &PrefixEntry) -> Value {
    let usage = entry.usage;
    json!({
        "id": entry.answer_id,
        "prompt_tokens": usage.num_prompt_tokens,
        "cached_tokens": usage.prefix.num_cached_tokens,
        "cache_miss": CacheMissFields::from(usage),
    })
}
