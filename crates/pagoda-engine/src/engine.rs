//! The step loop: plan, launch, wait, commit. Owns the scheduler, the KV cache and the executor; knows no thread and no
//! channel, so that a test can drive it step by step.

use std::collections::VecDeque;
use std::io::Write;

use crate::kv::KvCacheManager;
use crate::mask_pool::MaskPool;
use crate::scheduler::Scheduler;
use crate::{
    ConfigError, EngineConfig, EngineStats, Executor, ExecutorError, IntegrityError, IntegrityReport,
    Request, RequestError, RequestEvent, RequestId, RequestLimits, StepPlan, SubmitError,
};

/// In debug builds every so many steps all laws are checked: often enough to find a broken one near its cause, seldom
/// enough (a check reads every block) to leave the step its speed.
const STEPS_BETWEEN_CHECKS: u64 = 64;

/// What one call of [`Engine::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepOutcome {
    /// A step was launched or committed.
    Progressed,
    /// There is nothing to do.
    Idle,
    /// The executor failed for good.
    Stopped,
}

/// What the engine has to say about a request.
#[derive(Clone, Debug, PartialEq)]
pub enum EngineEvent<X> {
    /// For the request's stream.
    Request(RequestId, RequestEvent<X>),
    /// The request is over; nothing follows.
    Ended(RequestId),
}

/// A launched step.
struct InFlight<T> {
    plan: StepPlan,
    ticket: T,
}

/// The engine.
pub struct Engine<E: Executor> {
    limits: RequestLimits,
    scheduler: Scheduler<E::Extra>,
    kv: KvCacheManager,
    executor: E,
    masks: MaskPool,
    /// Oldest first; at most the pipeline's depth.
    in_flight: VecDeque<InFlight<E::Ticket>>,
    pipeline_depth: usize,
    trace: Option<Box<dyn Write + Send>>,
    is_stopped: bool,
}

impl<E: Executor> Engine<E> {
    /// An idle engine with an empty cache.
    pub fn new(config: EngineConfig, executor: E) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Engine {
            limits: RequestLimits::new(&config),
            scheduler: Scheduler::new(&config),
            kv: KvCacheManager::new(config.num_blocks, config.block_size, config.prefix_caching),
            executor,
            masks: MaskPool::new(config.num_mask_threads),
            in_flight: VecDeque::new(),
            pipeline_depth: config.pipeline_depth.num_steps(),
            trace: config.trace,
            is_stopped: false,
        })
    }

    /// Accepts a request under an id that has not been used before.
    pub fn add_request(&mut self, id: RequestId, request: Request) -> Result<(), SubmitError> {
        self.limits.check(&request)?;
        self.scheduler.add_request(id, request);
        Ok(())
    }

    /// Plans and launches a step if there is one to plan, and commits the oldest one if the pipeline is full or nothing
    /// could be planned.
    pub fn step(&mut self) -> StepOutcome {
        let plan = self.plan_step();
        self.run_step(plan)
    }

    /// The first half of [`Engine::step`]: who is in the next step, with blocks for it. Nothing has been computed yet.
    pub fn plan_step(&mut self) -> Option<StepPlan> {
        if self.is_stopped {
            return None;
        }
        tracing::trace_span!("schedule").in_scope(|| self.scheduler.schedule(&mut self.kv))
    }

    /// The second half of [`Engine::step`], of what [`Engine::plan_step`] has just planned.
    pub fn run_step(&mut self, plan: Option<StepPlan>) -> StepOutcome {
        if self.is_stopped {
            return StepOutcome::Stopped;
        }
        let has_planned = plan.is_some();
        if let Some(plan) = plan {
            self.launch(plan);
        }
        if !has_planned || self.in_flight.len() == self.pipeline_depth {
            self.commit_oldest(has_planned);
        }
        if self.scheduler.is_stalled() {
            self.commit_all();
        }
        self.check_now_and_then();
        self.outcome(has_planned)
    }

    fn launch(&mut self, plan: StepPlan) {
        if let Some(trace) = &mut self.trace {
            // A reader that has gone away ends the trace, not the engine.
            if write!(trace, "{plan}").and_then(|()| trace.flush()).is_err() {
                self.trace = None;
            }
        }
        for mask in plan.samples.iter().filter_map(|row| row.mask.as_ref()) {
            self.masks.submit(mask.clone());
        }
        match self.executor.launch(&plan) {
            Ok(ticket) => self.in_flight.push_back(InFlight { plan, ticket }),
            Err(error) => {
                // The steps before it come to their end first, so that steps end in order and the next plan's
                // `LastSampled` cannot mean a step that never ran.
                self.commit_all();
                self.fail_step(plan, &error);
            }
        }
    }

    /// Waits for the oldest step, if there is one.
    fn commit_oldest(&mut self, has_planned: bool) {
        let Some(InFlight { plan, ticket }) = self.in_flight.pop_front() else {
            let is_stuck = !has_planned && !self.scheduler.is_empty();
            assert!(
                !is_stuck,
                "law 11: nothing was planned for {:?} sequences",
                self.scheduler.num_sequences()
            );
            return;
        };
        let output =
            tracing::trace_span!("execute", step = plan.step_id).in_scope(|| self.executor.wait(ticket));
        match output {
            Ok(output) => self.scheduler.commit(plan, output, &mut self.kv),
            Err(error) => self.fail_step(plan, &error),
        }
    }

    fn commit_all(&mut self) {
        while !self.in_flight.is_empty() {
            self.commit_oldest(true);
        }
    }

    fn fail_step(&mut self, plan: StepPlan, error: &ExecutorError) {
        tracing::error!(step = plan.step_id, fatal = error.is_fatal, "{error}");
        self.scheduler.fail_step(plan, error, &mut self.kv);
        if error.is_fatal {
            self.is_stopped = true;
            self.scheduler.fail_all(&RequestError::EngineStopped, &mut self.kv);
        }
    }

    fn outcome(&self, has_planned: bool) -> StepOutcome {
        match (self.is_stopped, has_planned || !self.is_idle()) {
            (true, _) => StepOutcome::Stopped,
            (false, true) => StepOutcome::Progressed,
            (false, false) => StepOutcome::Idle,
        }
    }

    /// Ends one sequence of a request: the client has what it wanted. Unknown ids are ignored.
    pub fn finish_sequence(&mut self, id: RequestId, sample_index: u32) {
        self.scheduler.finish_sequence(id, sample_index, &mut self.kv);
    }

    /// Ends a request: the client is gone. Its blocks are free at once, or when the steps in flight have ended. Unknown
    /// ids are ignored.
    pub fn abort(&mut self, id: RequestId) {
        self.scheduler.abort(id, &mut self.kv);
    }

    /// Ends every request with an error.
    pub fn fail_all(&mut self, error: RequestError) {
        self.scheduler.fail_all(&error, &mut self.kv);
    }

    /// Whether there is neither a request nor a step in flight.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_empty() && self.in_flight.is_empty()
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<EngineEvent<E::Extra>> {
        self.scheduler.take_events()
    }

    /// Counters and gauges.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            kv_blocks_total: self.kv.num_total() as u64,
            kv_blocks_referenced: self.kv.num_referenced() as u64,
            kv_blocks_cached: self.kv.num_cached() as u64,
            kv_blocks_free: self.kv.num_free() as u64,
            kv_ghost_blocks: self.kv.num_ghosts() as u64,
            ..self.scheduler.stats()
        }
    }

    /// Checks every law; reads every block.
    pub fn check_integrity(&self) -> Result<IntegrityReport, IntegrityError> {
        self.scheduler.check_integrity(&self.kv)?;
        let (num_sequences_running, num_sequences_waiting) = self.scheduler.num_sequences();
        Ok(IntegrityReport {
            kv_blocks_total: self.kv.num_total(),
            kv_blocks_referenced: self.kv.num_referenced(),
            kv_blocks_cached: self.kv.num_cached(),
            kv_blocks_free: self.kv.num_free(),
            num_sequences_running,
            num_sequences_waiting,
            num_steps_in_flight: self.in_flight.len(),
        })
    }

    /// Panics with the numbers if a law is broken, or if an idle engine still holds a block.
    pub fn assert_integrity(&self) {
        let report = self.check_integrity().unwrap_or_else(|error| panic!("{error}"));
        let is_clean = !self.is_idle() || report.kv_blocks_referenced == 0;
        assert!(is_clean, "law 1: {} blocks are held, but nothing runs", report.kv_blocks_referenced);
    }

    fn check_now_and_then(&self) {
        if cfg!(debug_assertions) && self.scheduler.num_steps().is_multiple_of(STEPS_BETWEEN_CHECKS) {
            self.assert_integrity();
        }
    }
}
