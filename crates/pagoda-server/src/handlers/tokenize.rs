//! `POST /tokenize` and `POST /detokenize`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::body;
use crate::dialect::{chat, messages};
use crate::error::ApiError;
use crate::fields::{Fields, whole};
use crate::generation::ChatPrompt;
use crate::json;
use crate::model::ServedModel;
use crate::prompt::render;
use crate::state::ServerState;

#[derive(Serialize)]
struct Tokenized {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
    token_strs: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Detokenized {
    prompt: String,
}

/// What a conversion must know of the server.
#[derive(Clone, Copy)]
struct ConversionOptions {
    max_tools: usize,
    tools_first: bool,
}

pub(crate) async fn tokenize(
    State(state): State<Arc<ServerState>>,
    request: Request,
) -> Result<Response, ApiError> {
    convert(state, request, to_tokens).await
}

pub(crate) async fn detokenize(
    State(state): State<Arc<ServerState>>,
    request: Request,
) -> Result<Response, ApiError> {
    convert(state, request, to_text).await
}

/// Reads the body and converts it off the reactor.
async fn convert(
    state: Arc<ServerState>,
    request: Request,
    conversion: fn(Fields, &ServedModel, ConversionOptions) -> Result<String, ApiError>,
) -> Result<Response, ApiError> {
    let model = state.serving_model()?;
    let bytes: Bytes = body::read(request, &state.config.requests).await?;
    let reader = Arc::clone(&state);
    let work = move || {
        let limits = &reader.config.requests;
        let mut fields = Fields::of_body(json::parse(&bytes, limits.max_json_depth)?)?;
        reader.check_model_name(fields.string("model", 512)?.as_deref())?;
        let options =
            ConversionOptions { max_tools: limits.max_tools, tools_first: reader.config.tools_first };
        conversion(fields, &model, options)
    };
    let json = state.prompts.run(work).await?;
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], json).into_response())
}

fn to_tokens(
    mut fields: Fields,
    model: &ServedModel,
    options: ConversionOptions,
) -> Result<String, ApiError> {
    let return_token_strs = fields.bool("return_token_strs")?.unwrap_or(false);
    let add_special_tokens = fields.bool("add_special_tokens")?;
    let (text, add_special_tokens) = match fields.string("prompt", usize::MAX)? {
        Some(text) => (text, add_special_tokens.unwrap_or(true)),
        // The template writes the special tokens itself.
        None => (conversation(&mut fields, model, options)?, add_special_tokens.unwrap_or(false)),
    };
    let tokenizer = &model.tokenizer;
    let encoded = tokenizer.encode(&text, add_special_tokens);
    let tokens = encoded.map_err(|_refused| ApiError::invalid("prompt", "cannot be tokenised"))?;
    let token_str = |id: &u32| String::from_utf8_lossy(tokenizer.token_bytes(*id)).into_owned();
    let token_strs = return_token_strs.then(|| tokens.iter().map(token_str).collect());
    let tokenized = Tokenized { count: tokens.len(), max_model_len: model.max_model_len, tokens, token_strs };
    Ok(serde_json::to_string(&tokenized).expect("numbers and strings serialise"))
}

fn conversation(
    fields: &mut Fields,
    model: &ServedModel,
    options: ConversionOptions,
) -> Result<String, ApiError> {
    let Some(list) = fields.take("messages") else {
        return Err(ApiError::invalid("prompt", "or 'messages' is required"));
    };
    let tools = fields.list("tools", options.max_tools)?.filter(|tools| !tools.is_empty());
    let continue_final_message = fields.bool("continue_final_message")?.unwrap_or(false);
    let chat = ChatPrompt {
        messages: messages::read(Some(list))?,
        tools: tools.map(Value::Array),
        add_generation_prompt: fields.bool("add_generation_prompt")?.unwrap_or(!continue_final_message),
        continue_final_message,
        template_kwargs: Map::new(),
        tools_first: chat::tools_first(fields, options.tools_first)?,
    };
    render(chat, model)
}

fn to_text(mut fields: Fields, model: &ServedModel, _: ConversionOptions) -> Result<String, ApiError> {
    let wrong = || ApiError::invalid("tokens", "must be a list of token ids of the vocabulary");
    let tokens = fields.list("tokens", usize::MAX)?.ok_or_else(wrong)?;
    let id = |value: &Value| whole(value).and_then(|id| u32::try_from(id).ok());
    let in_vocabulary = |id: &u32| (*id as usize) < model.tokenizer.vocab_size();
    let ids: Option<Vec<u32>> = tokens.iter().map(|value| id(value).filter(in_vocabulary)).collect();
    let detokenized = Detokenized { prompt: model.tokenizer.decode(&ids.ok_or_else(wrong)?, false) };
    Ok(serde_json::to_string(&detokenized).expect("a string serialises"))
}
