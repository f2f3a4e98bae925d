//! A Hugging Face `tokenizer.json` as encoder and token table.
//!
//! The file's `decoder` describes a function over the whole token list. Every decoder that generating models use is a
//! function of each token alone (plus the loss of one leading space), and that is how it is read here. One that is not
//! is a typed error, never an approximation.

use serde_json::Value;
use tokenizers::models::ModelWrapper;

use super::byte_alphabet;
use super::error::TokenizerError;
use super::token_table::{TokenEntry, TokenTable};

/// Reads the file. The settings that would change a prompt behind the caller's back (truncation, padding, BPE dropout)
/// are switched off.
pub(crate) fn load(json: &[u8]) -> Result<(tokenizers::Tokenizer, TokenTable), TokenizerError> {
    let malformed = |error: tokenizers::Error| TokenizerError::Malformed { reason: error.to_string() };
    let mut encoder = tokenizers::Tokenizer::from_bytes(json).map_err(malformed)?;
    encoder.with_truncation(None).map_err(malformed)?;
    encoder.with_padding(None);
    if let ModelWrapper::BPE(bpe) = encoder.get_model()
        && bpe.dropout.is_some()
    {
        let mut exact = bpe.clone();
        exact.dropout = None;
        encoder.with_model(exact);
    }
    let table = token_table(&encoder)?;
    Ok((encoder, table))
}

fn token_table(encoder: &tokenizers::Tokenizer) -> Result<TokenTable, TokenizerError> {
    let spelling = match encoder.get_decoder() {
        Some(decoder) => {
            let json = serde_json::to_value(decoder)
                .map_err(|error| TokenizerError::Malformed { reason: error.to_string() })?;
            Spelling::from_decoder(&json)?
        }
        // Without a decoder tokens are words, joined by spaces.
        None => {
            Spelling { word_prefix: Some(String::new()), strip_leading_space: true, ..Spelling::default() }
        }
    };
    let added = encoder.get_added_tokens_decoder();
    let model_tokens = encoder.get_vocab(false).into_iter().map(|(piece, id)| {
        let bytes = spelling.bytes_of(&piece);
        (id, TokenEntry { bytes, special: false })
    });
    let added_tokens = added.into_iter().map(|(id, token)| {
        let bytes = spelling.bytes_of_added(&token.content);
        (id, TokenEntry { bytes, special: token.special })
    });
    TokenTable::new(model_tokens.chain(added_tokens), spelling.strip_leading_space)
}

/// How vocabulary entries spell bytes.
#[derive(Debug, Default, PartialEq)]
struct Spelling {
    /// Entries are in the byte alphabet of GPT-2.
    byte_level: bool,
    /// Entries of the form `<0xE2>` are one byte.
    byte_fallback: bool,
    /// Strings replaced in each entry, in order (`▁` by a space).
    replacements: Vec<(String, String)>,
    /// Entries are words: those without this prefix start with a space (an empty prefix means all of them).
    word_prefix: Option<String>,
    /// The whole text loses one leading space.
    strip_leading_space: bool,
}

impl Spelling {
    fn from_decoder(decoder: &Value) -> Result<Self, TokenizerError> {
        let mut spelling = Self::default();
        spelling.read(decoder)?;
        Ok(spelling)
    }

    fn read(&mut self, decoder: &Value) -> Result<(), TokenizerError> {
        let unsupported = |what: &str| TokenizerError::UnsupportedDecoder { decoder: what.to_owned() };
        match decoder["type"].as_str().unwrap_or("without a type") {
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => {}
            "Sequence" => {
                for step in decoder["decoders"].as_array().into_iter().flatten() {
                    self.read(step)?;
                }
            }
            "Replace" => match (decoder["pattern"]["String"].as_str(), decoder["content"].as_str()) {
                (Some(from), Some(to)) if !from.is_empty() => {
                    self.replacements.push((from.into(), to.into()))
                }
                _ => return Err(unsupported("Replace with a regular expression")),
            },
            "Strip" => match (&decoder["content"], decoder["start"].as_u64(), decoder["stop"].as_u64()) {
                (Value::String(content), Some(start @ 0..=1), Some(0)) if content == " " => {
                    self.strip_leading_space |= start == 1;
                }
                _ => return Err(unsupported("Strip of more than one leading space")),
            },
            "Metaspace" => {
                let word_start = decoder["replacement"].as_str().unwrap_or("▁");
                self.replacements.push((word_start.into(), " ".into()));
                self.strip_leading_space |= decoder["prepend_scheme"].as_str() != Some("never");
            }
            "WordPiece" => {
                self.word_prefix = Some(decoder["prefix"].as_str().unwrap_or("##").into());
                self.strip_leading_space = true;
            }
            other => return Err(unsupported(other)),
        }
        Ok(())
    }

    fn bytes_of(&self, piece: &str) -> Vec<u8> {
        if self.byte_level {
            return byte_alphabet::bytes_of(piece);
        }
        if self.byte_fallback
            && let Some(byte) = fallback_byte(piece)
        {
            return vec![byte];
        }
        match &self.word_prefix {
            Some(prefix) if !prefix.is_empty() && piece.starts_with(prefix.as_str()) => {
                piece[prefix.len()..].into()
            }
            Some(_) => format!(" {}", self.replaced(piece)).into_bytes(),
            None => self.replaced(piece).into_bytes(),
        }
    }

    /// An added token is plain text, never spelled in the byte alphabet.
    fn bytes_of_added(&self, content: &str) -> Vec<u8> {
        if self.byte_level { content.into() } else { self.bytes_of(content) }
    }

    fn replaced(&self, piece: &str) -> String {
        self.replacements.iter().fold(piece.to_owned(), |text, (from, to)| text.replace(from.as_str(), to))
    }
}

/// The byte of an entry such as `<0xE2>`.
fn fallback_byte(piece: &str) -> Option<u8> {
    let hex = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_byte = hex.len() == 2 && hex.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_byte.then(|| u8::from_str_radix(hex, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_decoder_of_sentencepiece_vocabularies_is_bytes_per_token_and_a_lost_space() {
        let spelling = Spelling::from_decoder(&json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]}))
        .unwrap();
        assert!(spelling.strip_leading_space);
        assert_eq!(spelling.bytes_of("▁the"), b" the");
        assert_eq!(spelling.bytes_of("<0xF0>"), [0xF0]);
        assert_eq!(spelling.bytes_of("<0xF>"), b"<0xF>");
        assert_eq!(spelling.bytes_of("<0x+1>"), b"<0x+1>");
    }

    #[test]
    fn a_decoder_that_is_not_a_function_of_one_token_is_refused() {
        for decoder in [
            json!({"type": "CTC", "pad_token": "<pad>"}),
            json!({"type": "BPEDecoder", "suffix": "</w>"}),
            json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"}),
            json!({"type": "Strip", "content": " ", "start": 3, "stop": 0}),
        ] {
            let error = Spelling::from_decoder(&decoder).unwrap_err();
            assert!(matches!(error, TokenizerError::UnsupportedDecoder { .. }), "{decoder} gave {error}");
        }
    }
}
