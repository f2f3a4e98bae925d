//! One step as plain data: which tokens run, where their KV lives, which rows are sampled. The scheduler writes it, the
//! executor reads it, `--trace-steps` and the snapshots print it.

use std::sync::Arc;

use crate::{BlockId, SamplingParams, SequenceId, Slot, TokenId, TokenMask};

/// Everything the executor needs for one step.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    /// Counts planned steps from 0.
    pub step_id: u64,
    /// Copies to run before anything else in the step (copy-on-write, partial prefix hits).
    pub copies: Vec<BlockCopy>,
    /// The scheduled sequences, in the batch's order.
    pub sequences: Vec<ScheduledSequence>,
    /// The flattened model input.
    pub batch: BatchInput,
    /// Rows to sample, in the order in which the executor answers.
    pub samples: Vec<SampleRow>,
    /// Rows whose next prompt token's logprob is wanted, in the order in which the executor answers.
    pub prompt_logprobs: Vec<PromptLogprobRow>,
}

impl StepPlan {
    /// Empties the plan for another step; its memory is kept.
    pub(crate) fn clear(&mut self, step_id: u64) {
        self.step_id = step_id;
        self.copies.clear();
        self.sequences.clear();
        self.samples.clear();
        self.prompt_logprobs.clear();
        let batch = &mut self.batch;
        batch.input_ids.clear();
        batch.positions.clear();
        batch.slot_mapping.clear();
        batch.context_lens.clear();
        batch.block_tables.clear();
        for starts in [&mut batch.query_start_loc, &mut batch.block_table_starts] {
            starts.clear();
            starts.push(0);
        }
    }
}

/// Copy the first `num_slots` slots of `source` to the same offsets of `target`, in every layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Read; held by the launched copy until the step has ended.
    pub source: BlockId,
    /// Written; owned by one sequence.
    pub target: BlockId,
    /// How many leading slots hold tokens; at most the block size.
    pub num_slots: u32,
}

/// One sequence's share of a step.
#[derive(Clone, Debug)]
pub struct ScheduledSequence {
    /// Whose tokens these are.
    pub sequence: SequenceId,
    /// Tokens whose KV is already there: the position of the first token of this step.
    pub num_computed_tokens: u32,
    /// Tokens computed in this step; at least one.
    pub num_scheduled_tokens: u32,
    /// Tokens the sequence has in all (prompt and output, the one in flight included).
    pub num_tokens: u32,
}

/// The model's input with the batch axis flattened: one row per token, sequences one after the other.
#[derive(Clone, Debug, Default)]
pub struct BatchInput {
    /// `[num_tokens]`
    pub input_ids: Vec<InputId>,
    /// `[num_tokens]` position of the token in its sequence.
    pub positions: Vec<u32>,
    /// `[num_tokens]` where the token's K and V are written.
    pub slot_mapping: Vec<Slot>,
    /// `[num_sequences + 1]` first row of each sequence, and the end.
    pub query_start_loc: Vec<u32>,
    /// `[num_sequences]` tokens each sequence attends to, this step's included.
    pub context_lens: Vec<u32>,
    /// The sequences' block tables one after the other.
    pub block_tables: Vec<BlockId>,
    /// `[num_sequences + 1]` first entry of each sequence's table, and the end.
    pub block_table_starts: Vec<u32>,
}

impl BatchInput {
    /// Rows of the batch.
    pub fn num_tokens(&self) -> usize {
        self.input_ids.len()
    }

    /// Sequences of the batch.
    pub fn num_sequences(&self) -> usize {
        self.context_lens.len()
    }
}

/// A row's token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputId {
    /// The id is known to the host.
    Known(TokenId),
    /// The token that the given entry of the *previous* step's `samples` produced; it may not have reached the host yet.
    /// Occurs at pipeline depth 2 only.
    LastSampled(u32),
}

/// One token to choose.
#[derive(Clone, Debug)]
pub struct SampleRow {
    /// The batch row whose logits decide. With n > 1 several samples share the prompt's last row.
    pub row: u32,
    /// The sequence that receives the token.
    pub sequence: SequenceId,
    /// Which of the request's n sequences it is; keys the draw.
    pub sample_index: u32,
    /// The position that the token will have; keys the draw.
    pub position: u32,
    /// How to choose.
    pub params: Arc<SamplingParams>,
    /// Tokens that may not be chosen (stop tokens before `min_tokens`). Empty where there is a mask, which has them.
    pub banned: Arc<[TokenId]>,
    /// The tokens that the sequence's constraint allows; being filled since the step was launched, awaited just before the
    /// choice.
    pub mask: Option<TokenMask>,
    /// The tokens so far, for the penalties; present iff `params.needs_history()`. At depth 2 the token in flight is
    /// missing, and `last_in_flight` names it.
    pub history: Option<TokenHistory>,
}

/// The tokens a sequence has so far.
#[derive(Clone, Debug)]
pub struct TokenHistory {
    /// Prompt, then output.
    pub tokens: Vec<TokenId>,
    /// How many of them are the prompt.
    pub num_prompt_tokens: u32,
    /// The entry of the previous step's `samples` that produced one more token, if its id is still unknown.
    pub last_in_flight: Option<u32>,
}

/// One prompt position whose logprob is wanted.
#[derive(Clone, Debug)]
pub struct PromptLogprobRow {
    /// The batch row whose logits predict `target`.
    pub row: u32,
    /// Whose prompt it is.
    pub sequence: SequenceId,
    /// The prompt token that follows the row.
    pub target: TokenId,
    /// How many alternatives to report.
    pub num_logprobs: u32,
}
