//! A seeded simulation of the whole engine: random sizes, arrivals, aborts in every state, forks, tiny pools. Every law is
//! checked after every operation, and every output is compared with what the request says when it is alone.

mod client;
mod load;

use std::collections::BTreeMap;

use pagoda_engine::{
    Engine, EngineConfig, EngineEvent, EngineStats, FinishReason, Request, RequestEvent, RequestId,
    StepOutcome, TokenId,
};

use crate::{Fault, FaultPlan, Random, TokenMemoryConfig, TokenMemoryExecutor};
use client::{Client, alone};
pub use load::Load;
use load::Sizes;

/// What a run has done, to prove that it has exercised what it is for.
#[derive(Clone, Copy, Debug, Default)]
pub struct SimulationReport {
    /// Requests submitted.
    pub num_requests: u64,
    /// Requests that were cut off.
    pub num_aborted: u64,
    /// Requests of which at least a part failed, because the executor did.
    pub num_failed: u64,
    /// Sequences that ended with their constraint's value.
    pub num_complete: u64,
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

impl Simulation {
    /// Draws the sizes from the seed.
    pub fn new(seed: u64, load: Load) -> Self {
        let mut random = Random::new(seed);
        let (sizes, config) = load.draw(&mut random);
        let memory = TokenMemoryConfig {
            block_size: config.block_size,
            num_blocks: config.num_blocks,
            vocab_size: sizes.vocab_size,
        };
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
        self.sizes.draw_request(&mut self.random, &self.past)
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
            RequestEvent::Scheduled { prefix } => {
                let num_cached_tokens = prefix.num_cached_tokens;
                assert!(
                    !std::mem::replace(&mut client.is_scheduled, true),
                    "seed {seed}: {id} is announced twice"
                );
                let num_prompt_tokens = client.request.prompt.len() as u32;
                assert!(
                    num_cached_tokens < num_prompt_tokens,
                    "seed {seed}: law 10, {num_cached_tokens} cached"
                );
                let num_known_tokens = prefix.num_known_tokens;
                assert!(
                    (num_cached_tokens..num_prompt_tokens).contains(&num_known_tokens),
                    "seed {seed}: {num_cached_tokens} cached, {num_known_tokens} known"
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
                self.report.num_complete += u64::from(token.finish == Some(FinishReason::Complete));
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
