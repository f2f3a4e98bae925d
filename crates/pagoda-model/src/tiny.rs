//! A seeded Llama of 0.16 million weights for tests: real shapes in small (grouped KV heads, three layers, a byte-level BPE
//! of 512 tokens with a chat template), written in every weight format. `models/tiny` holds its f32 form and golden logits.
//! Not a model to talk to: its weights are noise.

use std::io;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use half::{bf16, f16};
use pagoda_backend::WeightFormat;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

use crate::architecture::TensorNames;
use crate::checkpoint::{bias_name, row_in_pairs};
use crate::{Architecture, ModelConfig};

const CONFIG: &str = include_str!("../../../models/tiny/config.json");
const GENERATION_CONFIG: &str = include_str!("../../../models/tiny/generation_config.json");
const TOKENIZER: &str = include_str!("../../../models/tiny/tokenizer.json");
const TOKENIZER_CONFIG: &str = include_str!("../../../models/tiny/tokenizer_config.json");

/// The seed of the committed checkpoint.
pub const SEED: u64 = 2026;

/// One variant of the tiny model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TinyModel {
    /// Seed of the weights.
    pub seed: u64,
    /// Whether the embedding is the lm_head.
    pub tied: bool,
    /// Whether the frequencies are scaled as in Llama 3.1, from an original context of 256.
    pub llama3_rope: bool,
    /// Whether every projection has a bias.
    pub biases: bool,
}

impl Default for TinyModel {
    fn default() -> Self {
        TinyModel { seed: SEED, tied: true, llama3_rope: false, biases: false }
    }
}

/// A generated tensor under its safetensors name and its GGUF name.
struct TinyTensor {
    hf_name: String,
    gguf_name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
    /// Heads whose rows a GGUF stores in pairs.
    num_rotated_heads: Option<usize>,
}

/// Writes the default model as `tiny-<format>.gguf` and returns the file.
pub fn write_gguf(folder: &Path, format: WeightFormat) -> io::Result<PathBuf> {
    TinyModel::default().write_gguf(folder, format)
}

/// Writes the default model as a Hugging Face folder (`f32`, `bf16` or `f16`) and returns the folder.
pub fn write_safetensors(folder: &Path, format: WeightFormat) -> io::Result<PathBuf> {
    TinyModel::default().write_safetensors(folder, format, 1)
}

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

    /// Writes a Hugging Face folder: one file, or shards with an index. The format is `f32`, `bf16` or `f16`.
    pub fn write_safetensors(
        &self,
        folder: &Path,
        format: WeightFormat,
        num_shards: usize,
    ) -> io::Result<PathBuf> {
        self.write_json_files(folder)?;
        let tensors = self.tensors();
        let encoded = tensors.iter().map(|tensor| encode(&tensor.values, format));
        let encoded = encoded.collect::<io::Result<Vec<_>>>()?;
        let views = tensors.iter().zip(&encoded).map(|(tensor, (dtype, bytes))| {
            let view = TensorView::new(*dtype, tensor.shape.clone(), bytes).map_err(io::Error::other)?;
            Ok((tensor.hf_name.clone(), view))
        });
        let views = views.collect::<io::Result<Vec<_>>>()?;
        if num_shards == 1 {
            write_safetensors_file(&folder.join("model.safetensors"), views)?;
            return Ok(folder.to_owned());
        }
        let mut weight_map = serde_json::Map::new();
        for (shard, views) in views.chunks(views.len().div_ceil(num_shards)).enumerate() {
            let file_name = format!("model-{:05}-of-{num_shards:05}.safetensors", shard + 1);
            for (name, _) in views {
                weight_map.insert(name.clone(), file_name.clone().into());
            }
            write_safetensors_file(&folder.join(file_name), views.to_vec())?;
        }
        let index = serde_json::json!({"metadata": {}, "weight_map": weight_map});
        std::fs::write(folder.join("model.safetensors.index.json"), index.to_string())?;
        Ok(folder.to_owned())
    }

    fn write_json_files(&self, folder: &Path) -> io::Result<()> {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("config.json"), self.config_json())?;
        std::fs::write(folder.join("generation_config.json"), GENERATION_CONFIG)?;
        std::fs::write(folder.join("tokenizer.json"), TOKENIZER)?;
        std::fs::write(folder.join("tokenizer_config.json"), TOKENIZER_CONFIG)
    }

    fn config_json(&self) -> String {
        let mut text = CONFIG.to_owned();
        if !self.tied {
            text = text.replace("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
        }
        if self.llama3_rope {
            let scaling = r#""rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 256}"#;
            text = text.replace("\"rope_scaling\": null", scaling);
        }
        text
    }

    fn config(&self) -> ModelConfig {
        let config: crate::config::HfConfig =
            serde_json::from_str(&self.config_json()).expect("the tiny config is compiled in and tested");
        config.resolve().expect("the tiny config is compiled in and tested")
    }

    /// Every tensor, in a fixed order: the weights are drawn one after the other.
    fn tensors(&self) -> Vec<TinyTensor> {
        let config = self.config();
        let architecture = config.architecture;
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let (q_width, kv_width) = (config.heads().q_width(), config.num_kv_heads * config.head_dim);
        let mut noise = Noise(self.seed);
        let mut tensors = Vec::new();
        let mut add = |name: fn(&TensorNames) -> &String, layer, shape: &[usize], gain: f32| {
            tensors.push(draw(&mut noise, architecture, name, layer, (shape, gain)));
        };
        // Gains are chosen so that the layers outweigh the token's own embedding (else greedy decoding repeats one token
        // for ever) and the logits spread by about 2.
        add(|n| &n.embedding, 0, &[config.vocab_size, hidden], 2.0);
        for layer in 0..config.num_layers {
            add(|n| &n.mixer_norm, layer, &[hidden], 0.1);
            add(|n| &n.q, layer, &[q_width, hidden], 2.5);
            add(|n| &n.k, layer, &[kv_width, hidden], 2.5);
            add(|n| &n.v, layer, &[kv_width, hidden], 3.0);
            add(|n| &n.output, layer, &[hidden, q_width], 3.0);
            add(|n| &n.ffn_norm, layer, &[hidden], 0.1);
            add(|n| &n.gate, layer, &[intermediate, hidden], 1.5);
            add(|n| &n.up, layer, &[intermediate, hidden], 1.5);
            add(|n| &n.down, layer, &[hidden, intermediate], 2.0);
        }
        add(|n| &n.final_norm, 0, &[hidden], 0.1);
        if !self.tied {
            add(|n| &n.lm_head, 0, &[config.vocab_size, hidden], 2.0);
        }
        for tensor in &mut tensors {
            if tensor.hf_name.contains("q_proj") {
                tensor.num_rotated_heads = Some(config.num_q_heads);
            } else if tensor.hf_name.contains("k_proj") {
                tensor.num_rotated_heads = Some(config.num_kv_heads);
            }
        }
        if self.biases {
            let projections = tensors.iter().filter(|tensor| tensor.hf_name.contains("_proj"));
            let biases: Vec<TinyTensor> = projections.map(|weight| draw_bias(&mut noise, weight)).collect();
            tensors.extend(biases);
        }
        tensors
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
            let plain = crate::RopeConfig { scaling: crate::RopeScaling::Default, ..config.rope.clone() };
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
        let mut metadata: Vec<(&str, Value)> = vec![
            ("general.architecture", Value::String("llama".to_owned())),
            ("general.name", Value::String("tiny".to_owned())),
            ("llama.block_count", number(config.num_layers)),
            ("llama.context_length", number(config.max_position_embeddings)),
            ("llama.embedding_length", number(config.hidden_size)),
            ("llama.feed_forward_length", number(config.intermediate_size)),
            ("llama.attention.head_count", number(config.num_q_heads)),
            ("llama.attention.head_count_kv", number(config.num_kv_heads)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps)),
            ("llama.rope.dimension_count", number(config.rope.rotary_dim)),
            ("llama.rope.freq_base", Value::F32(config.rope.theta as f32)),
        ];
        metadata.extend(tokenizer_metadata());
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
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

/// Draws a tensor. A vector is `1 + gain * noise` (a norm), a matrix is `gain / sqrt(columns) * noise`.
fn draw(
    noise: &mut Noise,
    architecture: &Architecture,
    name: fn(&TensorNames) -> &String,
    layer: usize,
    (shape, gain): (&[usize], f32),
) -> TinyTensor {
    let num_values = shape.iter().product();
    let (offset, scale) = match shape {
        [_] => (1.0, gain),
        _ => (0.0, gain / (shape[shape.len() - 1] as f32).sqrt()),
    };
    TinyTensor {
        hf_name: TensorNames::of_layer(name(&architecture.hf), layer),
        gguf_name: TensorNames::of_layer(name(&architecture.gguf), layer),
        shape: shape.to_vec(),
        values: (0..num_values).map(|_| offset + scale * noise.next_normal()).collect(),
        num_rotated_heads: None,
    }
}

/// Draws the bias beside a projection.
fn draw_bias(noise: &mut Noise, weight: &TinyTensor) -> TinyTensor {
    TinyTensor {
        hf_name: bias_name(&weight.hf_name),
        gguf_name: bias_name(&weight.gguf_name),
        shape: vec![weight.shape[0]],
        values: (0..weight.shape[0]).map(|_| 0.3 * noise.next_normal()).collect(),
        num_rotated_heads: weight.num_rotated_heads,
    }
}

/// Splitmix64, summed up to something normal. Adds and multiplies only, so that every machine draws the same bits.
struct Noise(u64);

impl Noise {
    fn next_uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Mean 0, variance 1: twelve uniforms have variance 1.
    fn next_normal(&mut self) -> f32 {
        (0..12).map(|_| self.next_uniform()).sum::<f32>() - 6.0
    }
}

fn encode(values: &[f32], format: WeightFormat) -> io::Result<(Dtype, Vec<u8>)> {
    Ok(match format {
        WeightFormat::F32 => (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
        WeightFormat::Bf16 => {
            (Dtype::BF16, values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect())
        }
        WeightFormat::F16 => {
            (Dtype::F16, values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect())
        }
        WeightFormat::Q8_0 | WeightFormat::Q4_0 | WeightFormat::Q4_1 => {
            let problem = format!("safetensors hold no {format}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
    })
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

fn write_safetensors_file(path: &Path, views: Vec<(String, TensorView<'_>)>) -> io::Result<()> {
    safetensors::serialize_to_file(views, None, path).map_err(io::Error::other)
}
