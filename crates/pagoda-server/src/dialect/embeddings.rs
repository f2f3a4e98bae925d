//! `POST /v1/embeddings`: wire to texts, vectors to wire.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde_json::Value;

use super::parameters::token_id;
use super::to_json;
use crate::RequestLimits;
use crate::error::ApiError;
use crate::fields::Fields;

/// What a client asked for.
#[derive(Debug, PartialEq)]
pub(crate) struct EmbeddingRequest {
    pub(crate) model: Option<String>,
    pub(crate) inputs: Vec<EmbeddingInput>,
    pub(crate) form: VectorForm,
    /// Insert what the vocabulary puts around a text. Token ids are taken as they are.
    pub(crate) add_special_tokens: bool,
    /// Tokens that count of each input.
    pub(crate) max_len: usize,
}

/// One text.
#[derive(Debug, PartialEq)]
pub(crate) enum EmbeddingInput {
    Text(String),
    TokenIds(Vec<u32>),
}

/// How the vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VectorForm {
    /// Little-endian f32 in base64, else a list of numbers.
    pub(crate) is_base64: bool,
    /// The first so many numbers of each vector, scaled to length 1 again.
    pub(crate) dimensions: Option<usize>,
}

/// What must be known of the model to read a request.
#[derive(Clone, Copy)]
pub(crate) struct EmbeddingContext<'a> {
    pub(crate) limits: &'a RequestLimits,
    pub(crate) max_len: usize,
    pub(crate) width: usize,
    pub(crate) vocab_size: usize,
}

/// Wire to texts.
pub(crate) fn read(mut body: Fields, context: EmbeddingContext<'_>) -> Result<EmbeddingRequest, ApiError> {
    let form = VectorForm {
        is_base64: is_base64(&mut body)?,
        dimensions: body.integer("dimensions", 1..=context.width as i64)?.map(|number| number as usize),
    };
    let max_len = match body.integer("truncate_prompt_tokens", -1..=context.max_len as i64)? {
        None | Some(-1) => context.max_len,
        Some(0) => return Err(ApiError::invalid("truncate_prompt_tokens", "must not be 0")),
        Some(max_len) => max_len as usize,
    };
    Ok(EmbeddingRequest {
        model: body.string("model", 512)?,
        form,
        add_special_tokens: body.bool("add_special_tokens")?.unwrap_or(true),
        max_len,
        inputs: inputs(body.take("input"), context)?,
    })
}

fn is_base64(body: &mut Fields) -> Result<bool, ApiError> {
    match body.string("encoding_format", 64)?.as_deref() {
        None | Some("float") => Ok(false),
        Some("base64") => Ok(true),
        Some(_) => Err(ApiError::invalid("encoding_format", "must be `float` or `base64`")),
    }
}

/// A string, a list of token ids, or a list of either.
fn inputs(input: Option<Value>, context: EmbeddingContext<'_>) -> Result<Vec<EmbeddingInput>, ApiError> {
    let values = match input {
        None => return Err(ApiError::invalid("input", "is required")),
        Some(Value::String(one)) => return Ok(vec![text(one, "input".into())?]),
        Some(Value::Array(values)) => values,
        Some(_) => return Err(ApiError::invalid("input", "must be a string or a list")),
    };
    let most = context.limits.max_embedding_inputs;
    match values.first() {
        None => Err(ApiError::invalid("input", "must not be empty")),
        Some(Value::Number(_)) => Ok(vec![token_ids(&values, "input".into(), context)?]),
        Some(_) if values.len() > most => {
            Err(ApiError::invalid("input", format_args!("must have at most {most} entries")))
        }
        Some(_) => (0..)
            .zip(values)
            .map(|(index, value): (usize, Value)| {
                let param = format!("input[{index}]");
                match value {
                    Value::String(one) => text(one, param),
                    Value::Array(ids) => token_ids(&ids, param, context),
                    _ => Err(ApiError::invalid(param, "must be a string or a list of token ids")),
                }
            })
            .collect(),
    }
}

fn text(text: String, param: String) -> Result<EmbeddingInput, ApiError> {
    if text.is_empty() {
        return Err(ApiError::invalid(param, "must not be empty"));
    }
    Ok(EmbeddingInput::Text(text))
}

fn token_ids(
    values: &[Value],
    param: String,
    context: EmbeddingContext<'_>,
) -> Result<EmbeddingInput, ApiError> {
    let most = context.limits.max_embedding_tokens;
    if values.is_empty() || values.len() > most {
        return Err(ApiError::invalid(param, format_args!("must have 1 to {most} token ids")));
    }
    let ids: Option<Vec<u32>> = values.iter().map(|value| token_id(value, context.vocab_size)).collect();
    ids.map(EmbeddingInput::TokenIds).ok_or_else(|| {
        ApiError::invalid(
            param,
            "must hold token ids of the embedding model's own vocabulary; send text if they are another model's",
        )
    })
}

/// What stands around the vectors.
pub(crate) struct EmbeddingHead<'a> {
    pub(crate) id: &'a str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) num_tokens: u64,
}

#[derive(Serialize)]
struct EmbeddingList<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    data: Vec<EmbeddingData>,
    usage: EmbeddingUsage,
}

#[derive(Serialize)]
struct EmbeddingData {
    object: &'static str,
    index: usize,
    embedding: WrittenVector,
}

#[derive(Serialize)]
#[serde(untagged)]
enum WrittenVector {
    Numbers(Vec<f32>),
    Base64(String),
}

#[derive(Serialize)]
struct EmbeddingUsage {
    prompt_tokens: u64,
    total_tokens: u64,
}

/// Vectors to wire.
pub(crate) fn answer(head: &EmbeddingHead<'_>, vectors: Vec<Vec<f32>>, form: VectorForm) -> String {
    let data = (0..).zip(vectors).map(|(index, vector)| EmbeddingData {
        object: "embedding",
        index,
        embedding: written(vector, form),
    });
    to_json(&EmbeddingList {
        id: format!("embd-{}", head.id),
        object: "list",
        created: head.created,
        model: head.model,
        data: data.collect(),
        usage: EmbeddingUsage { prompt_tokens: head.num_tokens, total_tokens: head.num_tokens },
    })
}

fn written(mut vector: Vec<f32>, form: VectorForm) -> WrittenVector {
    if let Some(dimensions) = form.dimensions {
        vector.truncate(dimensions);
        let norm = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt().max(1e-12);
        vector.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
    }
    if form.is_base64 {
        let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
        return WrittenVector::Base64(BASE64_STANDARD.encode(bytes));
    }
    WrittenVector::Numbers(vector)
}
