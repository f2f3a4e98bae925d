//! The laws of the block manager, checked by recounting everything from the tables.

use super::{BlockTable, KvCacheManager};
use crate::IntegrityError;
use crate::integrity::hold;

impl KvCacheManager {
    /// Recounts every block. `tables` are all sequences' tables, each with the tokens it has room for: computed and
    /// scheduled ones.
    pub fn check_integrity<'t>(
        &self,
        tables: impl Iterator<Item = (&'t BlockTable, usize)>,
    ) -> Result<(), IntegrityError> {
        let num_blocks = self.pool.num_blocks();
        let mut holders = vec![0_u32; num_blocks];
        for (table, num_tokens) in tables {
            self.check_table(table, num_tokens)?;
            table.blocks.iter().for_each(|block| holders[block.0 as usize] += 1);
        }
        for (_, blocks) in &self.retired {
            blocks.iter().for_each(|block| holders[block.0 as usize] += 1);
        }
        let mut readers = vec![0_u32; num_blocks];
        let launched = self.steps_in_flight.iter().flat_map(|(_, sources)| sources.iter().copied());
        for source in launched.chain(self.planned_copies.iter().map(|copy| copy.source)) {
            readers[source.0 as usize] += 1;
        }
        self.check_counts(&holders, &readers)?;
        self.check_queue()?;
        self.cache.check_integrity()?;
        self.ghosts.check_integrity()
    }

    fn check_table(&self, table: &BlockTable, num_tokens: usize) -> Result<(), IntegrityError> {
        let (len, block_size) = (table.len(), self.block_size);
        hold!(
            6,
            len == num_tokens.div_ceil(block_size),
            "{len} blocks of {block_size} for {num_tokens} tokens"
        );
        for (index, &block) in table.blocks.iter().enumerate() {
            hold!(1, block.0 != 0, "a table holds block 0");
            let is_written_on = index == num_tokens / block_size;
            let is_frozen = self.cache.contains(block);
            hold!(3, !(is_written_on && is_frozen), "{block} is the tail of a running sequence, but frozen");
        }
        Ok(())
    }

    fn check_counts(&self, holders: &[u32], readers: &[u32]) -> Result<(), IntegrityError> {
        let mut num_referenced = 0;
        for (index, (&holders, &readers)) in holders.iter().zip(readers).enumerate() {
            let block = crate::BlockId(index as u32);
            let ref_count = self.pool.ref_count(block);
            num_referenced += usize::from(ref_count > 0);
            hold!(
                2,
                ref_count == holders + readers,
                "{block}: {ref_count} != {holders} tables + {readers} copies"
            );
            let counted = self.num_readers[index];
            hold!(2, counted == readers, "{block}: {counted} readers counted, {readers} found");
        }
        let counted = self.num_referenced();
        hold!(1, num_referenced == counted, "{num_referenced} blocks are referenced, {counted} counted");
        Ok(())
    }

    fn check_queue(&self) -> Result<(), IntegrityError> {
        let (mut num_queued, mut num_cached) = (0, 0);
        for block in self.pool.queue() {
            hold!(1, self.pool.ref_count(block) == 0, "{block} is in the queue but held");
            num_cached += usize::from(self.cache.contains(block));
            num_queued += 1;
            hold!(1, num_queued <= self.num_total(), "the queue is longer than the pool");
        }
        let available = self.num_available();
        hold!(1, num_queued == available, "{num_queued} blocks in the queue, {available} counted");
        hold!(1, num_cached == self.num_cached, "{num_cached} cached, {} counted", self.num_cached);
        let (free, cached, referenced) = (self.num_free(), self.num_cached(), self.num_referenced());
        let total = self.num_total();
        hold!(1, free + cached + referenced == total, "{free} + {cached} + {referenced} != {total}");
        hold!(1, !self.cache.contains(crate::BlockId(0)), "block 0 is cached");
        Ok(())
    }
}
