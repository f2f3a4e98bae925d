//! The engine: sequences, the paged KV cache, the scheduler and the step loop.
//!
//! What it is: a deterministic state machine that decides who runs next and where the KV of every token lives, and a
//! thread that drives an [`Executor`] with the plans. What it is not: it knows no float, no device, no HTTP and no text.
//!
//! ```text
//!  any thread                        engine thread (owns all state)                     device
//!  ──────────                        ──────────────────────────────                     ──────
//!  Request ─ EngineHandle::submit ─► bounded queue ─► Engine::add_request
//!                                                      │
//!                                 ┌────────────────────┴───────────── Engine::step ──┐
//!                                 │ plan   = scheduler.schedule(&mut kv) -> StepPlan  │
//!                                 │ ticket = executor.launch(&plan)  ─────────────────┼─► copies, forward, sample
//!                                 │ output = executor.wait(ticket)   ◄────────────────┼── tokens
//!                                 │ events = scheduler.commit(plan, output, &mut kv)  │
//!                                 └────────────────────┬──────────────────────────────┘
//!  RequestStream ◄── RequestEvent ─────────────────────┘
//! ```
//!
//! Invariants: one thread owns all state, others send messages; the queue is bounded; a client can never block a step;
//! the laws of the block manager ([`KvCacheManager`]) are checked by [`Engine::check_integrity`].

mod config;
mod constraint;
mod engine;
mod event;
mod executor;
mod handle;
mod ids;
mod integrity;
mod kv;
mod limits;
mod mask_pool;
mod plan;
mod repetition;
mod request;
mod sampling;
mod scheduler;
mod stats;
mod stream;
mod thread;
mod trace;

pub use config::*;
pub use constraint::{ConstraintError, TokenConstraint, TokenMask};
pub use engine::*;
pub use event::*;
pub use executor::*;
pub use handle::*;
pub use ids::*;
pub use integrity::{IntegrityError, IntegrityReport};
pub use kv::*;
pub use limits::*;
pub use plan::*;
pub use repetition::RepetitionRule;
pub use request::*;
pub use sampling::*;
pub use stats::{EngineStats, NUM_STATS, STEP_SIZES};
pub use stream::RequestStream;
