//! Token ids to text, one id at a time.
//!
//! Invariants: every delta is complete characters; the deltas and what `finish` gives, put together, equal
//! [`Tokenizer::decode`] of all ids, for every list of ids. Between calls at most three bytes are held back: the start of
//! a character whose rest may still come.

use std::sync::Arc;

use crate::Tokenizer;

/// What a text is the beginning of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TextPosition {
    /// The first token starts the text: a leading space that only spells a word start is dropped, as in
    /// [`Tokenizer::decode`].
    #[default]
    Start,
    /// The tokens go on behind other text: a leading space is a space.
    Continuation,
}

/// Options of [`Detokenizer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetokenizeOptions {
    /// Leave control tokens out.
    pub skip_special_tokens: bool,
    /// Where the text stands.
    pub position: TextPosition,
}

impl Default for DetokenizeOptions {
    fn default() -> Self {
        Self { skip_special_tokens: true, position: TextPosition::Start }
    }
}

/// The incremental decoder of one sequence.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    /// Control tokens that are not left out: markup that the text's reader looks for.
    kept_ids: Arc<[u32]>,
    /// The next byte, if a space, is dropped.
    at_stripped_start: bool,
    /// The bytes of a character begun: at most three, all of a valid prefix.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// A decoder that has seen nothing.
    pub fn new(tokenizer: Arc<Tokenizer>, options: DetokenizeOptions) -> Self {
        let at_stripped_start = options.position == TextPosition::Start && tokenizer.strips_leading_space();
        let skip_special_tokens = options.skip_special_tokens;
        let kept_ids = Arc::new([]);
        Self { tokenizer, skip_special_tokens, kept_ids, at_stripped_start, pending: Vec::new() }
    }

    /// Shows these control tokens even if others are left out.
    pub fn keeping(mut self, kept_ids: &Arc<[u32]>) -> Self {
        self.kept_ids = Arc::clone(kept_ids);
        self
    }

    /// The text that `id` completes; often empty within a character of several tokens.
    pub fn push(&mut self, id: u32) -> String {
        let mut text = String::new();
        self.push_into(id, &mut text);
        text
    }

    /// Appends the text that `id` completes to `text`.
    pub fn push_into(&mut self, id: u32, text: &mut String) {
        if self.skip_special_tokens && self.tokenizer.is_special(id) && !self.kept_ids.contains(&id) {
            return;
        }
        let mut bytes = self.tokenizer.token_bytes(id);
        if self.at_stripped_start
            && let Some(first) = bytes.first()
        {
            self.at_stripped_start = false;
            bytes = &bytes[usize::from(*first == b' ')..];
        }
        if self.pending.is_empty() {
            let taken = append_complete(bytes, text);
            self.pending.extend_from_slice(&bytes[taken..]);
        } else {
            self.pending.extend_from_slice(bytes);
            let taken = append_complete(&self.pending, text);
            self.pending.drain(..taken);
        }
    }

    /// Ends the text: a character that never became complete is U+FFFD.
    pub fn finish(&mut self) -> String {
        let text = if self.pending.is_empty() { "" } else { "\u{FFFD}" };
        self.pending.clear();
        text.to_owned()
    }
}

/// Appends `bytes` up to a character that they begin and do not end, and says how many bytes that was. Each maximal
/// invalid part becomes one U+FFFD, as in [`String::from_utf8_lossy`].
fn append_complete(bytes: &[u8], text: &mut String) -> usize {
    let mut taken = 0;
    loop {
        let error = match std::str::from_utf8(&bytes[taken..]) {
            Ok(valid) => {
                text.push_str(valid);
                return bytes.len();
            }
            Err(error) => error,
        };
        let valid = &bytes[taken..taken + error.valid_up_to()];
        text.push_str(std::str::from_utf8(valid).expect("the decoder said that this part is valid"));
        taken += valid.len();
        let Some(invalid) = error.error_len() else { return taken };
        text.push('\u{FFFD}');
        taken += invalid;
    }
}
