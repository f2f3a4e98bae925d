//! The engine's thread through its handle: streams, aborts, limits, failures, the end.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use pagoda_engine::{
    CacheMiss, EngineConfig, EngineHandle, EngineState, EngineStats, FinishReason, IntegrityError,
    PrefixReport, Request, RequestError, RequestEvent, RequestStream, SamplingParams, StopCriteria,
    SubmitError, TokenId, TokenLogprobs,
};
use pagoda_testkit::{Fault, FaultPlan, TokenMemoryConfig, TokenMemoryExecutor, block_on, wait_until};

type Extra = Option<TokenLogprobs>;
type Handle = EngineHandle<Extra>;
type Stream = RequestStream<Extra>;

const MEMORY: TokenMemoryConfig = TokenMemoryConfig { block_size: 4, num_blocks: 64, vocab_size: 100 };
/// More than any test waits for.
const ENDLESS: u32 = 1_000_000;

fn config() -> EngineConfig {
    EngineConfig {
        block_size: MEMORY.block_size,
        num_blocks: MEMORY.num_blocks,
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        max_model_len: 200,
        max_queued_requests: 8,
        watermark_blocks: 1,
        ..EngineConfig::default()
    }
}

/// An engine whose steps take a moment, so that a request can be met in the middle of its life.
fn slow_engine(faults: &FaultPlan) -> Handle {
    let executor =
        TokenMemoryExecutor::new(MEMORY).with_faults(faults).with_delay(|_| Duration::from_micros(200));
    EngineHandle::spawn(config(), executor).expect("the sizes are valid")
}

fn request(prompt: &[TokenId], max_tokens: u32) -> Request {
    Request {
        prompt: prompt.to_vec(),
        sampling: Arc::new(SamplingParams::greedy()),
        stop: StopCriteria { max_tokens, ..StopCriteria::default() },
        num_sequences: 1,
        priority: 0,
        cache_salt: Default::default(),
        prompt_logprobs: None,
        constraint: None,
    }
}

fn all(stream: Stream) -> Vec<RequestEvent<Extra>> {
    block_on(stream.collect())
}

fn tokens(events: &[RequestEvent<Extra>]) -> Vec<TokenId> {
    let token = |event: &RequestEvent<Extra>| match event {
        RequestEvent::Token(token) => Some(token.token),
        _ => None,
    };
    events.iter().filter_map(token).collect()
}

/// Waits for the first token, so that the request certainly runs.
fn started(handle: &Handle, request: Request) -> Stream {
    let mut stream = handle.submit(request).expect("there is room");
    while !matches!(block_on(stream.next()), Some(RequestEvent::Token(_))) {}
    stream
}

fn scheduled<X>(num_cached_tokens: u32, miss: CacheMiss) -> RequestEvent<X> {
    let num_known_tokens = num_cached_tokens;
    let prefix = PrefixReport { num_cached_tokens, num_known_tokens, miss, num_tokens_under_other_salt: 0 };
    RequestEvent::Scheduled { prefix }
}

fn is_clean(stats: EngineStats) -> bool {
    stats.num_requests_running == 0 && stats.kv_blocks_free + stats.kv_blocks_cached == stats.kv_blocks_total
}

#[test]
fn a_stream_carries_every_token_and_ends() {
    let handle = slow_engine(&FaultPlan::new());
    let events = all(handle.submit(request(&[1, 2, 3], 5)).unwrap());
    assert_eq!(events[0], scheduled(0, CacheMiss::FirstUse));
    assert_eq!(tokens(&events).len(), 5);
    let Some(RequestEvent::Token(last)) = events.last() else { panic!("{events:?}") };
    assert_eq!(last.finish, Some(FinishReason::Length));
    assert_eq!(handle.num_unfinished(), 0);
    // The same prompt again: found in the cache, but for the token whose logits are wanted.
    let again = all(handle.submit(request(&[1, 2, 3], 5)).unwrap());
    assert_eq!(again[0], scheduled(2, CacheMiss::Nothing));
    assert_eq!(tokens(&again), tokens(&events));
    assert_eq!(handle.stats().prefix_cache_hits, 2);
    let report = block_on(handle.check_integrity()).unwrap();
    assert_eq!(report.kv_blocks_referenced, 0);
}

#[test]
fn dropping_a_stream_frees_its_blocks_at_the_next_step() {
    let handle = slow_engine(&FaultPlan::new());
    for num_sequences in [1, 3] {
        let stream = started(&handle, Request { num_sequences, ..request(&[1, 2, 3], ENDLESS) });
        assert!(!is_clean(handle.stats()));
        drop(stream);
        wait_until("the blocks are free", || is_clean(handle.stats()) && handle.num_unfinished() == 0);
    }
    assert_eq!(handle.stats().num_aborted_requests, 2);
    block_on(handle.check_integrity()).unwrap();
}

#[test]
fn dropping_the_stream_of_a_waiting_request_frees_its_place() {
    let handle = slow_engine(&FaultPlan::new());
    let running = started(&handle, Request { num_sequences: 4, ..request(&[1], ENDLESS) });
    let waiting = handle.submit(request(&[2], 1)).unwrap();
    wait_until("one runs and one waits", || {
        let stats = handle.stats();
        (stats.num_requests_running, stats.num_requests_waiting) == (1, 1)
    });
    assert_eq!(handle.num_queued(), 1);
    drop(waiting);
    wait_until("its place is free", || handle.num_queued() == 0 && handle.num_unfinished() == 1);
    drop(running);
    wait_until("nothing runs", || is_clean(handle.stats()));
}

#[test]
fn the_queue_limit_is_never_exceeded_however_many_submit_at_once() {
    let faults = FaultPlan::new();
    let handle = slow_engine(&faults);
    let hang = faults.hang_next();
    let first = handle.submit(request(&[1], 1)).unwrap();
    wait_until("the first step hangs", || faults.num_left() == 0);
    let submit_many = |seed: u32| {
        let mut accepted = Vec::new();
        for index in 0..50 {
            let num_sequences = 1 + (seed + index) % 3;
            match handle.submit(Request { num_sequences, ..request(&[seed, index], 1) }) {
                Ok(stream) => accepted.push((num_sequences as usize, stream)),
                Err(error) => {
                    assert!(matches!(error, SubmitError::QueueFull { num_queued, .. } if num_queued <= 8))
                }
            }
            assert!(handle.num_queued() <= 8, "{} queued", handle.num_queued());
        }
        accepted
    };
    let accepted: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || submit_many(seed))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    // The first one left the queue when its step was planned.
    let num_taken: usize = accepted.iter().map(|(num_sequences, _)| num_sequences).sum();
    assert_eq!(num_taken, 8, "places were given away");
    hang.release();
    for (num_sequences, stream) in accepted {
        assert_eq!(tokens(&all(stream)).len(), num_sequences);
    }
    assert_eq!(tokens(&all(first)).len(), 1);
    assert_eq!(handle.num_queued(), 0);
}

#[test]
fn a_request_runs_from_the_beginning_of_its_first_step() {
    let faults = FaultPlan::new();
    let handle = slow_engine(&faults);
    let hang = faults.hang_next();
    let mut stream = handle.submit(request(&[1, 2, 3, 4, 5], 1)).unwrap();
    wait_until("the step hangs", || faults.num_left() == 0);
    let stats = handle.stats();
    assert_eq!((stats.num_requests_running, stats.num_requests_waiting), (1, 0));
    assert!(stats.kv_blocks_referenced >= 2, "{stats:?}");
    assert_eq!(handle.num_queued(), 0);
    assert_eq!(block_on(stream.next()), Some(scheduled(0, CacheMiss::FirstUse)));
    hang.release();
    assert_eq!(tokens(&all(stream)).len(), 1);
}

#[test]
fn submit_and_the_numbers_do_not_wait_for_a_hanging_step() {
    let faults = FaultPlan::new();
    let handle = slow_engine(&faults);
    let hang = faults.hang_next();
    let first = handle.submit(request(&[1], 2)).unwrap();
    wait_until("the step hangs", || faults.num_left() == 0);
    let second = handle.submit(request(&[2], 2)).unwrap();
    let check = handle.check_integrity();
    assert_eq!(handle.num_unfinished(), 2);
    assert_eq!(handle.state(), EngineState::Running);
    assert_eq!(handle.stats().num_output_tokens, 0);
    hang.release();
    assert!(block_on(check).is_ok());
    assert_eq!(tokens(&all(first)).len() + tokens(&all(second)).len(), 4);
}

#[test]
fn a_failed_step_ends_its_requests_and_the_engine_lives() {
    for fault in [Fault::LaunchError, Fault::WaitError] {
        let faults = FaultPlan::new();
        let handle = slow_engine(&faults);
        let stream = started(&handle, request(&[1, 2, 3, 4, 5], ENDLESS));
        faults.next(fault);
        let events = all(stream);
        let Some(RequestEvent::Failed(RequestError::Executor(error))) = events.last() else {
            panic!("{events:?}")
        };
        assert!(!error.is_fatal);
        assert_eq!(tokens(&all(handle.submit(request(&[1, 2, 3], 4)).unwrap())).len(), 4);
        assert_eq!(handle.state(), EngineState::Running);
        assert_eq!(handle.stats().num_failed_steps, 1);
        assert!(is_clean(handle.stats()));
        block_on(handle.check_integrity()).unwrap();
    }
}

#[test]
fn a_failed_row_ends_its_sequence_alone() {
    let faults = FaultPlan::new();
    let handle = slow_engine(&faults);
    faults.at_step(2, Fault::Row(1));
    let events = all(handle.submit(Request { num_sequences: 3, ..request(&[1, 2, 3], 6) }).unwrap());
    let failed: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            RequestEvent::SequenceFailed { sample_index, .. } => Some(*sample_index),
            _ => None,
        })
        .collect();
    assert_eq!(failed, [1]);
    assert_eq!(tokens(&events).len(), 6 + 2 + 6);
    wait_until("the blocks are free", || is_clean(handle.stats()));
    block_on(handle.check_integrity()).unwrap();
}

#[test]
fn a_lost_device_stops_the_engine_and_tells_everyone() {
    let faults = FaultPlan::new();
    let handle = slow_engine(&faults);
    let running = started(&handle, Request { num_sequences: 4, ..request(&[1], ENDLESS) });
    let waiting = handle.submit(request(&[2], 1)).unwrap();
    faults.next(Fault::Fatal);
    assert!(
        matches!(all(running).last(), Some(RequestEvent::Failed(RequestError::Executor(error))) if error.is_fatal)
    );
    assert_eq!(all(waiting), [RequestEvent::Failed(RequestError::EngineStopped)]);
    wait_until("the engine has stopped", || handle.state() == EngineState::Stopped);
    assert_eq!(handle.submit(request(&[1], 1)).err(), Some(SubmitError::Stopped));
}

#[test]
fn a_panic_poisons_the_handle_and_every_stream_hears_of_it() {
    let faults = FaultPlan::new();
    let handle = slow_engine(&faults);
    let running = started(&handle, Request { num_sequences: 4, ..request(&[1], ENDLESS) });
    let waiting = handle.submit(request(&[2], 1)).unwrap();
    faults.next(Fault::Panic);
    for stream in [running, waiting] {
        assert_eq!(all(stream).last(), Some(&RequestEvent::Failed(RequestError::EngineStopped)));
    }
    wait_until("the engine has stopped", || handle.state() == EngineState::Stopped);
    assert_eq!(handle.submit(request(&[1], 1)).err(), Some(SubmitError::Stopped));
    assert_eq!(handle.num_unfinished(), 0);
    assert_eq!(block_on(handle.check_integrity()), Err(IntegrityError::EngineStopped));
    handle.drain();
    handle.abort_all();
    assert_eq!(handle.state(), EngineState::Stopped);
}

#[test]
fn a_draining_engine_refuses_new_requests_and_finishes_the_accepted_ones() {
    let handle = slow_engine(&FaultPlan::new());
    let accepted: Vec<_> = (0..6).map(|first| handle.submit(request(&[first, 1], 20)).unwrap()).collect();
    handle.drain();
    assert_eq!(handle.state(), EngineState::Draining);
    assert_eq!(handle.submit(request(&[9], 1)).err(), Some(SubmitError::Draining));
    for stream in accepted {
        assert_eq!(tokens(&all(stream)).len(), 20);
    }
    assert_eq!(handle.num_unfinished(), 0);
}

#[test]
fn abort_all_ends_everything_and_the_engine_lives() {
    let handle = slow_engine(&FaultPlan::new());
    let streams: Vec<_> = (0..6).map(|first| handle.submit(request(&[first], ENDLESS)).unwrap()).collect();
    handle.abort_all();
    for stream in streams {
        assert_eq!(all(stream).last(), Some(&RequestEvent::Failed(RequestError::EngineStopped)));
    }
    wait_until("the blocks are free", || is_clean(handle.stats()));
    assert_eq!(tokens(&all(handle.submit(request(&[1], 3)).unwrap())).len(), 3);
}

#[test]
fn finishing_one_sequence_leaves_the_others_alone() {
    let handle = slow_engine(&FaultPlan::new());
    let stream = handle.submit(Request { num_sequences: 2, ..request(&[1, 2, 3], 150) }).unwrap();
    stream.finish_sequence(1);
    let events = all(stream);
    let of_sample = |sample: u32| {
        let is_its = |event: &&RequestEvent<Extra>| matches!(event, RequestEvent::Token(token) if token.sample_index == sample);
        events.iter().filter(is_its).count()
    };
    assert_eq!(of_sample(0), 150);
    assert!(of_sample(1) < 150);
    wait_until("the blocks are free", || is_clean(handle.stats()));
}

#[test]
fn the_thread_ends_with_the_last_handle_and_the_last_stream() {
    let alive = Arc::new(());
    let witness = Arc::clone(&alive);
    let executor = TokenMemoryExecutor::new(MEMORY).with_delay(move |_| {
        let _ = &witness;
        Duration::from_micros(200)
    });
    let handle = EngineHandle::spawn(config(), executor).unwrap();
    let stream = started(&handle, request(&[1], 30));
    drop(handle.clone());
    drop(handle);
    assert_eq!(tokens(&all(stream)).len(), 29, "a stream keeps the engine alive");
    wait_until("the executor is dropped", || Arc::strong_count(&alive) == 1);
}

#[test]
fn what_can_never_be_served_is_refused_at_once() {
    let handle = slow_engine(&FaultPlan::new());
    let refused = |request| handle.submit(request).err();
    assert_eq!(refused(request(&[], 1)), Some(SubmitError::EmptyPrompt));
    let too_long = Some(SubmitError::PromptTooLong { num_prompt_tokens: 200, max_model_len: 200 });
    assert_eq!(refused(request(&[1; 200], 1)), too_long);
    for num_sequences in [0, 5] {
        let wanted =
            SubmitError::TooManySequences { num_sequences: num_sequences as usize, max_num_sequences: 4 };
        assert_eq!(refused(Request { num_sequences, ..request(&[1], 1) }), Some(wanted));
    }
    // A full window of prompt leaves no room, which is fine if none is wanted.
    let events = all(handle.submit(request(&[1; 200], 0)).unwrap());
    let finished = RequestEvent::Finished { sample_index: 0, reason: FinishReason::Length };
    assert_eq!(events, [scheduled(0, CacheMiss::FirstUse), finished]);
    assert_eq!(handle.num_unfinished(), 0);
}

#[test]
fn an_abort_storm_leaves_nothing_behind() {
    let handle = slow_engine(&FaultPlan::new());
    let mut random = pagoda_testkit::Random::new(7);
    for _ in 0..300 {
        let num_sequences = random.between(1, 3) as u32;
        let prompt: Vec<TokenId> = (0..random.between(1, 40)).map(|_| random.below(3) as TokenId).collect();
        let Ok(mut stream) = handle.submit(Request { num_sequences, ..request(&prompt, ENDLESS) }) else {
            continue;
        };
        // Cut after a random number of events: before the first step, in the prompt, in the middle.
        for _ in 0..random.below(4) {
            block_on(stream.next());
        }
    }
    wait_until("everything came back", || is_clean(handle.stats()) && handle.num_unfinished() == 0);
    block_on(handle.check_integrity()).unwrap();
    assert_eq!(handle.num_queued(), 0);
}
