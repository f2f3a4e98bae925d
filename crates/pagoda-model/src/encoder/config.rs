//! An encoder folder's numbers: BERT's own, and what the sentence-transformers files beside them say about lengths and
//! pooling. What would be computed differently from here is refused.

use std::path::Path;

use candle_transformers::models::bert::Config;
use serde::Deserialize;

use crate::ModelError;
use crate::checkpoint::hf::read_json;

/// What is needed to run an encoder.
#[derive(Debug)]
pub(super) struct EncoderConfig {
    /// BERT's numbers.
    pub(super) bert: Config,
    /// Tokens of the longest sequence.
    pub(super) max_len: usize,
}

/// `sentence_bert_config.json`.
#[derive(Default, Deserialize)]
struct SentenceConfig {
    max_seq_length: Option<usize>,
}

/// `1_Pooling/config.json`.
#[derive(Deserialize)]
struct PoolingConfig {
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
}

impl EncoderConfig {
    pub(super) fn read(folder: &Path) -> Result<Self, ModelError> {
        let bert: Config =
            read_json(&folder.join("config.json"))?.ok_or_else(|| ModelError::InvalidFile {
                path: folder.to_owned(),
                problem: "has no config.json (an encoder is a folder with safetensors)".to_owned(),
            })?;
        let sentence: SentenceConfig =
            read_json(&folder.join("sentence_bert_config.json"))?.unwrap_or_default();
        let pooling: Option<PoolingConfig> = read_json(&folder.join("1_Pooling").join("config.json"))?;
        if pooling.is_some_and(|pooling| !pooling.pooling_mode_mean_tokens) {
            return Err(ModelError::Unsupported("an encoder that does not pool by the mean".to_owned()));
        }
        check(&bert)?;
        let longest = bert.max_position_embeddings;
        let max_len = sentence.max_seq_length.map_or(longest, |wanted| wanted.min(longest));
        if max_len == 0 {
            return Err(ModelError::config("max_seq_length", "is 0"));
        }
        Ok(EncoderConfig { bert, max_len })
    }
}

fn check(bert: &Config) -> Result<(), ModelError> {
    if bert.model_type.as_deref().is_some_and(|kind| kind != "bert") {
        return Err(ModelError::Unsupported("an encoder that is no BERT".to_owned()));
    }
    let sizes = [
        ("hidden_size", bert.hidden_size),
        ("num_attention_heads", bert.num_attention_heads),
        ("vocab_size", bert.vocab_size),
        ("type_vocab_size", bert.type_vocab_size),
        ("max_position_embeddings", bert.max_position_embeddings),
    ];
    if let Some((key, _)) = sizes.iter().find(|(_, size)| *size == 0) {
        return Err(ModelError::config(*key, "is 0"));
    }
    // Beyond this a file could ask for more layers than anybody has built, one failed look-up at a time.
    if bert.num_hidden_layers > 1_000 {
        return Err(ModelError::config("num_hidden_layers", "is larger than 1000"));
    }
    if !bert.hidden_size.is_multiple_of(bert.num_attention_heads) {
        return Err(ModelError::config("hidden_size", "is no multiple of num_attention_heads"));
    }
    if bert.pad_token_id >= bert.vocab_size {
        return Err(ModelError::config("pad_token_id", "is not in the vocabulary"));
    }
    Ok(())
}
