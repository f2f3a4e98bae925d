//! `pagoda bench consistency`: requests of all lengths that come and go, answered greedily by the real engine in each way that a
//! device can be given the same steps: as CUDA graphs or as single launches, with two steps in flight or one. Where the ways
//! have the same arithmetic, ids and the bits of their logprobs must be the same; and at every place of an answer the exact
//! CPU arithmetic, given the same tokens before it, must agree as `bench agreement` has it for prompts.

use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use pagoda_engine::{
    CacheSalt, Engine, EngineEvent, Executor, PipelineDepth, Request, RequestEvent, RequestId,
    SamplingParams, StepOutcome, StopCriteria, TokenLogprobs,
};
use pagoda_model::Checkpoint;
use serde_json::json;

use super::agreement::{self, Agreement, NUM_LOGPROBS};
use super::python_random::PythonRandom;
use super::results::Results;
use crate::args::{BenchConsistencyArgs, ModelArgs};
use crate::config::{Config, served_name};
use crate::device::{Device, DeviceConfig, DeviceKind, GpuOptions};
use crate::{environment, serve};

/// Steps between two arrivals of the second half.
const ARRIVAL_STEPS: usize = 2;

/// A way to run steps.
#[derive(Clone, Copy, Debug)]
struct Way {
    name: &'static str,
    has_graphs: bool,
    pipeline_depth: PipelineDepth,
}

/// The first is what a server does on a GPU; the second has the same steps, the third may put others together.
const WAYS: [Way; 3] = [
    Way { name: "graphs, two steps in flight", has_graphs: true, pipeline_depth: PipelineDepth::Two },
    Way {
        name: "single launches, two steps in flight",
        has_graphs: false,
        pipeline_depth: PipelineDepth::Two,
    },
    Way { name: "graphs, one step in flight", has_graphs: true, pipeline_depth: PipelineDepth::One },
];

/// Ids of an answer and what the device said about each.
type Answer = Vec<(u32, TokenLogprobs)>;

/// What a way gave.
struct Outcome {
    description: String,
    answers: Vec<Answer>,
}

/// Loads the model once for every way, and once more for the exact arithmetic.
pub(crate) fn run(args: &BenchConsistencyArgs) -> anyhow::Result<()> {
    let store = environment::model_store(&args.model.store)?;
    let model = args.model.model.clone().unwrap_or_else(|| store.catalogue.default.clone());
    let subject = DeviceConfig::resolve(&args.model)?;
    let kind = Device::open(&subject)?.memory()?.kind;
    let checkpoint = serve::open_checkpoint(args.model.load_format, &store.locate(&model)?)
        .with_context(|| format!("{model} cannot be loaded"))?;
    let prompts = prompts(args, checkpoint.num_choosable_tokens());
    let mut outcomes = Vec::new();
    for way in WAYS {
        let gpu = GpuOptions { has_graphs: way.has_graphs && subject.gpu.has_graphs, ..subject.gpu };
        let device = Device::open(&DeviceConfig { gpu, ..subject })?;
        outcomes.push(answer(args, &checkpoint, (device, way), &prompts).context(way.name)?);
    }
    let exact = Exact::new(args, &checkpoint, (&prompts, &outcomes), subject)?;
    let mut faults = Vec::new();
    for (index, (way, outcome)) in WAYS.iter().zip(&outcomes).enumerate() {
        let same = Same::count(&outcomes[0].answers, &outcome.answers);
        let must_be_same = has_same_bits(index, kind, &args.model);
        let agreement = exact.agreement(&prompts, &outcome.answers);
        let common = json!({ "bench": "consistency", "model": served_name(&model), "way": way.name,
            "device": outcome.description, "version": env!("CARGO_PKG_VERSION"),
            "num_requests": prompts.len(), "must_be_same": must_be_same });
        let text = format!("{}: {same}; {}", way.name, agreement.text(&outcome.description));
        let mut fields = agreement.json();
        fields["num_tokens"] = json!(same.num_tokens);
        fields["num_same_as_first"] = json!(same.num_same);
        Results::open(args.json.as_deref(), common)?.add(&text, fields)?;
        if must_be_same && same.num_same != same.num_tokens {
            faults.push(format!("{}: not the answers of {}", way.name, WAYS[0].name));
        }
        if let Err(why) = agreement.check(args.limits) {
            faults.push(format!("{}: {why}", way.name));
        }
    }
    if faults.is_empty() { Ok(()) } else { bail!("{}", faults.join("; ")) }
}

/// Whether a way must give the bits of the first one: always where a row's bits do not depend on its company, and for the same
/// steps where nothing is chosen by measurement.
fn has_same_bits(way: usize, kind: DeviceKind, args: &ModelArgs) -> bool {
    let has_same_steps = WAYS[way].pipeline_depth == WAYS[0].pipeline_depth;
    kind == DeviceKind::Cpu || args.kernels.deterministic || has_same_steps && !args.kernels.uses_library()
}

fn prompts(args: &BenchConsistencyArgs, num_ids: usize) -> Vec<Vec<u32>> {
    let mut random = PythonRandom::new(args.seed);
    let (low, high) = (args.prompt_len.0 as u32, args.prompt_len.1 as u32);
    let mut prompt = |_| {
        let len = random.randint(low, high);
        (0..len).map(|_| random.randint(0, num_ids as u32 - 1)).collect()
    };
    (0..args.num_requests).map(&mut prompt).collect()
}

fn answer(
    args: &BenchConsistencyArgs,
    checkpoint: &Checkpoint,
    (device, way): (Device, Way),
    prompts: &[Vec<u32>],
) -> anyhow::Result<Outcome> {
    let mut model = args.model.clone();
    model.max_model_len.get_or_insert(args.prompt_len.1 + args.output_len);
    model.max_num_seqs.get_or_insert(args.num_requests);
    let config = Config::resolve(&model, checkpoint, device.memory()?)?;
    let runner = device.load(checkpoint, config.runner).context("loading the model")?;
    let description = runner.describe();
    let mut engine_config = config.engine();
    engine_config.pipeline_depth = way.pipeline_depth;
    // What a prompt finds in the cache depends on when it comes.
    engine_config.prefix_caching = false;
    let mut engine = Engine::new(engine_config, runner)?;
    let answers = play(&mut engine, prompts, args.output_len as u32)?;
    for answer in &answers {
        ensure!(answer.len() == args.output_len, "{} tokens of {} came", answer.len(), args.output_len);
    }
    Ok(Outcome { description, answers })
}

/// The first half of the requests comes at once, the others one by one.
fn play<E: Executor<Extra = Option<TokenLogprobs>>>(
    engine: &mut Engine<E>,
    prompts: &[Vec<u32>],
    max_tokens: u32,
) -> anyhow::Result<Vec<Answer>> {
    let mut answers = vec![Answer::new(); prompts.len()];
    let mut waiting = prompts.iter().enumerate();
    for step in 0.. {
        let num_due = match step {
            0 => prompts.len().div_ceil(2),
            _ => usize::from(step % ARRIVAL_STEPS == 0),
        };
        for (id, prompt) in waiting.by_ref().take(num_due) {
            engine.add_request(RequestId(id as u64), request(prompt, max_tokens))?;
        }
        let outcome = engine.step();
        take(engine, &mut answers)?;
        ensure!(outcome != StepOutcome::Stopped, "the engine has stopped");
        if outcome != StepOutcome::Progressed && waiting.len() == 0 {
            break;
        }
    }
    Ok(answers)
}

fn request(prompt: &[u32], max_tokens: u32) -> Request {
    Request {
        prompt: prompt.to_vec(),
        sampling: Arc::new(SamplingParams { num_logprobs: Some(NUM_LOGPROBS), ..SamplingParams::greedy() }),
        stop: StopCriteria { max_tokens, ..StopCriteria::default() },
        num_sequences: 1,
        priority: 0,
        cache_salt: CacheSalt::default(),
        prompt_logprobs: None,
        constraint: None,
    }
}

fn take<E: Executor<Extra = Option<TokenLogprobs>>>(
    engine: &mut Engine<E>,
    answers: &mut [Answer],
) -> anyhow::Result<()> {
    for event in engine.take_events() {
        match event {
            EngineEvent::Request(id, RequestEvent::Token(event)) => {
                let logprobs = event.extra.context("a token came without its logprobs")?;
                answers[id.0 as usize].push((event.token, logprobs));
            }
            EngineEvent::Request(id, RequestEvent::Failed(error)) => bail!("request {id} failed: {error}"),
            EngineEvent::Request(id, RequestEvent::SequenceFailed { error, .. }) => {
                bail!("request {id} failed: {error}")
            }
            _ => {}
        }
    }
    Ok(())
}

/// How much of the answers of two ways is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Same {
    num_tokens: usize,
    /// Ids and bits of logprobs, in each answer up to the first difference.
    num_same: usize,
    num_answers: usize,
    num_same_answers: usize,
}

impl Same {
    fn count(first: &[Answer], second: &[Answer]) -> Self {
        let mut same = Same::default();
        for (first, second) in first.iter().zip(second) {
            let is_same = |((a, of_a), (b, of_b)): &(&(u32, TokenLogprobs), &(u32, TokenLogprobs))| {
                a == b && of_a.logprob.to_bits() == of_b.logprob.to_bits()
            };
            let num_same = first.iter().zip(second).take_while(is_same).count();
            same.num_tokens += first.len();
            same.num_same += num_same;
            same.num_answers += 1;
            same.num_same_answers += usize::from(num_same == first.len());
        }
        same
    }
}

impl std::fmt::Display for Same {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} of {} answers have the bits of the first way, {} of {} tokens before their first difference",
            self.num_same_answers, self.num_answers, self.num_same, self.num_tokens
        )
    }
}

/// What the exact arithmetic says about the answers of all ways: most of them are the same text, which is computed once.
struct Exact {
    num_requests: usize,
    texts: Vec<(Vec<u32>, Vec<TokenLogprobs>)>,
}

impl Exact {
    fn new(
        args: &BenchConsistencyArgs,
        checkpoint: &Checkpoint,
        (prompts, outcomes): (&[Vec<u32>], &[Outcome]),
        subject: DeviceConfig,
    ) -> anyhow::Result<Self> {
        let mut windows: Vec<Vec<u32>> = Vec::new();
        for outcome in outcomes {
            for text in prompts.iter().zip(&outcome.answers).take(args.num_exact).map(text) {
                if !windows.contains(&text) {
                    windows.push(text);
                }
            }
        }
        let device = Device::open(&agreement::exact(subject))?;
        let mut model = args.model.clone();
        model.max_model_len = Some(args.prompt_len.1 + args.output_len + 1);
        let (_, all) = agreement::logprobs(&model, checkpoint, device, &windows)?;
        let mut rest = all.into_iter();
        // A window's first token has no logprob.
        let texts = windows.into_iter().map(|text| {
            let logprobs = rest.by_ref().take(text.len() - 1).collect();
            (text, logprobs)
        });
        Ok(Exact { num_requests: args.num_exact, texts: texts.collect() })
    }

    fn agreement(&self, prompts: &[Vec<u32>], answers: &[Answer]) -> Agreement {
        let mut agreement = Agreement::default();
        for (prompt, answer) in prompts.iter().zip(answers).take(self.num_requests) {
            let wanted = text((prompt, answer));
            let (_, expected) = self.texts.iter().find(|(text, _)| *text == wanted).expect("it was computed");
            for ((_, found), expected) in answer.iter().zip(&expected[prompt.len() - 1..]) {
                agreement.add(expected, found);
            }
        }
        agreement
    }
}

fn text((prompt, answer): (&Vec<u32>, &Answer)) -> Vec<u32> {
    prompt.iter().copied().chain(answer.iter().map(|(id, _)| *id)).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{BenchCommand, Cli, Command};

    fn args(flags: &str) -> ModelArgs {
        let line = format!("pagoda bench consistency{flags}");
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Bench(BenchCommand::Consistency(args)) => args.model,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bits_must_be_the_same_where_the_arithmetic_is() {
        let of = |kind, flags: &str| [0, 1, 2].map(|way| has_same_bits(way, kind, &args(flags)));
        assert_eq!(of(DeviceKind::Cpu, ""), [true; 3]);
        assert_eq!(of(DeviceKind::Gpu, " --deterministic"), [true; 3]);
        assert_eq!(of(DeviceKind::Gpu, " --gemm own"), [true, true, false]);
        assert_eq!(of(DeviceKind::Gpu, ""), [false; 3]);
    }

    #[test]
    fn tokens_count_up_to_the_first_difference_of_an_id_or_a_bit() {
        let said = |id, logprob| (id, TokenLogprobs { logprob, rank: 1, top: Vec::new() });
        let first = vec![vec![said(1, -1.0), said(2, -2.0), said(3, -3.0)], vec![said(4, -1.0); 3]];
        let mut second = first.clone();
        assert_eq!(Same::count(&first, &second).num_same, 6);
        second[0][1].0 = 9;
        second[1][2].1.logprob = f32::from_bits((-1f32).to_bits() + 1);
        let same = Same { num_tokens: 6, num_same: 1 + 2, num_answers: 2, num_same_answers: 0 };
        assert_eq!(Same::count(&first, &second), same);
    }
}
