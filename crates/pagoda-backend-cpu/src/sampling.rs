//! Chooses one token from one row of logits: the contract of `pagoda_backend::SampleRow`, without sorting the vocabulary.
//!
//! One pass finds the largest logit of every 64. From then on only groups that can matter are looked into: those that reach
//! the k-th largest maximum (top-k, top-n logprobs), the least weight that can be in a nucleus (top-p), the min-p
//! threshold, or the best score so far minus the largest noise (the draw).
//!
//! A logit that the rules made infinite or NaN counts as removed.

use pagoda_backend::{BackendError, NonFiniteLogits, SampleRow, Sampled};

use crate::kernels::logits::{ExpSumTask, GROUP, MaximaTask, exp_sum, group_maxima};
use crate::memory::Buffer;
use crate::options::Isa;
use crate::rng::{DrawKey, MAX_GUMBEL, gumbel_of_word};

type Candidate = (u32, f32);

/// One thread's memory, for rows of up to `vocab_size` logits.
pub(crate) struct SamplingScratch {
    /// Logits after the rules.
    ruled: Buffer<f32>,
    maxima: Buffer<f32>,
    /// `maxima` in some other order.
    selection: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl SamplingScratch {
    pub(crate) fn new(vocab_size: usize) -> Result<Self, BackendError> {
        let num_groups = vocab_size.div_ceil(GROUP);
        Ok(SamplingScratch {
            ruled: Buffer::zeroed(vocab_size, "sampling")?,
            maxima: Buffer::zeroed(num_groups, "sampling")?,
            selection: Vec::with_capacity(num_groups),
            candidates: Vec::with_capacity(vocab_size),
        })
    }

    /// Rows it has room for.
    pub(crate) fn vocab_size(&self) -> usize {
        self.ruled.len()
    }
}

/// Chooses a token from `logits`, the raw row cut at the vocabulary's size.
pub(crate) fn sample(
    isa: Isa,
    logits: &[f32],
    row: &SampleRow<'_>,
    scratch: &mut SamplingScratch,
) -> Result<Sampled, NonFiniteLogits> {
    let SamplingScratch { ruled, maxima, selection, candidates } = scratch;
    let maxima = &mut maxima[..logits.len().div_ceil(GROUP)];
    let raw = Peaks::find(isa, logits, maxima).ok_or(NonFiniteLogits)?;
    let report = row.num_logprobs.map(|num_top| {
        let log_sum = f64::from(raw.max()) + raw.exp_sum(1.0).ln();
        let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        raw.at_least(raw.kth_maximum(num_top as usize, selection), candidates);
        candidates.sort_unstable_by(likelier);
        let top = candidates.iter().take(num_top as usize).map(|&(id, logit)| (id, logprob(logit))).collect();
        (log_sum, top)
    });
    let token = match row.forced {
        Some(token) => token,
        None if has_rules(row) => {
            let ruled = &mut ruled[..logits.len()];
            ruled.copy_from_slice(logits);
            apply_rules(ruled, row);
            Peaks::of_ruled(isa, ruled, maxima).choose(row, selection, candidates).ok_or(NonFiniteLogits)?
        }
        None => raw.choose(row, selection, candidates).ok_or(NonFiniteLogits)?,
    };
    let chosen = *logits.get(token as usize).ok_or(NonFiniteLogits)?;
    let Some((log_sum, top)) = report else {
        return Ok(Sampled { token, logprob: 0.0, top: Vec::new(), rank: 0 });
    };
    let num_larger = logits.iter().filter(|&&logit| logit > chosen).count();
    let num_equal_before = logits[..token as usize].iter().filter(|&&logit| logit == chosen).count();
    let rank = (num_larger + num_equal_before) as u32 + 1;
    Ok(Sampled { token, logprob: (f64::from(chosen) - log_sum) as f32, top, rank })
}

fn has_rules(row: &SampleRow<'_>) -> bool {
    !(row.counts.is_empty() && row.bias.is_empty() && row.banned.is_empty() && row.mask.is_none())
}

/// Rules 2 to 4; a removed token gets minus infinity.
fn apply_rules(logits: &mut [f32], row: &SampleRow<'_>) {
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
    for token in row.counts.iter().map(|count| count.token).chain(row.bias.iter().map(|bias| bias.0)) {
        if let Some(logit) = logits.get_mut(token as usize)
            && !logit.is_finite()
        {
            *logit = f32::NEG_INFINITY;
        }
    }
    if let Some(mask) = row.mask {
        for (index, logits) in logits.chunks_mut(32).enumerate() {
            let word = mask.get(index).copied().unwrap_or(0);
            for (bit, logit) in logits.iter_mut().enumerate().filter(|(bit, _)| word >> bit & 1 == 0) {
                debug_assert!(bit < 32);
                *logit = f32::NEG_INFINITY;
            }
        }
    }
    for &token in row.banned {
        if let Some(logit) = logits.get_mut(token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// The order of rules 6 and 7: by logit, ties by lower id. Logits are not NaN.
fn likelier(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.partial_cmp(&a.1).expect("candidates are finite").then(a.0.cmp(&b.0))
}

/// A row of logits and the largest of every [`GROUP`].
struct Peaks<'a> {
    isa: Isa,
    logits: &'a [f32],
    maxima: &'a [f32],
}

impl<'a> Peaks<'a> {
    /// `None` if a logit is not finite.
    fn find(isa: Isa, logits: &'a [f32], maxima: &'a mut [f32]) -> Option<Self> {
        Self::pass(isa, logits, maxima).then_some(Peaks { isa, logits, maxima })
    }

    /// Of logits of which some may be removed.
    fn of_ruled(isa: Isa, logits: &'a [f32], maxima: &'a mut [f32]) -> Self {
        Self::pass(isa, logits, maxima);
        Peaks { isa, logits, maxima }
    }

    fn pass(isa: Isa, logits: &[f32], maxima: &mut [f32]) -> bool {
        let mut all_finite = false;
        assert_eq!(maxima.len(), logits.len().div_ceil(GROUP));
        let task = MaximaTask {
            logits: logits.as_ptr(),
            len: logits.len(),
            maxima: maxima.as_mut_ptr(),
            all_finite: &raw mut all_finite,
        };
        // SAFETY: the backend checked that the CPU has `isa`; the slices have the lengths that the task says.
        unsafe { group_maxima(isa, &task) };
        all_finite
    }

    fn max(&self) -> f32 {
        self.maxima.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }

    fn exp_sum(&self, temperature: f32) -> f64 {
        let mut sum = 0.0;
        let task = ExpSumTask {
            logits: self.logits.as_ptr(),
            len: self.logits.len(),
            max: self.max(),
            factor: 1.0 / temperature,
            sum: &raw mut sum,
        };
        // SAFETY: the backend checked that the CPU has `isa`; the slice has the length that the task says.
        unsafe { exp_sum(self.isa, &task) };
        sum
    }

    /// A lower bound of the `k`-th largest logit: the `k`-th largest maximum.
    fn kth_maximum(&self, k: usize, selection: &mut Vec<f32>) -> f32 {
        if k == 0 {
            return f32::INFINITY;
        }
        if k > self.maxima.len() {
            return f32::NEG_INFINITY;
        }
        selection.clear();
        selection.extend_from_slice(self.maxima);
        let descending = |a: &f32, b: &f32| b.partial_cmp(a).expect("maxima are not NaN");
        *selection.select_nth_unstable_by(k - 1, descending).1
    }

    /// The groups whose largest logit reaches `least`: index of the first logit, and the logits.
    fn groups(&self, least: f32) -> impl Iterator<Item = (usize, &'a [f32])> {
        let peaks = self.maxima.iter().zip(self.logits.chunks(GROUP)).enumerate();
        peaks.filter(move |(_, (max, _))| **max >= least).map(|(group, (_, logits))| (group * GROUP, logits))
    }

    /// The tokens that are left with at least this logit.
    fn at_least(&self, least: f32, candidates: &mut Vec<Candidate>) {
        let least = least.max(f32::MIN);
        candidates.clear();
        for (first, logits) in self.groups(least) {
            let kept = logits.iter().enumerate().filter(|(_, logit)| **logit >= least);
            candidates.extend(kept.map(|(index, &logit)| ((first + index) as u32, logit)));
        }
    }

    /// Rules 5 to 9.
    fn choose(
        &self,
        row: &SampleRow<'_>,
        selection: &mut Vec<f32>,
        candidates: &mut Vec<Candidate>,
    ) -> Option<u32> {
        let max = self.max();
        if max == f32::NEG_INFINITY {
            return None;
        }
        if row.temperature == 0.0 {
            let (first, logits) = self.groups(max).next()?;
            return logits.iter().position(|&logit| logit == max).map(|index| (first + index) as u32);
        }
        let draw = Draw { row, max };
        if row.top_k == 0 && row.top_p >= 1.0 {
            return self.draw_from_all(&draw);
        }
        let total = self.keep_top_k(row, selection, candidates);
        if row.top_p < 1.0 {
            let total = total.unwrap_or_else(|| candidates.iter().map(|kept| draw.weight(kept.1)).sum());
            keep_nucleus(&draw, total, candidates);
        }
        candidates.retain(|kept| draw.weight(kept.1) >= f64::from(row.min_p));
        let mut best = Best::default();
        for &(token, logit) in &*candidates {
            best.offer(token, draw.scaled(logit) + draw.noise(token));
        }
        best.token()
    }

    /// Leaves in `candidates` what top-k keeps; where top-k is off, a superset of the nucleus, and the total weight of all.
    fn keep_top_k(
        &self,
        row: &SampleRow<'_>,
        selection: &mut Vec<f32>,
        candidates: &mut Vec<Candidate>,
    ) -> Option<f64> {
        let k = row.top_k as usize;
        if k == 0 {
            let total = self.exp_sum(row.temperature);
            // Tokens below this weight sum up to less than 1 - top_p, so the nucleus is full before it reaches them.
            // Half of it leaves room for rounding.
            let least_weight = 0.5 * total * f64::from(1.0 - row.top_p) / self.logits.len() as f64;
            let least = f64::from(self.max()) + f64::from(row.temperature) * least_weight.ln();
            self.at_least(least as f32, candidates);
            return Some(total);
        }
        self.at_least(self.kth_maximum(k, selection), candidates);
        if candidates.len() > k {
            candidates.select_nth_unstable_by(k - 1, likelier);
            candidates.truncate(k);
        }
        None
    }

    /// The draw where only min-p may remove tokens.
    fn draw_from_all(&self, draw: &Draw<'_>) -> Option<u32> {
        let row = draw.row;
        let min_p = f64::from(row.min_p);
        // A little below the threshold; the exact rule follows.
        let least = f64::from(draw.max) + f64::from(row.temperature) * (min_p.ln() - 1e-3);
        let least = (least as f32).max(f32::MIN);
        let mut best = Best::default();
        // The likeliest group first: its score lets most of the others be passed over.
        let likeliest = self.maxima.iter().position(|&max| max == draw.max)?;
        let order =
            std::iter::once(likeliest).chain((0..self.maxima.len()).filter(|&group| group != likeliest));
        for group in order {
            let peak = self.maxima[group];
            if peak < least || draw.scaled(peak) + MAX_GUMBEL < best.score {
                continue;
            }
            let logits = self.logits[group * GROUP..].chunks(4).take(GROUP / 4);
            for (index, quad) in logits.enumerate() {
                let first = (group * GROUP) as u32 / 4 + index as u32;
                draw.quad(first, quad, &mut best, |logit| min_p == 0.0 || draw.weight(logit) >= min_p);
            }
        }
        best.token()
    }
}

/// Rule 7: the smallest prefix, likeliest first, whose share of `total` reaches top-p.
fn keep_nucleus(draw: &Draw<'_>, total: f64, candidates: &mut Vec<Candidate>) {
    candidates.sort_unstable_by(likelier);
    let mut mass = 0.0;
    let reached = candidates.iter().position(|kept| {
        mass += draw.weight(kept.1) / total;
        mass >= f64::from(draw.row.top_p)
    });
    candidates.truncate(reached.map_or(candidates.len(), |index| index + 1));
}

/// Rule 9 for one row.
struct Draw<'a> {
    row: &'a SampleRow<'a>,
    max: f32,
}

impl Draw<'_> {
    fn scaled(&self, logit: f32) -> f64 {
        f64::from(logit) / f64::from(self.row.temperature)
    }

    /// Relative to the likeliest token's.
    fn weight(&self, logit: f32) -> f64 {
        (self.scaled(logit) - self.scaled(self.max)).exp()
    }

    fn key(&self) -> DrawKey {
        let SampleRow { seed, sample_index, position, .. } = *self.row;
        DrawKey { seed, sample_index, position }
    }

    fn noise(&self, token: u32) -> f64 {
        gumbel_of_word(self.key().words(token / 4)[token as usize % 4])
    }

    /// Offers the tokens `4 * first ..`. The noise of a word with `z` leading ones is below `(z + 1) ln 2`, which spares
    /// most tokens two logarithms.
    fn quad(&self, first: u32, logits: &[f32], best: &mut Best, is_kept: impl Fn(f32) -> bool) {
        if logits.iter().all(|&logit| self.scaled(logit) + MAX_GUMBEL < best.score) {
            return;
        }
        let words = self.key().words(first);
        for (index, (&logit, word)) in logits.iter().zip(words).enumerate() {
            let scaled = self.scaled(logit);
            let bound = f64::from(word.leading_ones() + 1) * std::f64::consts::LN_2;
            if scaled + bound >= best.score && logit > f32::NEG_INFINITY && is_kept(logit) {
                best.offer(first * 4 + index as u32, scaled + gumbel_of_word(word));
            }
        }
    }
}

/// The largest score so far, ties by lower id.
struct Best {
    score: f64,
    token: Option<u32>,
}

impl Default for Best {
    fn default() -> Self {
        Best { score: f64::NEG_INFINITY, token: None }
    }
}

impl Best {
    fn offer(&mut self, token: u32, score: f64) {
        let is_tie_won = score == self.score && self.token.is_some_and(|other| token < other);
        if score > self.score || is_tie_won {
            *self = Best { score, token: Some(token) };
        }
    }

    fn token(&self) -> Option<u32> {
        self.token
    }
}
