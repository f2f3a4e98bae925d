//! Cuts the attention of a step into tasks: a few query rows of one sequence, one KV head.
//!
//! The cut decides nothing but who works: a row's result depends on positions alone (`kernels::attention`).

use pagoda_backend::{BatchMetadata, KvLayout};

use crate::kernels::attention::MAX_ROWS;

/// Query tokens of one sequence that one task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueryChunk {
    pub(crate) sequence: usize,
    /// Row of the first token.
    pub(crate) first_row: usize,
    pub(crate) num_tokens: usize,
    /// Position of the first token.
    pub(crate) first_position: usize,
}

/// How the query heads of one KV head are shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeadSplit {
    /// Query heads per KV head.
    pub(crate) group: usize,
    /// Query heads of a task at most.
    pub(crate) heads_per_task: usize,
}

impl HeadSplit {
    /// Tasks per KV head.
    pub(crate) fn parts(self) -> usize {
        self.group.div_ceil(self.heads_per_task)
    }
}

/// Fills `chunks`; checks that every block table reaches its last key and names existing blocks.
pub(crate) fn cut(
    batch: &BatchMetadata,
    layout: KvLayout,
    group: usize,
    num_threads: usize,
    chunks: &mut Vec<QueryChunk>,
) -> HeadSplit {
    chunks.clear();
    let mut split = HeadSplit { group, heads_per_task: group.min(MAX_ROWS) };
    let tokens_per_chunk = MAX_ROWS / split.heads_per_task;
    // Later chunks see more keys; beginning with them leaves small tasks for the end.
    for sequence in (0..batch.num_sequences()).rev() {
        let rows = batch.query_start_loc[sequence] as usize..batch.query_start_loc[sequence + 1] as usize;
        let context_len = batch.context_lens[sequence] as usize;
        let table = batch.block_table(sequence);
        assert!(
            rows.end <= batch.num_tokens() && rows.len() <= context_len,
            "sequence {sequence}: {rows:?} of {context_len}"
        );
        assert!(
            table.len() * layout.block_size >= context_len
                && table.iter().all(|&block| (block as usize) < layout.num_blocks),
            "sequence {sequence}: block table {table:?} for {context_len} tokens"
        );
        for first_row in rows.clone().step_by(tokens_per_chunk).rev() {
            let first_position = context_len - (rows.end - first_row);
            let num_tokens = tokens_per_chunk.min(rows.end - first_row);
            chunks.push(QueryChunk { sequence, first_row, num_tokens, first_position });
        }
    }
    // A lone sequence has fewer KV heads than would keep the threads evenly busy.
    let num_tasks = (chunks.len() * layout.num_kv_heads).max(1);
    if num_tasks < 2 * num_threads {
        split.heads_per_task = split.heads_per_task.div_ceil((2 * num_threads).div_ceil(num_tasks));
    }
    split
}
