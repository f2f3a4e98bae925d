//! A scripted reply is said to its last token, and never quietly changed.

use std::sync::Arc;

use futures_util::StreamExt;
use pagoda_engine::{
    EngineConfig, EngineHandle, Request, RequestEvent, SamplingParams, StopCriteria, TokenId, TokenLogprobs,
};
use pagoda_testkit::{Faults, ReplySource, SampleContext, TokenMemoryConfig, TokenMemoryExecutor, block_on};

const END: TokenId = 9;

/// Repeats the prompt backwards, then ends; refuses to answer a prompt that starts with 0.
fn engine() -> (EngineHandle<Option<TokenLogprobs>>, Faults) {
    let source = ReplySource::new(|context: SampleContext<'_>| {
        if context.tokens[0] == 0 {
            return Err("no reply".to_owned());
        }
        Ok(context.tokens.iter().rev().copied().chain([END]).collect())
    });
    let faults = source.faults();
    let memory = TokenMemoryConfig { block_size: 4, num_blocks: 64, vocab_size: 10 };
    let config = EngineConfig {
        block_size: 4,
        num_blocks: 64,
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        max_model_len: 40,
        max_queued_requests: 8,
        watermark_blocks: 1,
        ..EngineConfig::default()
    };
    let executor = TokenMemoryExecutor::with_source(memory, source);
    (EngineHandle::spawn(config, executor).expect("the sizes are valid"), faults)
}

fn request(prompt: &[TokenId], min_tokens: u32) -> Request {
    Request {
        prompt: prompt.to_vec(),
        sampling: Arc::new(SamplingParams::greedy()),
        stop: StopCriteria {
            max_tokens: 20,
            min_tokens,
            stop_token_ids: Arc::new([END]),
            ..StopCriteria::default()
        },
        num_sequences: 1,
        priority: 0,
        cache_salt: Default::default(),
        prompt_logprobs: None,
        constraint: None,
    }
}

/// The tokens said, and whether the sequence failed.
fn play(engine: &EngineHandle<Option<TokenLogprobs>>, request: Request) -> (Vec<TokenId>, bool) {
    let events: Vec<_> = block_on(engine.submit(request).expect("there is room").collect());
    let said = events.iter().filter_map(|event| match event {
        RequestEvent::Token(token) => Some(token.token),
        _ => None,
    });
    let failed = events.iter().any(|event| matches!(event, RequestEvent::SequenceFailed { .. }));
    (said.collect(), failed)
}

#[test]
fn a_reply_is_said_to_its_end() {
    let (engine, faults) = engine();
    assert_eq!(play(&engine, request(&[1, 2, 3], 0)), (vec![3, 2, 1, END], false));
    assert_eq!(play(&engine, request(&[4, 5], 0)), (vec![5, 4, END], false));
    assert_eq!(faults.take(), Vec::<String>::new());
}

#[test]
fn a_forbidden_token_fails_the_sequence_and_is_told() {
    let (engine, faults) = engine();
    // The end may not come as the third token.
    assert_eq!(play(&engine, request(&[4, 5], 3)), (vec![5, 4], true));
    assert_eq!(faults.take(), ["token 9, number 2 of [5, 4, 9], may not be chosen"]);
}

#[test]
fn a_prompt_without_a_reply_fails_and_is_told() {
    let (engine, faults) = engine();
    assert_eq!(play(&engine, request(&[0, 1], 0)), (vec![], true));
    assert_eq!(faults.take(), ["no reply"]);
}
