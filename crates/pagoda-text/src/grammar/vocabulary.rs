//! The vocabulary as llguidance reads it: a trie over the bytes of each token, special tokens under a prefix of their own.

use std::sync::Arc;

use toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::Tokenizer;

/// The trie stores a node's distance from its parents in 10 bits; no text needs a longer token.
const MAX_TOKEN_BYTES: usize = 1000;

/// The trie, and tokenising by longest match. Nothing is forced by it: the model chooses among all spellings of what the
/// grammar asks for, so that its own canonical one stays the likely one.
struct Vocabulary {
    trie: TokTrie,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// Lays out the vocabulary of `tokenizer`. `eos_ids` outside of it are left out.
pub(super) fn vocabulary(tokenizer: &Tokenizer, eos_ids: &[u32]) -> TokEnv {
    let num_ids = u32::try_from(tokenizer.vocab_size()).expect("token ids are below 2^22");
    let words: Vec<Vec<u8>> = (0..num_ids).map(|id| word(tokenizer, id)).collect();
    let eos: Vec<u32> = eos_ids.iter().copied().filter(|&id| id < num_ids).collect();
    let info = TokRxInfo::new(num_ids, eos.first().copied().unwrap_or(INVALID_TOKEN));
    let trie = TokTrie::from(&info, &words);
    let trie = if eos.is_empty() { trie } else { trie.with_eos_tokens(&eos) };
    Arc::new(Vocabulary { trie })
}

/// The bytes under which the trie stores `id`: none for a token that no grammar may ask for.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    // The marker is no byte of UTF-8: a token that starts with it is no part of any text.
    if bytes.is_empty() || bytes.len() > MAX_TOKEN_BYTES || bytes[0] == TokTrie::SPECIAL_TOKEN_MARKER {
        Vec::new()
    } else if tokenizer.is_special(id) {
        [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
    } else {
        bytes.to_vec()
    }
}
