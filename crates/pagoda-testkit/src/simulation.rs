//! A seeded simulation of the whole engine: random sizes, arrivals, aborts in every state, forks, tiny pools. Every law is
//! checked after every operation, and every output is compared with what the request says when it is alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use pagoda_engine::{
    CacheSalt, Engine, EngineConfig, EngineEvent, EngineStats, FinishReason, PipelineDepth, Request,
    RequestEvent, RequestId, SamplingParams, StepOutcome, StopCriteria, TokenId,
};

use crate::executor::not_banned;
use crate::{Fault, FaultPlan, Random, TokenMemoryConfig, TokenMemoryExecutor, hash_token};

/// What a run has done, to prove that it has exercised what it is for.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimulationReport {
    /// Requests submitted.
    pub num_requests: u64,
    /// Requests that were cut off.
    pub num_aborted: u64,
    /// Requests of which at least a part failed, because the executor did.
    pub num_failed: u64,
    /// Operations after which every law was checked.
    pub num_checks: u64,
    /// The most steps that passed without an output token while one was wanted, less ceil(longest prompt / budget).
    pub longest_wait_steps: i64,
    /// The engine's counters at the end.
    pub stats: EngineStats,
}

/// Runs one seed; panics, naming it, if anything is wrong.
pub fn simulate(seed: u64, load: Load) -> SimulationReport {
    let _named = NameSeed(seed);
    Simulation::new(seed, load).run()
}

/// Prints the seed if the simulation panics, wherever that happens.
struct NameSeed(u64);

impl Drop for NameSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("simulation of seed {} panicked", self.0);
        }
    }
}

/// What a simulation is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// A little of everything, aborts in every state included.
    Mixed,
    /// Far more than the least possible pool can hold, and nobody goes away.
    Overload,
}

impl Load {
    fn max_preemptions(self, random: &mut Random) -> u32 {
        match self {
            // Few, so that sequences become protected often.
            Load::Mixed => random.between(1, 8) as u32,
            Load::Overload => 8,
        }
    }
}

/// A request, what it must say, and what it has said.
struct Client {
    request: Request,
    /// `[num_sequences]` of the outputs, one behind the other.
    said: Vec<Vec<TokenId>>,
    finishes: Vec<Option<FinishReason>>,
    num_prompt_logprobs: usize,
    is_scheduled: bool,
    is_cut: bool,
}

/// The simulation of one seed.
pub struct Simulation {
    seed: u64,
    load: Load,
    random: Random,
    engine: Engine<TokenMemoryExecutor>,
    sizes: Sizes,
    faults: FaultPlan,
    /// Requests that have not ended.
    clients: BTreeMap<RequestId, Client>,
    /// Sequences of the past, for prompts that share their beginning.
    past: Vec<Vec<TokenId>>,
    /// Steps since the last output token, or since nothing was wanted.
    num_steps_waited: u64,
    report: SimulationReport,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    vocab_size: u32,
    max_model_len: usize,
    max_num_seqs: usize,
    budget: usize,
    num_requests: u64,
}

impl Simulation {
    /// Draws the sizes from the seed.
    pub fn new(seed: u64, load: Load) -> Self {
        let mut random = Random::new(seed);
        let block_size = [1, 2, 2, 3, 4][random.below(5)];
        let max_num_seqs = if load == Load::Mixed { random.between(1, 6) } else { random.between(4, 24) };
        let sizes = Sizes {
            vocab_size: random.between(2, 4) as u32,
            max_model_len: random.between(4, 32),
            max_num_seqs,
            budget: max_num_seqs + random.below(12),
            num_requests: random.between(10, 40) as u64,
        };
        let least = EngineConfig::min_num_blocks(sizes.max_model_len, block_size);
        let config = EngineConfig {
            block_size,
            num_blocks: least + random.below(if load == Load::Mixed { least } else { 2 }),
            max_num_seqs,
            max_num_batched_tokens: sizes.budget,
            max_model_len: sizes.max_model_len,
            max_queued_requests: 1000,
            watermark_blocks: if load == Load::Mixed { random.below(3) } else { 0 },
            pipeline_depth: if random.one_in(2) { PipelineDepth::One } else { PipelineDepth::Two },
            prefix_caching: !random.one_in(8),
            aging_steps: random.between(1, 40) as u64,
            max_preemptions: load.max_preemptions(&mut random),
            trace: None,
        };
        let memory =
            TokenMemoryConfig { block_size, num_blocks: config.num_blocks, vocab_size: sizes.vocab_size };
        let faults = FaultPlan::new();
        let executor = TokenMemoryExecutor::new(memory).with_faults(&faults);
        let engine = Engine::new(config, executor).expect("the sizes are drawn within the limits");
        Simulation {
            seed,
            load,
            random,
            engine,
            sizes,
            faults,
            clients: BTreeMap::new(),
            past: Vec::new(),
            num_steps_waited: 0,
            report: SimulationReport { longest_wait_steps: i64::MIN, ..SimulationReport::default() },
        }
    }

    /// Runs until every request has ended.
    pub fn run(mut self) -> SimulationReport {
        while self.report.num_requests < self.sizes.num_requests || !self.engine.is_idle() {
            let may_arrive = self.report.num_requests < self.sizes.num_requests;
            let may_go = self.load == Load::Mixed && self.random.one_in(3);
            match self.random.below(12) {
                0 | 1 if may_arrive => self.arrive(),
                2 | 3 if may_arrive && self.load == Load::Overload => self.arrive(),
                2 if may_go => self.cut(),
                3 if may_go => self.finish_one(),
                4 if may_go && self.random.one_in(8) => self.break_something(),
                _ => self.step(),
            }
            self.digest_events();
            self.check();
        }
        let seed = self.seed;
        assert!(self.clients.is_empty(), "seed {seed}: {} requests never ended", self.clients.len());
        assert_eq!(self.engine.step(), StepOutcome::Idle, "seed {seed}");
        self.compare_with_an_engine_alone();
        self.report.stats = self.engine.stats();
        let stats = self.report.stats;
        let num_returned = stats.kv_blocks_free + stats.kv_blocks_cached;
        assert_eq!(num_returned, stats.kv_blocks_total, "seed {seed}: free + cached = all");
        self.report
    }

    fn check(&mut self) {
        self.report.num_checks += 1;
        if let Err(error) = self.engine.check_integrity() {
            panic!("seed {}, after {} operations: {error}", self.seed, self.report.num_checks);
        }
    }

    fn step(&mut self) {
        let is_wanted = !self.clients.is_empty();
        let num_steps = self.engine.stats().num_steps;
        self.engine.step();
        let num_launched = self.engine.stats().num_steps - num_steps;
        self.num_steps_waited = if is_wanted { self.num_steps_waited + num_launched } else { 0 };
    }

    fn arrive(&mut self) {
        let request = self.draw_request();
        let id = RequestId(self.report.num_requests);
        self.report.num_requests += 1;
        self.engine.add_request(id, request.clone()).expect("requests are drawn within the limits");
        let num_sequences = request.num_sequences as usize;
        let client = Client {
            request,
            said: vec![Vec::new(); num_sequences],
            finishes: vec![None; num_sequences],
            num_prompt_logprobs: 0,
            is_scheduled: false,
            is_cut: false,
        };
        self.clients.insert(id, client);
    }

    fn draw_request(&mut self) -> Request {
        let Sizes { vocab_size, max_model_len, max_num_seqs, .. } = self.sizes;
        let random = &mut self.random;
        let mut prompt = match self.past.len() {
            0 => Vec::new(),
            _ if random.one_in(3) => Vec::new(),
            num_past => self.past[random.below(num_past)].clone(),
        };
        prompt.truncate(random.between(0, max_model_len - 1));
        let len = random.between(1, max_model_len - 1).max(prompt.len());
        let num_new = (len - prompt.len()).min(random.between(1, max_model_len));
        prompt.extend(
            (0..num_new.max(usize::from(prompt.is_empty())))
                .map(|_| random.below(vocab_size as usize) as TokenId),
        );
        let mut sampling = SamplingParams::greedy();
        sampling.seed = random.below(4) as u64;
        if random.one_in(4) {
            sampling.presence_penalty = 1.0; // asks for the history, which the executor compares
        }
        let most_sequences = if random.one_in(3) { max_num_seqs } else { 1 };
        let stop_token_ids =
            if random.one_in(3) { vec![random.below(vocab_size as usize) as TokenId] } else { Vec::new() };
        Request {
            prompt,
            sampling: Arc::new(sampling),
            stop: StopCriteria {
                max_tokens: if random.one_in(10) { 0 } else { random.between(1, 16) as u32 },
                min_tokens: random.below(4) as u32,
                stop_token_ids: stop_token_ids.into(),
            },
            num_sequences: random.between(1, most_sequences) as u32,
            priority: random.below(5) as i32 - 2,
            cache_salt: CacheSalt(vec![0; random.below(2)]),
            prompt_logprobs: random.one_in(8).then_some(1),
        }
    }

    /// What `alone` computes is what an engine says to a request that has it to itself.
    fn compare_with_an_engine_alone(&mut self) {
        let request = Request { num_sequences: 1, ..self.draw_request() };
        let Sizes { vocab_size, max_model_len, .. } = self.sizes;
        let num_blocks = EngineConfig::min_num_blocks(max_model_len, 16);
        let config =
            EngineConfig { num_blocks, max_model_len, prefix_caching: false, ..EngineConfig::default() };
        let memory =
            TokenMemoryConfig { block_size: config.block_size, num_blocks: config.num_blocks, vocab_size };
        let mut engine =
            Engine::new(config, TokenMemoryExecutor::new(memory)).expect("the pool is large enough");
        engine.add_request(RequestId(0), request.clone()).expect("requests are drawn within the limits");
        while engine.step() != StepOutcome::Idle {}
        let tokens = engine.take_events().into_iter().filter_map(|event| match event {
            EngineEvent::Request(_, RequestEvent::Token(token)) => Some(token.token),
            _ => None,
        });
        let (expected, _) = alone(&request, 0, self.sizes);
        assert_eq!(
            tokens.collect::<Vec<_>>(),
            expected,
            "seed {}: an engine alone says something else",
            self.seed
        );
    }

    /// A client goes away, in whatever state its request is.
    fn cut(&mut self) {
        if let Some(id) = self.any_client() {
            self.clients.get_mut(&id).expect("it was just found").is_cut = true;
            self.report.num_aborted += 1;
            self.num_steps_waited = 0;
            self.engine.abort(id);
        }
    }

    /// A server has seen a stop string.
    fn finish_one(&mut self) {
        if let Some(id) = self.any_client() {
            let client = self.clients.get_mut(&id).expect("it was just found");
            client.is_cut = true;
            let sample = self.random.below(client.said.len()) as u32;
            self.num_steps_waited = 0;
            self.engine.finish_sequence(id, sample);
        }
    }

    /// The executor will fail, in one of the ways after which it can go on.
    fn break_something(&mut self) {
        self.num_steps_waited = 0;
        self.faults.next(match self.random.below(3) {
            0 => Fault::LaunchError,
            1 => Fault::WaitError,
            _ => Fault::Row(self.random.below(8)),
        });
    }

    /// A part of a request failed, which only a fault can be the cause of.
    fn note_failure(&mut self, id: RequestId, error: &dyn std::fmt::Display) {
        assert_eq!(self.load, Load::Mixed, "seed {}: {id}: {error}", self.seed);
        self.report.num_failed += 1;
        self.num_steps_waited = 0;
        self.clients.get_mut(&id).expect("a request that fails has a client").is_cut = true;
    }

    fn any_client(&mut self) -> Option<RequestId> {
        let count = self.clients.len();
        (count > 0).then(|| *self.clients.keys().nth(self.random.below(count)).expect("below the count"))
    }

    fn digest_events(&mut self) {
        for event in self.engine.take_events() {
            match event {
                EngineEvent::Request(id, event) => self.digest(id, event),
                EngineEvent::Ended(id) => {
                    let client = self.clients.remove(&id).expect("a request ends once");
                    client.compare(self.seed, id, self.sizes);
                    self.past.push([&client.request.prompt[..], &client.said[0]].concat());
                }
            }
        }
    }

    fn digest<X>(&mut self, id: RequestId, event: RequestEvent<X>) {
        let seed = self.seed;
        let client =
            self.clients.get_mut(&id).unwrap_or_else(|| panic!("seed {seed}: {id} speaks after its end"));
        match event {
            RequestEvent::Scheduled { num_cached_tokens } => {
                assert!(
                    !std::mem::replace(&mut client.is_scheduled, true),
                    "seed {seed}: {id} is announced twice"
                );
                let num_prompt_tokens = client.request.prompt.len() as u32;
                assert!(
                    num_cached_tokens < num_prompt_tokens,
                    "seed {seed}: law 10, {num_cached_tokens} cached"
                );
                let may_match = client.request.prompt_logprobs.is_none();
                assert!(
                    may_match || num_cached_tokens == 0,
                    "seed {seed}: law 10, prompt logprobs match nothing"
                );
            }
            RequestEvent::PromptLogprobs(logprobs) => client.num_prompt_logprobs += logprobs.len(),
            RequestEvent::Token(token) => {
                let sample = token.sample_index as usize;
                assert!(
                    client.is_scheduled && client.finishes[sample].is_none(),
                    "seed {seed}: {id} out of order"
                );
                client.said[sample].push(token.token);
                client.finishes[sample] = token.finish;
                self.note_output();
            }
            RequestEvent::Finished { sample_index, reason } => {
                client.finishes[sample_index as usize] = Some(reason);
                self.note_output();
            }
            RequestEvent::SequenceFailed { error, .. } => self.note_failure(id, &error),
            RequestEvent::Failed(error) => self.note_failure(id, &error),
        }
    }

    /// Law 11 for the whole engine: somebody gets a token in time.
    fn note_output(&mut self) {
        let prefill = self.sizes.max_model_len.div_ceil(self.sizes.budget) as i64;
        let waited = std::mem::take(&mut self.num_steps_waited) as i64 - prefill;
        self.report.longest_wait_steps = self.report.longest_wait_steps.max(waited);
        assert!(waited <= 64, "seed {}: law 11: {waited} steps and the prompt's without a token", self.seed);
    }
}

impl Client {
    /// What was said is what the request says alone; a cut one has said a beginning of it.
    fn compare(&self, seed: u64, id: RequestId, sizes: Sizes) {
        for (sample, said) in self.said.iter().enumerate() {
            let (alone, finish) = alone(&self.request, sample as u32, sizes);
            if self.is_cut {
                assert!(alone.starts_with(said), "seed {seed}: {id}#{sample} said {said:?}, alone {alone:?}");
            } else {
                assert_eq!(*said, alone, "seed {seed}: {id}#{sample} says something else alone");
                assert_eq!(
                    self.finishes[sample],
                    Some(finish),
                    "seed {seed}: {id}#{sample} ends otherwise alone"
                );
            }
        }
        if self.request.prompt_logprobs.is_some() && !self.is_cut {
            let wanted = self.request.prompt.len() - 1;
            assert_eq!(self.num_prompt_logprobs, wanted, "seed {seed}: {id}: prompt logprobs");
        }
    }
}

/// The output of one sequence, computed without an engine.
fn alone(request: &Request, sample_index: u32, sizes: Sizes) -> (Vec<TokenId>, FinishReason) {
    let mut tokens = request.prompt.clone();
    let stop = &request.stop;
    let num_prompt_tokens = tokens.len();
    let max_num_tokens = (num_prompt_tokens + stop.max_tokens as usize).min(sizes.max_model_len);
    let mut finish = FinishReason::Length;
    while tokens.len() < max_num_tokens && finish == FinishReason::Length {
        let chosen = hash_token(&tokens, request.sampling.seed, sample_index, sizes.vocab_size);
        let may_stop = tokens.len() - num_prompt_tokens >= stop.min_tokens as usize;
        let banned = if may_stop { &[][..] } else { &stop.stop_token_ids };
        let token = not_banned(chosen, banned, sizes.vocab_size);
        tokens.push(token);
        if may_stop && stop.stop_token_ids.contains(&token) {
            finish = FinishReason::Stop;
        }
    }
    (tokens.split_off(num_prompt_tokens), finish)
}
