//! [`Pool`]: the caller and `num_threads - 1` workers, sharing the tasks of one region at a time.
//!
//! Tasks are taken from a counter, so a thread that the system has put aside costs its current task and no more, and a
//! worker that comes late finds the region closed and is not waited for. Waiting spins for at most 20 us, then parks.
//! A region allocates nothing.
//!
//! ```text
//! gate   epoch (32 bits) | open (1 bit) | workers inside (31 bits)
//! caller   publish job -> open -> take tasks -> close -> wait until nobody is inside
//! worker   wait for a new open epoch -> enter -> take tasks -> leave
//! ```

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use pagoda_backend::BackendError;

const SPIN: Duration = Duration::from_micros(20);
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const EPOCH: u64 = 1 << 32;

type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// The tasks of a region; lives as long as the region is open or anyone is inside.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    num_tasks: usize,
}

struct Shared {
    gate: AtomicU64,
    next_task: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    parked: Vec<AtomicBool>,
    /// The caller, when it has gone to sleep waiting for the last worker inside.
    waiting_caller: Mutex<Option<Thread>>,
    caller_waits: AtomicBool,
}

// SAFETY: `job` is written only while the gate is closed and nobody is inside, and read only by those inside. The task is
// `Sync`, and outlives the region because `run` does not return before everybody has left.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

/// The threads that compute.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `num_threads - 1` workers.
    pub(crate) fn new(num_threads: usize) -> Result<Self, BackendError> {
        let num_workers = num_threads.saturating_sub(1);
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            next_task: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            parked: (0..num_workers).map(|_| AtomicBool::new(false)).collect(),
            waiting_caller: Mutex::new(None),
            caller_waits: AtomicBool::new(false),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(num_workers) };
        for index in 0..num_workers {
            let shared = Arc::clone(&pool.shared);
            let worker = thread::Builder::new()
                .name(format!("pagoda-cpu-{}", index + 1))
                .spawn(move || work(&shared, index))
                .map_err(|error| BackendError::Fatal(format!("cannot start thread {index}: {error}")))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that compute, the caller included.
    pub(crate) fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(index, thread)` once for every index below `num_tasks`; `thread < num_threads()` is unique among calls
    /// that run at the same time. Returns when all are done; a panic in a task comes out here.
    pub(crate) fn run(&mut self, num_tasks: usize, task: &Task<'_>) {
        if num_tasks <= 1 || self.workers.is_empty() {
            (0..num_tasks).for_each(|index| task(index, 0));
            return;
        }
        let region = Region::open(&self.shared, &self.workers, num_tasks, task);
        self.shared.take_tasks(num_tasks, task, 0);
        drop(region);
        let panic = lock(&self.shared.panic).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &self.workers {
            worker.thread().unpark();
        }
        for worker in self.workers.drain(..) {
            worker.join().expect("a worker catches the panics of its tasks");
        }
    }
}

/// An open region; dropping it, by a panic too, closes it and waits for the workers inside.
struct Region<'a>(&'a Shared);

impl<'a> Region<'a> {
    fn open(shared: &'a Shared, workers: &[JoinHandle<()>], num_tasks: usize, task: &Task<'_>) -> Self {
        // SAFETY: only the lifetime changes; dropping the region waits until nobody holds the task.
        let task = unsafe { std::mem::transmute::<*const Task<'_>, *const Task<'static>>(task) };
        // SAFETY: `run` borrows the pool exclusively and the last region is over: nobody else reads or writes the job.
        unsafe { *shared.job.get() = Some(Job { task, num_tasks }) };
        shared.next_task.store(0, Ordering::Relaxed);
        let gate = shared.gate.load(Ordering::Relaxed);
        shared.gate.store((gate & !(OPEN | INSIDE)).wrapping_add(EPOCH) | OPEN, Ordering::SeqCst);
        for (parked, worker) in shared.parked.iter().zip(workers) {
            if parked.load(Ordering::SeqCst) && parked.swap(false, Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
        Region(shared)
    }
}

impl Drop for Region<'_> {
    fn drop(&mut self) {
        let shared = self.0;
        shared.gate.fetch_and(!OPEN, Ordering::SeqCst);
        let is_empty = || shared.gate.load(Ordering::SeqCst) & INSIDE == 0;
        if spin_until(is_empty) {
            return;
        }
        *lock(&shared.waiting_caller) = Some(thread::current());
        shared.caller_waits.store(true, Ordering::SeqCst);
        while !is_empty() {
            thread::park();
        }
        shared.caller_waits.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn take_tasks(&self, num_tasks: usize, task: &Task<'_>, thread: usize) {
        loop {
            let index = self.next_task.fetch_add(1, Ordering::Relaxed);
            if index >= num_tasks {
                return;
            }
            task(index, thread);
        }
    }

    /// Enters the region of a new epoch if it is open; returns the epoch entered.
    fn enter(&self, seen: u64) -> Option<u64> {
        let gate = self.gate.load(Ordering::SeqCst);
        if gate & OPEN == 0 || gate / EPOCH == seen {
            return None;
        }
        self.gate
            .compare_exchange(gate, gate + 1, Ordering::SeqCst, Ordering::SeqCst)
            .ok()
            .map(|_| gate / EPOCH)
    }

    fn leave(&self) {
        let before = self.gate.fetch_sub(1, Ordering::SeqCst);
        if before & INSIDE == 1
            && self.caller_waits.load(Ordering::SeqCst)
            && let Some(caller) = lock(&self.waiting_caller).as_ref()
        {
            caller.unpark();
        }
    }

    fn has_news(&self, seen: u64) -> bool {
        let gate = self.gate.load(Ordering::SeqCst);
        (gate & OPEN != 0 && gate / EPOCH != seen) || self.stop.load(Ordering::SeqCst)
    }
}

fn work(shared: &Shared, index: usize) {
    let mut seen = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        if let Some(epoch) = shared.enter(seen) {
            seen = epoch;
            // SAFETY: inside the region; the job and its task stay until this worker leaves.
            let Job { task, num_tasks } = unsafe { *shared.job.get() }.expect("an open region has a job");
            // SAFETY: as above.
            let task = unsafe { &*task };
            if let Err(panic) =
                catch_unwind(AssertUnwindSafe(|| shared.take_tasks(num_tasks, task, index + 1)))
            {
                *lock(&shared.panic) = Some(panic);
            }
            shared.leave();
        } else if !spin_until(|| shared.has_news(seen)) {
            shared.parked[index].store(true, Ordering::SeqCst);
            while shared.parked[index].load(Ordering::SeqCst) && !shared.has_news(seen) {
                thread::park();
            }
            shared.parked[index].store(false, Ordering::SeqCst);
        }
    }
}

/// Spins for at most 20 us; whether the condition came true.
fn spin_until(condition: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..64 {
            if condition() {
                return true;
            }
            spin_loop();
        }
        if start.elapsed() >= SPIN {
            return false;
        }
    }
}

/// A panic in a task is carried over, so a poisoned lock holds nothing half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whatever_the_threads_and_pauses() {
        for num_threads in 1..=4 {
            let mut pool = Pool::new(num_threads).unwrap();
            for round in 0..2_000 {
                let num_tasks = round % 37;
                let counts: Vec<AtomicUsize> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(num_tasks, &|index, thread| {
                    assert!(thread < num_threads);
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1), "round {round}");
                if round % 500 == 0 {
                    // Long enough for the workers to park: the next region must wake them or do without them.
                    spin_until(|| false);
                    spin_until(|| false);
                }
            }
        }
    }

    #[test]
    fn a_panic_in_a_task_comes_out_of_run_and_the_pool_lives() {
        let mut pool = Pool::new(3).unwrap();
        for panicking in 0..8 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(8, &|index, _| assert_ne!(index, panicking, "task {index}"));
            }));
            assert!(outcome.is_err());
            let count = AtomicUsize::new(0);
            pool.run(8, &|_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 8);
        }
    }

    #[test]
    fn an_idle_pool_uses_no_cpu() {
        let mut pool = Pool::new(3).unwrap();
        pool.run(8, &|_, _| {});
        let parked = |pool: &Pool| pool.shared.parked.iter().all(|parked| parked.load(Ordering::SeqCst));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !parked(&pool) {
            assert!(Instant::now() < deadline, "the workers do not park");
            thread::yield_now();
        }
    }
}
