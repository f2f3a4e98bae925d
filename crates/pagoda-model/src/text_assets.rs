//! What a checkpoint brings for text: plain data that the binary hands to the tokenizer and the chat template. Nothing here
//! is interpreted, except for which tokens end an answer.

use crate::ModelError;
use crate::config::GgufMetadata;
use candle_core::quantized::gguf_file::Value;

/// Tokenizer, chat template and special tokens as they lie in the checkpoint.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextAssets {
    /// `tokenizer.json`, byte for byte.
    pub tokenizer_json: Option<Vec<u8>>,
    /// The vocabulary of a GGUF.
    pub gguf_tokenizer: Option<GgufTokenizer>,
    /// Jinja sources of the chat templates.
    pub chat_templates: Option<ChatTemplates>,
    /// Text of the token that begins a text.
    pub bos_token: Option<String>,
    /// Text of the token that ends a text.
    pub eos_token: Option<String>,
    /// Text of the token for what has none.
    pub unk_token: Option<String>,
    /// Text of the padding token.
    pub pad_token: Option<String>,
    /// Tokens that end an answer, ascending.
    pub stop_token_ids: Vec<u32>,
    /// Ids from here on are padding of the model's vocabulary and have no text.
    pub num_token_ids: usize,
}

/// A model's chat templates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    /// For every conversation.
    pub default: String,
    /// For conversations with tools, where the model has one of its own for them.
    pub tool_use: Option<String>,
}

/// A vocabulary from GGUF metadata, as it lies there.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `tokenizer.ggml.model`: the kind (`gpt2`, `llama`).
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is split before the merges; empty if absent.
    pub pre: String,
    /// The tokens' texts in the kind's own spelling.
    pub tokens: Vec<String>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; empty if absent.
    pub token_types: Vec<i32>,
    /// BPE merges, the first first.
    pub merges: Vec<String>,
    /// SentencePiece scores.
    pub scores: Vec<f32>,
    /// Begins a text.
    pub bos_token_id: Option<u32>,
    /// Ends a text.
    pub eos_token_id: Option<u32>,
    /// For what has no token.
    pub unknown_token_id: Option<u32>,
    /// Padding.
    pub padding_token_id: Option<u32>,
    /// A text begins with BOS.
    pub add_bos_token: bool,
    /// A text ends with EOS.
    pub add_eos_token: bool,
    /// A text begins with a space.
    pub add_space_prefix: bool,
}

/// Texts of special tokens that end a turn or a text in the families of the field. A checkpoint often names only one of
/// them as its EOS although its chat format ends turns with another.
const END_TOKENS: [&str; 14] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|eot|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "<｜end▁of▁sentence｜>",
    "</s>",
];

/// Whether a special token of this text ends an answer.
pub(crate) fn is_end_token(text: &str) -> bool {
    END_TOKENS.contains(&text)
}

impl TextAssets {
    /// Reads the metadata of a GGUF. A GGUF without a vocabulary gives assets without a tokenizer.
    pub(crate) fn from_gguf(metadata: &GgufMetadata) -> Result<Self, ModelError> {
        let chat_templates = ChatTemplates::from_gguf(metadata)?;
        let Some(tokenizer) = GgufTokenizer::read(metadata)? else {
            return Ok(TextAssets { chat_templates, num_token_ids: usize::MAX, ..TextAssets::default() });
        };
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.tokens.get(id as usize).cloned());
        Ok(TextAssets {
            tokenizer_json: None,
            chat_templates,
            bos_token: text(tokenizer.bos_token_id),
            eos_token: text(tokenizer.eos_token_id),
            unk_token: text(tokenizer.unknown_token_id),
            pad_token: text(tokenizer.padding_token_id),
            stop_token_ids: tokenizer.stop_token_ids(metadata)?,
            num_token_ids: tokenizer.tokens.len(),
            gguf_tokenizer: Some(tokenizer),
        })
    }
}

impl ChatTemplates {
    /// Named templates lie under the default's key with their name behind it.
    fn from_gguf(metadata: &GgufMetadata) -> Result<Option<Self>, ModelError> {
        let text = |key: &str| Ok::<_, ModelError>(metadata.string(key)?.map(str::to_owned));
        let tool_use = text("tokenizer.chat_template.tool_use")?;
        Ok(text("tokenizer.chat_template")?.map(|default| ChatTemplates { default, tool_use }))
    }
}

impl GgufTokenizer {
    fn read(metadata: &GgufMetadata) -> Result<Option<Self>, ModelError> {
        let Some(model) = metadata.string("tokenizer.ggml.model")? else { return Ok(None) };
        let pre = metadata.string("tokenizer.ggml.pre")?.unwrap_or("");
        let strings = |key: &str| {
            metadata
                .list(key, |value| if let Value::String(text) = value { Some(text.clone()) } else { None })
        };
        let flag = |key: &str, default| Ok::<_, ModelError>(metadata.boolean(key)?.unwrap_or(default));
        // What a file without these keys means: SentencePiece vocabularies and Llama 3's BPE begin with BOS.
        let is_sentencepiece = model == "llama";
        let begins_with_bos = is_sentencepiece || matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
        Ok(Some(GgufTokenizer {
            model: model.to_owned(),
            pre: pre.to_owned(),
            tokens: strings("tokenizer.ggml.tokens")?,
            token_types: metadata.list("tokenizer.ggml.token_type", |value| match *value {
                Value::I32(v) => Some(v),
                Value::U32(v) => i32::try_from(v).ok(),
                Value::I8(v) => Some(v.into()),
                Value::U8(v) => Some(v.into()),
                _ => None,
            })?,
            merges: strings("tokenizer.ggml.merges")?,
            scores: metadata.list("tokenizer.ggml.scores", |value| match *value {
                Value::F32(v) => Some(v),
                _ => None,
            })?,
            bos_token_id: metadata.token_id("tokenizer.ggml.bos_token_id")?,
            eos_token_id: metadata.token_id("tokenizer.ggml.eos_token_id")?,
            unknown_token_id: metadata.token_id("tokenizer.ggml.unknown_token_id")?,
            padding_token_id: metadata.token_id("tokenizer.ggml.padding_token_id")?,
            add_bos_token: flag("tokenizer.ggml.add_bos_token", begins_with_bos)?,
            add_eos_token: flag("tokenizer.ggml.add_eos_token", false)?,
            add_space_prefix: flag("tokenizer.ggml.add_space_prefix", is_sentencepiece)?,
        }))
    }

    /// EOS, EOT and EOM as the metadata names them, and special tokens known to end a turn.
    fn stop_token_ids(&self, metadata: &GgufMetadata) -> Result<Vec<u32>, ModelError> {
        let mut ids = Vec::new();
        for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
            ids.extend(metadata.token_id(&format!("tokenizer.ggml.{key}"))?);
        }
        for (id, text) in self.tokens.iter().enumerate() {
            let is_special = matches!(self.token_types.get(id), Some(3 | 4));
            if is_special && is_end_token(text) {
                ids.push(id as u32);
            }
        }
        ids.retain(|id| (*id as usize) < self.tokens.len());
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn metadata(extra: &[(&str, Value)]) -> GgufMetadata {
        let tokens = ["a", "</s>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "b"];
        let types = [1, 3, 3, 3, 1, 1];
        let mut values = HashMap::from([
            ("tokenizer.ggml.model".to_owned(), Value::String("gpt2".to_owned())),
            (
                "tokenizer.ggml.tokens".to_owned(),
                Value::Array(tokens.iter().map(|text| Value::String((*text).to_owned())).collect()),
            ),
            ("tokenizer.ggml.token_type".to_owned(), Value::Array(types.map(Value::I32).to_vec())),
        ]);
        values.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        GgufMetadata(values)
    }

    #[test]
    fn eos_eot_eom_and_special_end_tokens_stop() {
        let extra = [
            ("tokenizer.ggml.eot_token_id", Value::U32(5)),
            ("tokenizer.ggml.eos_token_id", Value::U32(900)),
        ];
        let assets = TextAssets::from_gguf(&metadata(&extra)).unwrap();
        // "<|end|>" is an ordinary token here and 900 is none at all.
        assert_eq!(assets.stop_token_ids, [1, 2, 3, 5]);
    }

    #[test]
    fn a_gguf_may_have_a_template_of_its_own_for_tools() {
        let text = |text: &str| Value::String(text.to_owned());
        let default = ("tokenizer.chat_template", text("D"));
        let tool_use = ("tokenizer.chat_template.tool_use", text("T"));
        let templates = |extra: &[(&str, Value)]| {
            TextAssets::from_gguf(&metadata(extra))
                .unwrap()
                .chat_templates
                .map(|found| (found.default, found.tool_use))
        };
        assert_eq!(templates(std::slice::from_ref(&default)), Some(("D".into(), None)));
        assert_eq!(templates(&[default, tool_use.clone()]), Some(("D".into(), Some("T".into()))));
        assert_eq!(templates(&[tool_use]), None);
    }

    #[test]
    fn a_list_with_items_of_another_type_names_its_key() {
        let extra = [("tokenizer.ggml.merges", Value::Array(vec![Value::U32(1)]))];
        let error = TextAssets::from_gguf(&metadata(&extra)).unwrap_err().to_string();
        assert!(error.contains("tokenizer.ggml.merges"), "{error}");
    }

    #[test]
    fn what_an_absent_flag_means_depends_on_the_vocabulary() {
        let flags = |extra: &[(&str, Value)]| {
            let tokenizer = TextAssets::from_gguf(&metadata(extra)).unwrap().gguf_tokenizer.unwrap();
            (tokenizer.add_bos_token, tokenizer.add_space_prefix)
        };
        assert_eq!(flags(&[]), (false, false));
        assert_eq!(flags(&[("tokenizer.ggml.pre", Value::String("llama-bpe".to_owned()))]), (true, false));
        assert_eq!(flags(&[("tokenizer.ggml.model", Value::String("llama".to_owned()))]), (true, true));
    }
}
