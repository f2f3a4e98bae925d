//! The key-value metadata of a GGUF: typed look-ups, and the model's numbers.

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value;

use crate::architecture::Architecture;
use crate::rope::{RopeConfig, RopeScaling};
use crate::tensors::TensorTable;
use crate::{ModelConfig, ModelError};

/// Metadata of a GGUF; of its first part, if it is split.
pub(crate) struct GgufMetadata(pub(crate) HashMap<String, Value>);

impl GgufMetadata {
    /// A whole number of any width; `None` if the key is absent.
    pub(crate) fn integer(&self, key: &str) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let number = match *value {
            Value::U8(v) => Some(usize::from(v)),
            Value::U16(v) => Some(usize::from(v)),
            Value::U32(v) => usize::try_from(v).ok(),
            Value::U64(v) => usize::try_from(v).ok(),
            Value::I8(v) => usize::try_from(v).ok(),
            Value::I16(v) => usize::try_from(v).ok(),
            Value::I32(v) => usize::try_from(v).ok(),
            Value::I64(v) => usize::try_from(v).ok(),
            _ => None,
        };
        number.map(Some).ok_or_else(|| ModelError::config(key, "must be a whole number that is not negative"))
    }

    /// A number; `None` if the key is absent.
    pub(crate) fn number(&self, key: &str) -> Result<Option<f64>, ModelError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::F32(v)) => Ok(Some(f64::from(*v))),
            Some(Value::F64(v)) => Ok(Some(*v)),
            Some(_) => Err(ModelError::config(key, "must be a floating-point number")),
        }
    }

    /// A string; `None` if the key is absent.
    pub(crate) fn string(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(_) => Err(ModelError::config(key, "must be a string")),
        }
    }

    /// A truth value; `None` if the key is absent.
    pub(crate) fn boolean(&self, key: &str) -> Result<Option<bool>, ModelError> {
        match self.0.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(*v)),
            Some(_) => Err(ModelError::config(key, "must be true or false")),
        }
    }

    /// A token id; `None` if the key is absent.
    pub(crate) fn token_id(&self, key: &str) -> Result<Option<u32>, ModelError> {
        let id = |value| u32::try_from(value).map_err(|_| ModelError::config(key, "is no token id"));
        self.integer(key)?.map(id).transpose()
    }

    /// A list whose items `item` understands; empty if the key is absent.
    pub(crate) fn list<T>(
        &self,
        key: &str,
        item: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<T>, ModelError> {
        let wrong = || ModelError::config(key, "has items of another type than expected");
        match self.0.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => items.iter().map(item).collect::<Option<Vec<T>>>().ok_or_else(wrong),
            Some(_) => Err(ModelError::config(key, "must be a list")),
        }
    }

    /// The model's numbers. The vocabulary's size and the divisors of the rope frequencies are read off the tensors.
    pub(crate) fn resolve(&self, tensors: &TensorTable) -> Result<ModelConfig, ModelError> {
        let missing = |key: &str| ModelError::config(key, "is missing");
        let name = self.string("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
        let architecture = Architecture::for_gguf(name)?;
        let optional = |key: &str| self.integer(&format!("{name}.{key}"));
        let required = |key: &str| optional(key)?.ok_or_else(|| missing(&format!("{name}.{key}")));
        let hidden_size = required("embedding_length")?;
        let num_q_heads = required("attention.head_count")?;
        if num_q_heads == 0 {
            return Err(ModelError::config("attention.head_count", "is 0"));
        }
        let head_dim = optional("attention.key_length")?.unwrap_or(hidden_size / num_q_heads);
        if optional("attention.value_length")?.is_some_and(|length| length != head_dim) {
            return Err(ModelError::Unsupported("value heads of another width than key heads".to_owned()));
        }
        let eps = format!("{name}.attention.layer_norm_rms_epsilon");
        let window = optional("attention.sliding_window")?.map(|window| window.min(u32::MAX as usize) as u32);
        let rotary_dim = optional("rope.dimension_count")?.unwrap_or(head_dim);
        ModelConfig {
            architecture,
            num_layers: required("block_count")?,
            hidden_size,
            num_q_heads,
            num_kv_heads: optional("attention.head_count_kv")?.unwrap_or(num_q_heads),
            head_dim,
            intermediate_size: required("feed_forward_length")?,
            vocab_size: tensors.shape(&architecture.gguf.embedding)?.first().copied().unwrap_or(0),
            max_position_embeddings: required("context_length")?,
            rms_norm_eps: self.number(&eps)?.ok_or_else(|| missing(&eps))? as f32,
            rope: self.rope(name, rotary_dim, tensors)?,
            sliding_window: window.filter(|window| *window > 0),
            tie_word_embeddings: !tensors.contains(&architecture.gguf.lm_head),
        }
        .validated()
    }

    fn rope(&self, name: &str, rotary_dim: usize, tensors: &TensorTable) -> Result<RopeConfig, ModelError> {
        let theta = self.number(&format!("{name}.rope.freq_base"))?.unwrap_or(10_000.0);
        let kind = self.string(&format!("{name}.rope.scaling.type"))?;
        let factor = match self.number(&format!("{name}.rope.scaling.factor"))? {
            Some(factor) => Some(factor),
            None => self.number(&format!("{name}.rope.scale_linear"))?,
        };
        let scaling = match (kind, factor) {
            _ if tensors.contains("rope_freqs.weight") => {
                RopeScaling::Divisors(tensors.vector("rope_freqs.weight", rotary_dim / 2)?)
            }
            (None | Some("linear"), Some(factor)) if factor > 0.0 => RopeScaling::Linear { factor },
            (None | Some("none"), _) => RopeScaling::Default,
            (Some("linear"), _) => return Err(ModelError::config("rope.scaling.factor", "must be positive")),
            (Some(other), _) => {
                return Err(ModelError::Unsupported(format!(
                    "rope scaling '{other}' (none, linear and rope_freqs are supported)"
                )));
            }
        };
        Ok(RopeConfig { theta, rotary_dim, scaling })
    }
}
