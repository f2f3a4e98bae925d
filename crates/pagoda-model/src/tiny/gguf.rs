//! The tiny model as GGUF: metadata, tokenizer, quantised tensors, split into parts if wanted.

use std::io;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use pagoda_backend::WeightFormat;

use super::{TOKENIZER, TOKENIZER_CONFIG, TinyModel, TinyTensor};
use crate::checkpoint::row_in_pairs;
use crate::{RopeConfig, RopeScaling};

impl TinyModel {
    /// Writes `tiny-<format>.gguf` and returns the file. Norms are f32, matrices are in the given format.
    pub fn write_gguf(&self, folder: &Path, format: WeightFormat) -> io::Result<PathBuf> {
        let path = folder.join(format!("tiny-{format}.gguf"));
        write_gguf_file(&path, &self.gguf_metadata(), &self.gguf_tensors(format)?)?;
        Ok(path)
    }

    /// Writes the GGUF in parts and returns the first.
    pub fn write_split_gguf(
        &self,
        folder: &Path,
        format: WeightFormat,
        num_parts: usize,
    ) -> io::Result<PathBuf> {
        let tensors = self.gguf_tensors(format)?;
        let path = |part| folder.join(format!("tiny-{part:05}-of-{num_parts:05}.gguf"));
        for (part, tensors) in tensors.chunks(tensors.len().div_ceil(num_parts)).enumerate() {
            let mut metadata = if part == 0 { self.gguf_metadata() } else { Vec::new() };
            metadata.push(("split.no".to_owned(), Value::U16(part as u16)));
            metadata.push(("split.count".to_owned(), Value::U16(num_parts as u16)));
            write_gguf_file(&path(part + 1), &metadata, tensors)?;
        }
        Ok(path(1))
    }

    fn gguf_tensors(&self, format: WeightFormat) -> io::Result<Vec<(String, QTensor)>> {
        let mut quantized = Vec::new();
        for tensor in self.tensors() {
            let values = tensor.gguf_values();
            let dtype = if tensor.shape.len() == 1 { GgmlDType::F32 } else { ggml_type(format) };
            let full = Tensor::from_vec(values, tensor.shape, &Device::Cpu).map_err(io::Error::other)?;
            quantized.push((tensor.gguf_name, QTensor::quantize(&full, dtype).map_err(io::Error::other)?));
        }
        if self.llama3_rope {
            let config = self.config();
            let plain = RopeConfig { scaling: RopeScaling::Default, ..config.rope.clone() };
            let scaled = config.rope.inverse_frequencies();
            let divisors = plain.inverse_frequencies().into_iter().zip(scaled).map(|(p, s)| (p / s) as f32);
            let full = Tensor::from_iter(divisors, &Device::Cpu).map_err(io::Error::other)?;
            let divisors = QTensor::quantize(&full, GgmlDType::F32).map_err(io::Error::other)?;
            quantized.push(("rope_freqs.weight".to_owned(), divisors));
        }
        Ok(quantized)
    }

    fn gguf_metadata(&self) -> Vec<(String, Value)> {
        let config = self.config();
        let number = |value: usize| Value::U32(value as u32);
        let name = &config.architecture.gguf_architectures[0];
        let mut metadata: Vec<(&str, Value)> = vec![
            ("general.architecture", Value::String(name.clone())),
            ("general.name", Value::String("tiny".to_owned())),
            ("llama.block_count", number(config.num_layers)),
            ("llama.context_length", number(config.max_position_embeddings)),
            ("llama.embedding_length", number(config.hidden_size)),
            ("llama.feed_forward_length", number(config.intermediate_size)),
            ("llama.attention.head_count", number(config.num_q_heads)),
            ("llama.attention.head_count_kv", number(config.num_kv_heads)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps)),
            ("llama.attention.key_length", number(config.head_dim)),
            ("llama.attention.value_length", number(config.head_dim)),
            ("llama.rope.dimension_count", number(config.rope.rotary_dim)),
            ("llama.rope.freq_base", Value::F32(config.rope.theta as f32)),
        ];
        metadata.extend(tokenizer_metadata());
        let key =
            |key: &str| key.strip_prefix("llama.").map_or(key.to_owned(), |key| format!("{name}.{key}"));
        metadata.into_iter().map(|(name, value)| (key(name), value)).collect()
    }
}

impl TinyTensor {
    /// The values in the row order of a GGUF.
    fn gguf_values(&self) -> Vec<f32> {
        let Some(num_heads) = self.num_rotated_heads else { return self.values.clone() };
        let (rows, cols) = (self.shape[0], self.values.len() / self.shape[0]);
        let mut values = vec![0.0; self.values.len()];
        for row in 0..rows {
            let stored = row_in_pairs(row, rows / num_heads);
            values[stored * cols..][..cols].copy_from_slice(&self.values[row * cols..][..cols]);
        }
        values
    }
}

fn ggml_type(format: WeightFormat) -> GgmlDType {
    match format {
        WeightFormat::F32 => GgmlDType::F32,
        WeightFormat::Bf16 => GgmlDType::BF16,
        WeightFormat::F16 => GgmlDType::F16,
        WeightFormat::Q8_0 => GgmlDType::Q8_0,
        WeightFormat::Q4_0 => GgmlDType::Q4_0,
        WeightFormat::Q4_1 => GgmlDType::Q4_1,
    }
}

/// The tokenizer of the folder, in a GGUF's words.
fn tokenizer_metadata() -> Vec<(&'static str, Value)> {
    let expect = "the tiny tokenizer is compiled in and tested";
    let tokenizer: serde_json::Value = serde_json::from_str(TOKENIZER).expect(expect);
    let config: serde_json::Value = serde_json::from_str(TOKENIZER_CONFIG).expect(expect);
    let string = |value: &serde_json::Value| Value::String(value.as_str().expect(expect).to_owned());
    let vocab = tokenizer["model"]["vocab"].as_object().expect(expect);
    let mut tokens: Vec<(u64, &String)> =
        vocab.iter().map(|(text, id)| (id.as_u64().expect(expect), text)).collect();
    tokens.sort_unstable();
    let num_special = tokenizer["added_tokens"].as_array().expect(expect).len();
    let token_type = |id: usize| Value::I32(if id < num_special { 3 } else { 1 });
    let merges = tokenizer["model"]["merges"].as_array().expect(expect);
    vec![
        ("tokenizer.ggml.model", Value::String("gpt2".to_owned())),
        ("tokenizer.ggml.pre", Value::String("smollm".to_owned())),
        ("tokenizer.ggml.token_type", Value::Array((0..tokens.len()).map(token_type).collect())),
        (
            "tokenizer.ggml.tokens",
            Value::Array(tokens.into_iter().map(|(_, text)| Value::String(text.clone())).collect()),
        ),
        ("tokenizer.ggml.merges", Value::Array(merges.iter().map(string).collect())),
        ("tokenizer.ggml.bos_token_id", Value::U32(1)),
        ("tokenizer.ggml.eos_token_id", Value::U32(2)),
        ("tokenizer.ggml.unknown_token_id", Value::U32(0)),
        ("tokenizer.ggml.padding_token_id", Value::U32(2)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.ggml.add_space_prefix", Value::Bool(false)),
        ("tokenizer.chat_template", string(&config["chat_template"])),
    ]
}

fn write_gguf_file(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[(String, QTensor)],
) -> io::Result<()> {
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    let tensors: Vec<(&str, &QTensor)> =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let mut bytes = io::Cursor::new(Vec::new());
    gguf_file::write(&mut bytes, &metadata, &tensors).map_err(io::Error::other)?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, bytes.into_inner())
}
