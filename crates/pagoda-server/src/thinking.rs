//! A constraint that lets a model think first. While it does, anything may come but the end of the answer; behind the tag
//! that ends the reasoning the answer's own constraint begins. After the budget, that tag is all that may come.

use std::sync::Arc;

use pagoda_engine::{ConstraintError, TokenConstraint, TokenId};
use pagoda_text::Tokenizer;

use crate::generation::Generation;
use crate::model::ServedModel;

/// What the thinking of one answer is bound by.
#[derive(Clone)]
struct Thinking {
    rules: Arc<Rules>,
    place: Place,
    num_thought: u64,
    /// The end of the text since the place was reached: as much as a tag may have begun with.
    tail: Vec<u8>,
    /// What the answer behind it must be.
    answer: Option<Box<dyn TokenConstraint>>,
}

struct Rules {
    tokenizer: Arc<Tokenizer>,
    open: Vec<u8>,
    close: Vec<u8>,
    /// The opening tag, if it is one token.
    open_id: Option<TokenId>,
    close_ids: Vec<TokenId>,
    stop_ids: Arc<[u32]>,
    /// See [`ModelParsing::overshoots`](crate::parsing::ModelParsing::overshoots).
    overshoots: Arc<[Vec<u32>]>,
    budget: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// The answer has begun with nothing but what may be the opening tag.
    Undecided,
    Thinking,
    /// The budget is spent: this token of the closing tag must come.
    Closing {
        next: usize,
    },
    Answering,
}

/// The constraint of an answer that may begin with reasoning; `answer` itself if nothing has to be watched.
pub(crate) fn around(
    generation: &Generation,
    model: &ServedModel,
    prompt: &str,
    answer: Option<Box<dyn TokenConstraint>>,
) -> Option<Box<dyn TokenConstraint>> {
    let budget = generation.thinking_budget;
    let Some(tags) = model.parsing.reasoning().filter(|_| generation.output.is_parsed) else { return answer };
    let encode = |tag: &str| model.tokenizer.encode(tag, false).unwrap_or_default();
    let open_id = if let [id] = encode(&tags.open)[..] { Some(id) } else { None };
    let is_open = tags.are_open_behind(prompt);
    let may_think = is_open || open_id.is_some() || answer.is_none();
    if !may_think || (answer.is_none() && budget.is_none()) {
        return answer;
    }
    let rules = Rules {
        tokenizer: Arc::clone(&model.tokenizer),
        open: tags.open.clone().into_bytes(),
        close: tags.close.clone().into_bytes(),
        open_id,
        close_ids: encode(&tags.close),
        stop_ids: Arc::clone(&model.stop_token_ids),
        overshoots: Arc::clone(model.parsing.overshoots()),
        budget,
    };
    let place = if is_open { Place::Thinking } else { Place::Undecided };
    let mut thinking = Thinking { rules: Arc::new(rules), place, num_thought: 0, tail: Vec::new(), answer };
    thinking.check_budget();
    Some(Box::new(thinking))
}

impl Thinking {
    /// Ends the thinking if its budget is spent.
    fn check_budget(&mut self) {
        let is_spent = self.rules.budget.is_some_and(|budget| self.num_thought >= budget);
        if self.place == Place::Thinking && is_spent && !self.rules.close_ids.is_empty() {
            self.place = Place::Closing { next: 0 };
        }
    }

    /// Forbids tokens that hold the end of the closing tag and more: the answer begins behind the tag, under its own rules.
    fn keep_to_the_tag(&self, bits: &mut [u32]) {
        let close = &self.rules.close;
        for (index, ids) in self.rules.overshoots.iter().enumerate() {
            if self.tail.ends_with(&close[..close.len() - (index + 1)]) {
                ids.iter().for_each(|id| clear(bits, *id));
            }
        }
    }

    fn take_undecided(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        if self.rules.open_id == Some(token) {
            self.place = Place::Thinking;
            self.check_budget();
            return Ok(());
        }
        if let Some(answer) = &mut self.answer {
            self.place = Place::Answering;
            return answer.advance(token);
        }
        self.tail.extend_from_slice(self.rules.tokenizer.token_bytes(token));
        let text = self.tail.trim_ascii_start();
        if text.starts_with(&self.rules.open) {
            self.place = Place::Thinking;
            self.tail.clear();
            self.check_budget();
        } else if !self.rules.open.starts_with(text) {
            self.place = Place::Answering;
        }
        Ok(())
    }

    fn take_thought(&mut self, token: TokenId) {
        self.num_thought += 1;
        self.tail.extend_from_slice(self.rules.tokenizer.token_bytes(token));
        if self.tail.windows(self.rules.close.len()).any(|window| window == self.rules.close) {
            self.place = Place::Answering;
        }
        let num_kept = self.rules.close.len() - 1;
        self.tail.drain(..self.tail.len().saturating_sub(num_kept));
        self.check_budget();
    }
}

impl TokenConstraint for Thinking {
    fn advance(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        match self.place {
            Place::Undecided => return self.take_undecided(token),
            Place::Thinking => self.take_thought(token),
            Place::Closing { next } if next + 1 < self.rules.close_ids.len() => {
                self.place = Place::Closing { next: next + 1 };
            }
            Place::Closing { .. } => self.place = Place::Answering,
            Place::Answering => {
                if let Some(answer) = &mut self.answer {
                    return answer.advance(token);
                }
            }
        }
        Ok(())
    }

    fn fill_mask(&mut self, bits: &mut [u32]) -> Result<(), ConstraintError> {
        let has_budget = self.rules.budget != Some(0);
        match (self.place, &mut self.answer) {
            (Place::Closing { next }, _) => {
                bits.fill(0);
                set(bits, self.rules.close_ids[next]);
            }
            (Place::Answering | Place::Undecided, Some(answer)) => {
                answer.fill_mask(bits)?;
                if let Some(open_id) = self.rules.open_id
                    && self.place == Place::Undecided
                    && has_budget
                {
                    set(bits, open_id);
                }
            }
            (_, answer) => {
                set_all(bits, self.rules.tokenizer.vocab_size());
                if answer.is_some() {
                    // The answer has not come yet.
                    self.rules.stop_ids.iter().for_each(|id| clear(bits, *id));
                    self.keep_to_the_tag(bits);
                }
            }
        }
        Ok(())
    }

    fn fork(&self) -> Box<dyn TokenConstraint> {
        Box::new(self.clone())
    }

    fn is_complete(&self) -> bool {
        self.place == Place::Answering && self.answer.as_ref().is_some_and(|answer| answer.is_complete())
    }
}

fn set(bits: &mut [u32], id: TokenId) {
    if let Some(word) = bits.get_mut(id as usize / 32) {
        *word |= 1 << (id % 32);
    }
}

/// Allows every token of the vocabulary, and nothing behind it.
fn set_all(bits: &mut [u32], vocab_size: usize) {
    for (index, word) in bits.iter_mut().enumerate() {
        let num_left = vocab_size.saturating_sub(index * 32);
        *word = if num_left >= 32 { u32::MAX } else { (1 << num_left) - 1 };
    }
}

fn clear(bits: &mut [u32], id: TokenId) {
    if let Some(word) = bits.get_mut(id as usize / 32) {
        *word &= !(1 << (id % 32));
    }
}
