//! [`ModelRunner`]: runs the engine's step plans on a device. Owns the decoder, the KV cache and every buffer of a step, all
//! taken once at load. Does not know why a step looks as it does.
//!
//! It runs at pipeline depths 1 and 2: a token that the next step needs before the host knows it stays on the device. Only
//! penalties count tokens on the host: a step with them waits for the choices of the step before it, while its own forward
//! pass runs.

mod counts;
mod in_flight;
mod memory;
mod rows;
mod workspace;

use pagoda_backend::{
    Backend, BackendError, BatchMetadata, BlockCopy, GraphKey, InputToken, KvLayout, Sample, StepLimits,
};
use pagoda_engine::{
    BatchInput, Executor, ExecutorError, InputId, StepOutput, StepPlan, TokenHistory, TokenLogprobs,
};

use crate::decoder::StepInput;
use crate::{Checkpoint, Decoder, ModelError};
use counts::TokenCounts;
use in_flight::StepsInFlight;
use rows::LogitSlices;

pub use in_flight::StepTicket;
pub use memory::{MemoryBudget, kv_bytes_per_block};
pub(crate) use workspace::Workspace;

/// The limits that size every buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunnerConfig {
    /// Slots per KV block.
    pub block_size: usize,
    /// Physical KV blocks, block 0 included.
    pub num_blocks: usize,
    /// Sequences in one step.
    pub max_num_seqs: usize,
    /// Rows in one step.
    pub max_num_batched_tokens: usize,
    /// The longest sequence; the number of positions of the rope table.
    pub max_model_len: usize,
}

/// A loaded model that executes step plans.
pub struct ModelRunner<B: Backend> {
    backend: B,
    decoder: Decoder<B>,
    workspace: Workspace<B>,
    kv: B::KvCache,
    batch: B::Batch,
    metadata: BatchMetadata,
    copies: Vec<BlockCopy>,
    counts: TokenCounts,
    slices: LogitSlices,
    steps: StepsInFlight<B>,
    memory: MemoryBudget,
    config: RunnerConfig,
    /// Rows of the embedding.
    vocab_size: usize,
    /// Ids from here on are never chosen.
    num_choosable_tokens: usize,
}

impl<B: Backend> ModelRunner<B> {
    /// Packs the weights and takes all memory.
    pub fn load(checkpoint: &Checkpoint, backend: B, config: RunnerConfig) -> Result<Self, ModelError> {
        let runner = Self::assemble(checkpoint, backend, config)?;
        let (model, memory) = (checkpoint.config(), runner.memory);
        tracing::info!(
            architecture = model.architecture.name,
            layers = model.num_layers,
            weight_bytes = memory.weight_bytes,
            kv_bytes = memory.kv_bytes,
            workspace_bytes = memory.workspace_bytes,
            "model loaded"
        );
        Ok(runner)
    }

    fn assemble(checkpoint: &Checkpoint, mut backend: B, config: RunnerConfig) -> Result<Self, ModelError> {
        let model = checkpoint.config();
        let decoder = Decoder::load(checkpoint, &mut backend, config.max_model_len)?;
        let workspace = Workspace::alloc(&mut backend, model, &config)?;
        let kv = backend.alloc_kv(KvLayout {
            num_layers: model.num_layers,
            num_blocks: config.num_blocks,
            block_size: config.block_size,
            num_kv_heads: model.num_kv_heads,
            head_dim: model.head_dim,
        })?;
        // A table of padding has one entry.
        let table_len = config.max_model_len.div_ceil(config.block_size).max(1);
        let max_table_len = config.max_num_seqs * table_len;
        let batch = backend.alloc_batch(config.max_num_batched_tokens, config.max_num_seqs, max_table_len)?;
        backend.reserve(&StepLimits {
            max_tokens: config.max_num_batched_tokens,
            max_sequences: config.max_num_seqs,
            max_context_len: config.max_model_len,
            max_logit_rows: workspace::max_logit_rows(&config),
            vocab_size: checkpoint.num_choosable_tokens(),
            heads: model.heads(),
        })?;
        let memory = MemoryBudget {
            weight_bytes: decoder.weight_bytes(),
            ..MemoryBudget::plan(checkpoint, backend.kv_format(), &config)
        };
        let memory = memory.corrected(backend.allocated_bytes());
        Ok(ModelRunner {
            decoder,
            workspace,
            kv,
            batch,
            metadata: BatchMetadata::default(),
            copies: Vec::new(),
            counts: TokenCounts::default(),
            slices: LogitSlices::new(workspace::max_logit_rows(&config)),
            steps: StepsInFlight::default(),
            memory,
            config,
            vocab_size: model.vocab_size,
            num_choosable_tokens: checkpoint.num_choosable_tokens(),
            backend,
        })
    }

    /// What was taken at load.
    pub fn memory(&self) -> MemoryBudget {
        self.memory
    }

    /// What it runs on, for measurements that are the device's own.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// One line on the device for the start-up table.
    pub fn describe_device(&self) -> String {
        self.backend.describe()
    }

    fn copy_blocks(&mut self, plan: &StepPlan) -> Result<(), BackendError> {
        if plan.copies.is_empty() {
            return Ok(());
        }
        self.copies.clear();
        self.copies.extend(plan.copies.iter().map(|copy| BlockCopy {
            source: copy.source.0,
            target: copy.target.0,
            num_slots: copy.num_slots,
        }));
        self.backend.copy_blocks(&mut self.kv, &self.copies)
    }

    /// The answer is how many rows the step has on the device, for a step that may be captured: those of the plan, and padding.
    fn upload_batch(&mut self, input: &BatchInput) -> Result<Option<usize>, StepError> {
        self.check_limits(input)?;
        let num_last = self.steps.num_last_samples();
        let metadata = &mut self.metadata;
        metadata.input_tokens.clear();
        for id in &input.input_ids {
            metadata.input_tokens.push(match *id {
                InputId::Known(id) if (id as usize) < self.vocab_size => InputToken::Known(id),
                InputId::Known(id) => return Err(StepError::TokenOutOfRange(id, self.vocab_size)),
                InputId::LastSampled(entry) if (entry as usize) < num_last => InputToken::LastSampled(entry),
                InputId::LastSampled(entry) => return Err(StepError::NoSuchSample(entry, num_last)),
            });
        }
        refill(&mut metadata.positions, input.positions.iter().copied());
        refill(&mut metadata.slot_mapping, input.slot_mapping.iter().map(|slot| slot.0));
        refill(&mut metadata.query_start_loc, input.query_start_loc.iter().copied());
        refill(&mut metadata.context_lens, input.context_lens.iter().copied());
        refill(&mut metadata.block_tables, input.block_tables.iter().map(|block| block.0));
        refill(&mut metadata.block_table_starts, input.block_table_starts.iter().copied());
        let padded_rows = self.padded_rows(input);
        pad(&mut self.metadata, padded_rows.unwrap_or(0));
        self.backend.upload_batch(&mut self.batch, &mut self.metadata)?;
        Ok(padded_rows)
    }

    /// Where every sequence has one row, and the limits have room for the padding.
    fn padded_rows(&self, input: &BatchInput) -> Option<usize> {
        let num_rows = input.num_tokens();
        if input.num_sequences() != num_rows {
            return None;
        }
        let limit = self.config.max_num_seqs.min(self.config.max_num_batched_tokens);
        self.backend.padded_rows(num_rows).map(|rows| rows.min(limit)).filter(|&rows| rows >= num_rows)
    }

    /// The scheduler keeps to these limits; a plan beyond them would write outside of the buffers.
    fn check_limits(&self, input: &BatchInput) -> Result<(), StepError> {
        let (rows, sequences) = (input.num_tokens(), input.num_sequences());
        let max_position = input.positions.iter().max().map_or(0, |position| *position as usize + 1);
        let config = &self.config;
        if rows > config.max_num_batched_tokens
            || sequences > config.max_num_seqs
            || max_position > config.max_model_len
        {
            return Err(StepError::PlanTooLarge { rows, sequences, max_position });
        }
        Ok(())
    }

    fn run_step(&mut self, plan: &StepPlan, pending: &mut Vec<B::Pending>) -> Result<(), StepError> {
        self.copy_blocks(plan)?;
        let num_rows = plan.batch.num_tokens();
        if num_rows == 0 {
            return Ok(());
        }
        let padded_rows = self.upload_batch(&plan.batch)?;
        let num_rows = padded_rows.unwrap_or(num_rows);
        let ModelRunner { backend, decoder, workspace, kv, batch, .. } = self;
        backend.run(GraphKey { name: "forward", num_rows: padded_rows.unwrap_or(0) }, |backend| {
            decoder.forward(backend, StepInput { batch, num_rows, kv }, workspace)
        })?;
        self.sample(plan, pending)
    }

    /// Logits and choices, one slice of rows at a time, so that the logits' buffer stays small.
    fn sample(&mut self, plan: &StepPlan, pending: &mut Vec<B::Pending>) -> Result<(), StepError> {
        self.count_tokens(plan)?;
        let ModelRunner { backend, decoder, workspace, counts, slices, .. } = self;
        slices.cut(plan);
        for slice in slices.iter() {
            let rows = slice.sample_rows(plan, counts);
            decoder.logits(backend, slice.batch_rows(), workspace)?;
            pending.push(backend.sample(Sample {
                logits: &workspace.logits,
                vocab_size: self.num_choosable_tokens,
                rows: &rows,
                first: slice.first_entry(),
            })?);
        }
        Ok(())
    }

    /// What the penalties see. Waits for the step before, if it has chosen a token that they count.
    fn count_tokens(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        let is_in_flight = |history: &TokenHistory| history.last_in_flight.is_some();
        let mut histories = plan.samples.iter().filter_map(|sample| sample.history.as_ref());
        let last_tokens = match histories.any(is_in_flight) {
            true => self.steps.last_tokens(&mut self.backend)?,
            false => Vec::new(),
        };
        let result = self.counts.count(&plan.samples, &last_tokens);
        result.map_err(|entry| StepError::NoSuchSample(entry, last_tokens.len()))
    }
}

impl<B: Backend> Executor for ModelRunner<B> {
    type Ticket = StepTicket;
    type Extra = Option<TokenLogprobs>;

    fn launch(&mut self, plan: &StepPlan) -> Result<StepTicket, ExecutorError> {
        let mut pending = Vec::new();
        match self.run_step(plan, &mut pending) {
            Ok(()) => Ok(self.steps.push(pending, plan.samples.len())),
            Err(error) => {
                // What has been queued comes to its end; the first error is the one that counts.
                for pending in pending {
                    let _ = self.backend.read_back(pending);
                }
                Err(error.into())
            }
        }
    }

    fn wait(&mut self, ticket: StepTicket) -> Result<StepOutput<Self::Extra>, ExecutorError> {
        self.steps.finish(ticket, &mut self.backend)
    }
}

/// Adds sequences of one token up to so many rows. They write to slot 0 and read it: block 0 is nobody's.
fn pad(metadata: &mut BatchMetadata, num_rows: usize) {
    while metadata.num_tokens() < num_rows {
        metadata.input_tokens.push(InputToken::Known(0));
        metadata.positions.push(0);
        metadata.slot_mapping.push(0);
        metadata.query_start_loc.push(metadata.num_tokens() as u32);
        metadata.context_lens.push(1);
        metadata.block_tables.push(0);
        metadata.block_table_starts.push(metadata.block_tables.len() as u32);
    }
}

fn refill(target: &mut Vec<u32>, values: impl Iterator<Item = u32>) {
    target.clear();
    target.extend(values);
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("the step before it failed: {}", .0.message)]
    StepBefore(ExecutorError),
    #[error("token id {0} is outside of the vocabulary of {1}")]
    TokenOutOfRange(u32, usize),
    #[error("the plan names token {0} of the step before, which is in flight with {1}")]
    NoSuchSample(u32, usize),
    #[error(
        "the plan has {rows} rows, {sequences} sequences and {max_position} positions, more than the runner's limits"
    )]
    PlanTooLarge { rows: usize, sequences: usize, max_position: usize },
}

impl From<StepError> for ExecutorError {
    fn from(error: StepError) -> Self {
        let is_fatal = match &error {
            StepError::Backend(error) => matches!(error, BackendError::Fatal(_)),
            StepError::StepBefore(error) => error.is_fatal,
            _ => false,
        };
        ExecutorError { message: error.to_string(), is_fatal }
    }
}
