//! A small language for scheduler snapshots: commands in, step plans and events out, both as text.
//!
//! ```text
//! engine block_size=2 blocks=8 seqs=4 budget=8 len=12     first; also depth= watermark= aging=
//!                                                         queue= cache= max_preemptions= misses=
//! add A prompt=1,2,3 max=3                                also n= priority= tenant= salt= stop= min= logprobs
//! step                                                    or `step 3`
//! abort A
//! finish A 0                                              one sequence
//! pool                                                    prints the block counts
//! ```
//! Tokens count up: a sequence that ends in 3 goes on with 4; sample k of n starts 10 k higher. Lines without a command
//! (empty, or starting with `#`) are copied. With `misses=1` it is told why a prompt was not found in the cache. Every law is checked after every command.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use pagoda_engine::{
    CacheMiss, CacheSalt, Engine, EngineConfig, EngineEvent, FinishReason, PipelineDepth, Request,
    RequestEvent, RequestId, SamplingParams, StopCriteria, TokenLogprobs,
};

use crate::{SuccessorSource, TokenMemoryConfig, TokenMemoryExecutor};

/// Runs the commands and returns the transcript: each command behind `> `, then what it caused.
pub fn run_scenario(commands: &str) -> String {
    let mut commands = commands.trim().lines().map(str::trim);
    let first = commands.next().expect("a scenario starts with `engine`");
    let mut scenario = Scenario::new(first);
    for line in commands {
        scenario.obey(line);
    }
    scenario.transcript
}

/// Runs every block of a document that is fenced as `timeline` and puts the transcript in its place. The commands are the
/// lines that start with `> `.
pub fn render_timelines(document: &str) -> String {
    let mut rendered = String::new();
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        writeln!(rendered, "{line}").expect("writing to a string succeeds");
        if line == "```timeline" {
            let block: Vec<_> = lines.by_ref().take_while(|&line| line != "```").collect();
            let commands: Vec<_> = block.iter().filter_map(|line| line.strip_prefix("> ")).collect();
            writeln!(rendered, "{}```", run_scenario(&commands.join("\n")))
                .expect("writing to a string succeeds");
        }
    }
    rendered
}

/// The engine's trace, where the scenario can read it.
#[derive(Clone, Default)]
struct Trace(Arc<Mutex<Vec<u8>>>);

impl Trace {
    fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        String::from_utf8(bytes).expect("a plan is printed as text")
    }
}

impl io::Write for Trace {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Scenario {
    engine: Engine<TokenMemoryExecutor<SuccessorSource>>,
    trace: Trace,
    names: BTreeMap<RequestId, String>,
    tells_misses: bool,
    transcript: String,
}

impl Scenario {
    fn new(line: &str) -> Self {
        let (command, arguments) = parse(line);
        assert_eq!(command, "engine", "a scenario starts with `engine`");
        let number = |name: &str, default: usize| {
            arguments
                .get(name)
                .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
        };
        let trace = Trace::default();
        let config = EngineConfig {
            block_size: number("block_size", 2),
            num_blocks: number("blocks", 16),
            max_num_seqs: number("seqs", 4),
            max_num_batched_tokens: number("budget", 8),
            max_model_len: number("len", 16),
            max_queued_requests: number("queue", 16),
            watermark_blocks: number("watermark", 0),
            pipeline_depth: if number("depth", 1) == 1 { PipelineDepth::One } else { PipelineDepth::Two },
            prefix_caching: number("cache", 1) == 1,
            aging_steps: number("aging", 100) as u64,
            max_preemptions: number("max_preemptions", 8) as u32,
            trace: Some(Box::new(trace.clone())),
            ..EngineConfig::default()
        };
        let memory = TokenMemoryConfig {
            block_size: config.block_size,
            num_blocks: config.num_blocks,
            vocab_size: 1000,
        };
        let executor = TokenMemoryExecutor::with_source(memory, SuccessorSource);
        let engine = Engine::new(config, executor).unwrap_or_else(|error| panic!("{line}: {error}"));
        let tells_misses = number("misses", 0) == 1;
        Scenario { engine, trace, names: BTreeMap::new(), tells_misses, transcript: format!("> {line}\n") }
    }

    fn obey(&mut self, line: &str) {
        let (command, arguments) = parse(line);
        if command.is_empty() || command.starts_with('#') {
            self.say(line);
            return;
        }
        self.say(&format!("> {line}"));
        match command.as_str() {
            "add" => self.add(&arguments),
            "step" => {
                let count =
                    arguments.get("0").map_or(1, |count| count.parse().expect("`step` takes a number"));
                (0..count).for_each(|_| self.step());
            }
            "abort" => self.engine.abort(self.id(&arguments["0"])),
            "finish" => {
                let sample = arguments["1"].parse().expect("`finish` takes a request and a sample index");
                self.engine.finish_sequence(self.id(&arguments["0"]), sample);
            }
            "pool" => {
                let stats = self.engine.stats();
                let (free, cached, held) =
                    (stats.kv_blocks_free, stats.kv_blocks_cached, stats.kv_blocks_referenced);
                self.say(&format!("  free {free}, cached {cached}, referenced {held}"));
            }
            _ => panic!("unknown command: {line}"),
        }
        self.say_events();
        if let Err(error) = self.engine.check_integrity() {
            panic!("after `{line}`: {error}\n{}", self.transcript);
        }
    }

    fn add(&mut self, arguments: &BTreeMap<String, String>) {
        let numbers = |name: &str| -> Vec<u32> {
            let list = arguments.get(name).map_or("", String::as_str);
            list.split(',')
                .filter(|item| !item.is_empty())
                .map(|item| item.parse().expect("a token"))
                .collect()
        };
        let number = |name: &str, default: i32| {
            arguments.get(name).map_or(default, |value| value.parse().expect(name))
        };
        let request = Request {
            prompt: numbers("prompt"),
            sampling: Arc::new(SamplingParams::greedy()),
            stop: StopCriteria {
                max_tokens: number("max", 4) as u32,
                min_tokens: number("min", 0) as u32,
                stop_token_ids: numbers("stop").into(),
                repetition: None,
            },
            num_sequences: number("n", 1) as u32,
            priority: number("priority", 0),
            cache_salt: CacheSalt {
                tenant: number("tenant", 0) as u64,
                salt: arguments.get("salt").map_or(Vec::new(), |salt| salt.as_bytes().to_vec()),
            },
            constraint: None,
            prompt_logprobs: arguments.values().any(|value| value == "logprobs").then_some(0),
        };
        let id = RequestId(self.names.len() as u64);
        self.names.insert(id, arguments["0"].clone());
        if let Err(error) = self.engine.add_request(id, request) {
            self.say(&format!("  refused: {error}"));
        }
    }

    fn step(&mut self) {
        self.engine.step();
        let plan = self.trace.take();
        for line in plan.lines() {
            self.say(&format!("  {line}"));
        }
        self.say_events();
    }

    fn say_events(&mut self) {
        for event in self.engine.take_events() {
            let line = match event {
                EngineEvent::Request(id, event) => {
                    let miss = if self.tells_misses { miss_text(&event) } else { String::new() };
                    format!("    {}{}{miss}", self.names[&id], event_text(&event))
                }
                EngineEvent::Ended(id) => format!("    {} ends", self.names[&id]),
            };
            self.say(&line);
        }
    }

    fn id(&self, name: &str) -> RequestId {
        let found = self.names.iter().find(|(_, known)| *known == name);
        *found.unwrap_or_else(|| panic!("no request {name}")).0
    }

    fn say(&mut self, line: &str) {
        writeln!(self.transcript, "{line}").expect("writing to a string succeeds");
    }
}

fn event_text(event: &RequestEvent<Option<TokenLogprobs>>) -> String {
    let reason = |finish: &Option<FinishReason>| match finish {
        Some(FinishReason::Stop) => ", stop",
        Some(FinishReason::Complete) => ", complete",
        Some(FinishReason::Length) => ", length",
        Some(FinishReason::Repetition) => ", repetition",
        None => "",
    };
    match event {
        RequestEvent::Scheduled { prefix } => format!(" scheduled, {} cached", prefix.num_cached_tokens),
        RequestEvent::PromptLogprobs(logprobs) => format!(" prompt logprobs {}", logprobs.len()),
        RequestEvent::Token(token) => {
            format!("#{}: {}{}", token.sample_index, token.token, reason(&token.finish))
        }
        RequestEvent::Finished { sample_index, reason: finish } => {
            format!("#{sample_index}{}", reason(&Some(*finish)))
        }
        RequestEvent::SequenceFailed { sample_index, error } => format!("#{sample_index} failed: {error}"),
        RequestEvent::Failed(error) => format!(" failed: {error}"),
    }
}

/// Why the rest of a prompt was not cached.
fn miss_text(event: &RequestEvent<Option<TokenLogprobs>>) -> String {
    let RequestEvent::Scheduled { prefix } = event else { return String::new() };
    let num_known = prefix.num_known_tokens;
    match prefix.miss {
        _ if prefix.num_tokens_under_other_salt > 0 => {
            format!(", {} under another salt", prefix.num_tokens_under_other_salt)
        }
        CacheMiss::Nothing => ", complete".into(),
        CacheMiss::NotAsked => ", not asked".into(),
        CacheMiss::FirstUse => ", first use".into(),
        CacheMiss::Evicted => format!(", evicted up to {num_known}"),
        CacheMiss::Diverged => format!(", diverged at {num_known}"),
    }
}

/// `name key=value flag` becomes the name, and the others by key or by number.
fn parse(line: &str) -> (String, BTreeMap<String, String>) {
    let mut words = line.split_whitespace();
    let command = words.next().unwrap_or_default().to_string();
    let arguments = words.enumerate().map(|(index, word)| match word.split_once('=') {
        Some((key, value)) => (key.to_string(), value.to_string()),
        None => (index.to_string(), word.to_string()),
    });
    (command, arguments.collect())
}
