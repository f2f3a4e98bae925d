//! A sequence's tokens with the hash of every full block, kept up to date as tokens are added. Survives preemption, so
//! that a waiting prompt is hashed once, not in every step.

use std::hash::{Hash, Hasher};

use crate::{CacheSalt, TokenId};

/// Names a block's content and everything before it: `H(parent, tokens)`, the first parent being `H(salt)`. Blocks of
/// different salts, or after different prefixes, never have the same name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// The parent of every first block of a salt.
    pub fn root(salt: &CacheSalt) -> Self {
        // The key separates salts from blocks: no salt can be chosen that collides with a block's hash.
        BlockHash(
            *blake3::Hasher::new_derive_key("pagoda prefix cache: salt")
                .update(&salt.tenant.to_le_bytes())
                .update(&salt.salt)
                .finalize()
                .as_bytes(),
        )
    }

    /// The hash of a full block.
    pub fn child(&self, tokens: &[TokenId]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        let mut bytes = [0_u8; 256];
        for tokens in tokens.chunks(bytes.len() / 4) {
            let bytes = &mut bytes[..4 * tokens.len()];
            for (bytes, token) in bytes.chunks_exact_mut(4).zip(tokens) {
                bytes.copy_from_slice(&token.to_le_bytes());
            }
            hasher.update(bytes);
        }
        BlockHash(*hasher.finalize().as_bytes())
    }
}

impl std::fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

impl Hash for BlockHash {
    /// The bytes are uniform already; eight of them are hash enough for a table.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// Tokens, and the hash chain over their full blocks.
#[derive(Clone, Debug)]
pub struct HashedTokens {
    tokens: Vec<TokenId>,
    /// `[1 + num_full_blocks]` the parent of block `i` is entry `i`.
    hashes: Vec<BlockHash>,
    block_size: usize,
    tenant: u64,
}

impl HashedTokens {
    /// Hashes a prompt.
    pub fn new(tokens: Vec<TokenId>, salt: &CacheSalt, block_size: usize) -> Self {
        let mut hashes = Vec::with_capacity(tokens.len() / block_size + 2);
        let mut last = BlockHash::root(salt);
        hashes.push(last);
        for block in tokens.chunks_exact(block_size) {
            last = last.child(block);
            hashes.push(last);
        }
        HashedTokens { tokens, hashes, block_size, tenant: salt.tenant }
    }

    /// One more token.
    pub fn push(&mut self, token: TokenId) {
        self.tokens.push(token);
        if self.tokens.len().is_multiple_of(self.block_size) {
            let block = self.tokens.len() / self.block_size - 1;
            self.hashes.push(self.parent(block).child(&self.tokens[block * self.block_size..]));
        }
    }

    /// The tokens.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// How many tokens there are.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Whose tokens these are.
    pub(super) fn tenant(&self) -> u64 {
        self.tenant
    }

    /// The hash of everything before a block.
    pub(super) fn parent(&self, block: usize) -> BlockHash {
        self.hashes[block]
    }

    /// The tokens of a block, cut off at `end` tokens of the sequence.
    pub(super) fn block(&self, block: usize, end: usize) -> &[TokenId] {
        let start = block * self.block_size;
        &self.tokens[start..end.min(start + self.block_size)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushing_token_by_token_gives_the_hashes_of_the_whole() {
        for block_size in [1, 2, 3, 128] {
            let whole = HashedTokens::new((0..300).collect(), &CacheSalt::default(), block_size);
            let mut grown = HashedTokens::new(vec![0], &CacheSalt::default(), block_size);
            (1..300).for_each(|token| grown.push(token));
            assert_eq!(whole.hashes, grown.hashes, "block size {block_size}");
        }
    }

    #[test]
    fn equal_tokens_have_different_names_under_another_salt_or_after_another_prefix() {
        let chain = |tokens: &[TokenId], salt: &str| {
            HashedTokens::new(tokens.to_vec(), &CacheSalt { tenant: 0, salt: salt.into() }, 2)
                .hashes
                .last()
                .copied()
                .unwrap()
        };
        assert_eq!(chain(&[1, 2, 3, 4], "a"), chain(&[1, 2, 3, 4], "a"));
        assert_ne!(chain(&[1, 2, 3, 4], "a"), chain(&[1, 2, 3, 4], "b"));
        assert_ne!(chain(&[1, 2, 3, 4], "a"), chain(&[2, 1, 3, 4], "a"));
    }
}
