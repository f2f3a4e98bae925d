//! Why a prompt's match ended where it did. Asked once per request, at its admission; changes nothing that is matched.

use std::collections::VecDeque;

use super::{BlockHash, HashedTokens, KvCacheManager, PrefixMatch};

/// What the prefix cache knew of a prompt when its request was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixReport {
    /// Prompt tokens served from the cache.
    pub num_cached_tokens: u32,
    /// Leading prompt tokens that were seen before under the same salt and are cached or remembered as evicted; at least
    /// `num_cached_tokens`.
    pub num_known_tokens: u32,
    /// Why no more tokens were served.
    pub miss: CacheMiss,
    /// Leading tokens that the same tenant's prompts under another salt would have served, where these are more than are
    /// known under this one; else 0. Not for everyone's eyes: whoever shares a tenant may rely on the salts.
    pub num_tokens_under_other_salt: u32,
}

/// Why the rest of a prompt was not served from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMiss {
    /// There is no rest but the one token that is always computed.
    Nothing,
    /// The cache was not asked: it is off, or every position had to be computed (prompt logprobs).
    NotAsked,
    /// What was known ended there: the rest has not been seen after this prefix.
    FirstUse,
    /// The tokens behind the served ones were cached and have been evicted since.
    Evicted,
    /// What is known goes on with another token at position `num_known_tokens`.
    Diverged,
}

impl PrefixReport {
    /// The cache was not asked.
    pub(crate) const NOT_ASKED: Self = PrefixReport {
        num_cached_tokens: 0,
        num_known_tokens: 0,
        miss: CacheMiss::NotAsked,
        num_tokens_under_other_salt: 0,
    };
}

/// Salts that one look at other salts considers at most, over all tenants.
const MAX_DOMAINS: usize = 64;
/// A look at other salts hashes at most this many times the prompt's blocks.
const MAX_REHASHES: usize = 4;

/// The domains of sharing (a tenant's salts) that were used last, newest first.
#[derive(Clone, Debug, Default)]
pub(super) struct RecentDomains(VecDeque<(u64, BlockHash)>);

impl RecentDomains {
    fn note(&mut self, tenant: u64, root: BlockHash) {
        match self.0.iter().position(|&(_, known)| known == root) {
            Some(0) => return,
            Some(place) => drop(self.0.remove(place)),
            None => self.0.truncate(MAX_DOMAINS - 1),
        }
        self.0.push_front((tenant, root));
    }

    fn others_of(&self, tenant: u64, root: BlockHash) -> impl Iterator<Item = BlockHash> + '_ {
        let is_other = move |&&(owner, known): &&(u64, BlockHash)| owner == tenant && known != root;
        self.0.iter().filter(is_other).map(|&(_, known)| known)
    }
}

impl KvCacheManager {
    /// Why `found`, the match of at most `max_tokens` tokens, ended where it did. To be asked before the match is taken,
    /// which may evict.
    pub fn report(&mut self, tokens: &HashedTokens, found: &PrefixMatch, max_tokens: usize) -> PrefixReport {
        if !self.prefix_caching {
            return PrefixReport::NOT_ASKED;
        }
        let (num_known, goes_on) = self.known_prefix(tokens, found, max_tokens);
        let miss = if found.num_tokens >= max_tokens {
            CacheMiss::Nothing
        } else if num_known > found.num_tokens {
            CacheMiss::Evicted
        } else if goes_on && num_known > 0 {
            CacheMiss::Diverged
        } else {
            // Another first token is nothing to part from: everything has one.
            CacheMiss::FirstUse
        };
        let mut num_elsewhere = 0;
        if matches!(miss, CacheMiss::FirstUse | CacheMiss::Diverged) {
            num_elsewhere = self.longest_under_other_salts(tokens, max_tokens);
        }
        self.domains.note(tokens.tenant(), tokens.parent(0));
        PrefixReport {
            num_cached_tokens: found.num_tokens as u32,
            num_known_tokens: num_known as u32,
            miss,
            num_tokens_under_other_salt: if num_elsewhere > num_known { num_elsewhere as u32 } else { 0 },
        }
    }

    /// How far the match would have gone if nothing had been evicted, and whether what is known goes on otherwise there.
    fn known_prefix(&self, tokens: &HashedTokens, found: &PrefixMatch, max_tokens: usize) -> (usize, bool) {
        let mut index = found.blocks.len();
        loop {
            let wanted = tokens.block(index, max_tokens);
            if wanted.is_empty() {
                return (max_tokens, false);
            }
            let parent = tokens.parent(index);
            // `None` is the least.
            match self.cache.nearest(parent, wanted).max(self.ghosts.nearest(parent, wanted)) {
                Some((num_common, _)) if num_common == self.block_size => index += 1,
                Some((num_common, goes_on)) => return (index * self.block_size + num_common, goes_on),
                None => return (index * self.block_size, false),
            }
        }
    }

    /// The longest cached prefix among the tenant's other salts. The prompt is hashed anew for each, within a bound.
    fn longest_under_other_salts(&self, tokens: &HashedTokens, max_tokens: usize) -> usize {
        let mut num_hashes_left = MAX_REHASHES * tokens.len().div_ceil(self.block_size);
        let others = self.domains.others_of(tokens.tenant(), tokens.parent(0));
        let lens =
            others.map(|root| self.cached_prefix_under(root, tokens, max_tokens, &mut num_hashes_left));
        lens.max().unwrap_or(0)
    }

    fn cached_prefix_under(
        &self,
        root: BlockHash,
        tokens: &HashedTokens,
        max_tokens: usize,
        num_hashes_left: &mut usize,
    ) -> usize {
        let mut parent = root;
        for index in 0.. {
            let wanted = tokens.block(index, max_tokens);
            match self.cache.nearest(parent, wanted) {
                Some((num_common, _)) if num_common == self.block_size && *num_hashes_left > 0 => {
                    *num_hashes_left -= 1;
                    parent = parent.child(wanted);
                }
                Some((num_common, _)) => return index * self.block_size + num_common,
                None => return index * self.block_size,
            }
        }
        unreachable!("a prompt ends")
    }
}
