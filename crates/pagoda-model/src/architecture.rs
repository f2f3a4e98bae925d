//! Model families as data: the description of a family in `models/<family>.toml`, parsed once. Holds names and enum words
//! only; numbers of one model are in [`crate::ModelConfig`], and what a word does is in the decoder.

use std::sync::OnceLock;

use serde::Deserialize;

use crate::ModelError;

/// The family files that are compiled in.
const FAMILY_FILES: [&str; 3] = [
    include_str!("../../../models/llama.toml"),
    include_str!("../../../models/qwen2.toml"),
    include_str!("../../../models/qwen3.toml"),
];

/// One model family.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Architecture {
    /// The family's name.
    pub name: String,
    /// Values of `architectures` in a `config.json`.
    pub hf_architectures: Vec<String>,
    /// Values of `general.architecture` in a GGUF.
    pub gguf_architectures: Vec<String>,
    /// The layer's token mixer.
    pub mixer: MixerKind,
    /// The layer's feed-forward part.
    pub ffn: FfnKind,
    /// The gate's function.
    pub activation: ActivationKind,
    /// Where a layer's norms stand.
    pub norm_placement: NormPlacement,
    /// Bias of the Q, K and V projections.
    pub qkv_bias: Presence,
    /// Bias of the attention's output projection.
    pub output_bias: Presence,
    /// Bias of the feed-forward projections.
    pub ffn_bias: Presence,
    /// RMS norms on each Q and K head.
    pub qk_norm: Presence,
    /// How far back a query sees.
    pub window: WindowKind,
    /// Order of the Q and K rows in a GGUF.
    pub gguf_qk_rows: QkRowOrder,
    /// Tensor names in a safetensors checkpoint.
    pub hf: TensorNames,
    /// Tensor names in a GGUF.
    pub gguf: TensorNames,
}

/// Tensor names; `{layer}` stands for the layer's number. Biases replace `.weight` by `.bias`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorNames {
    /// `[vocab, hidden]`
    pub embedding: String,
    /// `[hidden]`
    pub final_norm: String,
    /// `[vocab, hidden]`; absent if tied to the embedding.
    pub lm_head: String,
    /// `[hidden]`
    pub mixer_norm: String,
    /// `[q heads * head_dim, hidden]`
    pub q: String,
    /// `[kv heads * head_dim, hidden]`
    pub k: String,
    /// `[kv heads * head_dim, hidden]`
    pub v: String,
    /// `[hidden, q heads * head_dim]`
    pub output: String,
    /// `[head_dim]`
    pub q_norm: String,
    /// `[head_dim]`
    pub k_norm: String,
    /// `[hidden]`
    pub ffn_norm: String,
    /// `[intermediate, hidden]`
    pub gate: String,
    /// `[intermediate, hidden]`
    pub up: String,
    /// `[hidden, intermediate]`
    pub down: String,
    /// Tensors that carry nothing the decoder needs (tables it computes itself).
    pub ignored: Vec<String>,
}

/// Word for a token mixer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MixerKind {
    /// Multi-head attention with grouped KV heads.
    Attention,
}

/// Word for a feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FfnKind {
    /// `down(act(gate(x)) * up(x))`
    Gated,
}

/// Word for the gate's function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationKind {
    /// `x * sigmoid(x)`
    Silu,
    /// GELU by its tanh formula.
    GeluTanh,
}

/// Word for where the norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// Before mixer and feed-forward part: `x += f(norm(x))`.
    Pre,
}

/// Whether a family has an optional part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Presence {
    /// Never; a checkpoint that has it is refused.
    Never,
    /// Where the checkpoint has it.
    Optional,
    /// Always.
    Always,
}

/// Word for the attention window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WindowKind {
    /// Every query sees all keys before it.
    None,
    /// `sliding_window` of the configuration, on every layer.
    Config,
}

/// Order of the rows within a Q or K head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkRowOrder {
    /// Row `i` is rotated with row `i + head_dim / 2`, as the backends do it.
    Halves,
    /// Row `2 i` is rotated with row `2 i + 1`; the loader reorders the rows.
    Pairs,
}

impl Architecture {
    /// Every family that is compiled in.
    pub fn all() -> &'static [Architecture] {
        static ALL: OnceLock<Vec<Architecture>> = OnceLock::new();
        ALL.get_or_init(|| {
            let parse = |text| {
                toml::from_str(text).expect("the family files are compiled in and parsed by the tests")
            };
            FAMILY_FILES.into_iter().map(parse).collect()
        })
    }

    /// The family of a `config.json`'s architecture name.
    pub fn for_hf(name: &str) -> Result<&'static Architecture, ModelError> {
        Self::find(name, |family| &family.hf_architectures)
    }

    /// The family of a GGUF's architecture name.
    pub fn for_gguf(name: &str) -> Result<&'static Architecture, ModelError> {
        Self::find(name, |family| &family.gguf_architectures)
    }

    fn find(
        name: &str,
        names: impl Fn(&Architecture) -> &Vec<String>,
    ) -> Result<&'static Architecture, ModelError> {
        Self::all().iter().find(|family| names(family).iter().any(|known| known == name)).ok_or_else(|| {
            let supported = Self::all().iter().flat_map(|family| names(family).clone()).collect::<Vec<_>>();
            ModelError::UnknownArchitecture { name: name.to_owned(), supported: supported.join(", ") }
        })
    }
}

impl TensorNames {
    /// The name of a tensor of one layer.
    pub(crate) fn of_layer(name: &str, layer: usize) -> String {
        name.replace("{layer}", &layer.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_file_parses_and_names_are_unique() {
        let mut hf: Vec<_> = Architecture::all().iter().flat_map(|family| &family.hf_architectures).collect();
        let num_names = hf.len();
        hf.sort();
        hf.dedup();
        assert_eq!(hf.len(), num_names);
        assert_eq!(Architecture::for_hf("LlamaForCausalLM").unwrap().name, "llama");
        assert_eq!(Architecture::for_gguf("llama").unwrap().name, "llama");
    }

    #[test]
    fn an_unknown_architecture_lists_the_known_ones() {
        let error = Architecture::for_gguf("sparrow").unwrap_err().to_string();
        assert_eq!(error, "architecture 'sparrow' is not supported (supported: llama, qwen2, qwen3)");
    }

    #[test]
    fn an_unknown_field_in_a_family_file_is_refused() {
        let text = format!("colour = \"red\"\n{}", FAMILY_FILES[0]);
        assert!(toml::from_str::<Architecture>(&text).unwrap_err().to_string().contains("colour"));
    }
}
