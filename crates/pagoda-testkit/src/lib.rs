//! Tests the engine without a model.
//!
//! What it is: executors that remember tokens instead of keys and values, so that any paging error changes what is
//! generated; fault points; a seeded simulation of the whole engine; a text language for scheduler snapshots. What it is
//! not: part of any shipped binary.

mod block_machine;
mod constraint;
mod executor;
mod fault;
mod kv_memory;
mod random;
mod replies;
mod scenario;
mod simulation;
mod token_source;
mod wait;

pub use block_machine::{BlockMachine, BlockMachineCounts};
pub use constraint::{ConstraintFault, WalkConstraint};
pub use executor::{TokenMemoryConfig, TokenMemoryExecutor};
pub use fault::{Fault, FaultPlan, HangGuard};
pub use kv_memory::KvMemory;
pub use random::Random;
pub use replies::{Faults, ReplySource};
pub use scenario::{render_timelines, run_scenario};
pub use simulation::{Load, Simulation, SimulationReport, simulate};
pub use token_source::{HashSource, SampleContext, ScriptSource, SuccessorSource, TokenSource, hash_token};
pub use wait::{block_on, wait_until};

/// An executor whose sequences all say the same, for tests that care about the text. See [`ScriptSource`].
pub type ScriptedExecutor = TokenMemoryExecutor<ScriptSource>;
