//! The sampling contract of `pagoda_backend::SampleRow`, rule by rule over a fully sorted list.

use pagoda_backend::{NonFiniteLogits, SampleRow, Sampled};

use crate::rng::{DrawKey, gumbel_of_word};

/// Noise of one token in one draw.
pub fn gumbel(seed: u64, sample_index: u32, position: u32, token: u32) -> f64 {
    let key = DrawKey { seed, sample_index, position };
    gumbel_of_word(key.words(token / 4)[token as usize % 4])
}

/// Natural log-probabilities of a row of logits.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().map(|&logit| f64::from(logit)).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - max - sum.ln()).collect()
}

/// Chooses one token from `logits`, the raw row cut at the vocabulary's size.
pub fn sample(logits: &[f32], row: &SampleRow<'_>) -> Result<Sampled, NonFiniteLogits> {
    if logits.iter().any(|logit| !logit.is_finite()) {
        return Err(NonFiniteLogits);
    }
    let token = match row.forced {
        Some(token) if (token as usize) < logits.len() => token,
        Some(_) => return Err(NonFiniteLogits),
        None => choose(&ruled(logits, row), row).ok_or(NonFiniteLogits)?,
    };
    let Some(num_top) = row.num_logprobs else {
        return Ok(Sampled { token, logprob: 0.0, top: Vec::new(), rank: 0 });
    };
    let logprobs = log_softmax(logits);
    let order = likeliest_first((0..logits.len()).map(|id| (id as u32, logits[id])).collect());
    let rank = order.iter().position(|&(id, _)| id == token).expect("the token is in the row") as u32 + 1;
    let top =
        order.iter().take(num_top as usize).map(|&(id, _)| (id, logprobs[id as usize] as f32)).collect();
    Ok(Sampled { token, logprob: logprobs[token as usize] as f32, top, rank })
}

/// The logits after penalties, bias, mask and ban; a token that may not be chosen is absent.
fn ruled(logits: &[f32], row: &SampleRow<'_>) -> Vec<(u32, f32)> {
    let mut logits = logits.to_vec();
    for count in row.counts {
        let Some(logit) = logits.get_mut(count.token as usize) else { continue };
        *logit = if *logit > 0.0 { *logit / row.repetition_penalty } else { *logit * row.repetition_penalty };
        *logit -= row.frequency_penalty * count.num_output as f32;
        *logit -= if count.num_output > 0 { row.presence_penalty } else { 0.0 };
    }
    for &(token, bias) in row.bias {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit += bias;
        }
    }
    let masked_in = |id: u32| {
        row.mask.is_none_or(|mask| mask.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1))
    };
    (0..logits.len() as u32)
        .filter(|id| masked_in(*id) && !row.banned.contains(id))
        .map(|id| (id, logits[id as usize]))
        .filter(|(_, logit)| logit.is_finite())
        .collect()
}

/// Sorted by logit, ties by lower id.
fn likeliest_first(mut candidates: Vec<(u32, f32)>) -> Vec<(u32, f32)> {
    candidates.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("logits are finite").then(a.0.cmp(&b.0)));
    candidates
}

fn choose(candidates: &[(u32, f32)], row: &SampleRow<'_>) -> Option<u32> {
    let mut kept = likeliest_first(candidates.to_vec());
    let &(likeliest, max) = kept.first()?;
    if row.temperature == 0.0 {
        return Some(likeliest);
    }
    let scaled = |logit: f32| f64::from(logit) / f64::from(row.temperature);
    if row.top_k > 0 {
        kept.truncate(row.top_k as usize);
    }
    let weight = |logit: f32| (scaled(logit) - scaled(max)).exp();
    if row.top_p < 1.0 {
        let total: f64 = kept.iter().map(|&(_, logit)| weight(logit)).sum();
        let mut mass = 0.0;
        let mut num_kept = 0;
        for &(_, logit) in &kept {
            mass += weight(logit) / total;
            num_kept += 1;
            if mass >= f64::from(row.top_p) {
                break;
            }
        }
        kept.truncate(num_kept);
    }
    kept.retain(|&(_, logit)| weight(logit) >= f64::from(row.min_p));
    let score =
        |&(id, logit): &(u32, f32)| scaled(logit) + gumbel(row.seed, row.sample_index, row.position, id);
    kept.iter().max_by(|a, b| score(a).total_cmp(&score(b)).then(b.0.cmp(&a.0))).map(|&(id, _)| id)
}
