//! A step plan as text: one line per copy and per sequence. Printed by `--trace-steps` and asserted by the snapshots; shows
//! no token, so that a trace can be handed around.

use std::fmt;

use crate::{BlockCopy, InputId, SequenceId, StepPlan};

impl fmt::Display for StepPlan {
    /// ```text
    /// step 7: 3 tokens
    ///   copy b2[..1] -> b5
    ///   s0   4..5   of 5    b1 b5        sample #0
    ///   s1   0..2   of 6    b3
    /// ```
    /// A row that reads the token of the previous step's sample `k` says `after @k`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let num_tokens = self.batch.num_tokens();
        writeln!(f, "step {}: {num_tokens} token{}", self.step_id, if num_tokens == 1 { "" } else { "s" })?;
        for copy in &self.copies {
            writeln!(f, "  {copy}")?;
        }
        for index in 0..self.sequences.len() {
            self.fmt_sequence(index, f)?;
        }
        Ok(())
    }
}

impl StepPlan {
    fn fmt_sequence(&self, index: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheduled = &self.sequences[index];
        let batch = &self.batch;
        let start = scheduled.num_computed_tokens;
        let range = format!("{start}..{}", start + scheduled.num_scheduled_tokens);
        let table = batch.block_table_starts[index] as usize..batch.block_table_starts[index + 1] as usize;
        let blocks: Vec<_> = batch.block_tables[table].iter().map(ToString::to_string).collect();
        let mut notes = String::new();
        let first_row = batch.query_start_loc[index];
        if let InputId::LastSampled(sample) = batch.input_ids[first_row as usize] {
            notes += &format!("  after @{sample}");
        }
        let last_row = batch.query_start_loc[index + 1] - 1;
        notes += &self.fmt_samples(last_row, scheduled.sequence);
        let rows = first_row..=last_row;
        let num_logprobs = self.prompt_logprobs.iter().filter(|wanted| rows.contains(&wanted.row)).count();
        if num_logprobs > 0 {
            notes += &format!("  prompt logprobs {num_logprobs}");
        }
        let sequence = scheduled.sequence.to_string();
        let line = format!(
            "  {sequence:<4} {range:<7} of {:<4} {:<14}{notes}",
            scheduled.num_tokens,
            blocks.join(" ")
        );
        writeln!(f, "{}", line.trim_end())
    }

    /// What is sampled from a sequence's last row: its own next token, and its newborn siblings'.
    fn fmt_samples(&self, row: u32, sequence: SequenceId) -> String {
        let mut text = String::new();
        for sample in self.samples.iter().filter(|sample| sample.row == row) {
            text += if text.is_empty() { "  sample" } else { "," };
            text += &format!(" #{}", sample.sample_index);
            if sample.sequence != sequence {
                text += &format!(" for {}", sample.sequence);
            }
        }
        text
    }
}

impl fmt::Display for BlockCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "copy {}[..{}] -> {}", self.source, self.num_slots, self.target)
    }
}
