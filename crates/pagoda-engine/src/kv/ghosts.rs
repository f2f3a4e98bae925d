//! What was evicted: the names and tokens of blocks that could be matched once. Bounded, holds no block, and never changes
//! what is matched; it only lets a miss say why.

use super::{BlockHash, PrefixCache};
use crate::integrity::hold;
use crate::{BlockId, IntegrityError, TokenId};

/// The most recently evicted blocks, at most as many as the pool has; the oldest is forgotten first. Kept in an index like
/// the cache's own, in which places of a ring stand where the cache has blocks, so that "how far would it have matched" is
/// the same search.
#[derive(Clone, Debug)]
pub(super) struct GhostList {
    index: PrefixCache,
    num_places: u32,
    /// The place of the ring that is written next.
    next: u32,
    num_ghosts: usize,
}

impl GhostList {
    /// An empty list with room for `num_places` blocks.
    pub(super) fn new(num_places: usize, block_size: usize) -> Self {
        GhostList {
            index: PrefixCache::new(num_places, block_size),
            num_places: num_places as u32,
            next: 0,
            num_ghosts: 0,
        }
    }

    /// Remembers an evicted block in the place of the oldest one.
    pub(super) fn remember(&mut self, parent: BlockHash, tokens: &[TokenId]) {
        if self.num_places == 0 {
            return;
        }
        let place = BlockId(self.next);
        if self.index.contains(place) {
            self.index.remove(place);
            self.num_ghosts -= 1;
        }
        // Refused if another ghost tells the same already.
        if self.index.insert(place, parent, tokens) {
            self.num_ghosts += 1;
            self.next = (self.next + 1) % self.num_places;
        }
    }

    /// As [`PrefixCache::nearest`], among what was evicted.
    pub(super) fn nearest(&self, parent: BlockHash, tokens: &[TokenId]) -> Option<(usize, bool)> {
        self.index.nearest(parent, tokens)
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.num_ghosts
    }

    /// Law 12.
    pub(super) fn check_integrity(&self) -> Result<(), IntegrityError> {
        let counted = self.index.num_cached();
        hold!(12, counted == self.num_ghosts, "{counted} ghosts, {} counted", self.num_ghosts);
        hold!(12, counted <= self.num_places as usize, "{counted} ghosts for {} places", self.num_places);
        self.index.check_integrity().map_err(|error| IntegrityError::broken(12, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CacheSalt;

    #[test]
    fn the_oldest_ghost_is_forgotten_first_and_equal_ones_count_once() {
        let root = BlockHash::root(&CacheSalt::default());
        let mut ghosts = GhostList::new(2, 2);
        for tokens in [[1, 1], [2, 2], [2, 2], [3, 3]] {
            ghosts.remember(root, &tokens);
            ghosts.check_integrity().unwrap();
        }
        assert_eq!(ghosts.len(), 2);
        assert_eq!(ghosts.nearest(root, &[1, 1]), Some((0, true)));
        assert_eq!(ghosts.nearest(root, &[2, 2]), Some((2, false)));
        assert_eq!(ghosts.nearest(root, &[3, 9]), Some((1, true)));
    }

    #[test]
    fn without_places_nothing_is_remembered() {
        let mut ghosts = GhostList::new(0, 2);
        ghosts.remember(BlockHash::root(&CacheSalt::default()), &[1]);
        assert_eq!(ghosts.len(), 0);
    }
}
