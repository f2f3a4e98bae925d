//! `config.json` of a Hugging Face checkpoint.

use pagoda_backend::WeightFormat;
use serde::Deserialize;

use crate::architecture::{ActivationKind, Architecture};
use crate::rope::{RopeConfig, RopeScaling};
use crate::{ModelConfig, ModelError};

/// The keys that matter here. Others are ignored, as every writer adds its own.
#[derive(Debug, Deserialize)]
pub(crate) struct HfConfig {
    #[serde(default)]
    architectures: Vec<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<HfRope>,
    rope_parameters: Option<HfRope>,
    tie_word_embeddings: Option<bool>,
    sliding_window: Option<u32>,
    use_sliding_window: Option<bool>,
    /// Of all four attention projections.
    pub(crate) attention_bias: Option<bool>,
    /// Of the feed-forward projections.
    pub(crate) mlp_bias: Option<bool>,
    hidden_act: Option<String>,
    quantization_config: Option<serde_json::Value>,
    /// The weights' type, under its old name or its new one.
    #[serde(alias = "dtype")]
    torch_dtype: Option<String>,
    /// The end-of-text tokens, used where `generation_config.json` names none.
    pub(crate) eos_token_id: Option<OneOrMany>,
}

/// A token id or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(u32),
    Many(Vec<u32>),
}

impl OneOrMany {
    /// As a list.
    pub(crate) fn into_vec(self) -> Vec<u32> {
        match self {
            OneOrMany::One(id) => vec![id],
            OneOrMany::Many(ids) => ids,
        }
    }
}

/// `rope_scaling` (with the theta beside it) or `rope_parameters` (with the theta in it).
#[derive(Debug, Deserialize)]
struct HfRope {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl HfConfig {
    /// Checks the numbers and finds the family.
    pub(crate) fn resolve(&self) -> Result<ModelConfig, ModelError> {
        let name = self.architectures.first().map_or("(none given)", String::as_str);
        let architecture = Architecture::for_hf(name)?;
        if self.quantization_config.is_some() {
            return Err(ModelError::Unsupported("safetensors with a quantization_config".to_owned()));
        }
        self.check_activation(architecture)?;
        // The families that know this switch have the window in some of their layers.
        if self.use_sliding_window == Some(true) {
            return Err(ModelError::Unsupported("a sliding window in some layers".to_owned()));
        }
        let sliding_window = self.sliding_window.filter(|_| self.use_sliding_window.is_none());
        if self.num_attention_heads == 0 {
            return Err(ModelError::config("num_attention_heads", "is 0"));
        }
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads);
        let rope = self.rope_parameters.as_ref().or(self.rope_scaling.as_ref());
        let scaling = rope.map_or(Ok(RopeScaling::Default), HfRope::scaling)?;
        let theta = rope.and_then(|rope| rope.rope_theta).or(self.rope_theta).unwrap_or(10_000.0);
        // With linear scaling, HF configurations keep the trained length and the factor multiplies it.
        let stretch = if let RopeScaling::Linear { factor } = &scaling { *factor } else { 1.0 };
        ModelConfig {
            architecture,
            num_layers: self.num_hidden_layers,
            hidden_size: self.hidden_size,
            num_q_heads: self.num_attention_heads,
            num_kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            intermediate_size: self.intermediate_size,
            vocab_size: self.vocab_size,
            max_position_embeddings: (self.max_position_embeddings as f64 * stretch) as usize,
            rms_norm_eps: self.rms_norm_eps as f32,
            rope: RopeConfig { theta, rotary_dim: head_dim, scaling },
            sliding_window,
            tie_word_embeddings: self.tie_word_embeddings.unwrap_or(false),
        }
        .validated()
    }

    /// How weights of this configuration are stored; bf16 where it does not say.
    pub(crate) fn weight_format(&self) -> WeightFormat {
        match self.torch_dtype.as_deref() {
            Some("float32") => WeightFormat::F32,
            Some("float16") => WeightFormat::F16,
            _ => WeightFormat::Bf16,
        }
    }

    fn check_activation(&self, architecture: &Architecture) -> Result<(), ModelError> {
        let expected: &[&str] = match architecture.activation {
            ActivationKind::Silu => &["silu", "swish"],
            ActivationKind::GeluTanh => &["gelu_pytorch_tanh", "gelu_tanh", "gelu_new"],
        };
        match self.hidden_act.as_deref() {
            Some(found) if !expected.contains(&found) => Err(ModelError::config(
                "hidden_act",
                format!("'{found}' is not the '{}' of this architecture", expected[0]),
            )),
            _ => Ok(()),
        }
    }
}

impl HfRope {
    fn scaling(&self) -> Result<RopeScaling, ModelError> {
        let number = |key: &str, value: Option<f64>| match value {
            Some(value) if value.is_finite() && value > 0.0 => Ok(value),
            _ => Err(ModelError::config(format!("rope_scaling.{key}"), "must be a positive number")),
        };
        match self.rope_type.as_deref().or(self.old_type.as_deref()).unwrap_or("default") {
            "default" => Ok(RopeScaling::Default),
            "linear" => Ok(RopeScaling::Linear { factor: number("factor", self.factor)? }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: number("factor", self.factor)?,
                low_freq_factor: number("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: number("high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: number(
                    "original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?,
            }),
            other => Err(ModelError::Unsupported(format!(
                "rope scaling '{other}' (default, linear and llama3 are supported)"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 160,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "eos_token_id": [1, 2] EXTRA}"#;

    fn resolve(extra: &str) -> Result<ModelConfig, ModelError> {
        serde_json::from_str::<HfConfig>(&LLAMA.replace("EXTRA", extra)).unwrap().resolve()
    }

    #[test]
    fn defaults_follow_transformers() {
        let config = resolve("").unwrap();
        assert_eq!((config.head_dim, config.num_kv_heads, config.vocab_size), (16, 2, 512));
        assert_eq!(
            config.rope,
            RopeConfig { theta: 10_000.0, rotary_dim: 16, scaling: RopeScaling::Default }
        );
        assert!(!config.tie_word_embeddings);
    }

    #[test]
    fn rope_scaling_is_read_in_its_old_and_new_place() {
        let old = r#", "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#;
        let new = r#", "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
            "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}"#;
        assert_eq!(resolve(old).unwrap(), resolve(new).unwrap());
        assert!(matches!(resolve(new).unwrap().rope.scaling, RopeScaling::Llama3 { .. }));
        let linear = resolve(r#", "rope_scaling": {"type": "linear", "factor": 4}"#).unwrap();
        assert_eq!(linear.max_position_embeddings, 8192);
    }

    #[test]
    fn what_is_not_supported_or_makes_no_sense_is_named() {
        for (extra, named) in [
            (r#", "rope_scaling": {"rope_type": "yarn", "factor": 4}"#, "rope scaling 'yarn'"),
            (r#", "rope_scaling": {"rope_type": "linear"}"#, "rope_scaling.factor"),
            (r#", "quantization_config": {"bits": 4}"#, "quantization_config"),
            (r#", "hidden_act": "relu""#, "hidden_act"),
            (r#", "head_dim": 0"#, "head dimension"),
            (r#", "head_dim": 7"#, "is odd"),
            (r#", "head_dim": 18446744073709551615"#, "head dimension"),
            (r#", "sliding_window": 0"#, "sliding window"),
            (r#", "sliding_window": 8, "use_sliding_window": true"#, "window in some layers"),
            (r#", "rope_theta": 0"#, "rope theta"),
        ] {
            let error = resolve(extra).unwrap_err().to_string();
            assert!(error.contains(named), "{extra}: {error}");
        }
    }
}
