//! Token counts for the penalties: how often each distinct token of a sequence occurs in its output.

use std::ops::Range;

use pagoda_backend::TokenCount;
use pagoda_engine::{SampleRow, TokenHistory};

/// The counts of every sample of a step, in buffers that live on.
#[derive(Default)]
pub(super) struct TokenCounts {
    /// Counts of all samples one after the other, ascending by token within each.
    counts: Vec<TokenCount>,
    /// Where each sample's counts are.
    ranges: Vec<Range<usize>>,
    /// Tokens of one sample, with whether each is output.
    sorted: Vec<(u32, bool)>,
}

impl TokenCounts {
    /// Counts for the samples of a step; those without a history get none. `last_tokens` are what the step before chose; an entry
    /// that it does not have is the error.
    pub(super) fn count(&mut self, samples: &[SampleRow], last_tokens: &[u32]) -> Result<(), u32> {
        self.counts.clear();
        self.ranges.clear();
        for sample in samples {
            let start = self.counts.len();
            if let Some(history) = &sample.history {
                self.add(history, last_tokens)?;
            }
            self.ranges.push(start..self.counts.len());
        }
        Ok(())
    }

    /// The counts of one sample.
    pub(super) fn of(&self, sample: usize) -> &[TokenCount] {
        &self.counts[self.ranges[sample].clone()]
    }

    fn add(&mut self, history: &TokenHistory, last_tokens: &[u32]) -> Result<(), u32> {
        let in_flight = match history.last_in_flight {
            Some(entry) => Some(*last_tokens.get(entry as usize).ok_or(entry)?),
            None => None,
        };
        let num_prompt_tokens = history.num_prompt_tokens as usize;
        self.sorted.clear();
        let tokens = history.tokens.iter().enumerate();
        self.sorted.extend(tokens.map(|(index, token)| (*token, index >= num_prompt_tokens)));
        // A token in flight follows the prompt.
        self.sorted.extend(in_flight.map(|token| (token, true)));
        self.sorted.sort_unstable();
        for same in self.sorted.chunk_by(|a, b| a.0 == b.0) {
            let num_output = same.iter().filter(|(_, is_output)| *is_output).count() as u32;
            self.counts.push(TokenCount { token: same[0].0, num_output });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_tokens_count_zero_unless_they_are_also_output() {
        let mut counts = TokenCounts::default();
        let history =
            TokenHistory { tokens: vec![7, 3, 7, 5, 7, 5], num_prompt_tokens: 3, last_in_flight: None };
        counts.add(&history, &[]).unwrap();
        let seen: Vec<_> = counts.counts.iter().map(|count| (count.token, count.num_output)).collect();
        assert_eq!(seen, [(3, 0), (5, 2), (7, 1)]);
    }

    #[test]
    fn a_token_in_flight_counts_as_output() {
        let mut counts = TokenCounts::default();
        let history = TokenHistory { tokens: vec![7, 3], num_prompt_tokens: 2, last_in_flight: Some(1) };
        counts.add(&history, &[9, 3]).unwrap();
        let seen: Vec<_> = counts.counts.iter().map(|count| (count.token, count.num_output)).collect();
        assert_eq!(seen, [(3, 1), (7, 0)]);
        assert_eq!(counts.add(&history, &[9]), Err(1));
    }
}
