//! A constraint restricts its own sequence, ends it exactly at the end of its value, and fails it alone.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use pagoda_engine::{
    CacheSalt, ConstraintError, Engine, EngineConfig, EngineEvent, FinishReason, PipelineDepth, Request,
    RequestEvent, RequestId, SamplingParams, StepOutcome, StopCriteria, TokenConstraint, TokenId,
};
use pagoda_testkit::{ConstraintFault, TokenMemoryConfig, TokenMemoryExecutor, WalkConstraint};

const VOCAB_SIZE: u32 = 70;

fn engine(pipeline_depth: PipelineDepth, mask_time_limit: Duration) -> Engine<TokenMemoryExecutor> {
    let config = EngineConfig {
        num_blocks: 256,
        vocab_size: VOCAB_SIZE as usize,
        pipeline_depth,
        mask_time_limit,
        ..EngineConfig::default()
    };
    let memory = TokenMemoryConfig {
        block_size: config.block_size,
        num_blocks: config.num_blocks,
        vocab_size: VOCAB_SIZE,
    };
    Engine::new(EngineConfig { max_model_len: 128, ..config }, TokenMemoryExecutor::new(memory)).unwrap()
}

fn request(constraint: Option<Box<dyn TokenConstraint>>) -> Request {
    Request {
        prompt: vec![1, 2, 3],
        sampling: Arc::new(SamplingParams::greedy()),
        stop: StopCriteria { max_tokens: 20, ..StopCriteria::default() },
        num_sequences: 1,
        priority: 0,
        cache_salt: CacheSalt::default(),
        prompt_logprobs: None,
        constraint,
    }
}

/// What a sequence said, and how it ended; a failure is its message.
#[derive(Debug, Default, Clone, PartialEq)]
struct Outcome {
    tokens: Vec<TokenId>,
    finish: Option<FinishReason>,
    failure: Option<String>,
}

/// Runs the requests together: the outcomes of each one's sequences.
fn run(engine: &mut Engine<TokenMemoryExecutor>, requests: Vec<Request>) -> Vec<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for (id, request) in (0..).zip(requests) {
        outcomes.push(vec![Outcome::default(); request.num_sequences as usize]);
        engine.add_request(RequestId(id), request).unwrap();
    }
    let mut step = StepOutcome::Progressed;
    while step != StepOutcome::Idle {
        step = engine.step();
        for event in engine.take_events() {
            match event {
                EngineEvent::Request(RequestId(id), RequestEvent::Token(token)) => {
                    let outcome = &mut outcomes[id as usize][token.sample_index as usize];
                    assert_eq!(outcome.finish, None);
                    outcome.tokens.push(token.token);
                    outcome.finish = token.finish;
                }
                EngineEvent::Request(RequestId(id), RequestEvent::SequenceFailed { sample_index, error }) => {
                    outcomes[id as usize][sample_index as usize].failure = Some(error.message);
                }
                EngineEvent::Request(_, RequestEvent::Failed(error)) => panic!("{error}"),
                _ => {}
            }
        }
        engine.assert_integrity();
    }
    outcomes
}

const PATIENT: Duration = Duration::from_secs(60);

#[test]
fn a_value_ends_exactly_where_the_constraint_says_whatever_the_pipeline() {
    for depth in [PipelineDepth::One, PipelineDepth::Two] {
        let requests = (0..8).map(|seed| {
            let constraint = WalkConstraint::new(seed, VOCAB_SIZE, 5);
            let constraint = (seed > 0).then(|| Box::new(constraint) as Box<dyn TokenConstraint>);
            Request { num_sequences: 1 + seed as u32 % 3, ..request(constraint) }
        });
        let outcomes = run(&mut engine(depth, PATIENT), requests.collect());
        for (seed, outcomes) in (0..).zip(&outcomes) {
            for outcome in outcomes {
                let mut constraint = WalkConstraint::new(seed, VOCAB_SIZE, 5);
                if seed == 0 {
                    assert_eq!((outcome.tokens.len(), outcome.finish), (20, Some(FinishReason::Length)));
                    assert!(outcome.tokens.iter().any(|&token| constraint.advance(token).is_err()));
                    continue;
                }
                assert_eq!((outcome.tokens.len(), outcome.finish), (5, Some(FinishReason::Complete)));
                outcome.tokens.iter().for_each(|&token| constraint.advance(token).unwrap());
            }
            let differ = outcomes.windows(2).all(|pair| pair[0].tokens != pair[1].tokens);
            assert!(differ, "each of n sequences goes its own way: {outcomes:?}");
        }
    }
}

#[test]
fn a_constraint_that_fails_or_panics_fails_its_own_sequences_alone() {
    use ConstraintFault::{Advance, AdvancePanic, Fill, FillPanic};
    for fault in [Advance, AdvancePanic, Fill, FillPanic] {
        let constraint = |seed| WalkConstraint::new(seed, VOCAB_SIZE, 4);
        let good = || request(Some(Box::new(constraint(1))));
        let bad = Request { num_sequences: 2, ..request(Some(Box::new(constraint(2).with_fault(fault)))) };
        let outcomes = run(&mut engine(PipelineDepth::One, PATIENT), vec![good(), bad, request(None)]);
        let alone = run(&mut engine(PipelineDepth::One, PATIENT), vec![good(), request(None)]);
        assert_eq!((&outcomes[0], &outcomes[2]), (&alone[0], &alone[1]), "{fault:?}");
        for outcome in &outcomes[1] {
            assert_eq!((outcome.tokens.len(), outcome.finish), (3, None), "{fault:?}");
            assert!(
                outcome.failure.as_ref().unwrap().starts_with("a constraint fails")
                    || outcome.failure.as_ref().unwrap() == "the constraint failed",
                "{outcome:?}"
            );
        }
    }
}

/// Hangs in `fill_mask` until the test lets it go.
struct Hangs(Arc<Mutex<()>>);

impl TokenConstraint for Hangs {
    fn advance(&mut self, _: TokenId) -> Result<(), ConstraintError> {
        Ok(())
    }

    fn fill_mask(&mut self, _: &mut [u32]) -> Result<(), ConstraintError> {
        drop(self.0.lock());
        Ok(())
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(Hangs(Arc::clone(&self.0)))
    }

    fn is_complete(&self) -> bool {
        false
    }
}

#[test]
fn a_constraint_that_hangs_costs_one_time_limit_and_its_own_sequence() {
    let gate = Arc::new(Mutex::new(()));
    let held = gate.lock().unwrap();
    // The executor takes its time, so that a thread of the pool and not the step loop is the one that hangs.
    let config = EngineConfig {
        num_blocks: 256,
        max_model_len: 128,
        vocab_size: VOCAB_SIZE as usize,
        mask_time_limit: Duration::from_millis(20),
        ..EngineConfig::default()
    };
    let memory = TokenMemoryConfig { block_size: 16, num_blocks: 256, vocab_size: VOCAB_SIZE };
    let source = |context: pagoda_testkit::SampleContext<'_>| {
        std::thread::sleep(Duration::from_millis(2));
        context.num_output_tokens as u32
    };
    let mut engine = Engine::new(config, TokenMemoryExecutor::with_source(memory, source)).unwrap();
    engine.add_request(RequestId(0), request(None)).unwrap();
    engine.add_request(RequestId(1), request(Some(Box::new(Hangs(Arc::clone(&gate)))))).unwrap();
    let (mut num_tokens, mut failure) = (0, None);
    let mut step = StepOutcome::Progressed;
    while step != StepOutcome::Idle {
        step = engine.step();
        for event in engine.take_events() {
            match event {
                EngineEvent::Request(RequestId(0), RequestEvent::Token(_)) => num_tokens += 1,
                EngineEvent::Request(RequestId(1), RequestEvent::SequenceFailed { error, .. }) => {
                    failure = Some(error.message);
                }
                _ => {}
            }
        }
    }
    drop(held);
    assert_eq!(num_tokens, 20);
    assert_eq!(failure.as_deref(), Some("the constraint took too long"));
}

#[test]
fn min_tokens_does_not_ban_the_only_token_that_the_constraint_allows() {
    let stop_token_ids: Arc<[TokenId]> = (0..VOCAB_SIZE).collect();
    let stop = StopCriteria { max_tokens: 20, min_tokens: 20, stop_token_ids, ..StopCriteria::default() };
    let constraint = Box::new(WalkConstraint::new(3, VOCAB_SIZE, 6));
    let outcomes =
        run(&mut engine(PipelineDepth::One, PATIENT), vec![Request { stop, ..request(Some(constraint)) }]);
    assert_eq!((outcomes[0][0].tokens.len(), outcomes[0][0].finish), (6, Some(FinishReason::Complete)));
}
