//! The answer does not depend on the neighbours: tokens and logprobs of a request are bit-equal whether it runs alone,
//! among others, chunked, preempted and resumed, on a warm prefix cache, or as one of n.
//!
//! Each trial runs a request alone and then again in a random environment. The totals at the end prove that every kind of
//! environment really occurred to the request that was compared, and a negative control proves that the comparison can fail.

mod support;

use std::ops::RangeInclusive;
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
use support::witness::{Seen, Witness};

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
    /// The request's n.
    num_choices: u32,
    /// The request arrives before its neighbours and ranks behind them, so that it is the one to be preempted.
    is_victim: bool,
    others: Vec<Request>,
}

/// One token as bits, so that equality means equality.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TokenBits {
    token: u32,
    logprob: u32,
    top: Vec<(u32, u32)>,
}

/// What happened during all the trials of a test. Except for neighbours and preemptions it happened to the request that was
/// compared; where nothing else is said, the number of trials in which it did.
#[derive(Debug, Default)]
struct Totals {
    trials: u64,
    /// Requests beside the compared ones.
    neighbours: u64,
    /// Of any request.
    preemptions: u64,
    /// Preempted, and computed again.
    resumed: u64,
    /// The same, after its first token.
    resumed_midway: u64,
    /// Tokens.
    cached_tokens: u64,
    chunked_prompts: u64,
    in_company: u64,
    /// n of 1 alone and above 1 among others, or the other way round.
    another_n: u64,
    /// n above 1 both times.
    same_n: u64,
    constrained: u64,
}

impl Totals {
    fn add(&mut self, seen: Seen) {
        self.resumed += u64::from(seen.num_resumptions > 0);
        self.resumed_midway += u64::from(seen.num_resumptions_midway > 0);
        self.chunked_prompts += u64::from(seen.num_chunks > 0);
        self.in_company += u64::from(seen.num_shared_steps > 0);
    }

    /// Every kind of environment was met by at least one of `one_in` compared requests.
    fn assert_each_in_one_of(&self, one_in: u64) {
        let kinds = [
            ("preempted and resumed", self.resumed),
            ("preempted and resumed after the first token", self.resumed_midway),
            ("on a warm cache", self.cached_tokens),
            ("in chunks", self.chunked_prompts),
            ("in company", self.in_company),
            ("with another n", self.another_n),
            ("with n > 1 both times", self.same_n),
            ("constrained", self.constrained),
        ];
        for (kind, num_trials) in kinds {
            assert!(
                one_in * num_trials >= self.trials,
                "too few requests {kind} to prove anything: {self:?}"
            );
        }
    }
}

fn bits(token: u32, extra: &Payload) -> TokenBits {
    let logprobs = extra.as_ref().expect("every request of this test asks for logprobs");
    TokenBits {
        token,
        logprob: logprobs.logprob.to_bits(),
        top: logprobs.top.iter().map(|(id, logprob)| (*id, logprob.to_bits())).collect(),
    }
}

/// The tokens of the request's choices in one run.
type Outcome = Vec<Vec<TokenBits>>;

/// Runs `request` to its end in `environment`, arriving in the middle of its neighbours. Its n is the environment's.
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
    let (executor, testimony) = Witness::new(executor);
    let mut engine = Engine::new(config, executor).expect("the test's sizes are valid");
    let mut next_id = 0;
    let mut add = |engine: &mut Engine<Witness<E>>, request: &Request| {
        let id = RequestId(next_id);
        next_id += 1;
        engine.add_request(id, request.clone()).expect("the test's requests are valid");
        id
    };
    if environment.is_warm {
        // Parameters of its own: what happens to it is not to be told of the measured one.
        let sampling = Arc::new((*request.sampling).clone());
        let warming = add(&mut engine, &Request { sampling, num_sequences: 1, ..request.clone() });
        drive(&mut engine, warming, 1, &mut Totals::default());
    }
    let num_before = if environment.is_victim { 0 } else { environment.others.len() / 2 };
    let (before, after) = environment.others.split_at(num_before);
    for other in before {
        add(&mut engine, other);
    }
    for _ in 0..before.len().min(3) {
        engine.step();
    }
    let priority = if environment.is_victim { LAST } else { request.priority };
    let request = Request { num_sequences: environment.num_choices, priority, ..request.clone() };
    let measured = add(&mut engine, &request);
    if environment.is_victim {
        engine.step();
    }
    for other in after {
        add(&mut engine, other);
    }
    let outcome = drive(&mut engine, measured, environment.num_choices, totals);
    let seen = testimony.lock().expect("no holder panics").of(&request.sampling, request.prompt.len());
    let num_preemptions = engine.stats().num_preemptions;
    assert!(seen.num_resumptions <= num_preemptions, "{seen:?}, but {num_preemptions} preemptions");
    totals.preemptions += num_preemptions;
    totals.add(seen);
    outcome
}

const MAX_NUM_SEQS: usize = 40;
/// A priority behind that of every random request.
const LAST: i32 = 3;

fn drive<E: Executor<Extra = Payload>>(
    engine: &mut Engine<Witness<E>>,
    measured: RequestId,
    num_choices: u32,
    totals: &mut Totals,
) -> Outcome {
    let mut outcome = vec![Vec::new(); num_choices as usize];
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

fn random_request(rng: &mut Rng, vocab_size: u32, lens: &Lens) -> Request {
    let len = draw(rng, &lens.prompt) as usize;
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
            max_tokens: draw(rng, &lens.output),
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

fn draw(rng: &mut Rng, range: &RangeInclusive<u32>) -> u32 {
    rng.range(u64::from(*range.start()), u64::from(*range.end())) as u32
}

/// Values of some tokens; what is allowed depends on every token before.
fn constraint(rng: &mut Rng, vocab_size: u32) -> Box<dyn TokenConstraint> {
    Box::new(WalkConstraint::new(rng.next(), vocab_size, rng.range(2, 14) as u32))
}

/// Tokens of random requests.
struct Lens {
    prompt: RangeInclusive<u32>,
    output: RangeInclusive<u32>,
}

/// Which kinds of environment a trial is to have. Drawn from the trial's number, so that every run has the same kinds, with other
/// requests in them.
struct Kind {
    is_constrained: bool,
    num_choices_alone: u32,
    num_choices_among: u32,
    is_warm: bool,
    /// Steps are as small as the engine permits.
    is_chunked: bool,
    /// The KV pool holds little more than one request.
    is_tight: bool,
    is_victim: bool,
}

impl Kind {
    fn of_trial(index: u64, is_crowded: bool) -> Self {
        let mut rng = Rng::new(index);
        Kind {
            is_constrained: rng.chance(3),
            num_choices_alone: if rng.chance(3) { 3 } else { 1 },
            num_choices_among: if rng.chance(2) { 3 } else { 1 },
            is_warm: rng.chance(3),
            is_chunked: rng.chance(3),
            is_tight: is_crowded || rng.chance(2),
            is_victim: is_crowded && !rng.chance(4) || rng.chance(2),
        }
    }
}

/// Sizes of a family of trials.
struct Trials<'a> {
    checkpoint: &'a Checkpoint,
    vocab_size: u32,
    lens: Lens,
    num_others: RangeInclusive<u32>,
    /// Few trials: each of them has a tight pool, and most a victim.
    is_crowded: bool,
}

impl Trials<'_> {
    fn max_model_len(&self) -> usize {
        (self.lens.prompt.end() + self.lens.output.end()) as usize
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
            num_choices: 1,
            is_victim: false,
            others: Vec::new(),
        }
    }

    fn rough(&self, rng: &mut Rng, request: &Request, kind: &Kind) -> Environment {
        let block_size = [8, 16, 32][rng.range(0, 2) as usize];
        let least = EngineConfig::min_num_blocks(self.max_model_len(), block_size);
        let lens = Lens { prompt: 1..=*self.lens.prompt.end(), output: self.lens.output.clone() };
        let num_others = draw(rng, &self.num_others);
        let others = (0..num_others)
            .map(|_| {
                let mut other = random_request(rng, self.vocab_size, &lens);
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
            max_num_batched_tokens: if kind.is_chunked { MAX_NUM_SEQS } else { 64 << rng.range(0, 3) },
            num_blocks: if kind.is_tight { least + rng.range(0, 3) as usize } else { 512 },
            block_size,
            is_warm: kind.is_warm,
            num_choices: kind.num_choices_among,
            is_victim: kind.is_victim,
            others,
        }
    }

    /// Trial number `index`: alone, then in a random environment.
    fn trial(&self, isa: Isa, (first_seed, index): (u64, u64), totals: &mut Totals) {
        let seed = first_seed.wrapping_add(index);
        let mut rng = Rng::new(seed);
        let kind = Kind::of_trial(index, self.is_crowded);
        let mut request = Request {
            constraint: kind.is_constrained.then(|| constraint(&mut rng, self.vocab_size)),
            ..random_request(&mut rng, self.vocab_size, &self.lens)
        };
        if kind.is_victim {
            // It should still be there when its neighbours need the room.
            request.stop.max_tokens = *self.lens.output.end();
        }
        let calm = Environment { num_choices: kind.num_choices_alone, ..self.calm(16) };
        let mut unused = Totals::default();
        let alone = run(&request, &calm, self.max_model_len(), self.executor(isa, &calm), &mut unused);
        let rough = self.rough(&mut rng, &request, &kind);
        let among = run(&request, &rough, self.max_model_len(), self.executor(isa, &rough), totals);
        // The choices that both runs have: choice 0 always.
        for (choice, (alone, among)) in alone.iter().zip(&among).enumerate() {
            assert!(
                alone == among,
                "seed {seed}, {isa:?}: choice {choice} of {} got other bits among {} others than alone as one of {}\n\
                 {rough:?}\nalone {alone:?}\namong {among:?}",
                rough.num_choices,
                rough.others.len(),
                calm.num_choices,
            );
        }
        totals.trials += 1;
        totals.neighbours += rough.others.len() as u64;
        totals.another_n += u64::from(calm.num_choices != rough.num_choices);
        totals.same_n += u64::from(calm.num_choices > 1 && rough.num_choices > 1);
        totals.constrained += u64::from(request.constraint.is_some());
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
            lens: Lens { prompt: 1..=90, output: 1..=16 },
            num_others: 0..=32,
            is_crowded: false,
        };
        let isa = isas.get(index as usize / WeightFormat::ALL.len() % isas.len().max(1));
        trials.trial(isa.copied().unwrap_or(Isa::Portable), (first_seed, index), &mut totals);
    }
    println!("{totals:?}");
    assert_eq!(totals.trials, num_trials);
    assert!(totals.neighbours > 5 * num_trials, "{totals:?}");
    assert!(totals.cached_tokens > num_trials, "too few prefix hits to prove anything: {totals:?}");
    totals.assert_each_in_one_of(20);
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
            lens: Lens { prompt: 45..=72, output: 10..=18 },
            num_others: 2..=6,
            is_crowded: true,
        };
        let isa = isas.get(index as usize % isas.len().max(1));
        trials.trial(isa.copied().unwrap_or(Isa::Portable), (first_seed, index), &mut totals);
    }
    println!("{totals:?}");
    assert_eq!(totals.trials, 20);
    totals.assert_each_in_one_of(20);
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
    let lens = Lens { prompt: 1..=40, output: 1..=8 };
    let trials = Trials { checkpoint: &checkpoint, vocab_size, lens, num_others: 0..=8, is_crowded: false };
    let mut rng = Rng::new(7);
    let request = random_request(&mut rng, vocab_size, &trials.lens);
    let other = random_request(&mut rng, vocab_size, &trials.lens);
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
