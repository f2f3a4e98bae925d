//! The wiring: the one place where all parts meet. A checkpoint becomes text assets and a model runner, the runner an
//! engine, and all of it what the server is handed.

use std::io::{LineWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use pagoda_engine::EngineHandle;
use pagoda_model::{Checkpoint, GenerationDefaults, MemoryBudget};
use pagoda_server::{LoadedModel, SamplingDefaults};

use crate::args::ServeArgs;
use crate::config::Config;
use crate::device::Device;
use crate::{device_report, text};

/// A model that is ready to serve, and what it took.
pub(crate) struct Wired {
    /// For the server.
    pub(crate) model: LoadedModel,
    /// Measured after the load.
    pub(crate) memory: MemoryBudget,
    /// Device, threads, instruction set.
    pub(crate) device: String,
}

/// Loads everything. Takes as long as reading and packing the weights does.
pub(crate) fn load(
    checkpoint: &Checkpoint,
    args: &ServeArgs,
    config: &Config,
    device: Device,
) -> anyhow::Result<Wired> {
    let assets = checkpoint.text_assets();
    let stop_token_ids = assets.stop_token_ids.clone();
    let chat_template = text::chat_template(&assets, args.chat_template.as_deref())?;
    let tokenizer = Arc::new(text::tokenizer(assets)?);

    let report = device_report::of(&device);
    let runner = device.load(checkpoint, config.runner).context("loading the model")?;
    let (memory, device) = (runner.memory(), runner.describe());

    let mut engine_config = config.engine();
    engine_config.pipeline_depth = runner.pipeline_depth();
    engine_config.trace = args.trace_steps.as_deref().map(open_trace).transpose()?;
    let engine = EngineHandle::spawn(engine_config, runner)?;
    let model = LoadedModel {
        engine,
        tokenizer,
        chat_template,
        stop_token_ids,
        sampling_defaults: sampling_defaults(&checkpoint.generation_defaults()),
        max_trained_len: checkpoint.config().max_position_embeddings,
        block_size: config.runner.block_size,
        device: device_report::loaded(report, device.clone(), memory),
    };
    Ok(Wired { model, memory, device })
}

fn sampling_defaults(model: &GenerationDefaults) -> SamplingDefaults {
    let neutral = SamplingDefaults::default();
    SamplingDefaults {
        temperature: model.temperature.unwrap_or(neutral.temperature),
        top_p: model.top_p.unwrap_or(neutral.top_p),
        top_k: model.top_k.unwrap_or(neutral.top_k),
        min_p: model.min_p.unwrap_or(neutral.min_p),
        repetition_penalty: model.repetition_penalty.unwrap_or(neutral.repetition_penalty),
    }
}

fn open_trace(path: &Path) -> anyhow::Result<Box<dyn Write + Send>> {
    if path == Path::new("-") {
        return Ok(Box::new(std::io::stderr()));
    }
    let file =
        std::fs::File::create(path).with_context(|| format!("opening --trace-steps {}", path.display()))?;
    Ok(Box::new(LineWriter::new(file)))
}
