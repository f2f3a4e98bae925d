//! The embedding model's queue and its one thread. What waits together runs together; requests take turns text by text,
//! so that a short one is never stuck behind a long list; a request whose client has gone is dropped before the next pass.
//!
//! Invariants: at most `max_queued_inputs` texts wait or run, and their ids are all that is kept of them; an idle queue
//! uses no CPU; a text that the model fails on fails its own request only.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::EmbedFunction;
use crate::error::ApiError;
use crate::metrics::EmbeddingMetrics;

/// Tokens of one pass: about a second on one core for MiniLM, which is how late a new request or a gone client is noticed.
const MAX_PASS_TOKENS: usize = 2048;
/// Texts of one pass.
const MAX_PASS_INPUTS: usize = 64;

type Vectors = Vec<Vec<f32>>;

/// Where requests wait.
pub(crate) struct EmbeddingQueue {
    jobs: Mutex<Sender<Job>>,
    /// One permit for each text that waits or runs.
    room: Arc<Semaphore>,
    max_queued_inputs: usize,
    metrics: Arc<EmbeddingMetrics>,
}

/// One request.
struct Job {
    sequences: Vec<Vec<u32>>,
    /// Filled in any order.
    vectors: Vectors,
    /// Indices of the texts that have not been taken, the next one last. Sorted by length, so that texts of near length
    /// run together.
    left: Vec<usize>,
    num_done: usize,
    reply: oneshot::Sender<Result<Vectors, ApiError>>,
    _room: OwnedSemaphorePermit,
}

/// A text on its way through the model.
struct Taken {
    job: u64,
    index: usize,
}

impl EmbeddingQueue {
    /// Starts the thread; it ends with the queue.
    pub(crate) fn spawn(
        embed: EmbedFunction,
        max_queued_inputs: usize,
        metrics: Arc<EmbeddingMetrics>,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let counted = Arc::clone(&metrics);
        let thread = std::thread::Builder::new().name("embedding".into());
        thread.spawn(move || Passes::new(embed, counted).run(&receiver))?;
        let max_queued_inputs = max_queued_inputs.min(Semaphore::MAX_PERMITS);
        let room = Arc::new(Semaphore::new(max_queued_inputs));
        Ok(EmbeddingQueue { jobs: Mutex::new(sender), room, max_queued_inputs, metrics })
    }

    /// The vectors of `sequences`, in order. More than there is room for is a 429, more than there ever is a 400.
    pub(crate) async fn embed(
        &self,
        sequences: Vec<Vec<u32>>,
        retry_after: Duration,
    ) -> Result<Vectors, ApiError> {
        let num_inputs = sequences.len();
        if num_inputs > self.max_queued_inputs {
            let rule = format!("must have at most {} entries on this server", self.max_queued_inputs);
            return Err(ApiError::invalid("input", rule));
        }
        let wanted = u32::try_from(num_inputs).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(wanted).map_err(|_full| {
            self.metrics.rejections.inc();
            ApiError::QueueFull { retry_after }
        })?;
        let _gauge = self.metrics.queued(num_inputs);
        let (reply, answer) = oneshot::channel();
        let job = Job::new(sequences, reply, room);
        // The lock is held for a send, which cannot panic.
        let sent = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).send(job);
        sent.map_err(|_ended| ApiError::Internal)?;
        answer.await.unwrap_or(Err(ApiError::Internal))
    }
}

impl Job {
    fn new(
        sequences: Vec<Vec<u32>>,
        reply: oneshot::Sender<Result<Vectors, ApiError>>,
        room: OwnedSemaphorePermit,
    ) -> Self {
        let mut left: Vec<usize> = (0..sequences.len()).collect();
        left.sort_by_key(|&index| sequences[index].len());
        let vectors = vec![Vec::new(); sequences.len()];
        Job { sequences, vectors, left, num_done: 0, reply, _room: room }
    }
}

/// The thread's state.
struct Passes {
    embed: EmbedFunction,
    metrics: Arc<EmbeddingMetrics>,
    jobs: BTreeMap<u64, Job>,
    /// Jobs with texts left, whose turn is next first.
    turns: VecDeque<u64>,
    next_job: u64,
}

impl Passes {
    fn new(embed: EmbedFunction, metrics: Arc<EmbeddingMetrics>) -> Self {
        Passes { embed, metrics, jobs: BTreeMap::new(), turns: VecDeque::new(), next_job: 0 }
    }

    fn run(mut self, receiver: &Receiver<Job>) {
        loop {
            if self.jobs.is_empty() {
                match receiver.recv() {
                    Ok(job) => self.add(job),
                    Err(_server_gone) => return,
                }
            }
            while let Ok(job) = receiver.try_recv() {
                self.add(job);
            }
            self.jobs.retain(|_, job| !job.reply.is_closed());
            self.pass();
        }
    }

    fn add(&mut self, job: Job) {
        self.jobs.insert(self.next_job, job);
        self.turns.push_back(self.next_job);
        self.next_job += 1;
    }

    /// Takes a batch through the model and answers the requests that are complete.
    fn pass(&mut self) {
        let (taken, sequences) = self.take();
        if taken.is_empty() {
            return;
        }
        self.metrics.passes.inc();
        let vectors = match self.call(&sequences) {
            Some(vectors) => vectors.into_iter().map(Some).collect(),
            None => self.one_by_one(&sequences),
        };
        for (taken, vector) in taken.into_iter().zip(vectors) {
            self.put(&taken, vector);
        }
    }

    /// The next batch: a text of each request in turn.
    fn take(&mut self) -> (Vec<Taken>, Vec<Vec<u32>>) {
        let (mut taken, mut sequences, mut num_tokens) = (Vec::new(), Vec::new(), 0);
        while let Some(id) = self.turns.pop_front() {
            let Some(job) = self.jobs.get_mut(&id) else { continue };
            let Some(index) = job.left.pop() else { continue };
            let len = job.sequences[index].len();
            let is_full = taken.len() == MAX_PASS_INPUTS || num_tokens + len > MAX_PASS_TOKENS;
            if is_full && !taken.is_empty() {
                job.left.push(index);
                self.turns.push_front(id);
                break;
            }
            num_tokens += len;
            sequences.push(std::mem::take(&mut job.sequences[index]));
            taken.push(Taken { job: id, index });
            self.turns.push_back(id);
        }
        (taken, sequences)
    }

    /// None if the model failed or panicked.
    fn call(&mut self, sequences: &[Vec<u32>]) -> Option<Vectors> {
        match catch_unwind(AssertUnwindSafe(|| (self.embed)(sequences))) {
            Ok(Ok(vectors)) if vectors.len() == sequences.len() => Some(vectors),
            Ok(Ok(vectors)) => {
                tracing::error!(expected = sequences.len(), found = vectors.len(), "vectors are missing");
                None
            }
            Ok(Err(error)) => {
                tracing::error!(%error, "the embedding model failed");
                None
            }
            Err(_panic) => {
                tracing::error!("the embedding model panicked");
                None
            }
        }
    }

    /// After a failure: whoever caused it fails alone.
    fn one_by_one(&mut self, sequences: &[Vec<u32>]) -> Vec<Option<Vec<f32>>> {
        sequences.iter().map(|sequence| self.call(std::slice::from_ref(sequence))?.pop()).collect()
    }

    fn put(&mut self, taken: &Taken, vector: Option<Vec<f32>>) {
        // A request that has failed already is no longer there.
        let Some(job) = self.jobs.get_mut(&taken.job) else { return };
        job.num_done += 1;
        let result = match vector {
            Some(vector) => {
                job.vectors[taken.index] = vector;
                (job.num_done == job.vectors.len()).then_some(Ok(()))
            }
            None => Some(Err(ApiError::Model)),
        };
        if let Some(result) = result
            && let Some(job) = self.jobs.remove(&taken.job)
        {
            // A client that has gone meanwhile does not matter.
            let _ = job.reply.send(result.map(|()| job.vectors));
        }
    }
}
