//! The order in which sequences are served.

use crate::{RequestId, SequenceId};

/// A sequence's place in the order; the smallest is served first and preempted last. Constant for the sequence's life.
///
/// Aging: after waiting `w` steps a request counts as `priority - w / aging_steps`. Every waiting request ages at the same
/// pace, so that comparing two of them at any moment is comparing `priority * aging_steps + arrival_step`, a number that
/// never changes: nothing has to be sorted again as time goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    due: i64,
    /// The request: earlier ones first.
    pub(super) request: RequestId,
    /// The sequence.
    pub(super) sequence: SequenceId,
}

impl Rank {
    pub(super) fn new(
        priority: i32,
        arrival_step: u64,
        aging_steps: u64,
        request: RequestId,
        sequence: SequenceId,
    ) -> Self {
        // |priority| <= 2^31 and aging_steps < 2^20: room for 2^62 steps.
        let due = i64::from(priority) * aging_steps as i64 + arrival_step as i64;
        Rank { due, request, sequence }
    }

    /// The rank of a request's other sequence.
    pub(super) fn sibling(self, sequence: SequenceId) -> Self {
        Rank { sequence, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(priority: i32, arrival_step: u64, id: u64) -> Rank {
        Rank::new(priority, arrival_step, 10, RequestId(id), SequenceId(id))
    }

    #[test]
    fn lower_priority_numbers_come_first_and_equal_ones_in_order_of_arrival() {
        assert!(rank(-1, 5, 1) < rank(0, 5, 0));
        assert!(rank(0, 4, 1) < rank(0, 5, 0));
        assert!(rank(0, 5, 0) < rank(0, 5, 1));
    }

    #[test]
    fn waiting_long_enough_beats_one_level_of_priority() {
        assert!(rank(0, 109, 1) < rank(1, 100, 0));
        assert!(rank(1, 100, 0) < rank(0, 111, 1));
    }

    #[test]
    fn the_extremes_do_not_overflow() {
        let lowest = Rank::new(i32::MIN, 0, 1_000_000, RequestId(0), SequenceId(0));
        let highest = Rank::new(i32::MAX, 1 << 60, 1_000_000, RequestId(0), SequenceId(0));
        assert!(lowest < highest);
    }
}
