//! Text to token ids and back.
//!
//! Encoding is the `tokenizers` crate's, behind a panic boundary. Decoding is our own: the bytes of each token, one after
//! the other, read as UTF-8 with U+FFFD for what is none.

mod byte_alphabet;
mod error;
mod gguf;
mod hf_json;
mod token_table;

use std::borrow::Cow;
use std::sync::OnceLock;

pub use error::TokenizerError;
pub use gguf::GgufVocab;

use crate::guard::{Panicked, guarded};
use token_table::TokenTable;

/// Where a vocabulary comes from.
#[derive(Debug, Clone)]
pub enum TokenizerSource {
    /// The contents of a Hugging Face `tokenizer.json`.
    Json(Vec<u8>),
    /// The vocabulary of a GGUF file.
    Gguf(GgufVocab),
}

/// The largest inputs a tokenizer accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenizerLimits {
    /// Largest `tokenizer.json`, in bytes. Gemma 3's, the largest in common use, has 33 MB.
    pub max_file_bytes: usize,
    /// Largest text to encode, in bytes. A million tokens of English are about 5 MB.
    pub max_text_bytes: usize,
}

impl Default for TokenizerLimits {
    fn default() -> Self {
        Self { max_file_bytes: 128 << 20, max_text_bytes: 16 << 20 }
    }
}

/// How a text becomes ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EncodeOptions {
    /// Insert what the vocabulary puts around a prompt (BOS, EOS). Not for chat prompts: their template writes it.
    pub add_special_tokens: bool,
    /// Read `<|im_end|>` and the like in the text as the special token. If false they are split as any other text.
    pub parse_special_tokens: bool,
}

/// A vocabulary, immutable and shared between threads.
pub struct Tokenizer {
    encoder: tokenizers::Tokenizer,
    /// `encoder` with special tokens as plain text; built when first asked for, since few deployments ever are.
    literal_encoder: OnceLock<tokenizers::Tokenizer>,
    table: TokenTable,
    limits: TokenizerLimits,
}

impl Tokenizer {
    /// Builds the tokenizer with the default limits.
    ///
    /// # Errors
    /// Any [`TokenizerError`] but those of encoding.
    pub fn new(source: TokenizerSource) -> Result<Self, TokenizerError> {
        Self::with_limits(source, TokenizerLimits::default())
    }

    /// Builds the tokenizer with limits of the caller's choice.
    ///
    /// # Errors
    /// As [`Tokenizer::new`].
    pub fn with_limits(source: TokenizerSource, limits: TokenizerLimits) -> Result<Self, TokenizerError> {
        let (encoder, table) = guarded(|| match &source {
            TokenizerSource::Json(json) if json.len() > limits.max_file_bytes => {
                Err(TokenizerError::FileTooLarge {
                    num_bytes: json.len(),
                    limit_bytes: limits.max_file_bytes,
                })
            }
            TokenizerSource::Json(json) => hf_json::load(json),
            TokenizerSource::Gguf(vocab) => gguf::load(vocab),
        })
        .unwrap_or(Err(TokenizerError::Panicked { during: "loading" }))?;
        Ok(Self { encoder, literal_encoder: OnceLock::new(), table, limits })
    }

    /// Encodes `text`, reading special tokens that are written out in it.
    ///
    /// # Errors
    /// [`TokenizerError::TextTooLarge`], [`TokenizerError::Encode`] or [`TokenizerError::Panicked`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_with(text, EncodeOptions { add_special_tokens, parse_special_tokens: true })
    }

    /// Encodes `text`.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with(&self, text: &str, options: EncodeOptions) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > self.limits.max_text_bytes {
            let limit_bytes = self.limits.max_text_bytes;
            return Err(TokenizerError::TextTooLarge { num_bytes: text.len(), limit_bytes });
        }
        let encoded = guarded(|| {
            let encoder = if options.parse_special_tokens { &self.encoder } else { self.literal_encoder() };
            encoder.encode_fast(text, options.add_special_tokens).map(|encoding| encoding.get_ids().to_vec())
        });
        match encoded {
            Ok(Ok(ids)) => Ok(ids),
            Ok(Err(error)) => Err(TokenizerError::Encode { reason: error.to_string() }),
            Err(Panicked) => Err(TokenizerError::Panicked { during: "encoding" }),
        }
    }

    /// How many ids `text` takes.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn count(&self, text: &str, add_special_tokens: bool) -> Result<usize, TokenizerError> {
        self.encode(text, add_special_tokens).map(|ids| ids.len())
    }

    fn literal_encoder(&self) -> &tokenizers::Tokenizer {
        self.literal_encoder.get_or_init(|| {
            let mut literal = self.encoder.clone();
            literal.set_encode_special_tokens(true);
            literal
        })
    }

    /// The text of `ids`: their bytes as UTF-8, each maximal invalid part as U+FFFD. Unknown ids stand for nothing.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> String {
        let kept = ids.iter().filter(|&&id| !(skip_special_tokens && self.table.is_special(id)));
        let bytes: Vec<u8> = kept.flat_map(|&id| self.table.bytes(id)).copied().collect();
        let text = match bytes.first() {
            Some(b' ') if self.table.strip_leading_space => &bytes[1..],
            _ => &bytes[..],
        };
        String::from_utf8_lossy(text).into_owned()
    }

    /// Exactly the bytes that token `id` stands for; none for an unknown id.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.table.bytes(id)
    }

    /// The text of one token alone, as logprob entries show it; U+FFFD where the token is a part of a character.
    pub fn token_text(&self, id: u32) -> Cow<'_, str> {
        String::from_utf8_lossy(self.table.bytes(id))
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// The id of the entry spelled `text` in the vocabulary (`<|im_end|>`, `Ġthe`).
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.encoder.token_to_id(text)
    }

    /// Whether `id` is a control token.
    pub fn is_special(&self, id: u32) -> bool {
        self.table.is_special(id)
    }

    /// The control tokens in id order.
    pub fn special_ids(&self) -> &[u32] {
        self.table.special_ids()
    }

    /// Whether the first space of a text belongs to the spelling and not to the text.
    pub(crate) fn strips_leading_space(&self) -> bool {
        self.table.strip_leading_space
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}
