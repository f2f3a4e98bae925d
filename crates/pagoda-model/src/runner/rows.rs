//! Which rows of a step need logits, cut into slices: first the samples, then the prompt logprobs, in the plan's order.
//! Neighbours that share a batch row (n > 1 after one prompt) share a row of logits.

use std::ops::Range;

use pagoda_backend::SampleRow;
use pagoda_engine::StepPlan;

use super::counts::TokenCounts;

/// The slices of a step, in buffers that live on.
pub(super) struct LogitSlices {
    max_rows: usize,
    /// Batch rows of all slices one after the other.
    batch_rows: Vec<u32>,
    /// Per entry of the plan (samples, then prompt logprobs): its row within its slice.
    logit_rows: Vec<u32>,
    /// Ranges of the two lists above, per slice.
    slices: Vec<(Range<usize>, Range<usize>)>,
}

/// One slice: at most `max_rows` rows of logits and the entries that they answer.
pub(super) struct LogitSlice<'a> {
    batch_rows: &'a [u32],
    logit_rows: &'a [u32],
    first_entry: usize,
}

impl LogitSlices {
    pub(super) fn new(max_rows: usize) -> Self {
        LogitSlices { max_rows, batch_rows: Vec::new(), logit_rows: Vec::new(), slices: Vec::new() }
    }

    /// Cuts a plan.
    pub(super) fn cut(&mut self, plan: &StepPlan) {
        self.batch_rows.clear();
        self.logit_rows.clear();
        self.slices.clear();
        let samples = plan.samples.iter().map(|sample| sample.row);
        let prompt_rows = plan.prompt_logprobs.iter().map(|row| row.row);
        let (mut first_row, mut first_entry) = (0, 0);
        for batch_row in samples.chain(prompt_rows) {
            let is_shared = self.batch_rows.len() > first_row && self.batch_rows.last() == Some(&batch_row);
            if !is_shared && self.batch_rows.len() - first_row == self.max_rows {
                self.close(&mut first_row, &mut first_entry);
            }
            if !is_shared {
                self.batch_rows.push(batch_row);
            }
            self.logit_rows.push((self.batch_rows.len() - 1 - first_row) as u32);
        }
        if first_entry < self.logit_rows.len() {
            self.close(&mut first_row, &mut first_entry);
        }
    }

    fn close(&mut self, first_row: &mut usize, first_entry: &mut usize) {
        let (num_rows, num_entries) = (self.batch_rows.len(), self.logit_rows.len());
        self.slices.push((*first_row..num_rows, *first_entry..num_entries));
        (*first_row, *first_entry) = (num_rows, num_entries);
    }

    /// The slices of the last cut.
    pub(super) fn iter(&self) -> impl Iterator<Item = LogitSlice<'_>> {
        self.slices.iter().map(|(rows, entries)| LogitSlice {
            batch_rows: &self.batch_rows[rows.clone()],
            logit_rows: &self.logit_rows[entries.clone()],
            first_entry: entries.start,
        })
    }
}

impl LogitSlice<'_> {
    /// Rows of the batch whose logits the slice holds.
    pub(super) fn batch_rows(&self) -> &[u32] {
        self.batch_rows
    }

    /// Which of the plan's entries is its first.
    pub(super) fn first_entry(&self) -> usize {
        self.first_entry
    }

    /// How to choose, one per entry of the slice.
    pub(super) fn sample_rows<'a>(&self, plan: &'a StepPlan, counts: &'a TokenCounts) -> Vec<SampleRow<'a>> {
        let entries = self.logit_rows.iter().zip(self.first_entry..);
        let num_samples = plan.samples.len();
        let sample_row = |(logit_row, entry): (&u32, usize)| match entry.checked_sub(num_samples) {
            None => chosen_row(plan, entry, *logit_row, counts),
            Some(prompt_row) => forced_row(plan, prompt_row, *logit_row),
        };
        entries.map(sample_row).collect()
    }
}

fn chosen_row<'a>(plan: &'a StepPlan, entry: usize, row: u32, counts: &'a TokenCounts) -> SampleRow<'a> {
    let sample = &plan.samples[entry];
    let params = &sample.params;
    SampleRow {
        row,
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        repetition_penalty: params.repetition_penalty,
        frequency_penalty: params.frequency_penalty,
        presence_penalty: params.presence_penalty,
        counts: counts.of(entry),
        bias: &params.logit_bias,
        banned: &sample.banned,
        // Filled while the forward pass ran; an empty one removes every token, which fails this row alone.
        mask: sample.mask.as_ref().map(|mask| mask.wait()),
        forced: None,
        seed: params.seed,
        sample_index: sample.sample_index,
        position: sample.position,
        num_logprobs: params.num_logprobs,
    }
}

/// A prompt token is not chosen but looked up.
fn forced_row(plan: &StepPlan, entry: usize, row: u32) -> SampleRow<'static> {
    let prompt_row = &plan.prompt_logprobs[entry];
    SampleRow {
        forced: Some(prompt_row.target),
        num_logprobs: Some(prompt_row.num_logprobs),
        ..SampleRow::greedy(row)
    }
}

#[cfg(test)]
mod tests {
    use pagoda_engine::{PromptLogprobRow, SequenceId};

    use super::*;

    fn plan(rows: &[u32]) -> StepPlan {
        let row =
            |row: &u32| PromptLogprobRow { row: *row, sequence: SequenceId(0), target: 0, num_logprobs: 0 };
        StepPlan { prompt_logprobs: rows.iter().map(row).collect(), ..StepPlan::default() }
    }

    fn cut(rows: &[u32], max_rows: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
        let mut slices = LogitSlices::new(max_rows);
        slices.cut(&plan(&[9, 9, 9]));
        slices.cut(&plan(rows));
        slices.iter().map(|slice| (slice.batch_rows.to_vec(), slice.logit_rows.to_vec())).collect()
    }

    #[test]
    fn neighbours_on_one_row_share_its_logits() {
        assert_eq!(cut(&[4, 4, 4, 6], 2), [(vec![4, 6], vec![0, 0, 0, 1])]);
    }

    #[test]
    fn a_slice_holds_at_most_the_given_rows() {
        let slices = cut(&[1, 2, 2, 3, 4, 4, 5], 2);
        let expected = [(vec![1, 2], vec![0, 1, 1]), (vec![3, 4], vec![0, 1, 1]), (vec![5], vec![0])];
        assert_eq!(slices, expected);
    }

    #[test]
    fn a_step_without_samples_has_no_slice() {
        assert!(cut(&[], 2).is_empty());
    }
}
