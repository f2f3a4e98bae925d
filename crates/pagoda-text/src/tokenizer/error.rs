//! Why a tokenizer could not be built or could not encode. No variant ever quotes a prompt.

use thiserror::Error;

/// What went wrong while loading a vocabulary or encoding a text.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The tokenizer file is larger than the limit.
    #[error("the tokenizer file has {num_bytes} bytes, more than the limit of {limit_bytes}")]
    FileTooLarge {
        /// Size of the file.
        num_bytes: usize,
        /// [`TokenizerLimits::max_file_bytes`](crate::TokenizerLimits::max_file_bytes).
        limit_bytes: usize,
    },
    /// The text to encode is larger than the limit.
    #[error("the text has {num_bytes} bytes, more than the limit of {limit_bytes}")]
    TextTooLarge {
        /// Size of the text.
        num_bytes: usize,
        /// [`TokenizerLimits::max_text_bytes`](crate::TokenizerLimits::max_text_bytes).
        limit_bytes: usize,
    },
    /// The vocabulary names a token id beyond any real vocabulary.
    #[error("the vocabulary holds token id {id}, the largest accepted is {limit}")]
    TokenIdTooLarge {
        /// The id found.
        id: u32,
        /// The largest id accepted.
        limit: u32,
    },
    /// The file or the vocabulary is not well-formed.
    #[error("malformed tokenizer: {reason}")]
    Malformed {
        /// What the reader said.
        reason: String,
    },
    /// The GGUF file holds a vocabulary of a kind other than byte-level BPE.
    #[error("tokenizer model {model:?} of the GGUF file is not supported (supported: \"gpt2\")")]
    UnsupportedModel {
        /// `tokenizer.ggml.model`.
        model: String,
    },
    /// The GGUF file splits text in a way not known here. Guessing would silently give wrong ids.
    #[error(
        "pre-tokenizer {pre:?} of the GGUF file is not supported (supported: gpt-2, llama-bpe, smollm, qwen2)"
    )]
    UnsupportedPreTokenizer {
        /// `tokenizer.ggml.pre`, empty when the file has none.
        pre: String,
    },
    /// The decoder of the tokenizer.json cannot be told as bytes per token.
    #[error("decoder {decoder} of the tokenizer.json is not supported")]
    UnsupportedDecoder {
        /// The decoder's type, with the field that is out of the ordinary.
        decoder: String,
    },
    /// The text could not be encoded.
    #[error("the text could not be encoded: {reason}")]
    Encode {
        /// What the tokenizer said.
        reason: String,
    },
    /// The library underneath panicked; the tokenizer itself is intact.
    #[error("the tokenizer failed while {during}")]
    Panicked {
        /// `loading` or `encoding`.
        during: &'static str,
    },
}
