//! The one decoder of every family and device: embedding, layers, norm, lm_head over a backend's ops. A layer's parts are
//! enums whose variants are one file each; a family says which by data ([`crate::Architecture`]). Knows no scheduling.

mod attention;
mod gated;
mod weights;

use pagoda_backend::{AddRmsNorm, Backend, BackendError, Embed, GatherRows, Linear, RmsNorm, RopeTable};

use crate::architecture::{FfnKind, MixerKind};
use crate::runner::Workspace;
use crate::{Checkpoint, ModelError};
use attention::Attention;
use gated::GatedFfn;
use weights::WeightLoader;

/// A model on a device.
pub struct Decoder<B: Backend> {
    /// `[vocab, hidden]`; also the lm_head of a tied model.
    embedding: B::Weight,
    layers: Vec<Layer<B>>,
    /// `[hidden]`
    final_norm: B::Vector,
    /// `[vocab, hidden]`, unless tied.
    lm_head: Option<B::Weight>,
    rope: B::Rope,
    eps: f32,
    weight_bytes: u64,
}

struct Layer<B: Backend> {
    mixer_norm: B::Vector,
    mixer: Mixer<B>,
    ffn_norm: B::Vector,
    ffn: Ffn<B>,
}

/// How a layer moves information between tokens.
enum Mixer<B: Backend> {
    Attention(Attention<B>),
}

/// What a layer does to each token by itself.
enum Ffn<B: Backend> {
    Gated(GatedFfn<B>),
}

/// One step as the decoder sees it.
pub(crate) struct StepInput<'a, B: Backend> {
    /// The step's metadata.
    pub(crate) batch: &'a B::Batch,
    /// Rows of the step.
    pub(crate) num_rows: usize,
    /// Receives the rows' K and V.
    pub(crate) kv: &'a mut B::KvCache,
}

/// What the parts of a layer share in one step.
pub(crate) struct LayerInput<'a, B: Backend> {
    /// The step's metadata.
    pub(crate) batch: &'a B::Batch,
    /// Rows of the step.
    pub(crate) num_rows: usize,
    /// Rotation by position.
    pub(crate) rope: &'a B::Rope,
    /// Which layer of the KV cache.
    pub(crate) layer: usize,
}

impl<B: Backend> Decoder<B> {
    /// Packs the weights. `max_model_len` is the number of positions of the rope table.
    pub fn load(checkpoint: &Checkpoint, backend: &mut B, max_model_len: usize) -> Result<Self, ModelError> {
        let config = checkpoint.config();
        let names = checkpoint.names();
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let frequencies = config.rope.inverse_frequencies();
        let rope = backend.upload_rope(&RopeTable::new(&frequencies, max_model_len, 1.0))?;
        let mut loader = WeightLoader::new(checkpoint, backend);
        let embedding = loader.pack(&[checkpoint.matrix(&names.embedding, vocab, hidden)?])?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => Some(loader.pack(&[checkpoint.matrix(&names.lm_head, vocab, hidden)?])?),
        };
        let final_norm = loader.vector(&names.final_norm, hidden)?;
        let layers = (0..config.num_layers).map(|layer| Layer::load(&mut loader, layer));
        let layers = layers.collect::<Result<_, ModelError>>()?;
        let weight_bytes = loader.num_bytes();
        Ok(Decoder { embedding, layers, final_norm, lm_head, rope, eps: config.rms_norm_eps, weight_bytes })
    }

    /// Bytes of all packed weights.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Runs every layer over the step's rows. The result is `residual + delta` of the workspace, not yet added: only the
    /// rows that [`Decoder::logits`] needs are.
    pub(crate) fn forward(
        &self,
        backend: &mut B,
        step: StepInput<'_, B>,
        work: &mut Workspace<B>,
    ) -> Result<(), BackendError> {
        let StepInput { batch, num_rows, kv } = step;
        backend.embed(Embed { batch, table: &self.embedding, scale: 1.0, out: &mut work.residual })?;
        for (layer, parts) in self.layers.iter().enumerate() {
            let input = LayerInput { batch, num_rows, rope: &self.rope, layer };
            if layer == 0 {
                let (x, weight, out) = (&work.residual, &parts.mixer_norm, &mut work.normed);
                backend.rms_norm(RmsNorm { x, weight, eps: self.eps, num_rows, out })?;
            } else {
                self.add_norm(backend, &parts.mixer_norm, num_rows, work)?;
            }
            match &parts.mixer {
                Mixer::Attention(attention) => attention.forward(backend, &input, kv, work)?,
            }
            self.add_norm(backend, &parts.ffn_norm, num_rows, work)?;
            match &parts.ffn {
                Ffn::Gated(gated) => gated.forward(backend, &input, work)?,
            }
        }
        Ok(())
    }

    /// The logits of the given rows of the last [`Decoder::forward`], into the workspace's `logits`.
    pub(crate) fn logits(
        &self,
        backend: &mut B,
        rows: &[u32],
        work: &mut Workspace<B>,
    ) -> Result<(), BackendError> {
        let num_rows = rows.len();
        backend.gather_rows(GatherRows { x: &work.residual, rows, out: &mut work.sampled_residual })?;
        backend.gather_rows(GatherRows { x: &work.delta, rows, out: &mut work.sampled_delta })?;
        backend.add_rms_norm(AddRmsNorm {
            x: &work.sampled_delta,
            residual: &mut work.sampled_residual,
            weight: &self.final_norm,
            eps: self.eps,
            num_rows,
            out: &mut work.sampled_normed,
        })?;
        let weight = self.lm_head.as_ref().unwrap_or(&self.embedding);
        backend.linear(Linear {
            x: &work.sampled_normed,
            weight,
            bias: None,
            num_rows,
            out: &mut work.logits,
        })
    }

    fn add_norm(
        &self,
        backend: &mut B,
        weight: &B::Vector,
        num_rows: usize,
        work: &mut Workspace<B>,
    ) -> Result<(), BackendError> {
        backend.add_rms_norm(AddRmsNorm {
            x: &work.delta,
            residual: &mut work.residual,
            weight,
            eps: self.eps,
            num_rows,
            out: &mut work.normed,
        })
    }
}

impl<B: Backend> Layer<B> {
    fn load(loader: &mut WeightLoader<'_, B>, layer: usize) -> Result<Self, ModelError> {
        let config = loader.checkpoint().config();
        let names = loader.checkpoint().names();
        Ok(Layer {
            mixer_norm: loader.layer_vector(&names.mixer_norm, layer, config.hidden_size)?,
            mixer: match config.architecture.mixer {
                MixerKind::Attention => Mixer::Attention(Attention::load(loader, layer)?),
            },
            ffn_norm: loader.layer_vector(&names.ffn_norm, layer, config.hidden_size)?,
            ffn: match config.architecture.ffn {
                FfnKind::Gated => Ffn::Gated(GatedFfn::load(loader, layer)?),
            },
        })
    }
}
