//! When an output goes round in circles: its end is one pattern of tokens, several times over.

use crate::TokenId;

/// Ends a sequence with [`crate::FinishReason::Repetition`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepetitionRule {
    /// Tokens of the shortest pattern that is looked for; at least 1.
    pub min_pattern_len: u32,
    /// Tokens of the longest.
    pub max_pattern_len: u32,
    /// How often in a row the pattern must stand at the output's end; at least 2.
    pub min_count: u32,
}

impl RepetitionRule {
    /// Whether the output ends in repetitions. A pattern costs one comparison unless its last token repeats.
    pub fn matches(&self, output: &[TokenId]) -> bool {
        let count = self.min_count as usize;
        (self.min_pattern_len as usize..=self.max_pattern_len as usize)
            .take_while(|len| len.saturating_mul(count) <= output.len())
            .any(|len| {
                // All copies are equal if everything equals what stands one pattern before it.
                let end = &output[output.len() - len * count..];
                end[len..].iter().rev().eq(end[..end.len() - len].iter().rev())
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_held_against_every_pattern_length() {
        let rule = |min_pattern_len, max_pattern_len, min_count| RepetitionRule {
            min_pattern_len,
            max_pattern_len,
            min_count,
        };
        assert!(rule(1, 2, 3).matches(&[9, 1, 2, 1, 2, 1, 2]));
        assert!(!rule(1, 2, 4).matches(&[9, 1, 2, 1, 2, 1, 2]));
        assert!(!rule(1, 2, 3).matches(&[1, 2, 1, 2, 1, 2, 9]), "only the end counts");
        assert!(!rule(3, 4, 2).matches(&[1, 2, 1, 2]), "too short for the shortest pattern");
        assert!(rule(2, 2, 2).matches(&[5, 5, 5, 5]), "a pattern may itself repeat");
        assert!(rule(1, 1, 2).matches(&[5, 5]));
        assert!(!rule(1, 8, 2).matches(&[]));
        assert!(!rule(1, u32::MAX, u32::MAX).matches(&[1, 1]));
    }
}
