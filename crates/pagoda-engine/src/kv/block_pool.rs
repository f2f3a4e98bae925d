//! The physical blocks: a reference count for each, and one queue of the unreferenced ones in eviction order. Does not
//! know what a block holds.

use crate::BlockId;

/// The end of the queue at which an unreferenced block waits. Blocks are handed out from the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueEnd {
    /// Handed out next: nothing is lost with it.
    Front,
    /// Handed out last: it can still be matched.
    Back,
}

/// Reference counts and the free queue.
///
/// The queue is a doubly linked list through two arrays, so that a block in its middle (a prefix hit) leaves in O(1).
/// Block 0 is never handed out, which makes it the list's sentinel:
///
/// ```text
///   next:  0 -> head -> … -> tail -> 0        prev: the same backwards
/// ```
#[derive(Clone, Debug)]
pub struct BlockPool {
    /// `[num_blocks]`
    ref_counts: Vec<u32>,
    /// `[num_blocks]` the next unreferenced block; meaningless for a referenced one.
    next: Vec<u32>,
    /// `[num_blocks]` the previous unreferenced block; meaningless for a referenced one.
    prev: Vec<u32>,
    num_unreferenced: usize,
}

impl BlockPool {
    /// A pool whose blocks 1 to `num_blocks - 1` are unreferenced and handed out in that order.
    pub fn new(num_blocks: usize) -> Self {
        assert!(num_blocks >= 2, "a pool of {num_blocks} blocks has none to hand out");
        let n = num_blocks as u32;
        BlockPool {
            ref_counts: vec![0; num_blocks],
            next: (0..n).map(|block| (block + 1) % n).collect(),
            prev: (0..n).map(|block| (block + n - 1) % n).collect(),
            num_unreferenced: num_blocks - 1,
        }
    }

    /// Blocks of the pool, block 0 included.
    pub fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// Length of the queue.
    pub fn num_unreferenced(&self) -> usize {
        self.num_unreferenced
    }

    /// How many hold the block.
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.ref_counts[block.0 as usize]
    }

    /// Takes the block at the front of the queue; its count becomes 1.
    pub fn take_first(&mut self) -> Option<BlockId> {
        let first = self.next[0];
        (first != 0).then(|| {
            let block = BlockId(first);
            self.retain(block);
            block
        })
    }

    /// One more holder. Returns whether the block was unreferenced before.
    pub fn retain(&mut self, block: BlockId) -> bool {
        let count = &mut self.ref_counts[block.0 as usize];
        *count += 1;
        let was_unreferenced = *count == 1;
        if was_unreferenced {
            self.unlink(block.0);
        }
        was_unreferenced
    }

    /// One holder less; the last one puts the block at the given end of the queue. Returns the holders left.
    pub fn release(&mut self, block: BlockId, end: QueueEnd) -> u32 {
        assert!(block.0 != 0, "block 0 is never handed out");
        let count = &mut self.ref_counts[block.0 as usize];
        assert!(*count > 0, "{block} was released more often than it was retained");
        *count -= 1;
        let left = *count;
        if left == 0 {
            match end {
                QueueEnd::Front => self.link(0, block.0),
                QueueEnd::Back => self.link(self.prev[0], block.0),
            }
        }
        left
    }

    /// The queue from front to back.
    pub fn queue(&self) -> impl Iterator<Item = BlockId> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            at = self.next[at as usize];
            (at != 0).then_some(BlockId(at))
        })
    }

    fn link(&mut self, after: u32, block: u32) {
        let before = self.next[after as usize];
        self.next[after as usize] = block;
        self.prev[block as usize] = after;
        self.next[block as usize] = before;
        self.prev[before as usize] = block;
        self.num_unreferenced += 1;
    }

    fn unlink(&mut self, block: u32) {
        assert!(block != 0, "block 0 is never handed out");
        let (prev, next) = (self.prev[block as usize], self.next[block as usize]);
        self.next[prev as usize] = next;
        self.prev[next as usize] = prev;
        self.num_unreferenced -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(pool: &BlockPool) -> Vec<u32> {
        pool.queue().map(|block| block.0).collect()
    }

    #[test]
    fn blocks_are_handed_out_from_the_front_and_never_block_0() {
        let mut pool = BlockPool::new(4);
        let taken: Vec<_> = std::iter::from_fn(|| pool.take_first()).collect();
        assert_eq!(taken, [BlockId(1), BlockId(2), BlockId(3)]);
        assert_eq!(pool.num_unreferenced(), 0);
    }

    #[test]
    fn a_released_block_waits_at_the_end_it_was_given() {
        let mut pool = BlockPool::new(5);
        let [a, b] = [pool.take_first().unwrap(), pool.take_first().unwrap()];
        pool.release(a, QueueEnd::Back);
        pool.release(b, QueueEnd::Front);
        assert_eq!(queue(&pool), [2, 3, 4, 1]);
    }

    #[test]
    fn a_retained_block_leaves_the_middle_of_the_queue() {
        let mut pool = BlockPool::new(5);
        assert!(pool.retain(BlockId(2)));
        assert!(!pool.retain(BlockId(2)));
        assert_eq!(queue(&pool), [1, 3, 4]);
        assert_eq!(pool.release(BlockId(2), QueueEnd::Back), 1);
        assert_eq!(pool.release(BlockId(2), QueueEnd::Back), 0);
        assert_eq!(queue(&pool), [1, 3, 4, 2]);
    }

    #[test]
    #[should_panic(expected = "b1 was released more often than it was retained")]
    fn releasing_twice_panics() {
        let mut pool = BlockPool::new(3);
        let block = pool.take_first().unwrap();
        pool.release(block, QueueEnd::Front);
        pool.release(block, QueueEnd::Front);
    }
}
