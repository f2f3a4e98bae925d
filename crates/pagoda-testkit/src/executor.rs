//! An executor that remembers tokens. It obeys the plan to the letter, asserts what a device would have to rely on, and
//! generates from what it reads back through the block tables.

use std::collections::HashMap;
use std::time::Duration;

use pagoda_engine::{
    BatchInput, BlockId, Executor, ExecutorError, InputId, PromptLogprobRow, RowError, SampleRow,
    SampledToken, SequenceId, StepOutput, StepPlan, TokenId, TokenLogprobs,
};

use crate::{Fault, FaultPlan, HashSource, KvMemory, SampleContext, ScriptSource, TokenSource};

/// The sizes, which must be those of the engine's configuration.
#[derive(Clone, Copy, Debug)]
pub struct TokenMemoryConfig {
    /// Tokens per block.
    pub block_size: usize,
    /// Blocks of the pool, block 0 included.
    pub num_blocks: usize,
    /// Tokens of the vocabulary.
    pub vocab_size: u32,
}

type Sampled = SampledToken<Option<TokenLogprobs>>;

/// Calculates a step's duration from its plan.
type Delay = Box<dyn FnMut(&StepPlan) -> Duration + Send>;

/// The executor. Its payload is that of the server, with logprobs that are made up but consistent.
pub struct TokenMemoryExecutor<S = HashSource> {
    config: TokenMemoryConfig,
    memory: KvMemory,
    source: S,
    faults: FaultPlan,
    delay: Delay,
    /// Tokens of the newest step's samples, for `InputId::LastSampled`.
    last_sampled: Vec<TokenId>,
    /// Where each sequence's output starts.
    first_positions: HashMap<SequenceId, u32>,
}

/// A launched step: its results, and how it is going to end.
pub struct TokenMemoryTicket {
    output: StepOutput<Option<TokenLogprobs>>,
    fault: Option<Fault>,
    delay: Duration,
}

impl TokenMemoryExecutor<HashSource> {
    /// An executor whose tokens depend on everything before them.
    pub fn new(config: TokenMemoryConfig) -> Self {
        TokenMemoryExecutor::with_source(config, HashSource)
    }
}

impl TokenMemoryExecutor<ScriptSource> {
    /// An executor that says `script`, then its last token for ever (an end-of-text token, say).
    pub fn scripted(config: TokenMemoryConfig, script: Vec<TokenId>) -> Self {
        TokenMemoryExecutor::with_source(config, ScriptSource(script))
    }
}

impl<S: TokenSource> TokenMemoryExecutor<S> {
    /// An executor with a choice of one's own.
    pub fn with_source(config: TokenMemoryConfig, source: S) -> Self {
        TokenMemoryExecutor {
            config,
            memory: KvMemory::new(config.num_blocks, config.block_size),
            source,
            faults: FaultPlan::new(),
            delay: Box::new(|_| Duration::ZERO),
            last_sampled: Vec::new(),
            first_positions: HashMap::new(),
        }
    }

    /// Plays faults. The plan can be changed while the executor runs.
    pub fn with_faults(mut self, faults: &FaultPlan) -> Self {
        self.faults = faults.clone();
        self
    }

    /// Makes every step take its time, as the closure says.
    pub fn with_delay(mut self, delay: impl FnMut(&StepPlan) -> Duration + Send + 'static) -> Self {
        self.delay = Box::new(delay);
        self
    }

    fn run(&mut self, plan: &StepPlan) -> StepOutput<Option<TokenLogprobs>> {
        self.memory.copy_all(&plan.copies);
        self.write_batch(&plan.batch);
        let samples: Vec<_> = plan.samples.iter().map(|row| self.sample(row, &plan.batch)).collect();
        // A row that failed has no successor: its sequence has ended.
        self.last_sampled = samples.iter().map(|sampled| sampled.as_ref().map_or(0, |s| s.token)).collect();
        StepOutput {
            samples,
            prompt_logprobs: plan
                .prompt_logprobs
                .iter()
                .map(|row| Ok(self.prompt_logprob(row, &plan.batch)))
                .collect(),
        }
    }

    fn write_batch(&mut self, batch: &BatchInput) {
        let mut owners = HashMap::new();
        for sequence in 0..batch.num_sequences() {
            let rows = batch.query_start_loc[sequence] as usize..batch.query_start_loc[sequence + 1] as usize;
            assert!(!rows.is_empty(), "a scheduled sequence has a token");
            for row in rows {
                let block = BlockId(batch.slot_mapping[row].0 / self.config.block_size as u32);
                let owner = *owners.entry(block).or_insert(sequence);
                assert_eq!(owner, sequence, "two sequences write {block}");
                let token = match batch.input_ids[row] {
                    InputId::Known(token) => token,
                    InputId::LastSampled(sample) => self.last_sampled[sample as usize],
                };
                self.memory.write(batch.slot_mapping[row], token, batch.positions[row]);
            }
        }
        for sequence in 0..batch.num_sequences() {
            for block in table(batch, sequence) {
                let owner = *owners.get(block).unwrap_or(&sequence);
                assert_eq!(owner, sequence, "a sequence writes {block}, which another one reads");
            }
        }
    }

    fn sample(&mut self, row: &SampleRow, batch: &BatchInput) -> Result<Sampled, RowError> {
        let tokens = self.read_back(row.row, batch);
        assert_eq!(tokens.len(), row.position as usize, "the row's context ends before the token to choose");
        if let Some(history) = &row.history {
            let in_flight = history.last_in_flight.is_some();
            assert_eq!(
                history.tokens[..],
                tokens[..tokens.len() - usize::from(in_flight)],
                "the history is complete"
            );
        }
        let first = *self.first_positions.entry(row.sequence).or_insert(row.position);
        let vocab_size = self.config.vocab_size;
        let num_output_tokens = (row.position - first) as usize;
        let context = SampleContext { tokens: &tokens, row, num_output_tokens, vocab_size };
        let chosen = self.source.choose(context)?;
        let mask = row.mask.as_ref().map(|mask| mask.wait());
        let token = allowed(chosen, &row.banned, mask, vocab_size);
        if token != chosen {
            self.source.forbidden(chosen, context)?;
        }
        let extra = row.params.num_logprobs.map(|count| logprobs(token, count, vocab_size));
        Ok(SampledToken { token, extra })
    }

    fn prompt_logprob(&self, row: &PromptLogprobRow, batch: &BatchInput) -> Option<TokenLogprobs> {
        // Read for the sake of its assertions: the row's context must be there.
        let _ = self.read_back(row.row, batch);
        Some(logprobs(row.target, row.num_logprobs, self.config.vocab_size))
    }

    /// Everything up to and with a row's own token.
    fn read_back(&self, row: u32, batch: &BatchInput) -> Vec<TokenId> {
        let sequence = batch.query_start_loc.partition_point(|&start| start <= row) - 1;
        self.memory.read_all(table(batch, sequence), batch.positions[row as usize] as usize + 1)
    }
}

impl<S: TokenSource> Executor for TokenMemoryExecutor<S> {
    type Ticket = TokenMemoryTicket;
    type Extra = Option<TokenLogprobs>;

    fn launch(&mut self, plan: &StepPlan) -> Result<TokenMemoryTicket, ExecutorError> {
        let fault = self.faults.take(plan.step_id);
        if matches!(fault, Some(Fault::LaunchError)) {
            return Err(error("launch", false));
        }
        let mut output = self.run(plan);
        if let Some(Fault::Row(index)) = fault
            && !output.samples.is_empty()
        {
            let index = index % output.samples.len();
            output.samples[index] = Err(RowError { message: "the logits are not numbers".into() });
        }
        Ok(TokenMemoryTicket { output, fault, delay: (self.delay)(plan) })
    }

    fn wait(&mut self, ticket: TokenMemoryTicket) -> Result<StepOutput<Self::Extra>, ExecutorError> {
        if !ticket.delay.is_zero() {
            std::thread::sleep(ticket.delay);
        }
        match ticket.fault {
            Some(Fault::WaitError) => return Err(error("wait", false)),
            Some(Fault::Fatal) => return Err(error("device", true)),
            Some(Fault::Panic) => panic!("the executor panics on demand"),
            // Returns when the guard is dropped, which closes the channel.
            Some(Fault::Hang(released)) => drop(released.recv()),
            Some(Fault::LaunchError | Fault::Row(_)) | None => {}
        }
        Ok(ticket.output)
    }
}

fn table(batch: &BatchInput, sequence: usize) -> &[BlockId] {
    &batch.block_tables
        [batch.block_table_starts[sequence] as usize..batch.block_table_starts[sequence + 1] as usize]
}

/// The first token from `chosen` on that may be chosen.
pub(crate) fn allowed(chosen: TokenId, banned: &[TokenId], mask: Option<&[u32]>, vocab_size: u32) -> TokenId {
    let is_set = |mask: &[u32], token: TokenId| {
        mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    };
    let mut candidates = (0..vocab_size).map(|step| (chosen + step) % vocab_size);
    candidates
        .find(|token| !banned.contains(token) && mask.is_none_or(|mask| is_set(mask, *token)))
        .unwrap_or(chosen)
}

/// Made up: the token itself is the likeliest, its successors follow at equal distances.
fn logprobs(token: TokenId, count: u32, vocab_size: u32) -> TokenLogprobs {
    let top =
        (0..count.min(vocab_size)).map(|rank| ((token + rank) % vocab_size, -0.5 - rank as f32)).collect();
    TokenLogprobs { logprob: -0.5, rank: 1, top }
}

fn error(place: &str, is_fatal: bool) -> ExecutorError {
    ExecutorError { message: format!("{place} failure on demand"), is_fatal }
}
