//! A byte-level BPE vocabulary from the metadata of a GGUF file as encoder and token table.
//!
//! GGUF names the way text is split before the merges (`tokenizer.ggml.pre`) instead of describing it. Only names whose
//! behaviour is known exactly are accepted: a wrong split gives plausible, wrong ids.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, NormalizerWrapper, SplitDelimiterBehavior};

use super::byte_alphabet;
use super::error::TokenizerError;
use super::token_table::{TokenEntry, TokenTable};

/// The `tokenizer.ggml.*` metadata of a GGUF file, as plain data.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocab {
    /// `model`: the kind of vocabulary.
    pub model: String,
    /// `pre`: the way text is split before merges apply; empty when the file has none.
    pub pre: String,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `token_type`, by id; may be empty, then every token is a normal one.
    pub token_types: Vec<i32>,
    /// `merges`, best first: two pieces and a space between.
    pub merges: Vec<String>,
    /// `scores`, by id; unused by BPE.
    pub scores: Vec<f32>,
    /// `bos_token_id`.
    pub bos_token_id: Option<u32>,
    /// `eos_token_id`.
    pub eos_token_id: Option<u32>,
    /// `unknown_token_id`.
    pub unknown_token_id: Option<u32>,
    /// `padding_token_id`.
    pub padding_token_id: Option<u32>,
    /// `add_bos_token`; `None` when the file does not say, then the pre-tokenizer's custom holds (llama-bpe: yes).
    pub add_bos_token: Option<bool>,
    /// `add_eos_token`; `None` when the file does not say (no).
    pub add_eos_token: Option<bool>,
    /// `add_space_prefix`; byte-level BPE never does.
    pub add_space_prefix: bool,
}

/// `token_type` of an entry that is control and not text.
const CONTROL: i32 = 3;
/// `token_type` of an entry found in text before it is split, but which is text.
const USER_DEFINED: i32 = 4;
/// `token_type` of an entry that only fills the matrix.
const UNUSED: i32 = 5;

/// Llama 3: contractions in any case, words with one leading non-letter, up to three digits, punctuation with newlines.
const LLAMA3_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Qwen 2: as Llama 3, with single digits.
const QWEN2_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// The known ways of splitting text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PreTokenizer {
    Gpt2,
    LlamaBpe,
    SmolLm,
    Qwen2,
}

impl PreTokenizer {
    fn parse(pre: &str) -> Result<Self, TokenizerError> {
        match pre {
            "gpt-2" | "gpt2" => Ok(Self::Gpt2),
            "llama-bpe" | "llama3" | "llama-v3" => Ok(Self::LlamaBpe),
            "smollm" => Ok(Self::SmolLm),
            "qwen2" | "deepseek-r1-qwen" => Ok(Self::Qwen2),
            _ => Err(TokenizerError::UnsupportedPreTokenizer { pre: pre.to_owned() }),
        }
    }

    fn splitter(self) -> Result<PreTokenizerWrapper, TokenizerError> {
        let byte_level = |use_regex| ByteLevel::new(false, true, use_regex).into();
        let split = |pattern: &str| {
            Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false)
                .map_err(malformed)
        };
        let steps = match self {
            Self::Gpt2 => vec![byte_level(true)],
            Self::LlamaBpe => vec![split(LLAMA3_SPLIT)?.into(), byte_level(false)],
            // The digits come apart first: as one pattern with GPT-2's, " 12" would keep the space on the digit.
            Self::SmolLm => vec![Digits::new(true).into(), byte_level(true)],
            Self::Qwen2 => vec![split(QWEN2_SPLIT)?.into(), byte_level(false)],
        };
        Ok(Sequence::new(steps).into())
    }

    /// Qwen 2 composes characters first, as its own tokenizer.json says.
    fn normalizer(self) -> Option<NormalizerWrapper> {
        (self == Self::Qwen2).then(|| NFC.into())
    }

    /// Llama 3 takes a word that is one token as that token, even where the merges lead elsewhere.
    fn ignores_merges(self) -> bool {
        self == Self::LlamaBpe
    }

    /// Whether prompts start with BOS where the file does not say.
    fn adds_bos(self) -> bool {
        self == Self::LlamaBpe
    }
}

/// Builds encoder and table from the metadata.
pub(crate) fn load(vocab: &GgufVocab) -> Result<(tokenizers::Tokenizer, TokenTable), TokenizerError> {
    if vocab.model != "gpt2" {
        return Err(TokenizerError::UnsupportedModel { model: vocab.model.clone() });
    }
    let pre = PreTokenizer::parse(&vocab.pre)?;
    check_shape(vocab)?;
    let table =
        TokenTable::new((0u32..).zip(&vocab.tokens).map(|(id, piece)| (id, entry(vocab, id, piece))), false)?;

    let mut encoder = tokenizers::Tokenizer::new(model(vocab, pre)?);
    encoder.with_normalizer(pre.normalizer()).map_err(malformed)?;
    encoder.with_pre_tokenizer(Some(pre.splitter()?));
    encoder.add_tokens(added_tokens(vocab)).map_err(malformed)?;
    if let Some(processing) = insertion(vocab, pre)? {
        encoder.with_post_processor(Some(processing));
    }
    Ok((encoder, table))
}

fn malformed(error: impl ToString) -> TokenizerError {
    TokenizerError::Malformed { reason: error.to_string() }
}

fn check_shape(vocab: &GgufVocab) -> Result<(), TokenizerError> {
    let num_tokens = vocab.tokens.len();
    if num_tokens == 0 || vocab.merges.is_empty() {
        return Err(malformed(format!("{num_tokens} tokens and {} merges", vocab.merges.len())));
    }
    if !vocab.token_types.is_empty() && vocab.token_types.len() != num_tokens {
        return Err(malformed(format!("{num_tokens} tokens, but {} token types", vocab.token_types.len())));
    }
    let named = [vocab.bos_token_id, vocab.eos_token_id, vocab.unknown_token_id, vocab.padding_token_id];
    match named.into_iter().flatten().find(|&id| id as usize >= num_tokens) {
        Some(id) => Err(malformed(format!("special token id {id} in a vocabulary of {num_tokens}"))),
        None => Ok(()),
    }
}

fn token_type(vocab: &GgufVocab, id: u32) -> i32 {
    vocab.token_types.get(id as usize).copied().unwrap_or(1)
}

fn entry(vocab: &GgufVocab, id: u32, piece: &str) -> TokenEntry {
    let kind = token_type(vocab, id);
    let bytes = match kind {
        CONTROL | USER_DEFINED => piece.into(),
        UNUSED => Vec::new(),
        _ => byte_alphabet::bytes_of(piece),
    };
    TokenEntry { bytes, special: kind == CONTROL }
}

fn model(vocab: &GgufVocab, pre: PreTokenizer) -> Result<BPE, TokenizerError> {
    let mut ids = Vocab::with_capacity(vocab.tokens.len());
    for (id, piece) in (0u32..).zip(&vocab.tokens) {
        if token_type(vocab, id) != UNUSED {
            ids.entry(piece.clone()).or_insert(id);
        }
    }
    let merges = vocab.merges.iter().map(|line| merge(line)).collect::<Result<Vec<_>, _>>()?;
    BPE::builder()
        .vocab_and_merges(ids, merges)
        .ignore_merges(pre.ignores_merges())
        .build()
        .map_err(malformed)
}

fn merge(line: &str) -> Result<(String, String), TokenizerError> {
    match line.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok((left.into(), right.into())),
        _ => Err(malformed("a merge is not two pieces and a space between")),
    }
}

/// Control tokens and user-defined ones are found in text before it is split.
fn added_tokens(vocab: &GgufVocab) -> Vec<AddedToken> {
    (0u32..)
        .zip(&vocab.tokens)
        .filter_map(|(id, piece)| match token_type(vocab, id) {
            CONTROL => Some(AddedToken::from(piece.clone(), true)),
            USER_DEFINED => Some(AddedToken::from(piece.clone(), false).normalized(false)),
            _ => None,
        })
        .collect()
}

/// BOS before and EOS behind a prompt, where the file asks for them.
fn insertion(vocab: &GgufVocab, pre: PreTokenizer) -> Result<Option<TemplateProcessing>, TokenizerError> {
    let named = |wanted: bool, id: Option<u32>| {
        id.filter(|_| wanted).map(|id| (vocab.tokens[id as usize].clone(), id))
    };
    let bos = named(vocab.add_bos_token.unwrap_or(pre.adds_bos()), vocab.bos_token_id);
    let eos = named(vocab.add_eos_token.unwrap_or(false), vocab.eos_token_id);
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let mut pieces: Vec<String> = vec!["$A".into()];
    pieces.splice(0..0, bos.as_ref().map(|(text, _)| text.clone()));
    pieces.extend(eos.as_ref().map(|(text, _)| text.clone()));
    TemplateProcessing::builder()
        .try_single(pieces)
        .map_err(malformed)?
        .special_tokens(bos.into_iter().chain(eos).collect::<Vec<_>>())
        .build()
        .map(Some)
        .map_err(malformed)
}
