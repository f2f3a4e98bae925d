//! A checkpoint on disk: a GGUF file (single or split) or a Hugging Face folder with safetensors. Opening maps the files and
//! checks everything that can be checked without reading the weights; loading borrows the weights from the mapping.

mod dummy;
mod dummy_tokenizer;
mod gguf;
pub(crate) mod hf;
mod templates;

use std::borrow::Cow;
use std::path::Path;

use pagoda_backend::HostMatrix;

use crate::architecture::{Architecture, Presence, QkRowOrder, TensorNames};
use crate::tensors::TensorTable;
use crate::{GenerationDefaults, ModelConfig, ModelError, TextAssets};

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    config: ModelConfig,
    text_assets: TextAssets,
    generation_defaults: GenerationDefaults,
    tensors: TensorTable,
    format: CheckpointFormat,
}

/// Which names and row order the tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointFormat {
    /// One or more GGUF files.
    Gguf,
    /// One or more safetensors files with a `config.json`.
    Safetensors,
}

impl Checkpoint {
    /// Opens a `.gguf` file (of a split one: any part; the others lie beside it) or a folder with a `config.json`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ModelError> {
        let path = path.as_ref();
        let metadata = path.metadata().map_err(|source| ModelError::Io { path: path.to_owned(), source })?;
        let checkpoint = if metadata.is_dir() { hf::open(path)? } else { gguf::open(path)? };
        checkpoint.refuse_unexpected_tensors()?;
        Ok(checkpoint)
    }

    /// A model of the shape of a `config.json` (the file, or a folder that holds one) with random weights from the seed, for
    /// measuring speed. Needs no weights and, in place of a tokenizer, makes one up.
    pub fn open_dummy(path: impl AsRef<Path>, seed: u64) -> Result<Self, ModelError> {
        dummy::open(path.as_ref(), seed)
    }

    /// The same model without its weights: for a backend that asks for their shapes only.
    pub(crate) fn without_weights(&self) -> Self {
        Checkpoint {
            config: self.config.clone(),
            text_assets: self.text_assets.clone(),
            generation_defaults: self.generation_defaults.clone(),
            tensors: self.tensors.without_data(),
            format: self.format,
        }
    }

    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Tokenizer, chat template, stop tokens.
    pub fn text_assets(&self) -> TextAssets {
        self.text_assets.clone()
    }

    /// Sampling defaults.
    pub fn generation_defaults(&self) -> GenerationDefaults {
        self.generation_defaults.clone()
    }

    /// What the files are.
    pub fn format(&self) -> CheckpointFormat {
        self.format
    }

    /// Bytes of all weights as they are stored; a backend may pack them into a little more.
    pub fn stored_weight_bytes(&self) -> u64 {
        self.tensors.stored_bytes()
    }

    /// Tokens that the model may choose: those that both the model and the tokenizer know.
    pub fn num_choosable_tokens(&self) -> usize {
        self.config.vocab_size.min(self.text_assets.num_token_ids)
    }

    /// The tensor names of this checkpoint's format.
    pub(crate) fn names(&self) -> &'static TensorNames {
        match self.format {
            CheckpointFormat::Gguf => &self.config.architecture.gguf,
            CheckpointFormat::Safetensors => &self.config.architecture.hf,
        }
    }

    /// A weight matrix, borrowed from the mapping.
    pub(crate) fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<HostMatrix<'_>, ModelError> {
        self.tensors.matrix(name, rows, cols)
    }

    /// The rows of `num_heads` Q or K heads, each in the order in which the backends rotate it. A GGUF that stores pairs is
    /// reordered (a copy of this one matrix); the numbers stay as they are.
    pub(crate) fn qk_matrix(
        &self,
        name: &str,
        num_heads: usize,
        cols: usize,
    ) -> Result<HostMatrix<'_>, ModelError> {
        let head_dim = self.config.head_dim;
        let stored = self.matrix(name, num_heads * head_dim, cols)?;
        if !self.stores_pairs() || stored.data.is_empty() {
            return Ok(stored);
        }
        let mut data = Vec::with_capacity(stored.data.len());
        for row in 0..stored.rows {
            data.extend_from_slice(stored.row(row_in_pairs(row, head_dim)));
        }
        Ok(HostMatrix { data: Cow::Owned(data), ..stored })
    }

    /// The bias of `num_heads` Q or K heads, ordered as [`Checkpoint::qk_matrix`] orders the rows.
    pub(crate) fn qk_vector(&self, name: &str, num_heads: usize) -> Result<Vec<f32>, ModelError> {
        let head_dim = self.config.head_dim;
        let stored = self.tensors.vector(name, num_heads * head_dim)?;
        if !self.stores_pairs() {
            return Ok(stored);
        }
        Ok((0..stored.len()).map(|row| stored[row_in_pairs(row, head_dim)]).collect())
    }

    /// A parameter vector, widened to f32.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        self.tensors.vector(name, len)
    }

    /// Whether an optional tensor is to be loaded.
    pub(crate) fn has(&self, presence: Presence, name: &str) -> bool {
        match presence {
            Presence::Never => false,
            Presence::Optional => self.tensors.contains(name),
            Presence::Always => true,
        }
    }

    fn stores_pairs(&self) -> bool {
        let architecture = self.config.architecture;
        self.format == CheckpointFormat::Gguf && architecture.gguf_qk_rows == QkRowOrder::Pairs
    }

    /// A tensor that nobody reads (an expert, a norm, a layer too many) means that the family file does not describe this
    /// model; running it anyway would give wrong answers silently.
    fn refuse_unexpected_tensors(&self) -> Result<(), ModelError> {
        let known = known_patterns(self.config.architecture, self.names());
        let is_known =
            |name: &str| known.iter().any(|pattern| matches_pattern(pattern, name, self.config.num_layers));
        let mut unexpected: Vec<&str> = self.tensors.names().filter(|name| !is_known(name)).collect();
        unexpected.sort_unstable();
        match unexpected.first() {
            None => Ok(()),
            Some(name) => Err(ModelError::UnexpectedTensor {
                tensor: (*name).to_owned(),
                architecture: self.config.architecture.name.clone(),
            }),
        }
    }
}

/// The row of a head stored in pairs that belongs to `row` of a head stored in halves:
/// `halves [a0 a1 .. | b0 b1 ..]` is `pairs [a0 b0 a1 b1 ..]`.
pub(crate) fn row_in_pairs(row: usize, head_dim: usize) -> usize {
    let (head, channel) = (row / head_dim, row % head_dim);
    let half = head_dim / 2;
    head * head_dim + 2 * (channel % half) + channel / half
}

/// The name of the bias beside a weight.
pub(crate) fn bias_name(weight: &str) -> String {
    weight.replace(".weight", ".bias")
}

fn known_patterns(architecture: &Architecture, names: &TensorNames) -> Vec<String> {
    let weights = [
        &names.embedding,
        &names.final_norm,
        &names.lm_head,
        &names.mixer_norm,
        &names.q,
        &names.k,
        &names.v,
        &names.output,
        &names.ffn_norm,
        &names.gate,
        &names.up,
        &names.down,
    ];
    let mut known: Vec<String> = weights.into_iter().chain(&names.ignored).cloned().collect();
    let mut add_biases = |presence: Presence, weights: &[&String]| {
        if presence != Presence::Never {
            known.extend(weights.iter().map(|weight| bias_name(weight)));
        }
    };
    add_biases(architecture.qkv_bias, &[&names.q, &names.k, &names.v]);
    add_biases(architecture.output_bias, &[&names.output]);
    add_biases(architecture.ffn_bias, &[&names.gate, &names.up, &names.down]);
    if architecture.qk_norm != Presence::Never {
        known.extend([names.q_norm.clone(), names.k_norm.clone()]);
    }
    known
}

/// Whether `name` is `pattern` with `{layer}` replaced by a layer's number.
fn matches_pattern(pattern: &str, name: &str, num_layers: usize) -> bool {
    let Some((prefix, suffix)) = pattern.split_once("{layer}") else { return pattern == name };
    let layer = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
    layer.is_some_and(|layer| layer.parse::<usize>().is_ok_and(|number| number < num_layers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_halves() {
        let rows: Vec<usize> = (0..8).map(|row| row_in_pairs(row, 4)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn a_pattern_matches_only_layers_that_exist() {
        let matches = |name| matches_pattern("blk.{layer}.attn_q.weight", name, 3);
        assert!(matches("blk.2.attn_q.weight"));
        assert!(!matches("blk.3.attn_q.weight"));
        assert!(!matches("blk..attn_q.weight"));
        assert!(!matches("blk.0.attn_q.bias"));
    }
}
