//! A checkpoint's own sampling defaults (`generation_config.json`, or `general.sampling.*` of a GGUF).

use serde::Deserialize;

use crate::ModelError;
use crate::config::{GgufMetadata, OneOrMany};

/// Defaults for what a request leaves open. `None` means that the checkpoint says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationDefaults {
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// 1 is off.
    pub top_p: Option<f32>,
    /// 0 is off.
    pub top_k: Option<u32>,
    /// 0 is off.
    pub min_p: Option<f32>,
    /// 1 is off.
    pub repetition_penalty: Option<f32>,
}

/// `generation_config.json`.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct GenerationConfig {
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    /// The tokens that end an answer.
    pub(crate) eos_token_id: Option<OneOrMany>,
}

impl GenerationConfig {
    /// The sampling defaults.
    pub(crate) fn defaults(&self) -> Result<GenerationDefaults, ModelError> {
        GenerationDefaults {
            temperature: self.temperature.map(|v| v as f32),
            top_p: self.top_p.map(|v| v as f32),
            // Some writers say -1 for off.
            top_k: self.top_k.map(|v| u32::try_from(v).unwrap_or(0)),
            min_p: self.min_p.map(|v| v as f32),
            repetition_penalty: self.repetition_penalty.map(|v| v as f32),
        }
        .validated()
    }
}

impl GenerationDefaults {
    /// Reads the metadata of a GGUF.
    pub(crate) fn from_gguf(metadata: &GgufMetadata) -> Result<Self, ModelError> {
        let number = |key: &str| {
            Ok::<_, ModelError>(metadata.number(&format!("general.sampling.{key}"))?.map(|v| v as f32))
        };
        let top_k = metadata.integer("general.sampling.top_k")?;
        GenerationDefaults {
            temperature: number("temp")?,
            top_p: number("top_p")?,
            top_k: top_k.map(|v| v.min(u32::MAX as usize) as u32),
            min_p: number("min_p")?,
            repetition_penalty: number("penalty_repeat")?,
        }
        .validated()
    }

    fn validated(self) -> Result<Self, ModelError> {
        let checks = [
            ("temperature", self.temperature, 0.0..=100.0),
            ("top_p", self.top_p, 1e-6..=1.0),
            ("min_p", self.min_p, 0.0..=1.0),
            ("repetition_penalty", self.repetition_penalty, 1e-3..=100.0),
        ];
        for (key, value, range) in checks {
            if let Some(value) = value
                && !range.contains(&value)
            {
                let problem = format!("{value} is not between {} and {}", range.start(), range.end());
                return Err(ModelError::config(format!("generation_config.{key}"), problem));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn defaults(json: &str) -> Result<GenerationDefaults, ModelError> {
        serde_json::from_str::<GenerationConfig>(json).unwrap().defaults()
    }

    #[test]
    fn absent_means_none_and_minus_one_means_off() {
        let read = defaults(r#"{"temperature": 0.6, "top_k": -1, "do_sample": true}"#).unwrap();
        let expected =
            GenerationDefaults { temperature: Some(0.6), top_k: Some(0), ..GenerationDefaults::default() };
        assert_eq!(read, expected);
    }

    #[test]
    fn a_default_out_of_range_is_refused() {
        let error = defaults(r#"{"top_p": 1.5}"#).unwrap_err().to_string();
        assert!(error.contains("generation_config.top_p"), "{error}");
    }
}
