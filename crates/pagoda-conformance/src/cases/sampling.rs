//! Sampling: every rule alone and all together, on vocabularies that do not divide evenly.

use std::fmt;

use pagoda_backend::{Backend, Sample, SampleRow, TokenCount};
use pagoda_backend_cpu::reference;

use crate::random::Random;
use crate::subject::{Subject, text};

/// One set of rules on one vocabulary.
#[derive(Clone, Copy, Debug)]
pub(super) struct SampleCase {
    rules: Rules,
    vocab_size: usize,
}

#[derive(Clone, Copy, Debug)]
enum Rules {
    Greedy,
    Temperature,
    TopK,
    TopP,
    MinP,
    Penalties,
    Masked,
    Logprobs,
    All,
    Forced,
    Failing,
    Ties,
}

impl fmt::Display for SampleCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}", self.rules, self.vocab_size)
    }
}

pub(super) fn cases() -> Vec<SampleCase> {
    use Rules::{
        All, Failing, Forced, Greedy, Logprobs, Masked, MinP, Penalties, Temperature, Ties, TopK, TopP,
    };
    let all =
        [Greedy, Temperature, TopK, TopP, MinP, Penalties, Masked, Logprobs, All, Forced, Failing, Ties];
    let mut cases: Vec<SampleCase> = all.map(|rules| SampleCase { rules, vocab_size: 1003 }).into();
    for rules in [Greedy, TopK, TopP, All] {
        cases.push(SampleCase { rules, vocab_size: 5 });
    }
    cases.push(SampleCase { rules: All, vocab_size: 5000 });
    // Rows that begin where sixteen bytes may be read at once, several times per thread, and three tokens behind.
    for rules in [Greedy, TopK, TopP, Logprobs, Failing, Ties] {
        cases.push(SampleCase { rules, vocab_size: 10_003 });
    }
    // Ruled rows that begin so, of raw rows that do not.
    cases.push(SampleCase { rules: All, vocab_size: 10_000 });
    cases
}

/// The lists that the rows borrow.
struct Lists {
    counts: Vec<TokenCount>,
    bias: Vec<(u32, f32)>,
    banned: Vec<u32>,
    mask: Vec<u32>,
}

const NUM_ROWS: usize = 4;

pub(super) fn sample<B: Backend>(
    subject: &mut Subject<B>,
    random: &mut Random,
    case: &SampleCase,
) -> Result<f64, String> {
    let vocab = case.vocab_size;
    let width = vocab + 5;
    let mut logits: Vec<f32> = (0..NUM_ROWS * width).map(|_| random.number() * 6.0).collect();
    match case.rules {
        Rules::Ties => logits.iter_mut().for_each(|logit| *logit = (*logit / 3.0).round()),
        Rules::Failing => {
            logits[width + vocab / 2] = f32::NAN;
            logits[2 * width + vocab - 1] = f32::INFINITY;
            // Behind the vocabulary: nobody looks.
            logits[3 * width + vocab] = f32::NAN;
        }
        _ => {}
    }
    let lists: Vec<Lists> = (0..2 * NUM_ROWS).map(|_| make_lists(random, vocab)).collect();
    let rows: Vec<SampleRow<'_>> =
        lists.iter().enumerate().map(|(index, lists)| make_row(random, case.rules, index, lists)).collect();
    let tensor = subject.logits(&logits, width)?;
    let op = Sample { logits: &tensor, vocab_size: vocab, rows: &rows, first: 0 };
    let pending = subject.backend.sample(op).map_err(text)?;
    let actual = subject.backend.read_back(pending).map_err(text)?;
    let mut worst = 0.0f64;
    for (index, (row, actual)) in rows.iter().zip(&actual).enumerate() {
        let expected = reference::sample(&logits[row.row as usize * width..][..vocab], row);
        let fail = |what: &str| Err(format!("row {index}, {what}: {actual:?}, expected {expected:?}"));
        match (actual, &expected) {
            (Err(_), Err(_)) => {}
            (Ok(actual), Ok(expected)) => {
                if (actual.token, actual.rank) != (expected.token, expected.rank) {
                    return fail("token or rank");
                }
                let ids = |top: &[(u32, f32)]| top.iter().map(|entry| entry.0).collect::<Vec<_>>();
                if ids(&actual.top) != ids(&expected.top) {
                    return fail("likeliest tokens");
                }
                let pairs = actual.top.iter().zip(&expected.top).map(|(a, b)| (a.1, b.1));
                for (a, b) in pairs.chain([(actual.logprob, expected.logprob)]) {
                    worst = worst.max(f64::from((a - b).abs()));
                }
            }
            _ => return fail("one failed"),
        }
    }
    if worst <= 1e-4 { Ok(worst) } else { Err(format!("logprobs differ by {worst:.1e}")) }
}

/// Distinct tokens in each list.
fn make_lists(random: &mut Random, vocab: usize) -> Lists {
    let mut pick = |num: usize| {
        let mut tokens: Vec<u32> = (0..num).map(|_| random.below(vocab) as u32).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    };
    let (counted, biased, banned) = (pick(40), pick(12), pick(2));
    let counts =
        counted.iter().map(|&token| TokenCount { token, num_output: random.below(4) as u32 }).collect();
    let bias = biased.iter().map(|&token| (token, random.number() * 5.0)).collect();
    let mut mask: Vec<u32> = (0..vocab.div_ceil(32)).map(|_| random.bits() as u32).collect();
    // At least two tokens are left, also of a vocabulary of five.
    mask[0] |= 0b11000;
    Lists { counts, bias, banned, mask }
}

fn make_row<'a>(random: &mut Random, rules: Rules, index: usize, lists: &'a Lists) -> SampleRow<'a> {
    let greedy = SampleRow {
        seed: random.bits(),
        sample_index: random.below(3) as u32,
        position: random.below(1000) as u32,
        ..SampleRow::greedy((index % NUM_ROWS) as u32)
    };
    let drawn = SampleRow { temperature: 0.7 + 0.1 * index as f32, ..greedy.clone() };
    let penalised = SampleRow {
        repetition_penalty: 1.3,
        frequency_penalty: 0.4,
        presence_penalty: 0.6,
        counts: &lists.counts,
        bias: &lists.bias,
        ..greedy.clone()
    };
    match rules {
        Rules::Greedy | Rules::Ties => greedy,
        Rules::Temperature | Rules::Failing => drawn,
        Rules::TopK => SampleRow { top_k: [1, 2, 40, 2000][index % 4], ..drawn },
        Rules::TopP => SampleRow { top_p: [0.0, 0.3, 0.9, 0.999][index % 4], ..drawn },
        Rules::MinP => SampleRow { min_p: [0.01, 0.2, 0.9, 1.0][index % 4], ..drawn },
        Rules::Penalties => penalised,
        Rules::Masked => SampleRow { mask: Some(&lists.mask), banned: &lists.banned, ..greedy },
        Rules::Logprobs => SampleRow { num_logprobs: Some(index as u32), ..drawn },
        Rules::Forced => SampleRow { forced: Some(3 * index as u32), num_logprobs: Some(2), ..greedy },
        Rules::All => SampleRow {
            temperature: 0.9,
            top_k: 50,
            top_p: 0.95,
            min_p: 0.02,
            mask: Some(&lists.mask),
            num_logprobs: Some(3),
            ..penalised
        },
    }
}
