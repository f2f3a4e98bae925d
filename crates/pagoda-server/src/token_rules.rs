//! Rules on single tokens that a client sets itself, beside any grammar: only these tokens, and never these words. As a
//! constraint around the grammar's, so that all of them end up in one mask.

use std::sync::Arc;

use pagoda_engine::{ConstraintError, TokenConstraint};
use pagoda_text::Tokenizer;

/// What a client allows and forbids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenRules {
    /// Only these tokens, if any are named.
    pub(crate) allowed: Option<Vec<u32>>,
    /// Words that must not appear, as text.
    pub(crate) bad_words: Vec<String>,
}

impl TokenRules {
    /// Puts the rules around a grammar's constraint, if there is one.
    pub(crate) fn around(
        &self,
        grammar: Option<Box<dyn TokenConstraint>>,
        tokenizer: &Tokenizer,
    ) -> Option<Box<dyn TokenConstraint>> {
        if *self == TokenRules::default() {
            return grammar;
        }
        let bad_words: Vec<Vec<u32>> =
            self.bad_words.iter().flat_map(|word| spellings(word, tokenizer)).collect();
        let num_remembered = bad_words.iter().map(|word| word.len() - 1).max().unwrap_or(0);
        Some(Box::new(RuledTokens {
            grammar,
            allowed: self.allowed.as_deref().map(bits_of),
            bad_words: bad_words.into(),
            recent: Vec::new(),
            num_remembered,
        }))
    }
}

/// The token sequences that a word is written with: at a text's start and behind a space. As vLLM: the second counts only
/// if the space changes nothing but the first token.
fn spellings(word: &str, tokenizer: &Tokenizer) -> Vec<Vec<u32>> {
    let encode = |text: &str| tokenizer.encode(text, false).unwrap_or_default();
    let word = word.trim_start();
    let plain = encode(word);
    let spaced = encode(&format!(" {word}"));
    let mut found = Vec::new();
    let is_new = spaced.len() == plain.len() && spaced.first() != plain.first();
    if !plain.is_empty() {
        found.push(plain);
    }
    if is_new {
        found.push(spaced);
    }
    found
}

fn bits_of(tokens: &[u32]) -> Arc<[u32]> {
    let num_words = tokens.iter().map(|token| *token as usize / 32 + 1).max().unwrap_or(0);
    let mut bits = vec![0; num_words];
    tokens.iter().for_each(|token| bits[*token as usize / 32] |= 1 << (token % 32));
    bits.into()
}

/// The rules at work on one sequence.
struct RuledTokens {
    grammar: Option<Box<dyn TokenConstraint>>,
    /// One bit per token.
    allowed: Option<Arc<[u32]>>,
    bad_words: Arc<[Vec<u32>]>,
    /// The end of the output, as long as a bad word's beginning can be.
    recent: Vec<u32>,
    num_remembered: usize,
}

impl RuledTokens {
    /// Tokens that would complete a bad word, unless they are all that is left.
    fn ban_bad_words(&self, bits: &mut [u32]) {
        let completes = |word: &&Vec<u32>| self.recent.ends_with(&word[..word.len() - 1]);
        let last = |word: &Vec<u32>| *word.last().expect("a word has tokens") as usize;
        let banned: Vec<usize> = self.bad_words.iter().filter(completes).map(last).collect();
        let before = bits.to_vec();
        for token in banned {
            if let Some(word) = bits.get_mut(token / 32) {
                *word &= !(1 << (token % 32));
            }
        }
        if bits.iter().all(|&word| word == 0) {
            bits.copy_from_slice(&before);
        }
    }
}

impl TokenConstraint for RuledTokens {
    fn advance(&mut self, token: u32) -> Result<(), ConstraintError> {
        if self.num_remembered > 0 {
            if self.recent.len() == self.num_remembered {
                self.recent.remove(0);
            }
            self.recent.push(token);
        }
        self.grammar.as_mut().map_or(Ok(()), |grammar| grammar.advance(token))
    }

    fn fill_mask(&mut self, bits: &mut [u32]) -> Result<(), ConstraintError> {
        match &mut self.grammar {
            Some(grammar) => grammar.fill_mask(bits)?,
            None => bits.fill(u32::MAX),
        }
        if let Some(allowed) = &self.allowed {
            let allowed = || allowed.iter().copied().chain(std::iter::repeat(0));
            // A grammar, or the end of the thinking, that leaves none of them counts more: a value must end.
            if bits.iter().zip(allowed()).any(|(word, allowed)| word & allowed != 0) {
                bits.iter_mut().zip(allowed()).for_each(|(word, allowed)| *word &= allowed);
            }
        }
        self.ban_bad_words(bits);
        Ok(())
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(RuledTokens {
            grammar: self.grammar.as_ref().map(|grammar| grammar.fork()),
            allowed: self.allowed.clone(),
            bad_words: Arc::clone(&self.bad_words),
            recent: self.recent.clone(),
            num_remembered: self.num_remembered,
        })
    }

    fn is_complete(&self) -> bool {
        self.grammar.as_ref().is_some_and(|grammar| grammar.is_complete())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ruled(allowed: Option<&[u32]>, bad_words: &[&[u32]]) -> RuledTokens {
        RuledTokens {
            grammar: None,
            allowed: allowed.map(bits_of),
            bad_words: bad_words.iter().map(|word| word.to_vec()).collect(),
            recent: Vec::new(),
            num_remembered: bad_words.iter().map(|word| word.len() - 1).max().unwrap_or(0),
        }
    }

    fn allowed_of(constraint: &mut RuledTokens) -> Vec<u32> {
        let mut bits = [0; 2];
        constraint.fill_mask(&mut bits).unwrap();
        (0..64).filter(|token| bits[*token as usize / 32] >> (token % 32) & 1 == 1).collect()
    }

    #[test]
    fn only_the_token_that_completes_a_word_is_banned() {
        let mut rules = ruled(Some(&[1, 2, 3, 40]), &[&[1, 2, 3], &[40]]);
        assert_eq!(allowed_of(&mut rules), [1, 2, 3]);
        for token in [1, 1, 2] {
            rules.advance(token).unwrap();
        }
        assert_eq!(allowed_of(&mut rules), [1, 2]);
        let mut fork = rules.fork();
        fork.advance(3).unwrap();
        rules.advance(1).unwrap();
        assert_eq!(allowed_of(&mut rules), [1, 2, 3]);
    }

    #[test]
    fn what_a_grammar_must_have_is_allowed() {
        struct Only(u32);
        impl TokenConstraint for Only {
            fn advance(&mut self, _: u32) -> Result<(), ConstraintError> {
                Ok(())
            }
            fn fill_mask(&mut self, bits: &mut [u32]) -> Result<(), ConstraintError> {
                bits.fill(0);
                bits[self.0 as usize / 32] |= 1 << (self.0 % 32);
                Ok(())
            }
            fn fork(&self) -> Box<dyn TokenConstraint> {
                Box::new(Only(self.0))
            }
            fn is_complete(&self) -> bool {
                false
            }
        }
        let mut rules = ruled(Some(&[1, 2]), &[]);
        rules.grammar = Some(Box::new(Only(2)));
        assert_eq!(allowed_of(&mut rules), [2]);
        rules.grammar = Some(Box::new(Only(40)));
        assert_eq!(allowed_of(&mut rules), [40]);
    }

    #[test]
    fn a_bad_word_that_is_all_that_is_left_may_be_said() {
        let mut rules = ruled(Some(&[5]), &[&[5]]);
        assert_eq!(allowed_of(&mut rules), [5]);
    }
}
