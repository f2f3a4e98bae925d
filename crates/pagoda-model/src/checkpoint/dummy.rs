//! A checkpoint without weights: the shape of a `config.json` and seeded random numbers, for measuring speed. What such a
//! model says is noise. Tensors are drawn one at a time when a backend asks for them, so that no more than one is in memory.

use std::path::Path;

use pagoda_backend::WeightFormat;

use super::{Checkpoint, CheckpointFormat, bias_name, dummy_tokenizer, hf};
use crate::architecture::{Presence, TensorNames};
use crate::config::HfConfig;
use crate::drawn::{Drawn, Role};
use crate::tensors::TensorTable;
use crate::{ModelConfig, ModelError};

/// Opens a `config.json` under any name, or a folder that holds one (its tokenizer and templates are used, its weights are
/// not).
pub(super) fn open(path: &Path, seed: u64) -> Result<Checkpoint, ModelError> {
    let description = if path.is_dir() { hf::describe(path)? } else { hf::describe_file(path)? };
    let hf::Description { hf_config, config, mut text_assets, generation_defaults } = description;
    if text_assets.tokenizer_json.is_none() {
        text_assets.tokenizer_json = Some(dummy_tokenizer::json(config.vocab_size));
        text_assets.num_token_ids = config.vocab_size;
    }
    let mut tensors = TensorTable::default();
    let format = hf_config.weight_format();
    for (index, (name, shape, role)) in tensor_list(&config, &hf_config).into_iter().enumerate() {
        let format = if shape.len() == 1 { WeightFormat::F32 } else { format };
        let drawn = Drawn::new(seed, index as u64, role);
        tensors.add_drawn(name, shape, format, drawn);
    }
    Ok(Checkpoint {
        config,
        text_assets,
        generation_defaults,
        tensors,
        format: CheckpointFormat::Safetensors,
    })
}

type Shaped = (String, Vec<usize>, Role);

/// Every tensor that the decoder of this family loads. The gains are those of the tiny test model: layers outweigh the
/// token's own embedding, and logits spread by about 2.
fn tensor_list(config: &ModelConfig, hf_config: &HfConfig) -> Vec<Shaped> {
    let names = &config.architecture.hf;
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let mut list = vec![matrix(&names.embedding, vocab, hidden, 2.0), norm(&names.final_norm, hidden)];
    if !config.tie_word_embeddings {
        list.push(matrix(&names.lm_head, vocab, hidden, 2.0));
    }
    for layer in 0..config.num_layers {
        let of_layer = layer_tensors(config, hf_config).into_iter();
        list.extend(of_layer.map(|(name, shape, role)| (TensorNames::of_layer(&name, layer), shape, role)));
    }
    list
}

/// One layer's tensors under the names' patterns.
fn layer_tensors(config: &ModelConfig, hf_config: &HfConfig) -> Vec<Shaped> {
    let architecture = config.architecture;
    let names = &architecture.hf;
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let (q_width, kv_width) = (config.heads().q_width(), config.num_kv_heads * config.head_dim);
    let mut list = vec![norm(&names.mixer_norm, hidden), norm(&names.ffn_norm, hidden)];
    let mut project =
        |name: &str, (rows, cols), gain, (presence, is_configured): (Presence, Option<bool>)| {
            list.push(matrix(name, rows, cols, gain));
            let has_bias = match presence {
                Presence::Never => false,
                Presence::Optional => is_configured == Some(true),
                Presence::Always => true,
            };
            if has_bias {
                list.push((bias_name(name), vec![rows], Role::Bias));
            }
        };
    let qkv_bias = (architecture.qkv_bias, hf_config.attention_bias);
    project(&names.q, (q_width, hidden), 2.5, qkv_bias);
    project(&names.k, (kv_width, hidden), 2.5, qkv_bias);
    project(&names.v, (kv_width, hidden), 3.0, qkv_bias);
    project(&names.output, (hidden, q_width), 3.0, (architecture.output_bias, hf_config.attention_bias));
    let ffn_bias = (architecture.ffn_bias, hf_config.mlp_bias);
    project(&names.gate, (intermediate, hidden), 1.5, ffn_bias);
    project(&names.up, (intermediate, hidden), 1.5, ffn_bias);
    project(&names.down, (hidden, intermediate), 2.0, ffn_bias);
    if architecture.qk_norm == Presence::Always {
        list.extend([norm(&names.q_norm, config.head_dim), norm(&names.k_norm, config.head_dim)]);
    }
    list
}

/// Numbers of variance `gain^2 / cols`: a row times a normalised activation has the size of the gain.
fn matrix(name: &str, rows: usize, cols: usize, gain: f32) -> Shaped {
    (name.to_owned(), vec![rows, cols], Role::Matrix { deviation: gain / (cols as f32).sqrt() })
}

fn norm(name: &str, len: usize) -> Shaped {
    (name.to_owned(), vec![len], Role::Norm)
}
