//! The sampling contract: equal to the fully sorted reference, distributed as the softmax, independent of the neighbours.

mod support;

use pagoda_backend::{Backend, NonFiniteLogits, Sample, SampleRow, Sampled, TokenCount};
use pagoda_backend_cpu::{CpuBackend, Isa, reference};
use support::{Random, backend, instruction_sets, tensor};

type Outcome = Result<Sampled, NonFiniteLogits>;

fn sample(
    backend: &mut CpuBackend,
    logits: &[f32],
    vocab_size: usize,
    width: usize,
    rows: &[SampleRow<'_>],
) -> Vec<Outcome> {
    let logits = tensor(backend, logits, width, 0);
    let pending = backend.sample(Sample { logits: &logits, vocab_size, rows, first: 0 }).expect("shapes fit");
    backend.read_back(pending).expect("samples")
}

fn assert_same(actual: &Outcome, expected: &Outcome, what: &str) {
    let (Ok(actual), Ok(expected)) = (actual, expected) else {
        assert_eq!(actual, expected, "{what}");
        return;
    };
    assert_eq!((actual.token, actual.rank), (expected.token, expected.rank), "{what}");
    assert!(
        (actual.logprob - expected.logprob).abs() < 1e-5,
        "{what}: {} {}",
        actual.logprob,
        expected.logprob
    );
    assert_eq!(actual.top.len(), expected.top.len(), "{what}");
    for (a, b) in actual.top.iter().zip(&expected.top) {
        assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-5, "{what}: {a:?} {b:?}");
    }
}

/// Owned parts of a random row.
struct Rules {
    counts: Vec<TokenCount>,
    bias: Vec<(u32, f32)>,
    banned: Vec<u32>,
    mask: Option<Vec<u32>>,
}

impl Rules {
    fn random(random: &mut Random, vocab_size: usize) -> Rules {
        let mut tokens = |most: usize| -> Vec<u32> {
            (0..random.below(most)).map(|_| random.below(vocab_size + 2) as u32).collect()
        };
        let (mut counted, mut biased, banned) = (tokens(20), tokens(5), tokens(5));
        for list in [&mut counted, &mut biased] {
            list.sort_unstable();
            list.dedup();
        }
        let counts =
            counted.iter().map(|&token| TokenCount { token, num_output: random.below(3) as u32 }).collect();
        let bias = biased.iter().map(|&token| (token, random.number() * 5.0)).collect();
        let mask = (random.below(3) == 0).then(|| {
            (0..vocab_size.div_ceil(32)).map(|_| random.bits() as u32 & random.bits() as u32).collect()
        });
        Rules { counts, bias, banned, mask }
    }
}

#[test]
fn every_combination_of_rules_gives_the_token_of_the_reference() {
    for isa in instruction_sets() {
        let mut backend = backend(isa, 2);
        let mut random = Random(31);
        for case in 0..1500 {
            let seed = random.0;
            let vocab_size = random.pick(&[1, 2, 63, 64, 65, 500, 1000]);
            let width = vocab_size + random.pick(&[0, 1, 30]);
            // Few distinct values in some rows, so that ties occur.
            let coarse = random.below(3) == 0;
            let spread = random.pick(&[1.0, 5.0, 20.0]);
            let mut logits: Vec<f32> = random.numbers(width).iter().map(|value| value * spread).collect();
            if coarse {
                logits.iter_mut().for_each(|logit| *logit = logit.round());
            }
            logits[vocab_size..].fill(f32::NAN);
            let rules = Rules::random(&mut random, vocab_size);
            let has_rules = random.below(2) == 0;
            let row = SampleRow {
                temperature: random.pick(&[0.0, 0.2, 1.0, 1.0, 3.0]),
                top_k: random.pick(&[0, 0, 1, 5, 40, 400]),
                top_p: random.pick(&[1.0, 1.0, 0.1, 0.5, 0.95]),
                min_p: random.pick(&[0.0, 0.0, 0.05, 0.5]),
                repetition_penalty: random.pick(&[1.0, 1.3]),
                frequency_penalty: random.pick(&[0.0, 0.5]),
                presence_penalty: random.pick(&[0.0, 0.5]),
                counts: if has_rules { &rules.counts } else { &[] },
                bias: if has_rules { &rules.bias } else { &[] },
                banned: if has_rules { &rules.banned } else { &[] },
                mask: rules.mask.as_deref().filter(|_| has_rules),
                forced: (random.below(10) == 0).then_some(random.below(vocab_size) as u32),
                seed: random.bits(),
                sample_index: random.below(3) as u32,
                position: random.below(1000) as u32,
                num_logprobs: random.pick(&[None, Some(0), Some(1), Some(20)]),
                ..SampleRow::greedy(0)
            };
            let what = format!("{isa} case {case} seed {seed}: {row:?} of {vocab_size}");
            let expected = reference::sample(&logits[..vocab_size], &row);
            let actual = sample(&mut backend, &logits, vocab_size, width, &[row]);
            assert_same(&actual[0], &expected, &what);
        }
    }
}

#[test]
fn a_large_vocabulary_gives_the_token_of_the_reference() {
    let mut random = Random(32);
    let vocab_size = 49_152;
    let mut backend = backend(Isa::detect(), 2);
    for case in 0..40 {
        // Sums of twelve uniforms: bell-shaped as real logits are.
        let logits: Vec<f32> = (0..vocab_size)
            .map(|_| (0..12).map(|_| random.number()).sum::<f32>() * random.pick(&[1.5]))
            .collect();
        let row = SampleRow {
            temperature: random.pick(&[0.5, 1.0, 1.5]),
            top_k: random.pick(&[0, 0, 50, 2000]),
            top_p: random.pick(&[1.0, 0.9, 0.99]),
            min_p: random.pick(&[0.0, 0.01]),
            seed: random.bits(),
            num_logprobs: Some(5),
            ..SampleRow::greedy(0)
        };
        let expected = reference::sample(&logits, &row);
        let actual = sample(&mut backend, &logits, vocab_size, vocab_size, std::slice::from_ref(&row));
        assert_same(&actual[0], &expected, &format!("case {case}: {row:?}"));
    }
}

/// Chi-squared over 8 tokens with 7 degrees of freedom: 24.3 is the 99.9 % point, and the seeds are fixed.
#[test]
fn draws_follow_the_softmax_over_positions_seeds_and_sample_indices() {
    let mut backend = backend(Isa::detect(), 2);
    let logits = [2.0, 1.0, 0.5, 0.0, -0.5, 1.5, 0.2, -1.0];
    let expected = reference::log_softmax(&logits);
    const DRAWS: u32 = 20_000;
    for varied in 0..3 {
        let rows: Vec<SampleRow<'_>> = (0..DRAWS)
            .map(|index| {
                let mut row = SampleRow { temperature: 1.0, ..SampleRow::greedy(0) };
                match varied {
                    0 => row.position = index,
                    1 => row.seed = u64::from(index),
                    _ => row.sample_index = index,
                }
                row
            })
            .collect();
        let mut counts = [0.0; 8];
        for outcome in sample(&mut backend, &logits, 8, 8, &rows) {
            counts[outcome.unwrap().token as usize] += 1.0;
        }
        let chi_squared: f64 = counts
            .iter()
            .zip(&expected)
            .map(|(count, logprob)| {
                let mean = logprob.exp() * f64::from(DRAWS);
                (count - mean) * (count - mean) / mean
            })
            .sum();
        assert!(chi_squared < 24.3, "varied {varied}: {counts:?}, chi squared {chi_squared}");
    }
}

#[test]
fn a_row_that_is_not_finite_fails_alone() {
    for isa in instruction_sets() {
        let mut backend = backend(isa, 3);
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 15, 16, 63, 64, 99] {
                let mut logits = Random(33).numbers(3 * 100);
                logits[100 + at] = poison;
                let row = |row| SampleRow { temperature: 1.0, ..SampleRow::greedy(row) };
                let rows = [row(0), row(1), row(2), SampleRow::greedy(1), SampleRow::greedy(2)];
                let outcomes = sample(&mut backend, &logits, 100, 100, &rows);
                let failed: Vec<bool> = outcomes.iter().map(Result::is_err).collect();
                assert_eq!(failed, [false, true, false, true, false], "{isa} {poison} at {at}");
            }
        }
    }
}

#[test]
fn rules_that_leave_no_token_fail_the_row() {
    let mut backend = backend(Isa::detect(), 1);
    let banned: Vec<u32> = (0..10).collect();
    let mask = [0u32];
    for temperature in [0.0, 1.0] {
        let rows = [
            SampleRow { temperature, banned: &banned, ..SampleRow::greedy(0) },
            SampleRow { temperature, mask: Some(&mask), ..SampleRow::greedy(0) },
            SampleRow { temperature, banned: &banned[..9], ..SampleRow::greedy(0) },
        ];
        let outcomes = sample(&mut backend, &[1.0; 10], 10, 10, &rows);
        assert!(outcomes[0].is_err() && outcomes[1].is_err());
        assert_eq!(outcomes[2].as_ref().unwrap().token, 9);
    }
}

#[test]
fn ties_go_to_the_lower_id() {
    let mut backend = backend(Isa::detect(), 1);
    let mut logits = vec![0.0f32; 300];
    for token in [70, 130, 299] {
        logits[token] = 5.0;
    }
    let row = SampleRow { num_logprobs: Some(4), ..SampleRow::greedy(0) };
    let one_of_three = SampleRow { temperature: 1.0, top_k: 1, ..SampleRow::greedy(0) };
    let outcomes = sample(&mut backend, &logits, 300, 300, &[row, one_of_three]);
    let sampled = outcomes[0].as_ref().unwrap();
    assert_eq!((sampled.token, sampled.rank), (70, 1));
    assert_eq!(sampled.top.iter().map(|top| top.0).collect::<Vec<_>>(), [70, 130, 299, 0]);
    assert_eq!(outcomes[1].as_ref().unwrap().token, 70);
}

/// Batch of 40, several rows sharing logits, against each alone: equal to the bit, logprobs too.
#[test]
fn a_row_is_the_same_alone_and_among_others() {
    for isa in instruction_sets() {
        let mut random = Random(34);
        let logits = random.numbers(8 * 3000);
        let row = |index: u32| SampleRow {
            temperature: (index % 3) as f32,
            top_p: if index.is_multiple_of(2) { 1.0 } else { 0.8 },
            seed: u64::from(index),
            num_logprobs: Some(3),
            ..SampleRow::greedy(index % 8)
        };
        let rows: Vec<SampleRow<'_>> = (0..40).map(row).collect();
        for num_threads in 1..=3 {
            let mut backend = backend(isa, num_threads);
            let together = sample(&mut backend, &logits, 3000, 3000, &rows);
            for index in [0, 1, 17, 39] {
                let alone = sample(&mut backend, &logits, 3000, 3000, &rows[index..=index]);
                assert_eq!(alone[0], together[index], "{isa}, {num_threads} threads, row {index}");
            }
        }
    }
}

#[test]
fn the_next_step_may_name_the_last_samples() {
    use pagoda_backend::{BatchMetadata, Embed, InputToken};
    let mut backend = backend(Isa::detect(), 1);
    let table =
        backend.pack_weight(&[support::matrix(&mut Random(35), 64, 32, pagoda_backend::WeightFormat::F32)]);
    let table = table.unwrap();
    let mut logits = vec![0.0; 2 * 64];
    (logits[7], logits[64 + 50]) = (1.0, 1.0);
    sample(&mut backend, &logits, 64, 64, &[SampleRow::greedy(0), SampleRow::greedy(1)]);
    let input_tokens =
        [InputToken::LastSampled(1), InputToken::Known(7), InputToken::LastSampled(0)].to_vec();
    let mut metadata = BatchMetadata { input_tokens, ..BatchMetadata::default() };
    let mut batch = backend.alloc_batch(3, 1, 1).unwrap();
    backend.upload_batch(&mut batch, &mut metadata).unwrap();
    let mut out = support::poisoned(&mut backend, 3, 32);
    backend.embed(Embed { batch: &batch, table: &table, scale: 1.0, out: &mut out }).unwrap();
    assert_eq!(out.row(1), out.row(2));
    assert_ne!(out.row(0), out.row(1));
}
