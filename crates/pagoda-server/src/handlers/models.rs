//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;

use crate::error::ApiError;
use crate::model::ServedModel;
use crate::state::ServerState;

/// One served name.
#[derive(Serialize)]
pub(crate) struct ModelCard {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The name that it is an alias of.
    root: String,
    parent: Option<String>,
    /// Three names for the same number: agents' providers read one or the other.
    max_model_len: usize,
    context_length: usize,
    meta: ModelMeta,
    permission: [(); 0],
}

#[derive(Serialize)]
struct ModelMeta {
    n_ctx: usize,
    n_vocab: usize,
}

/// All served names.
#[derive(Serialize)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<ModelCard>,
}

pub(crate) async fn list(State(state): State<Arc<ServerState>>) -> Result<Json<ModelList>, ApiError> {
    let model = state.serving_model()?;
    let data = state.config.served_model_names.iter().map(|name| card(name, &state, &model)).collect();
    Ok(Json(ModelList { object: "list", data }))
}

pub(crate) async fn one(
    State(state): State<Arc<ServerState>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, ApiError> {
    let model = state.serving_model()?;
    // A name that is not UTF-8 is no name of ours.
    let Path(name) = name.map_err(|_not_text| ApiError::UnknownModel)?;
    state.check_model_name(Some(&name))?;
    Ok(Json(card(&name, &state, &model)))
}

fn card(name: &str, state: &ServerState, model: &ServedModel) -> ModelCard {
    ModelCard {
        id: name.to_owned(),
        object: "model",
        created: state.started_at,
        owned_by: "pagoda",
        root: state.model_name().to_owned(),
        parent: None,
        max_model_len: model.max_model_len,
        context_length: model.max_model_len,
        meta: ModelMeta { n_ctx: model.max_model_len, n_vocab: model.tokenizer.vocab_size() },
        permission: [],
    }
}
