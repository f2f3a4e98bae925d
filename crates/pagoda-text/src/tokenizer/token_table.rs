//! Token id -> exact bytes and whether the token is special: all that decoding needs.
//!
//! Decoding is defined once, here, as concatenation of bytes. The whole decode, the incremental one, logprob entries and
//! grammar masks all read this table, so they cannot disagree.
//!
//! ```text
//! id        0        1    2
//! starts    0        13   14     17      bytes[starts[id]..starts[id + 1]]
//! bytes     <|endoftext|> !    Ġth
//! ```

use super::error::TokenizerError;

/// The largest token id accepted. Real vocabularies end at about 262,144; the table takes 4 bytes per id.
const MAX_TOKEN_ID: u32 = (1 << 22) - 1;

/// One entry before it is laid down in the table.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenEntry {
    /// The bytes the token stands for.
    pub(crate) bytes: Vec<u8>,
    /// Whether it is a control token, left out of text on request.
    pub(crate) special: bool,
}

/// The table. Ids without an entry stand for no bytes.
#[derive(Debug, Clone)]
pub(crate) struct TokenTable {
    /// The bytes of all tokens in id order.
    bytes: Vec<u8>,
    /// Where each token's bytes start; one more than there are ids.
    starts: Vec<u32>,
    /// Ascending ids of special tokens.
    special_ids: Vec<u32>,
    /// The text of a whole decode loses one leading space (vocabularies that spell word starts as a space).
    pub(crate) strip_leading_space: bool,
}

impl TokenTable {
    /// Lays `entries` down by id. A later entry of the same id wins.
    pub(crate) fn new(
        entries: impl IntoIterator<Item = (u32, TokenEntry)>,
        strip_leading_space: bool,
    ) -> Result<Self, TokenizerError> {
        let mut slots: Vec<TokenEntry> = Vec::new();
        for (id, entry) in entries {
            if id > MAX_TOKEN_ID {
                return Err(TokenizerError::TokenIdTooLarge { id, limit: MAX_TOKEN_ID });
            }
            if slots.len() <= id as usize {
                slots.resize(id as usize + 1, TokenEntry::default());
            }
            slots[id as usize] = entry;
        }
        let mut table = Self {
            bytes: Vec::with_capacity(slots.iter().map(|slot| slot.bytes.len()).sum()),
            starts: Vec::with_capacity(slots.len() + 1),
            special_ids: Vec::new(),
            strip_leading_space,
        };
        table.starts.push(0);
        for (id, slot) in (0u32..).zip(slots) {
            table.bytes.extend_from_slice(&slot.bytes);
            let end = u32::try_from(table.bytes.len())
                .map_err(|_| TokenizerError::Malformed { reason: "the vocabulary exceeds 4 GiB".into() })?;
            table.starts.push(end);
            if slot.special {
                table.special_ids.push(id);
            }
        }
        Ok(table)
    }

    /// One more than the largest id.
    pub(crate) fn len(&self) -> usize {
        self.starts.len() - 1
    }

    /// The bytes of `id`; none for an id outside the table.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        match (self.starts.get(id), self.starts.get(id + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    /// Whether `id` is a special token.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special_ids.binary_search(&id).is_ok()
    }

    /// The special tokens in id order.
    pub(crate) fn special_ids(&self) -> &[u32] {
        &self.special_ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(bytes: &[u8], special: bool) -> TokenEntry {
        TokenEntry { bytes: bytes.to_vec(), special }
    }

    #[test]
    fn gaps_and_unknown_ids_stand_for_nothing() {
        let table = TokenTable::new(
            [(3, entry(b"abc", false)), (0, entry(b"<s>", true)), (1, entry(&[0xF0], false))],
            false,
        )
        .unwrap();
        assert_eq!(table.len(), 4);
        let all: Vec<&[u8]> = (0..6).map(|id| table.bytes(id)).collect();
        assert_eq!(all, [&b"<s>"[..], &[0xF0], b"", b"abc", b"", b""]);
        assert_eq!(table.bytes(u32::MAX), b"");
        assert!(table.is_special(0) && !table.is_special(1) && !table.is_special(9));
    }

    #[test]
    fn an_id_beyond_any_vocabulary_is_refused_before_it_is_allocated() {
        let error = TokenTable::new([(u32::MAX, entry(b"x", false))], false).unwrap_err();
        assert_eq!(error, TokenizerError::TokenIdTooLarge { id: u32::MAX, limit: MAX_TOKEN_ID });
    }
}
