//! Which sequences run together: equal or nearly equal lengths, so that little is computed for padding.

/// Tokens of one forward pass, padding included: 512 x 1536 numbers of the widest activation are 12 MB.
const MAX_BATCH_TOKENS: usize = 2048;
/// A sequence may be padded by this part of the longest one's length,
const PADDING_SHARE: usize = 8;
/// or by this many tokens, if that is more.
const MIN_PADDING: usize = 2;

/// Sequences that run together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// Which sequences.
    pub(super) indices: Vec<usize>,
    /// Tokens of each after padding: the longest one's.
    pub(super) len: usize,
}

/// Every sequence in exactly one batch, the longest first.
pub(super) fn batches(lens: &[usize]) -> Vec<Batch> {
    let mut order: Vec<usize> = (0..lens.len()).collect();
    order.sort_by_key(|&index| (std::cmp::Reverse(lens[index]), index));
    let mut batches: Vec<Batch> = Vec::new();
    for index in order {
        match batches.last_mut() {
            Some(batch) if fits(batch, lens[index]) => batch.indices.push(index),
            _ => batches.push(Batch { indices: vec![index], len: lens[index] }),
        }
    }
    batches
}

fn fits(batch: &Batch, len: usize) -> bool {
    let padding = (batch.len / PADDING_SHARE).max(MIN_PADDING);
    batch.len - len <= padding && (batch.indices.len() + 1) * batch.len <= MAX_BATCH_TOKENS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_lengths_run_together_and_far_ones_do_not() {
        let batch = |indices: &[usize], len| Batch { indices: indices.to_vec(), len };
        assert_eq!(
            batches(&[10, 80, 9, 72, 69, 7]),
            [batch(&[1, 3], 80), batch(&[4], 69), batch(&[0, 2], 10), batch(&[5], 7),]
        );
        assert_eq!(batches(&[]), []);
    }

    #[test]
    fn padding_and_the_size_of_a_pass_are_bounded() {
        let lens: Vec<usize> = (0..3000).map(|index| 1 + index * 7919 % 256).collect();
        let batches = batches(&lens);
        let mut seen: Vec<usize> = batches.iter().flat_map(|batch| batch.indices.clone()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..3000).collect::<Vec<_>>());
        let padded: usize = batches.iter().map(|batch| batch.indices.len() * batch.len).sum();
        let tokens: usize = lens.iter().sum();
        assert!(padded * 10 <= tokens * 11, "{padded} tokens are computed for {tokens}");
        assert!(batches.iter().all(|batch| batch.indices.len() * batch.len <= MAX_BATCH_TOKENS));
    }
}
