//! The answer does not depend on the neighbours: tokens and logprobs of a request are bit-equal whether it runs alone,
//! among others, chunked, preempted and resumed, on a warm prefix cache, or as one of n.
//!
//! Each trial runs a request alone and then again in a random environment. The totals at the end prove that every kind of
//! environment really occurred, and a negative control proves that the comparison can fail.

mod support;

use std::path::Path;
use std::sync::Arc;

use pagoda_backend::WeightFormat;
use pagoda_backend_cpu::{CpuBackend, CpuOptions, Isa};
use pagoda_engine::{
    CacheSalt, Engine, EngineConfig, EngineEvent, Executor, ExecutorError, Request, RequestEvent, RequestId,
    SamplingParams, StepOutcome, StepOutput, StepPlan, StopCriteria, TokenConstraint, TokenLogprobs,
};
use pagoda_model::{Checkpoint, ModelRunner, RunnerConfig};
use pagoda_testkit::WalkConstraint;
use support::rng::Rng;

type Payload = Option<TokenLogprobs>;

/// What one run is allowed to differ in.
#[derive(Clone, Debug)]
struct Environment {
    num_threads: usize,
    max_num_batched_tokens: usize,
    num_blocks: usize,
    block_size: usize,
    /// Run the request once before, so that the measured run finds its prefix cached.
    is_warm: bool,
    others: Vec<Request>,
}

/// One token as bits, so that equality means equality.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TokenBits {
    token: u32,
    logprob: u32,
    top: Vec<(u32, u32)>,
}

/// What happened during all the trials of a test.
#[derive(Debug, Default)]
struct Totals {
    trials: u64,
    neighbours: u64,
    preemptions: u64,
    cached_tokens: u64,
    chunked_prompts: u64,
    parallel_samples: u64,
    constrained: u64,
}

fn bits(token: u32, extra: &Payload) -> TokenBits {
    let logprobs = extra.as_ref().expect("every request of this test asks for logprobs");
    TokenBits {
        token,
        logprob: logprobs.logprob.to_bits(),
        top: logprobs.top.iter().map(|(id, logprob)| (*id, logprob.to_bits())).collect(),
    }
}

/// The tokens of the request's sequences in one run.
type Outcome = Vec<Vec<TokenBits>>;

/// Runs `request` to its end in `environment`, arriving in the middle of its neighbours.
fn run<E: Executor<Extra = Payload>>(
    request: &Request,
    environment: &Environment,
    max_model_len: usize,
    executor: E,
    totals: &mut Totals,
) -> Outcome {
    let config = EngineConfig {
        block_size: environment.block_size,
        num_blocks: environment.num_blocks,
        max_num_seqs: MAX_NUM_SEQS,
        max_num_batched_tokens: environment.max_num_batched_tokens.max(MAX_NUM_SEQS),
        max_model_len,
        watermark_blocks: 0,
        ..EngineConfig::default()
    };
    let mut engine = Engine::new(config, executor).expect("the test's sizes are valid");
    let mut next_id = 0;
    let mut add = |engine: &mut Engine<E>, request: &Request| {
        let id = RequestId(next_id);
        next_id += 1;
        engine.add_request(id, request.clone()).expect("the test's requests are valid");
        id
    };
    if environment.is_warm {
        let warming = add(&mut engine, request);
        drive(&mut engine, warming, request, totals);
    }
    let (before, after) = environment.others.split_at(environment.others.len() / 2);
    for other in before {
        add(&mut engine, other);
    }
    for _ in 0..before.len().min(3) {
        engine.step();
    }
    let measured = add(&mut engine, request);
    for other in after {
        add(&mut engine, other);
    }
    let outcome = drive(&mut engine, measured, request, totals);
    totals.preemptions += engine.stats().num_preemptions;
    outcome
}

const MAX_NUM_SEQS: usize = 40;

fn drive<E: Executor<Extra = Payload>>(
    engine: &mut Engine<E>,
    measured: RequestId,
    request: &Request,
    totals: &mut Totals,
) -> Outcome {
    let mut outcome = vec![Vec::new(); request.num_sequences as usize];
    for _ in 0..100_000 {
        let step = engine.step();
        for event in engine.take_events() {
            match event {
                EngineEvent::Request(id, RequestEvent::Token(event)) if id == measured => {
                    outcome[event.sample_index as usize].push(bits(event.token, &event.extra));
                }
                EngineEvent::Request(id, RequestEvent::Scheduled { prefix }) if id == measured => {
                    let num_cached_tokens = prefix.num_cached_tokens;
                    totals.cached_tokens += u64::from(num_cached_tokens);
                }
                EngineEvent::Request(_, RequestEvent::Failed(error)) => panic!("a request failed: {error}"),
                EngineEvent::Request(_, RequestEvent::SequenceFailed { error, .. }) => panic!("{error}"),
                EngineEvent::Ended(id) if id == measured => return outcome,
                _ => {}
            }
        }
        assert_ne!(step, StepOutcome::Stopped, "the engine stopped");
    }
    panic!("{measured} did not end within 100,000 steps");
}

fn random_request(rng: &mut Rng, vocab_size: u32, max_prompt: usize, max_tokens: u32) -> Request {
    let len = rng.range(1, max_prompt as u64) as usize;
    // A small alphabet makes prompts share prefixes by chance.
    let alphabet = if rng.chance(2) { 3 } else { vocab_size };
    let prompt = (0..len).map(|_| rng.range(0, u64::from(alphabet) - 1) as u32).collect();
    let is_greedy = rng.chance(3);
    let sampling = SamplingParams {
        temperature: if is_greedy { 0.0 } else { 0.5 + rng.unit() as f32 },
        top_p: if rng.chance(2) { 0.9 } else { 1.0 },
        top_k: if rng.chance(3) { 20 } else { 0 },
        min_p: if rng.chance(4) { 0.02 } else { 0.0 },
        frequency_penalty: if rng.chance(4) { 0.3 } else { 0.0 },
        presence_penalty: if rng.chance(4) { 0.2 } else { 0.0 },
        repetition_penalty: if rng.chance(4) { 1.1 } else { 1.0 },
        logit_bias: if rng.chance(5) { vec![(1, 2.0), (2, -1.0)] } else { Vec::new() },
        seed: rng.next(),
        num_logprobs: Some(5),
    };
    Request {
        prompt,
        sampling: Arc::new(sampling),
        stop: StopCriteria {
            max_tokens: rng.range(1, u64::from(max_tokens)) as u32,
            min_tokens: 0,
            stop_token_ids: Arc::from([]),
            repetition: None,
        },
        num_sequences: if rng.chance(4) { 3 } else { 1 },
        priority: rng.range(0, 2) as i32,
        cache_salt: CacheSalt::default(),
        prompt_logprobs: None,
        constraint: rng.chance(3).then(|| constraint(rng, vocab_size)),
    }
}

/// Values of some tokens; what is allowed depends on every token before.
fn constraint(rng: &mut Rng, vocab_size: u32) -> Box<dyn TokenConstraint> {
    Box::new(WalkConstraint::new(rng.next(), vocab_size, rng.range(2, 14) as u32))
}

/// Sizes of a family of trials.
struct Trials<'a> {
    checkpoint: &'a Checkpoint,
    vocab_size: u32,
    max_prompt: usize,
    max_tokens: u32,
    max_others: u64,
}

impl Trials<'_> {
    fn max_model_len(&self) -> usize {
        self.max_prompt + self.max_tokens as usize
    }

    fn executor(&self, isa: Isa, environment: &Environment) -> ModelRunner<CpuBackend> {
        let options = CpuOptions { num_threads: environment.num_threads, isa: Some(isa) };
        let backend = CpuBackend::new(options).expect("the instruction set was checked");
        let config = RunnerConfig {
            block_size: environment.block_size,
            num_blocks: environment.num_blocks,
            max_num_seqs: MAX_NUM_SEQS,
            max_num_batched_tokens: environment.max_num_batched_tokens.max(MAX_NUM_SEQS),
            max_model_len: self.max_model_len(),
        };
        ModelRunner::load(self.checkpoint, backend, config).expect("the checkpoint is good")
    }

    /// Alone, cold, in one chunk where possible, one thread.
    fn calm(&self, block_size: usize) -> Environment {
        Environment {
            num_threads: 1,
            max_num_batched_tokens: 512,
            num_blocks: 512,
            block_size,
            is_warm: false,
            others: Vec::new(),
        }
    }

    fn rough(&self, rng: &mut Rng, request: &Request) -> Environment {
        let block_size = [8, 16, 32][rng.range(0, 2) as usize];
        let least = EngineConfig::min_num_blocks(self.max_model_len(), block_size);
        let is_tight = rng.chance(2);
        let num_others = rng.range(0, self.max_others);
        let others = (0..num_others)
            .map(|_| {
                let mut other = random_request(rng, self.vocab_size, self.max_prompt, self.max_tokens);
                if rng.chance(3) {
                    // Shares a prefix of random length with the measured request.
                    let shared = rng.range(1, request.prompt.len() as u64) as usize;
                    other.prompt = request.prompt[..shared].to_vec();
                }
                other
            })
            .collect();
        Environment {
            num_threads: rng.range(1, 3) as usize,
            max_num_batched_tokens: [MAX_NUM_SEQS, 64, 512][rng.range(0, 2) as usize],
            num_blocks: if is_tight { least + rng.range(0, 3) as usize } else { 512 },
            block_size,
            is_warm: rng.chance(3),
            others,
        }
    }

    /// One trial: alone, then in a random environment.
    fn trial(&self, isa: Isa, seed: u64, totals: &mut Totals) {
        let mut rng = Rng::new(seed);
        let request = random_request(&mut rng, self.vocab_size, self.max_prompt, self.max_tokens);
        let calm = self.calm(16);
        let mut unused = Totals::default();
        let alone = run(&request, &calm, self.max_model_len(), self.executor(isa, &calm), &mut unused);
        let rough = self.rough(&mut rng, &request);
        let among = run(&request, &rough, self.max_model_len(), self.executor(isa, &rough), totals);
        assert!(
            alone == among,
            "seed {seed}, {isa:?}: the request gave other bits among {} others than alone\n{rough:?}\nalone {alone:?}\namong {among:?}",
            rough.others.len(),
        );
        totals.trials += 1;
        totals.neighbours += rough.others.len() as u64;
        totals.parallel_samples += u64::from(request.num_sequences > 1);
        totals.constrained += u64::from(request.constraint.is_some());
        let budget = rough.max_num_batched_tokens.max(MAX_NUM_SEQS);
        totals.chunked_prompts += u64::from(request.prompt.len() > budget);
    }
}

/// The instruction sets this machine can be forced to use; `PAGODA_TEST_ISA` leaves one of them.
fn available_isas() -> Vec<Isa> {
    let only = std::env::var("PAGODA_TEST_ISA").ok();
    let isas: Vec<Isa> = [Isa::Avx2, Isa::Avx512]
        .into_iter()
        .filter(|isa| only.as_ref().is_none_or(|only| *only == isa.to_string()))
        .filter(|isa| {
            let is_available = isa.is_available();
            if !is_available {
                println!("skipped: {isa:?} is not available on this CPU");
            }
            is_available
        })
        .collect();
    assert!(
        only.is_none() || !isas.is_empty(),
        "PAGODA_TEST_ISA={only:?} leaves no instruction set of this CPU"
    );
    isas
}

/// How many trials the tiny model gets; `PAGODA_TEST_TRIALS` lowers it where every instruction is emulated.
fn num_trials() -> u64 {
    let given = std::env::var("PAGODA_TEST_TRIALS").ok();
    given.map_or(1_000, |trials| trials.parse().expect("PAGODA_TEST_TRIALS is a number"))
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path).expect("the test's checkpoint opens")
}

#[test]
fn a_thousand_requests_give_the_same_bits_alone_and_in_any_company() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let mut totals = Totals::default();
    let isas = available_isas();
    let first_seed = support::rng::fresh_seed("determinism");
    let num_trials = num_trials();
    for index in 0..num_trials {
        let format = WeightFormat::ALL[index as usize % WeightFormat::ALL.len()];
        let path =
            pagoda_model::tiny::write_gguf(folder.path(), format).expect("the tiny model can be written");
        let checkpoint = open(&path);
        let trials = Trials {
            checkpoint: &checkpoint,
            vocab_size: checkpoint.config().vocab_size as u32,
            max_prompt: 90,
            max_tokens: 16,
            max_others: 32,
        };
        let isa = isas.get(index as usize / WeightFormat::ALL.len() % isas.len().max(1));
        trials.trial(isa.copied().unwrap_or(Isa::Portable), first_seed.wrapping_add(index), &mut totals);
    }
    println!("{totals:?}");
    assert_eq!(totals.trials, num_trials);
    assert!(totals.neighbours > 5 * num_trials, "{totals:?}");
    assert!(10 * totals.preemptions > num_trials, "too few preemptions to prove anything: {totals:?}");
    assert!(totals.cached_tokens > num_trials, "too few prefix hits to prove anything: {totals:?}");
    assert!(
        10 * totals.chunked_prompts > num_trials,
        "too few chunked prompts to prove anything: {totals:?}"
    );
    assert!(
        10 * totals.parallel_samples > num_trials,
        "too few requests with n > 1 to prove anything: {totals:?}"
    );
    assert!(
        10 * totals.constrained > num_trials,
        "too few constrained requests to prove anything: {totals:?}"
    );
}

#[test]
fn twenty_requests_to_smollm2_give_the_same_bits_alone_and_in_any_company() {
    let Some(path) = support::real_model() else { return };
    let checkpoint = open(&path);
    let mut totals = Totals::default();
    let isas = available_isas();
    let first_seed = support::rng::fresh_seed("determinism-smollm2");
    for index in 0..20_u64 {
        let trials = Trials {
            checkpoint: &checkpoint,
            vocab_size: 49_152,
            max_prompt: 90,
            max_tokens: 10,
            max_others: 8,
        };
        let isa = isas.get(index as usize % isas.len().max(1));
        trials.trial(isa.copied().unwrap_or(Isa::Portable), first_seed.wrapping_add(index), &mut totals);
    }
    println!("{totals:?}");
    assert_eq!(totals.trials, 20);
    assert!(totals.cached_tokens > 0, "no prefix hit: {totals:?}");
}

/// Moves every logprob by one unit in the last place when the request has company.
struct DependsOnCompany(ModelRunner<CpuBackend>);

impl Executor for DependsOnCompany {
    type Ticket = (<ModelRunner<CpuBackend> as Executor>::Ticket, bool);
    type Extra = Payload;

    fn launch(&mut self, plan: &StepPlan) -> Result<Self::Ticket, ExecutorError> {
        Ok((self.0.launch(plan)?, plan.batch.num_sequences() > 1))
    }

    fn wait(&mut self, (ticket, has_company): Self::Ticket) -> Result<StepOutput<Payload>, ExecutorError> {
        let mut output = self.0.wait(ticket)?;
        if has_company {
            for sampled in output.samples.iter_mut().flatten() {
                let logprobs = sampled.extra.as_mut().expect("every request of this test asks for logprobs");
                logprobs.logprob = logprobs.logprob.next_down();
            }
        }
        Ok(output)
    }
}

#[test]
fn one_unit_in_the_last_place_that_depends_on_the_company_is_noticed() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let path = pagoda_model::tiny::write_gguf(folder.path(), WeightFormat::Q4_1)
        .expect("the tiny model can be written");
    let checkpoint = open(&path);
    let vocab_size = checkpoint.config().vocab_size as u32;
    let trials = Trials { checkpoint: &checkpoint, vocab_size, max_prompt: 40, max_tokens: 8, max_others: 8 };
    let mut rng = Rng::new(7);
    let request = random_request(&mut rng, vocab_size, 40, 8);
    let other = random_request(&mut rng, vocab_size, 40, 8);
    let calm = trials.calm(16);
    let accompanied = Environment { others: vec![other; 4], ..calm.clone() };
    let isa = Isa::detect();
    let mut totals = Totals::default();
    let mut run_in = |environment: &Environment| {
        let executor = DependsOnCompany(trials.executor(isa, environment));
        run(&request, environment, trials.max_model_len(), executor, &mut totals)
    };
    assert_ne!(run_in(&calm), run_in(&accompanied), "the comparison cannot see a difference");
}
