//! A request of the simulation, what it has said so far, and what it would say alone.

use pagoda_engine::{FinishReason, Request, RequestId, TokenConstraint, TokenId};

use super::load::Sizes;
use crate::executor::allowed;
use crate::hash_token;

/// A request, what it must say, and what it has said.
pub(super) struct Client {
    pub(super) request: Request,
    /// `[num_sequences]` of the outputs, one behind the other.
    pub(super) said: Vec<Vec<TokenId>>,
    pub(super) finishes: Vec<Option<FinishReason>>,
    pub(super) num_prompt_logprobs: usize,
    pub(super) is_scheduled: bool,
    pub(super) is_cut: bool,
}

impl Client {
    /// What was said is what the request says alone; a cut one has said a beginning of it.
    pub(super) fn compare(&self, seed: u64, id: RequestId, sizes: Sizes) {
        for (sample, said) in self.said.iter().enumerate() {
            let (alone, finish) = alone(&self.request, sample as u32, sizes);
            if self.is_cut {
                assert!(alone.starts_with(said), "seed {seed}: {id}#{sample} said {said:?}, alone {alone:?}");
            } else {
                assert_eq!(*said, alone, "seed {seed}: {id}#{sample} says something else alone");
                assert_eq!(
                    self.finishes[sample],
                    Some(finish),
                    "seed {seed}: {id}#{sample} ends otherwise alone"
                );
            }
        }
        if self.request.prompt_logprobs.is_some() && !self.is_cut {
            let wanted = self.request.prompt.len() - 1;
            assert_eq!(self.num_prompt_logprobs, wanted, "seed {seed}: {id}: prompt logprobs");
        }
    }
}

/// The output of one sequence, computed without an engine.
pub(super) fn alone(request: &Request, sample_index: u32, sizes: Sizes) -> (Vec<TokenId>, FinishReason) {
    let mut tokens = request.prompt.clone();
    let stop = &request.stop;
    let num_prompt_tokens = tokens.len();
    let max_num_tokens = (num_prompt_tokens + stop.max_tokens as usize).min(sizes.max_model_len);
    let mut finish = FinishReason::Length;
    let mut constraint = request.constraint.clone();
    while tokens.len() < max_num_tokens && finish == FinishReason::Length {
        let chosen = hash_token(&tokens, request.sampling.seed, sample_index, sizes.vocab_size);
        let may_stop = tokens.len() - num_prompt_tokens >= stop.min_tokens as usize;
        let banned = if may_stop { &[][..] } else { &stop.stop_token_ids };
        let mask = constraint.as_mut().map(|constraint| mask(constraint.as_mut(), banned));
        let mask = match mask {
            Some(None) => break,
            Some(Some(mask)) => Some(mask),
            None => None,
        };
        let banned = if mask.is_some() { &[][..] } else { banned };
        let token = allowed(chosen, banned, mask.as_ref().map(|mask| &mask[..]), sizes.vocab_size);
        if may_stop && stop.stop_token_ids.contains(&token) {
            finish = FinishReason::Stop;
        } else if let Some(constraint) = &mut constraint {
            if constraint.advance(token).is_err() {
                break;
            }
            if constraint.is_complete() {
                finish = FinishReason::Complete;
            }
        }
        tokens.push(token);
    }
    (tokens.split_off(num_prompt_tokens), finish)
}

/// What may come next: a banned token only if nothing else may. `None` if the constraint fails, which ends the output.
fn mask(constraint: &mut dyn TokenConstraint, banned: &[TokenId]) -> Option<[u32; 1]> {
    let mut bits = [0];
    constraint.fill_mask(&mut bits).ok()?;
    let banned = banned.iter().fold(0, |bits: u32, token| bits | 1 << token);
    Some(if bits[0] & !banned == 0 { bits } else { [bits[0] & !banned] })
}
