//! The embedding encoder: a BERT of the sentence-transformers kind (folder with `config.json`, `model.safetensors`,
//! `tokenizer.json`), run by candle on threads of its own. Token ids in, one vector of length 1 per sequence out.
//!
//! Invariants: sequences are grouped by length, so that padding costs at most an eighth; a padded position gets attention
//! weight 0 exactly and is not pooled, so that neighbours change a vector only by the order in which the matrix product
//! sums (f32 rounding); nothing is computed outside of the encoder's own threads, except for element-wise operations of
//! large tensors, which candle runs on a pool of the process that the binary keeps to one thread (docs/decisions/103).

mod batches;
mod config;

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::BertModel;

use crate::ModelError;
use crate::checkpoint::hf::read_file;
use crate::mapping::Mapping;
use batches::{Batch, batches};
use config::EncoderConfig;

/// A loaded encoder.
pub struct Encoder {
    model: BertModel,
    config: EncoderConfig,
    tokenizer_json: Vec<u8>,
    pool: rayon::ThreadPool,
}

impl Encoder {
    /// Loads the encoder of `folder`, to be run on `num_threads` threads.
    ///
    /// # Errors
    /// [`ModelError`] names the file, key or tensor that is wrong, or what kind of encoder this is not.
    pub fn load(folder: impl AsRef<Path>, num_threads: usize) -> Result<Self, ModelError> {
        let folder = folder.as_ref();
        let config = EncoderConfig::read(folder)?;
        let tokenizer_path = folder.join("tokenizer.json");
        let tokenizer_json = read_file(&tokenizer_path)?.ok_or_else(|| ModelError::InvalidFile {
            path: tokenizer_path,
            problem: "is missing".to_owned(),
        })?;
        let weights_path = folder.join("model.safetensors");
        let mapping = Mapping::open(&weights_path)?;
        let wrong = |error: candle_core::Error| ModelError::InvalidFile {
            path: weights_path.clone(),
            problem: format!("does not hold this encoder's weights: {error}"),
        };
        let weights =
            VarBuilder::from_slice_safetensors(mapping.bytes(), DType::F32, &Device::Cpu).map_err(wrong)?;
        let model = BertModel::load(weights, &config.bert).map_err(wrong)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(num_threads.max(1))
            .thread_name(|index| format!("encoder-{index}"))
            .build()
            .map_err(|error| ModelError::Encoder(format!("its threads cannot be started: {error}")))?;
        Ok(Encoder { model, config, tokenizer_json, pool })
    }

    /// Tokens of the longest sequence of the encoder in `folder`, without loading it.
    ///
    /// # Errors
    /// As [`Encoder::load`], as far as the configuration shows it.
    pub fn read_max_len(folder: impl AsRef<Path>) -> Result<usize, ModelError> {
        EncoderConfig::read(folder.as_ref()).map(|config| config.max_len)
    }

    /// Numbers in a vector.
    pub fn width(&self) -> usize {
        self.config.bert.hidden_size
    }

    /// Tokens of the longest sequence, special tokens included.
    pub fn max_len(&self) -> usize {
        self.config.max_len
    }

    /// Ids from here on are unknown.
    pub fn vocab_size(&self) -> usize {
        self.config.bert.vocab_size
    }

    /// `tokenizer.json`, byte for byte. It asks for truncation and padding at lengths that are not the model's: both are
    /// the caller's to leave out.
    pub fn tokenizer_json(&self) -> &[u8] {
        &self.tokenizer_json
    }

    /// One vector of length 1 for each sequence, in order: the mean over its tokens, normalised.
    ///
    /// # Errors
    /// [`ModelError::Encoder`] for an empty or too long sequence or an unknown id, or if candle fails.
    pub fn embed(&self, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError> {
        for sequence in sequences {
            self.check(sequence)?;
        }
        let lens: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let mut vectors = vec![Vec::new(); sequences.len()];
        for batch in batches(&lens) {
            let hidden = self.pool.install(|| self.forward(sequences, &batch));
            let hidden = hidden.map_err(|error| ModelError::Encoder(error.to_string()))?;
            let rows = batch.indices.iter().zip(hidden.chunks_exact(batch.len * self.width()));
            for (&index, row) in rows {
                vectors[index] = pooled(&row[..lens[index] * self.width()], self.width());
            }
        }
        Ok(vectors)
    }

    fn check(&self, sequence: &[u32]) -> Result<(), ModelError> {
        let max_len = self.max_len();
        if sequence.is_empty() || sequence.len() > max_len {
            let len = sequence.len();
            return Err(ModelError::Encoder(format!("a sequence has {len} tokens; it takes 1 to {max_len}")));
        }
        match sequence.iter().find(|id| **id as usize >= self.vocab_size()) {
            Some(id) => Err(ModelError::Encoder(format!("token id {id} is not in its vocabulary"))),
            None => Ok(()),
        }
    }

    /// The last layer's states of a batch: `[sequences, len, width]`, row-major.
    fn forward(&self, sequences: &[Vec<u32>], batch: &Batch) -> candle_core::Result<Vec<f32>> {
        let shape = (batch.indices.len(), batch.len);
        let mut ids = vec![self.config.bert.pad_token_id as u32; shape.0 * shape.1];
        let mut mask = vec![0u32; ids.len()];
        for (row, &index) in batch.indices.iter().enumerate() {
            let (start, sequence) = (row * batch.len, &sequences[index]);
            ids[start..start + sequence.len()].copy_from_slice(sequence);
            mask[start..start + sequence.len()].fill(1);
        }
        let ids = Tensor::from_vec(ids, shape, &Device::Cpu)?;
        let mask = Tensor::from_vec(mask, shape, &Device::Cpu)?;
        let hidden = self.model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
        hidden.flatten_all()?.to_vec1()
    }
}

/// The mean of `[tokens, width]` over the tokens, scaled to length 1. Sums in f64: the order of the tokens costs nothing.
fn pooled(states: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0f64; width];
    for state in states.chunks_exact(width) {
        for (sum, value) in sum.iter_mut().zip(state) {
            *sum += f64::from(*value);
        }
    }
    // The number of tokens cancels out. The floor is sentence-transformers'.
    let norm = sum.iter().map(|value| value * value).sum::<f64>().sqrt().max(1e-12);
    sum.into_iter().map(|value| (value / norm) as f32).collect()
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_over_tokens_has_length_one() {
        assert_eq!(pooled(&[3.0, 0.0, 3.0, 8.0], 2), [0.6, 0.8]);
        assert_eq!(pooled(&[0.0, 0.0], 2), [0.0, 0.0]);
    }
}
