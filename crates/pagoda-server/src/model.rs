//! The loaded model as the server sees it: an engine handle, a tokenizer, a chat template and a few numbers. The binary
//! puts it together and hands it over when it is ready.

use std::fmt;
use std::sync::Arc;

use pagoda_engine::{EngineHandle, TokenLogprobs};
use pagoda_text::{ChatTemplate, GrammarCompiler, GrammarOptions, Tokenizer};

use crate::ServerConfig;
use crate::metrics::{DeviceReport, Metrics};
use crate::parsing::ModelParsing;
use crate::prefix_log::PrefixLog;

/// What comes with each token.
pub type TokenPayload = Option<TokenLogprobs>;

/// Everything that is known once the model is loaded.
pub struct LoadedModel {
    /// The running engine.
    pub engine: EngineHandle<TokenPayload>,
    /// The model's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The model's chat template; without one, chat completions are refused.
    pub chat_template: Option<ChatTemplate>,
    /// The tokens that end an answer (generation_config's list, and GGUF's eos, eot and eom).
    pub stop_token_ids: Vec<u32>,
    /// What counts when a client does not say.
    pub sampling_defaults: SamplingDefaults,
    /// The longest context that the model was trained for; the server's own window may be smaller.
    pub max_trained_len: usize,
    /// Tokens per KV block, for the metrics.
    pub block_size: usize,
    /// Where the model runs, for the metrics.
    pub device: DeviceReport,
}

/// The sampling numbers that count when a client does not say. The model's generation_config may change them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingDefaults {
    /// 0 is greedy.
    pub temperature: f32,
    /// 1 is off.
    pub top_p: f32,
    /// 0 is off.
    pub top_k: u32,
    /// 0 is off.
    pub min_p: f32,
    /// 1 is off.
    pub repetition_penalty: f32,
}

impl Default for SamplingDefaults {
    fn default() -> Self {
        SamplingDefaults { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, repetition_penalty: 1.0 }
    }
}

/// A loaded model with its metrics.
pub(crate) struct ServedModel {
    pub(crate) engine: EngineHandle<TokenPayload>,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) chat_template: Option<ChatTemplate>,
    /// What its template shows of tools and reasoning.
    pub(crate) parsing: ModelParsing,
    pub(crate) stop_token_ids: Arc<[u32]>,
    pub(crate) sampling_defaults: SamplingDefaults,
    /// Compiles what answers must be; `None` for a vocabulary that cannot be laid out.
    pub(crate) grammars: Option<GrammarCompiler>,
    pub(crate) max_model_len: usize,
    pub(crate) max_trained_len: usize,
    pub(crate) metrics: Metrics,
    pub(crate) prefix_log: PrefixLog,
}

impl ServedModel {
    pub(crate) fn new(model: LoadedModel, config: &ServerConfig) -> Self {
        let max_model_len = model.engine.limits().max_model_len;
        let num_blocks = model.engine.stats().kv_blocks_total as usize + 1;
        let layout = (model.block_size, num_blocks);
        let metrics = Metrics::new(&config.served_model_names[0], max_model_len, layout, model.device);
        let options = GrammarOptions {
            eos_ids: model.stop_token_ids.clone(),
            limits: config.grammar_limits.clone(),
            bounds: config.schema_bounds,
        };
        let grammars = GrammarCompiler::new(&model.tokenizer, options);
        if let Err(error) = &grammars {
            tracing::warn!(%error, "structured output is off");
        }
        ServedModel {
            grammars: grammars.ok(),
            parsing: ModelParsing::new(model.chat_template.as_ref(), &model.tokenizer),
            engine: model.engine,
            tokenizer: model.tokenizer,
            chat_template: model.chat_template,
            stop_token_ids: model.stop_token_ids.into(),
            sampling_defaults: model.sampling_defaults,
            max_model_len,
            max_trained_len: model.max_trained_len,
            metrics,
            prefix_log: PrefixLog::default(),
        }
    }
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel")
            .field("has_chat_template", &self.chat_template.is_some())
            .field("stop_token_ids", &self.stop_token_ids)
            .field("sampling_defaults", &self.sampling_defaults)
            .field("block_size", &self.block_size)
            .finish_non_exhaustive()
    }
}
