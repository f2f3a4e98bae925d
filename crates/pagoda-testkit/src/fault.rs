//! Failures on demand: what a device can do to a step, played at a chosen moment.

use std::collections::{BTreeMap, VecDeque};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// What goes wrong in a step.
#[derive(Debug)]
pub enum Fault {
    /// `launch` returns an error; the device can go on.
    LaunchError,
    /// `wait` returns an error; the device can go on.
    WaitError,
    /// `wait` returns an error and the device is lost.
    Fatal,
    /// `wait` panics.
    Panic,
    /// The given sample of the step fails, as a row of NaN does; modulo the number of samples.
    Row(usize),
    /// `wait` does not return until the guard is released or dropped. Made by [`FaultPlan::hang_next`].
    Hang(Receiver<()>),
}

/// Lets a hanging step go on, at the latest when it is dropped.
#[derive(Debug)]
pub struct HangGuard(#[expect(dead_code, reason = "dropping it is what releases the step")] Sender<()>);

impl HangGuard {
    /// Lets the step go on.
    pub fn release(self) {}
}

/// The faults to come. Clones share them, so that a test keeps one while the engine's thread owns the executor.
#[derive(Clone, Debug, Default)]
pub struct FaultPlan(Arc<Mutex<Faults>>);

#[derive(Debug, Default)]
struct Faults {
    next: VecDeque<Fault>,
    at_step: BTreeMap<u64, Fault>,
}

impl FaultPlan {
    /// No faults.
    pub fn new() -> Self {
        FaultPlan::default()
    }

    /// Plays a fault in the next step that is launched; several calls queue up, one per step.
    pub fn next(&self, fault: Fault) {
        self.lock().next.push_back(fault);
    }

    /// Plays a fault in the step with this id.
    pub fn at_step(&self, step_id: u64, fault: Fault) {
        self.lock().at_step.insert(step_id, fault);
    }

    /// Makes the next step that is launched hang until the guard is released.
    pub fn hang_next(&self) -> HangGuard {
        let (sender, receiver) = channel();
        self.next(Fault::Hang(receiver));
        HangGuard(sender)
    }

    /// Faults that have not been played.
    pub fn num_left(&self) -> usize {
        let faults = self.lock();
        faults.next.len() + faults.at_step.len()
    }

    pub(crate) fn take(&self, step_id: u64) -> Option<Fault> {
        let mut faults = self.lock();
        faults.at_step.remove(&step_id).or_else(|| faults.next.pop_front())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Faults> {
        // A panic is one of the faults; the plan itself is never left half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
