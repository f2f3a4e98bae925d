//! The tokens of a prompt with their logprobs, in the two forms that answers show: as echoed tokens, and ranked among the
//! likeliest in their places.

use crate::choice::token_detail;
use crate::generation::{OutputToken, RankedToken, TokenDetail};
use crate::model::{ServedModel, TokenPayload};

/// For every prompt token but the first: itself, then the likeliest in its place.
pub(crate) fn ranked(
    model: &ServedModel,
    token_ids: &[u32],
    logprobs: &[TokenPayload],
    num_top: usize,
) -> Vec<Option<Vec<RankedToken>>> {
    let token = |id: u32, logprob, rank| {
        let text = String::from_utf8_lossy(model.tokenizer.token_bytes(id)).into_owned();
        RankedToken { id, logprob, rank, text }
    };
    let places = token_ids.iter().skip(1).zip(logprobs);
    let places = places.map(|(&own, logprobs)| {
        let logprobs = logprobs.as_ref()?;
        let top = (1..).zip(logprobs.top.iter().take(num_top)).filter(|(_, (id, _))| *id != own);
        let top = top.map(|(rank, &(id, logprob))| token(id, logprob, rank));
        Some(std::iter::once(token(own, logprobs.logprob, logprobs.rank)).chain(top).collect())
    });
    std::iter::once(None).chain(places).collect()
}

/// The prompt's tokens with their logprobs; the first one has none.
pub(crate) fn prompt_tokens(
    model: &ServedModel,
    token_ids: &[u32],
    logprobs: &[TokenPayload],
    skip_special_tokens: bool,
) -> Vec<OutputToken> {
    let tokenizer = &model.tokenizer;
    let mut text_offset = 0;
    let logprobs = std::iter::once(&None).chain(logprobs);
    let tokens = token_ids.iter().zip(logprobs).map(|(&id, logprobs)| {
        let detail = match logprobs {
            Some(logprobs) => token_detail(tokenizer, id, logprobs, text_offset),
            None => {
                let bytes = tokenizer.token_bytes(id).to_vec();
                TokenDetail { text_offset, bytes, logprob: None, top: Vec::new() }
            }
        };
        if !(skip_special_tokens && tokenizer.is_special(id)) {
            // Characters that begin in this token: continuation bytes of UTF-8 belong to one that began before.
            text_offset += detail.bytes.iter().filter(|byte| **byte & 0xC0 != 0x80).count();
        }
        OutputToken { id, detail: Some(detail) }
    });
    tokens.collect()
}
