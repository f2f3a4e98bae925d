//! `pagoda bench agreement`: a device against the CPU's f32 arithmetic on the same text, teacher-forced: at every place both see
//! the same tokens before it, so that one difference does not make the next. Three numbers count: how often the likeliest
//! token is the same, by how much the logprob of the text's own token differs, and how close the exact logprobs of the two
//! candidates are where the likeliest token is another.

use anyhow::{Context, bail, ensure};
use pagoda_engine::{
    CacheSalt, Engine, EngineEvent, Executor, Request, RequestEvent, RequestId, SamplingParams, StepOutcome,
    StopCriteria, TokenLogprobs,
};
use pagoda_model::Checkpoint;
use serde_json::json;

use super::python_random::PythonRandom;
use super::results::Results;
use crate::args::{AgreementLimits, BenchAgreementArgs, Dtype, LoadFormat, ModelArgs};
use crate::config::{Config, served_name};
use crate::device::{Device, DeviceChoice, DeviceConfig, GpuOptions};
use crate::{environment, serve, text};

/// English prose with numbers and tables in it.
const TEXT: &str = include_str!("../../../../docs/scheduling.md");
/// Tokens of one request: contexts of all lengths up to this occur.
const WINDOW_LEN: usize = 512;
/// Likeliest tokens that are compared.
pub(super) const NUM_LOGPROBS: u32 = 2;

/// How two arithmetics differ on a text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Agreement {
    num_places: usize,
    num_same: usize,
    /// Sum over the places of the difference of the text's own token.
    sum_difference: f64,
    max_difference: f64,
    /// The largest exact gap of the two likeliest tokens where the likeliest is another.
    max_gap: f64,
}

/// Loads the model twice, one after the other, and compares.
pub(crate) fn run(args: &BenchAgreementArgs) -> anyhow::Result<()> {
    let store = environment::model_store(&args.model.store)?;
    let model = args.model.model.clone().unwrap_or_else(|| store.catalogue.default.clone());
    let subject = DeviceConfig::resolve(&args.model)?;
    // Before the exact run, which takes long: a device that is not there should say so at once.
    let device = Device::open(&subject)?;
    let checkpoint = serve::open_checkpoint(args.model.load_format, &store.locate(&model)?)
        .with_context(|| format!("{model} cannot be loaded"))?;
    let windows = windows(args, &checkpoint)?;
    let (_, expected) = logprobs(&args.model, &checkpoint, Device::open(&exact(subject))?, &windows)?;
    let (description, found) = logprobs(&args.model, &checkpoint, device, &windows)?;
    let mut agreement = Agreement::default();
    for (expected, found) in expected.iter().zip(&found) {
        agreement.add(expected, found);
    }
    let common = json!({ "bench": "agreement", "model": served_name(&model), "device": description,
        "version": env!("CARGO_PKG_VERSION") });
    Results::open(args.json.as_deref(), common)?.add(&agreement.text(&description), agreement.json())?;
    agreement.check(args.limits)
}

/// The device that all others are compared with.
pub(crate) fn exact(subject: DeviceConfig) -> DeviceConfig {
    DeviceConfig {
        choice: DeviceChoice::Cpu,
        arithmetic: pagoda_backend_cpu::Arithmetic::F32,
        gpu: GpuOptions { dtype: Dtype::Auto, is_fp8_kv: false, ..subject.gpu },
        ..subject
    }
}

/// The tokens to compare on, cut into requests.
fn windows(args: &BenchAgreementArgs, checkpoint: &Checkpoint) -> anyhow::Result<Vec<Vec<u32>>> {
    let is_noise = args.model.load_format != LoadFormat::Auto;
    let mut tokens = match &args.text {
        None if is_noise => {
            let mut random = PythonRandom::new(0);
            let last = checkpoint.num_choosable_tokens() as u32 - 1;
            (0..args.num_tokens).map(|_| random.randint(0, last)).collect()
        }
        file => {
            let text = match file {
                Some(file) => {
                    std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?
                }
                None => TEXT.to_owned(),
            };
            text::tokenizer(checkpoint.text_assets())?.encode(&text, true)?
        }
    };
    tokens.truncate(args.num_tokens);
    let windows: Vec<Vec<u32>> =
        tokens.chunks(WINDOW_LEN).filter(|window| window.len() > 1).map(<[u32]>::to_vec).collect();
    ensure!(!windows.is_empty(), "the text has less than two tokens");
    Ok(windows)
}

/// What a device says about every token of every window but the first ones.
pub(super) fn logprobs(
    args: &ModelArgs,
    checkpoint: &Checkpoint,
    device: Device,
    windows: &[Vec<u32>],
) -> anyhow::Result<(String, Vec<TokenLogprobs>)> {
    let mut args = args.clone();
    let model_limit = checkpoint.config().max_position_embeddings;
    args.max_model_len.get_or_insert((2 * WINDOW_LEN).min(model_limit));
    args.max_num_seqs.get_or_insert(4);
    let config = Config::resolve(&args, checkpoint, device.memory()?)?;
    let runner = device.load(checkpoint, config.runner).context("loading the model")?;
    let description = runner.describe();
    let mut engine_config = config.engine();
    engine_config.pipeline_depth = runner.pipeline_depth();
    let mut engine = Engine::new(engine_config, runner)?;
    let mut all = Vec::new();
    for (id, window) in windows.iter().enumerate() {
        let request = Request {
            prompt: window.clone(),
            sampling: std::sync::Arc::new(SamplingParams::greedy()),
            stop: StopCriteria::default(),
            num_sequences: 1,
            priority: 0,
            cache_salt: CacheSalt::default(),
            prompt_logprobs: Some(NUM_LOGPROBS),
            constraint: None,
        };
        engine.add_request(RequestId(id as u64), request)?;
        let before = all.len();
        while engine.step() == StepOutcome::Progressed {
            take(&mut engine, &mut all)?;
        }
        take(&mut engine, &mut all)?;
        ensure!(all.len() - before == window.len() - 1, "logprobs of {} tokens came", all.len() - before);
    }
    Ok((description, all))
}

fn take<E: Executor<Extra = Option<TokenLogprobs>>>(
    engine: &mut Engine<E>,
    all: &mut Vec<TokenLogprobs>,
) -> anyhow::Result<()> {
    for event in engine.take_events() {
        match event {
            EngineEvent::Request(_, RequestEvent::PromptLogprobs(logprobs)) => {
                all.extend(logprobs.into_iter().flatten());
            }
            EngineEvent::Request(_, RequestEvent::Failed(error)) => bail!("a step failed: {error}"),
            EngineEvent::Request(_, RequestEvent::SequenceFailed { error, .. }) => {
                bail!("a step failed: {error}")
            }
            _ => {}
        }
    }
    Ok(())
}

impl Agreement {
    pub(super) fn add(&mut self, expected: &TokenLogprobs, found: &TokenLogprobs) {
        let difference = f64::from((expected.logprob - found.logprob).abs());
        self.num_places += 1;
        self.sum_difference += difference;
        // A NaN is the largest of all.
        self.max_difference = if difference > self.max_difference || difference.is_nan() {
            difference
        } else {
            self.max_difference
        };
        if expected.top[0].0 == found.top[0].0 {
            self.num_same += 1;
        } else {
            self.max_gap = self.max_gap.max(f64::from(expected.top[0].1 - expected.top[1].1));
        }
    }

    fn percent(&self) -> f64 {
        100.0 * self.num_same as f64 / self.num_places as f64
    }

    fn mean_difference(&self) -> f64 {
        self.sum_difference / self.num_places as f64
    }

    pub(super) fn text(&self, device: &str) -> String {
        format!(
            "{device}: the likeliest token is that of the exact arithmetic at {} of {} places ({:.2} %); the logprob of the \
             text's tokens differs by {:.4} in the mean and {:.4} at most; where the likeliest is another, the exact gap is \
             {:.4} at most",
            self.num_same,
            self.num_places,
            self.percent(),
            self.mean_difference(),
            self.max_difference,
            self.max_gap
        )
    }

    pub(super) fn json(&self) -> serde_json::Value {
        json!({
            "num_places": self.num_places, "num_same": self.num_same, "percent_same": self.percent(),
            "mean_logprob_difference": self.mean_difference(), "max_logprob_difference": self.max_difference,
            "max_gap_of_others": self.max_gap,
        })
    }

    pub(super) fn check(&self, limits: AgreementLimits) -> anyhow::Result<()> {
        // Written so that a NaN fails.
        let is_close = self.percent() >= limits.min_percent
            && self.mean_difference() <= limits.max_difference
            && self.max_gap < limits.max_gap;
        if is_close { Ok(()) } else { bail!("the device does not agree with the exact arithmetic") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(logprob: f32, top: [(u32, f32); 2]) -> TokenLogprobs {
        TokenLogprobs { logprob, rank: 1, top: top.to_vec() }
    }

    #[test]
    fn places_differences_and_gaps_are_counted() {
        let mut agreement = Agreement::default();
        agreement.add(&place(-1.0, [(7, -1.0), (8, -2.0)]), &place(-1.5, [(7, -1.5), (8, -1.75)]));
        agreement.add(&place(-3.0, [(7, -1.0), (8, -1.25)]), &place(-3.0, [(8, -1.0), (7, -1.25)]));
        assert_eq!((agreement.num_places, agreement.num_same), (2, 1));
        assert_eq!((agreement.mean_difference(), agreement.max_difference), (0.25, 0.5));
        assert_eq!((agreement.percent(), agreement.max_gap), (50.0, 0.25));
        agreement.add(&place(f32::NAN, [(7, -1.0), (8, -2.0)]), &place(-1.5, [(7, -1.5), (8, -1.75)]));
        assert!(agreement.mean_difference().is_nan() && agreement.max_difference.is_nan());
    }
}
