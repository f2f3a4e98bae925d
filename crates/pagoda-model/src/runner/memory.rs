//! The memory of a loaded model, known to the byte before the load, so that the KV pool can be sized and a shortfall refused
//! with numbers.

use pagoda_backend::{Backend, KvFormat};

use super::{ModelRunner, RunnerConfig, workspace};
use crate::{Checkpoint, ModelConfig, ModelError};

/// Activations are f32 matrices on a backend that does not count.
const ACTIVATION_BYTES: u64 = 4;

/// Bytes by what they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryBudget {
    /// Weights: as stored in the checkpoint before the load, as packed by the backend after it.
    pub weight_bytes: u64,
    /// The KV cache, block 0 included.
    pub kv_bytes: u64,
    /// Activations, the rope table, and what the backend keeps for its steps.
    pub workspace_bytes: u64,
}

impl MemoryBudget {
    /// What a load with these limits will take.
    pub fn plan(checkpoint: &Checkpoint, kv_format: KvFormat, config: &RunnerConfig) -> Self {
        let model = checkpoint.config();
        let rope = (config.max_model_len as u64).saturating_mul(model.rope.rotary_dim as u64);
        let activations = workspace::num_elements(model, config);
        MemoryBudget {
            weight_bytes: checkpoint.stored_weight_bytes(),
            kv_bytes: kv_bytes_per_block(model, kv_format, config.block_size)
                .saturating_mul(config.num_blocks as u64),
            workspace_bytes: activations.saturating_add(rope).saturating_mul(ACTIVATION_BYTES),
        }
    }

    /// What a load with these limits takes of a device, to the byte: loads the model, without its weights' numbers, onto a
    /// backend of which nothing but counting is expected.
    pub fn measure<B: Backend>(
        checkpoint: &Checkpoint,
        backend: B,
        config: &RunnerConfig,
    ) -> Result<Self, ModelError> {
        let shapes = checkpoint.without_weights();
        ModelRunner::assemble(&shapes, backend, *config).map(|runner| runner.memory())
    }

    /// With the workspace that a backend which counts has taken.
    pub(super) fn corrected(self, allocated_bytes: Option<u64>) -> Self {
        match allocated_bytes {
            Some(all) => MemoryBudget { workspace_bytes: all - self.weight_bytes - self.kv_bytes, ..self },
            None => self,
        }
    }

    /// All of it.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes.saturating_add(self.kv_bytes).saturating_add(self.workspace_bytes)
    }
}

/// Bytes of one KV block over all layers.
pub fn kv_bytes_per_block(model: &ModelConfig, kv_format: KvFormat, block_size: usize) -> u64 {
    let num_heads = 2 * model.num_layers * model.num_kv_heads; // of K and V
    (num_heads as u64).saturating_mul((block_size * kv_format.head_bytes(model.head_dim)) as u64)
}
