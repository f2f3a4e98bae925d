//! Moves weights from a checkpoint to a backend and counts what they occupy there.

use pagoda_backend::{Backend, HostMatrix};

use crate::architecture::{Presence, TensorNames};
use crate::checkpoint::bias_name;
use crate::{Checkpoint, ModelError};

/// A checkpoint and the backend that receives its weights.
pub(super) struct WeightLoader<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    backend: &'a mut B,
    num_bytes: u64,
}

impl<'a, B: Backend> WeightLoader<'a, B> {
    pub(super) fn new(checkpoint: &'a Checkpoint, backend: &'a mut B) -> Self {
        WeightLoader { checkpoint, backend, num_bytes: 0 }
    }

    /// Where the weights come from.
    pub(super) fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// Bytes of everything packed so far.
    pub(super) fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// Packs matrices into one, stacked along the rows.
    pub(super) fn pack(&mut self, parts: &[HostMatrix<'_>]) -> Result<B::Weight, ModelError> {
        let weight = self.backend.pack_weight(parts)?;
        self.num_bytes += self.backend.weight_bytes(&weight);
        Ok(weight)
    }

    /// A parameter vector by its full name.
    pub(super) fn vector(&mut self, name: &str, len: usize) -> Result<B::Vector, ModelError> {
        let values = self.checkpoint.vector(name, len)?;
        self.upload(&values)
    }

    /// A parameter vector of one layer.
    pub(super) fn layer_vector(
        &mut self,
        name: &str,
        layer: usize,
        len: usize,
    ) -> Result<B::Vector, ModelError> {
        self.vector(&TensorNames::of_layer(name, layer), len)
    }

    /// A parameter vector that is already in memory.
    pub(super) fn upload(&mut self, values: &[f32]) -> Result<B::Vector, ModelError> {
        self.num_bytes += size_of_val(values) as u64;
        Ok(self.backend.upload_vector(values)?)
    }

    /// The bias beside one weight of a layer, if it is there.
    pub(super) fn bias(
        &mut self,
        presence: Presence,
        weight: &str,
        layer: usize,
        len: usize,
    ) -> Result<Option<B::Vector>, ModelError> {
        let name = Self::bias_name(weight, layer);
        if !self.checkpoint.has(presence, &name) {
            return Ok(None);
        }
        self.vector(&name, len).map(Some)
    }

    /// The name of the bias beside a weight of one layer.
    pub(super) fn bias_name(weight: &str, layer: usize) -> String {
        bias_name(&TensorNames::of_layer(weight, layer))
    }
}
