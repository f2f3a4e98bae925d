//! The gated feed-forward part: `down(act(gate(x)) * up(x))` with gate and up as one product.

use pagoda_backend::{Activation, Backend, BackendError, GatedActivation, Linear};

use super::LayerInput;
use super::weights::WeightLoader;
use crate::ModelError;
use crate::architecture::{ActivationKind, TensorNames};
use crate::runner::Workspace;

/// The feed-forward part of one layer.
pub(super) struct GatedFfn<B: Backend> {
    /// `[2 * intermediate, hidden]`: gate, up stacked.
    gate_up: B::Weight,
    /// `[2 * intermediate]`
    gate_up_bias: Option<B::Vector>,
    /// `[hidden, intermediate]`
    down: B::Weight,
    /// `[hidden]`
    down_bias: Option<B::Vector>,
    activation: Activation,
}

impl<B: Backend> GatedFfn<B> {
    pub(super) fn load(loader: &mut WeightLoader<'_, B>, layer: usize) -> Result<Self, ModelError> {
        let checkpoint = loader.checkpoint();
        let (config, names) = (checkpoint.config(), checkpoint.names());
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let name = |pattern: &str| TensorNames::of_layer(pattern, layer);
        let gate_up = loader.pack(&[
            checkpoint.matrix(&name(&names.gate), intermediate, hidden)?,
            checkpoint.matrix(&name(&names.up), intermediate, hidden)?,
        ])?;
        let down = loader.pack(&[checkpoint.matrix(&name(&names.down), hidden, intermediate)?])?;
        Ok(GatedFfn {
            gate_up,
            gate_up_bias: Self::load_gate_up_bias(loader, layer)?,
            down,
            down_bias: loader.bias(config.architecture.ffn_bias, &names.down, layer, hidden)?,
            activation: match config.architecture.activation {
                ActivationKind::Silu => Activation::Silu,
                ActivationKind::GeluTanh => Activation::GeluTanh,
            },
        })
    }

    fn load_gate_up_bias(
        loader: &mut WeightLoader<'_, B>,
        layer: usize,
    ) -> Result<Option<B::Vector>, ModelError> {
        let checkpoint = loader.checkpoint();
        let (config, names) = (checkpoint.config(), checkpoint.names());
        let name = |pattern: &str| WeightLoader::<B>::bias_name(pattern, layer);
        if !checkpoint.has(config.architecture.ffn_bias, &name(&names.gate)) {
            return Ok(None);
        }
        let stacked = [
            checkpoint.vector(&name(&names.gate), config.intermediate_size)?,
            checkpoint.vector(&name(&names.up), config.intermediate_size)?,
        ]
        .concat();
        loader.upload(&stacked).map(Some)
    }

    /// `normed` to `delta`.
    pub(super) fn forward(
        &self,
        backend: &mut B,
        input: &LayerInput<'_, B>,
        work: &mut Workspace<B>,
    ) -> Result<(), BackendError> {
        let num_rows = input.num_rows;
        backend.linear(Linear {
            x: &work.normed,
            weight: &self.gate_up,
            bias: self.gate_up_bias.as_ref(),
            num_rows,
            out: &mut work.gate_up,
        })?;
        backend.gated_activation(GatedActivation {
            gate_up: &work.gate_up,
            activation: self.activation,
            num_rows,
            out: &mut work.activated,
        })?;
        backend.linear(Linear {
            x: &work.activated,
            weight: &self.down,
            bias: self.down_bias.as_ref(),
            num_rows,
            out: &mut work.delta,
        })
    }
}
