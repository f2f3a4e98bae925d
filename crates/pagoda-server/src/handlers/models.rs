//! The served models, in the four forms that clients read the context size from: `GET /v1/models` (and `/models`, as
//! llama.cpp's server calls it), `GET /v1/models/{id}`, `GET /props`, `GET /api/v0/models`. All are written from one
//! [`Window`] per model.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;
use serde_json::{Value, json};

use crate::embedding::Embeddings;
use crate::error::ApiError;
use crate::model::ServedModel;
use crate::state::ServerState;

/// How many tokens a model takes.
#[derive(Clone, Copy)]
struct Window {
    /// Here and now: prompt and output together.
    max_len: usize,
    /// At most, anywhere.
    max_trained_len: usize,
}

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
    /// `llm` or `embedding`.
    #[serde(rename = "type")]
    kind: &'static str,
    capabilities: &'static [&'static str],
    /// Three names for the same number: agents' providers read one or the other.
    max_model_len: usize,
    context_length: usize,
    meta: ModelMeta,
    permission: [(); 0],
}

#[derive(Serialize)]
struct ModelMeta {
    n_ctx: usize,
    n_ctx_train: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    n_vocab: Option<usize>,
}

/// All served names.
#[derive(Serialize)]
pub(crate) struct ModelList {
    object: &'static str,
    data: Vec<ModelCard>,
}

/// The chat model first: clients that know no better take the first one.
pub(crate) async fn list(State(state): State<Arc<ServerState>>) -> Result<Json<ModelList>, ApiError> {
    let model = state.serving_model()?;
    let chat = state.config.served_model_names.iter().map(|name| chat_card(name, &state, &model));
    let embeddings =
        embedding_names(&state).map(|(name, embeddings)| embedding_card(name, &state, embeddings));
    Ok(Json(ModelList { object: "list", data: chat.chain(embeddings).collect() }))
}

pub(crate) async fn one(
    State(state): State<Arc<ServerState>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelCard>, ApiError> {
    let model = state.serving_model()?;
    // A name that is not UTF-8 is no name of ours.
    let Path(name) = name.map_err(|_not_text| ApiError::UnknownModel)?;
    let is_chat = state.config.served_model_names.contains(&name);
    if !is_chat && let Some((_, embeddings)) = embedding_names(&state).find(|(known, _)| **known == name) {
        return Ok(Json(embedding_card(&name, &state, embeddings)));
    }
    state.check_model_name(Some(&name))?;
    Ok(Json(chat_card(&name, &state, &model)))
}

/// What llama.cpp's server tells of itself, as far as clients read it.
pub(crate) async fn props(State(state): State<Arc<ServerState>>) -> Result<Json<Value>, ApiError> {
    let model = state.serving_model()?;
    Ok(Json(json!({
        "default_generation_settings": { "n_ctx": window(&model).max_len },
        "total_slots": model.engine.limits().max_num_sequences,
        "model_alias": state.model_name(),
        "chat_template": model.chat_template.as_ref().map(|template| template.source()),
        "build_info": format!("pagoda {}", env!("CARGO_PKG_VERSION")),
    })))
}

/// The models as LM Studio lists them, with whether they are in memory.
pub(crate) async fn states(State(state): State<Arc<ServerState>>) -> Result<Json<Value>, ApiError> {
    let model = state.serving_model()?;
    let tools: &[&str] = if model.chat_template.is_some() { &["tool_use"] } else { &[] };
    let chat = state.config.served_model_names.iter();
    let chat = chat.map(|name| state_card(name, ("llm", "loaded"), window(&model), tools));
    let embeddings = embedding_names(&state).map(|(name, embeddings)| {
        let is_loaded = if embeddings.is_loaded() { "loaded" } else { "not-loaded" };
        state_card(name, ("embeddings", is_loaded), embedding_window(embeddings), &[])
    });
    let data: Vec<Value> = chat.chain(embeddings).collect();
    Ok(Json(json!({ "object": "list", "data": data })))
}

fn window(model: &ServedModel) -> Window {
    Window { max_len: model.max_model_len, max_trained_len: model.max_trained_len }
}

fn embedding_window(embeddings: &Embeddings) -> Window {
    Window { max_len: embeddings.max_len, max_trained_len: embeddings.max_len }
}

fn embedding_names(state: &ServerState) -> impl Iterator<Item = (&String, &Embeddings)> {
    let embeddings = state.embeddings.get().map(|embeddings| &**embeddings);
    embeddings.into_iter().flat_map(|embeddings| embeddings.names.iter().map(move |name| (name, embeddings)))
}

fn chat_card(name: &str, state: &ServerState, model: &ServedModel) -> ModelCard {
    let capabilities: &[&str] =
        if model.chat_template.is_some() { &["chat", "completion"] } else { &["completion"] };
    let num_tokens = model.tokenizer.vocab_size();
    let card = card((name, state.model_name()), state, window(model));
    ModelCard { capabilities, meta: ModelMeta { n_vocab: Some(num_tokens), ..card.meta }, ..card }
}

fn embedding_card(name: &str, state: &ServerState, embeddings: &Embeddings) -> ModelCard {
    let card = card((name, &embeddings.names[0]), state, embedding_window(embeddings));
    ModelCard { kind: "embedding", capabilities: &["embedding"], ..card }
}

fn card((name, root): (&str, &str), state: &ServerState, window: Window) -> ModelCard {
    ModelCard {
        id: name.to_owned(),
        object: "model",
        created: state.started_at,
        owned_by: "pagoda",
        root: root.to_owned(),
        parent: None,
        kind: "llm",
        capabilities: &[],
        max_model_len: window.max_len,
        context_length: window.max_len,
        meta: ModelMeta { n_ctx: window.max_len, n_ctx_train: window.max_trained_len, n_vocab: None },
        permission: [],
    }
}

fn state_card(name: &str, (kind, state): (&str, &str), window: Window, capabilities: &[&str]) -> Value {
    let mut card = json!({
        "id": name,
        "object": "model",
        "type": kind,
        "publisher": "pagoda",
        "state": state,
        "max_context_length": window.max_trained_len,
        "capabilities": capabilities,
    });
    if state == "loaded" {
        card["loaded_context_length"] = window.max_len.into();
    }
    card
}
