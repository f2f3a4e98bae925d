//! What a model could do at most on a device whose copy and product speed have just been measured: the rooflines that every
//! measured figure is stated against.
//!
//! A decode step streams the weights once (or computes, whichever takes longer) and the K and V of every context once; a
//! prompt is its products, and attention at the share of the product's speed that the best kernels reach.

use pagoda_backend::KvFormat;
use pagoda_model::{ModelConfig, kv_bytes_per_block};

/// Speed of causal attention over that of a large product, as the best published kernels have it on the same device (600 of
/// 790 TFLOP/s).
const ATTENTION_SHARE: f64 = 600.0 / 790.0;

/// Measured just now, on the same device and in the same process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Probe {
    /// Bytes read plus bytes written by a large copy, per second.
    pub(crate) copy_bytes_per_s: f64,
    /// Multiplications and additions of a large product, per second.
    pub(crate) product_flop_per_s: f64,
}

/// What of a model its speed depends on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ModelCost {
    /// Bytes of weights that a step reads: all but an embedding that is no lm_head.
    pub(crate) streamed_bytes: f64,
    /// Weights of the layers.
    num_body_weights: f64,
    /// Weights of the lm_head.
    num_head_weights: f64,
    /// Bytes of K and V of one token.
    kv_bytes_per_token: f64,
    /// Query channels of all layers.
    query_channels: f64,
}

impl ModelCost {
    /// The cost of a model whose packed weights take `weight_bytes`.
    pub(crate) fn new(model: &ModelConfig, weight_bytes: u64, kv_format: KvFormat) -> Self {
        let heads = model.heads();
        let hidden = model.hidden_size as f64;
        let projections = heads.qkv_width() + heads.q_width() + 3 * model.intermediate_size;
        let num_body_weights = model.num_layers as f64 * hidden * projections as f64;
        let num_head_weights = model.vocab_size as f64 * hidden;
        let num_embeddings = if model.tie_word_embeddings { 1.0 } else { 2.0 };
        let num_weights = num_body_weights + num_embeddings * num_head_weights;
        let streamed_share = (num_body_weights + num_head_weights) / num_weights;
        ModelCost {
            streamed_bytes: weight_bytes as f64 * streamed_share,
            num_body_weights,
            num_head_weights,
            kv_bytes_per_token: kv_bytes_per_block(model, kv_format, 1) as f64,
            query_channels: (model.num_layers * heads.q_width()) as f64,
        }
    }

    /// Seconds of a step that decodes one token of each context.
    pub(crate) fn decode_step_s(&self, probe: &Probe, batch_size: usize, context_tokens: f64) -> f64 {
        let flop = 2.0 * (self.num_body_weights + self.num_head_weights) * batch_size as f64;
        let stream = self.streamed_bytes / probe.copy_bytes_per_s;
        stream.max(flop / probe.product_flop_per_s)
            + context_tokens * self.kv_bytes_per_token / probe.copy_bytes_per_s
    }

    /// Seconds of a prompt's products and attention.
    pub(crate) fn prefill_s(&self, probe: &Probe, prompt_len: usize) -> f64 {
        let len = prompt_len as f64;
        let product = 2.0 * (self.num_body_weights * len + self.num_head_weights);
        // Half of len x len scores, each two products of a channel.
        let attention = 2.0 * len * len * self.query_channels;
        product / probe.product_flop_per_s + attention / (ATTENTION_SHARE * probe.product_flop_per_s)
    }

    /// Seconds of requests that all begin at once: their prompts, then steps in which all that are left decode.
    pub(crate) fn batch_s(&self, probe: &Probe, lengths: &[(usize, usize)]) -> f64 {
        let prompts: f64 = lengths.iter().map(|(prompt_len, _)| self.prefill_s(probe, *prompt_len)).sum();
        let num_steps = lengths.iter().map(|(_, output_len)| *output_len).max().unwrap_or(0);
        let step = |step: usize| {
            let left = lengths.iter().filter(|(_, output_len)| *output_len > step);
            let contexts = left.map(|(prompt_len, _)| prompt_len + step);
            let (batch_size, tokens) = contexts.fold((0, 0), |(n, sum), context| (n + 1, sum + context));
            self.decode_step_s(probe, batch_size, tokens as f64)
        };
        prompts + (0..num_steps).map(step).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use pagoda_model::Checkpoint;

    use super::*;

    /// An H200's.
    const PROBE: Probe = Probe { copy_bytes_per_s: 4.3e12, product_flop_per_s: 790e12 };

    fn cost(name: &str) -> ModelCost {
        let configs = concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/configs");
        let checkpoint = Checkpoint::open_dummy(format!("{configs}/{name}.json"), 0).unwrap();
        ModelCost::new(checkpoint.config(), checkpoint.stored_weight_bytes(), KvFormat::Bf16)
    }

    fn assert_near(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 0.01, "{found} instead of {expected}");
    }

    #[test]
    fn roofs_are_those_worked_out_by_hand() {
        let large = cost("llama-3.1-8b");
        assert_near(large.streamed_bytes, 15.01e9);
        // 15.01 GB and 1024 x 131,072 bytes at 4.3 TB/s.
        assert_near(large.decode_step_s(&PROBE, 1, 1024.0), 3.52e-3);
        // At 256 rows the products (4.86 ms) take longer than the stream.
        assert_near(256.0 / large.decode_step_s(&PROBE, 256, 256.0 * 1024.0), 19_916.0);
        assert_near(2048.0 / large.prefill_s(&PROBE, 2048), 53_900.0);
        let small = cost("qwen3-0.6b");
        assert_near(small.streamed_bytes, 1.192e9);
        assert_near(8.0 / small.decode_step_s(&PROBE, 8, 8.0 * 1024.0), 16_139.0);
        assert_near(1024.0 / small.prefill_s(&PROBE, 1024), 763e3);
    }

    #[test]
    fn requests_that_begin_together_pay_for_their_prompts_and_for_the_longest_answer() {
        let cost = cost("llama-3.2-1b");
        let together = cost.batch_s(&PROBE, &[(100, 3), (50, 1)]);
        let expected = cost.prefill_s(&PROBE, 100)
            + cost.prefill_s(&PROBE, 50)
            + cost.decode_step_s(&PROBE, 2, 150.0)
            + cost.decode_step_s(&PROBE, 1, 101.0)
            + cost.decode_step_s(&PROBE, 1, 102.0);
        assert_near(together, expected);
    }
}
