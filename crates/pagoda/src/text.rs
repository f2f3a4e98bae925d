//! A checkpoint's text assets as tokenizer and chat template. Knows neither flags nor the rest of the binary, so that the
//! tests can build the same parts around an executor of their own.

use std::path::Path;

use anyhow::Context;
use pagoda_model::{GgufTokenizer, TextAssets};
use pagoda_text::{ChatTemplate, GgufVocab, SpecialTokens, Tokenizer, TokenizerSource};

/// The checkpoint's vocabulary, ready to encode.
pub(crate) fn tokenizer(assets: TextAssets) -> anyhow::Result<Tokenizer> {
    Tokenizer::new(tokenizer_source(assets)?).context("building the tokenizer")
}

/// The template of the flag, else the model's own; a model without one serves completions only.
pub(crate) fn chat_template(
    assets: &TextAssets,
    file: Option<&Path>,
) -> anyhow::Result<Option<ChatTemplate>> {
    let source = match file {
        Some(file) => {
            Some(std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?)
        }
        None => assets.chat_template.clone(),
    };
    let special_tokens = SpecialTokens {
        bos_token: assets.bos_token.clone(),
        eos_token: assets.eos_token.clone(),
        unk_token: assets.unk_token.clone(),
        pad_token: assets.pad_token.clone(),
        ..SpecialTokens::default()
    };
    let template = source.map(|source| ChatTemplate::new(&source, special_tokens)).transpose();
    template.context("reading the chat template")
}

fn tokenizer_source(assets: TextAssets) -> anyhow::Result<TokenizerSource> {
    match (assets.tokenizer_json, assets.gguf_tokenizer) {
        (Some(json), _) => Ok(TokenizerSource::Json(json)),
        (None, Some(gguf)) => Ok(TokenizerSource::Gguf(gguf_vocab(gguf))),
        (None, None) => {
            anyhow::bail!("the checkpoint has no tokenizer: put tokenizer.json beside the weights")
        }
    }
}

fn gguf_vocab(gguf: GgufTokenizer) -> GgufVocab {
    GgufVocab {
        model: gguf.model,
        pre: gguf.pre,
        tokens: gguf.tokens,
        token_types: gguf.token_types,
        merges: gguf.merges,
        scores: gguf.scores,
        bos_token_id: gguf.bos_token_id,
        eos_token_id: gguf.eos_token_id,
        unknown_token_id: gguf.unknown_token_id,
        padding_token_id: gguf.padding_token_id,
        add_bos_token: Some(gguf.add_bos_token),
        add_eos_token: Some(gguf.add_eos_token),
        add_space_prefix: gguf.add_space_prefix,
    }
}
