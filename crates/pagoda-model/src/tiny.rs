//! A seeded Llama (or Qwen) of 0.16 million weights for tests: real shapes in small (grouped KV heads, three layers, a byte-level BPE
//! of 512 tokens with a chat template), written in every weight format. `models/tiny` holds its f32 form and golden logits.
//! Not a model to talk to: its weights are noise.

mod folder;
mod gguf;

use std::io;
use std::path::{Path, PathBuf};

use pagoda_backend::WeightFormat;

use crate::architecture::{Presence, QkRowOrder, TensorNames};
use crate::checkpoint::bias_name;
use crate::config::HfConfig;
use crate::{Architecture, ModelConfig};

const CONFIG: &str = include_str!("../../../models/tiny/config.json");
const GENERATION_CONFIG: &str = include_str!("../../../models/tiny/generation_config.json");
const TOKENIZER: &str = include_str!("../../../models/tiny/tokenizer.json");
const TOKENIZER_CONFIG: &str = include_str!("../../../models/tiny/tokenizer_config.json");

/// The seed of the committed checkpoint.
pub const SEED: u64 = 2026;

/// Whose shape the tiny model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TinyFamily {
    /// The committed one.
    Llama,
    /// Biases on Q, K and V.
    Qwen2,
    /// Norms on the Q and K heads, which are twice as wide.
    Qwen3,
}

/// One variant of the tiny model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TinyModel {
    /// The family.
    pub family: TinyFamily,
    /// Seed of the weights.
    pub seed: u64,
    /// Whether the embedding is the lm_head.
    pub tied: bool,
    /// Whether the frequencies are scaled as in Llama 3.1, from an original context of 256.
    pub llama3_rope: bool,
    /// Whether every projection of a Llama has a bias.
    pub biases: bool,
}

impl Default for TinyModel {
    fn default() -> Self {
        TinyModel { family: TinyFamily::Llama, seed: SEED, tied: true, llama3_rope: false, biases: false }
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
    fn config_json(&self) -> String {
        let mut text = CONFIG.to_owned();
        if self.family != TinyFamily::Llama {
            let name = if self.family == TinyFamily::Qwen2 { "2" } else { "3" };
            text = text.replace("LlamaFor", &format!("Qwen{name}For"));
            text = text.replace("\"llama\"", &format!("\"qwen{name}\""));
        }
        if self.family == TinyFamily::Qwen3 {
            text = text.replace("\"head_dim\": 16", "\"head_dim\": 32");
        }
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
        let config: HfConfig =
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
            if architecture.qk_norm != Presence::Never {
                add(|n| &n.q_norm, layer, &[config.head_dim], 0.4);
                add(|n| &n.k_norm, layer, &[config.head_dim], 0.4);
            }
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
        for tensor in tensors.iter_mut().filter(|_| architecture.gguf_qk_rows == QkRowOrder::Pairs) {
            if tensor.hf_name.contains("q_proj") {
                tensor.num_rotated_heads = Some(config.num_q_heads);
            } else if tensor.hf_name.contains("k_proj") {
                tensor.num_rotated_heads = Some(config.num_kv_heads);
            }
        }
        if self.biases || architecture.qkv_bias == Presence::Always {
            let is_biased = |name: &str| match self.biases {
                true => name.contains("_proj"),
                false => ["q_proj", "k_proj", "v_proj"].iter().any(|part| name.contains(part)),
            };
            let projections = tensors.iter().filter(|tensor| is_biased(&tensor.hf_name));
            let biases: Vec<TinyTensor> = projections.map(|weight| draw_bias(&mut noise, weight)).collect();
            tensors.extend(biases);
        }
        tensors
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
