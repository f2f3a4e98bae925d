//! The load: which requests are sent when. Bounded in count and in time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::client::{Record, Target};
use super::lengths::{Lengths, Random};
use crate::args::BenchServeArgs;

/// Ids below are often special tokens, which a template or a stop rule treats differently.
const FIRST_RANDOM_ID: u32 = 256;
/// Words that are one token in most vocabularies.
const WORDS: [&str; 16] = [
    "time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school",
    "state", "family", "student", "group",
];

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Arrivals {
    /// This many are always under way.
    Closed(usize),
    /// A Poisson process of this many a second.
    Open(f64),
}

/// What is asked for.
pub(crate) struct Workload {
    model: String,
    is_chat: bool,
    prompt_len: Lengths,
    output_len: Lengths,
    vocab_size: u32,
    temperature: f64,
    random: Random,
}

/// What a run brought.
pub(crate) struct Outcome {
    /// Finished requests.
    pub(crate) records: Vec<Record>,
    /// One message for each request that failed.
    pub(crate) failures: Vec<String>,
    /// From the first request to the last answer.
    pub(crate) duration: Duration,
}

impl Workload {
    /// The workload that the flags describe.
    pub(crate) fn new(args: &BenchServeArgs, model: String) -> Self {
        Workload {
            model,
            is_chat: args.endpoint == "chat",
            prompt_len: args.prompt_len.clone(),
            output_len: args.output_len.clone(),
            vocab_size: args.vocab_size.max(FIRST_RANDOM_ID + 1),
            temperature: args.temperature,
            random: Random::new(args.seed),
        }
    }

    /// Where the requests go.
    pub(crate) fn path(&self) -> &'static str {
        if self.is_chat { "/v1/chat/completions" } else { "/v1/completions" }
    }

    /// The next request. `ignore_eos` makes the output as long as it was drawn.
    pub(crate) fn next_request(&mut self) -> Value {
        let prompt_len = self.prompt_len.draw(&mut self.random);
        let mut request = json!({
            "model": self.model,
            "max_tokens": self.output_len.draw(&mut self.random),
            "temperature": self.temperature,
            "seed": self.random.bits() >> 32,
            "ignore_eos": true,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        if self.is_chat {
            let words: Vec<&str> =
                (0..prompt_len).map(|_| WORDS[(self.random.bits() % WORDS.len() as u64) as usize]).collect();
            request["messages"] = json!([{ "role": "user", "content": words.join(" ") }]);
        } else {
            let span = u64::from(self.vocab_size - FIRST_RANDOM_ID);
            let ids: Vec<u64> =
                (0..prompt_len).map(|_| u64::from(FIRST_RANDOM_ID) + self.random.bits() % span).collect();
            request["prompt"] = json!(ids);
            // Ids are counted by usage; asking for them makes tokens without complete text visible as chunks.
            request["return_token_ids"] = json!(true);
        }
        request
    }
}

/// Sends `num_requests` and waits for all answers, at most `limit` long.
pub(crate) async fn run(
    target: &Arc<Target>,
    workload: &mut Workload,
    arrivals: Arrivals,
    (num_requests, limit): (usize, Duration),
) -> Outcome {
    let start = Instant::now();
    let deadline = tokio::time::Instant::now() + limit;
    let mut outcome = Outcome { records: Vec::new(), failures: Vec::new(), duration: Duration::ZERO };
    let mut in_flight = JoinSet::new();
    let mut due = tokio::time::Instant::now();
    let mut num_sent = 0;
    while num_sent < num_requests || !in_flight.is_empty() {
        let may_send = num_sent < num_requests
            && match arrivals {
                Arrivals::Closed(concurrency) => in_flight.len() < concurrency,
                Arrivals::Open(_) => tokio::time::Instant::now() >= due,
            };
        if may_send {
            let (target, path, request) = (Arc::clone(target), workload.path(), workload.next_request());
            in_flight.spawn(async move { target.stream(path, &request).await });
            num_sent += 1;
            if let Arrivals::Open(rate) = arrivals {
                due += Duration::from_secs_f64(workload.random.exponential(rate));
            }
            continue;
        }
        let is_waiting_to_send = matches!(arrivals, Arrivals::Open(_)) && num_sent < num_requests;
        tokio::select! {
            Some(joined) = in_flight.join_next() => match joined {
                Ok(Ok(record)) => outcome.records.push(record),
                Ok(Err(error)) => outcome.failures.push(format!("{error:#}")),
                Err(error) => outcome.failures.push(error.to_string()),
            },
            () = tokio::time::sleep_until(due), if is_waiting_to_send => {}
            () = tokio::time::sleep_until(deadline) => {
                let unfinished = in_flight.len() + num_requests - num_sent;
                outcome.failures.extend((0..unfinished).map(|_| "time limit reached".to_owned()));
                break;
            }
        }
    }
    outcome.duration = start.elapsed();
    outcome
}
