//! SmolLM2 against an independent engine: candle-transformers' Llama in f32 over the dequantised GGUF. Twenty prompts of 24
//! tokens, 64 tokens each; candle decodes greedily (all prompts as one batch, since they are equally long), and Pagoda is
//! compared both on candle's tokens (teacher-forced) and on its own.
//!
//! Needs the model: `PAGODA_TEST_MODEL`, or the file in the user's cache. Skips without it, unless `REQUIRE_ALL=1`.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama};
use common::Session;
use pagoda_engine::TokenLogprobs;
use pagoda_model::{Checkpoint, ModelConfig, RunnerConfig};

const NUM_TOKENS: usize = 64;
const LOGPROB_TOLERANCE: f32 = 1e-3;
/// Where candle's two likeliest tokens are closer than this (in logprob), rounding may decide between them.
const TIE_GAP: f32 = 0.01;

/// Token ids of the beginnings of twenty texts (prose, recipes, facts, code, chat turns).
const PROMPTS: [[u32; 24]; 20] = [
    // The old lighthouse stood at the edge of the cliff, and every evening i
    [
        504, 1573, 33059, 9318, 418, 260, 5595, 282, 260, 25959, 28, 284, 897, 9053, 624, 40061, 30324, 260,
        6260, 24224, 288, 1420, 260, 17559,
    ],
    // To bake a simple loaf of bread you need flour, water, salt and yeast.
    [
        2068, 26975, 253, 2232, 42126, 282, 6956, 346, 737, 7367, 28, 913, 28, 5420, 284, 12827, 30, 3508,
        3412, 260, 7367, 351, 260, 5420,
    ],
    // The capital of France is Paris. The capital of Italy is Rome. The capi
    [
        504, 3575, 282, 4649, 314, 7042, 30, 378, 3575, 282, 7158, 314, 7268, 30, 378, 3575, 282, 3085, 314,
        19081, 30, 378, 3575, 282,
    ],
    // def fibonacci(n):\n    """Return the first n numbers of the Fibonacci s
    [
        1604, 3987, 46477, 24, 94, 727, 472, 1620, 14362, 260, 808, 304, 2966, 282, 260, 24681, 46477, 5972,
        7996, 472, 2966, 446, 933, 32,
    ],
    // Water boils at 100 degrees Celsius at sea level, but on a high mountai
    [
        12615, 36411, 418, 216, 33, 32, 32, 5027, 20590, 418, 3426, 1106, 28, 564, 335, 253, 904, 6740, 357,
        36411, 418, 253, 2208, 2779,
    ],
    // Once upon a time there was a small fox who lived at the border of a da
    [
        6403, 1980, 253, 655, 665, 436, 253, 1165, 16438, 617, 4161, 418, 260, 7112, 282, 253, 3605, 3150,
        30, 1963, 5738, 260, 16438, 983,
    ],
    // <|im_start|>user\nWrite one sentence about the moon and the tides of th
    [
        1, 4093, 198, 19161, 582, 6330, 563, 260, 6783, 284, 260, 27485, 282, 260, 3426, 30, 2, 198, 1, 520,
        9531, 198, 504, 6783,
    ],
    // <|im_start|>user\nList three colours that can be found in a rainbow, pl
    [
        1, 4093, 198, 6106, 1296, 14797, 338, 416, 325, 983, 281, 253, 24594, 28, 5361, 30, 2, 198, 1, 520,
        9531, 198, 4590, 359,
    ],
    // Photosynthesis is the process by which green plants turn sunlight, wat
    [
        33580, 14870, 314, 260, 980, 411, 527, 2654, 2109, 1607, 8118, 28, 913, 284, 3118, 7600, 618, 3982,
        284, 4983, 30, 533, 260, 3711,
    ],
    // A triangle with sides of length 3, 4 and 5 is a right triangle, becaus
    [
        49, 14973, 351, 5882, 282, 3519, 216, 35, 28, 216, 36, 284, 216, 37, 314, 253, 1048, 14973, 28, 975,
        216, 35, 27402, 8055,
    ],
    // The committee met on Tuesday to discuss the new budget. After a long d
    [
        504, 8572, 1278, 335, 14801, 288, 1692, 260, 725, 6050, 30, 2550, 253, 986, 6866, 260, 2249, 6454,
        338, 260, 4971, 868, 3796, 540,
    ],
    // In the year 1969 two people walked on the surface of the moon for the
    [
        788, 260, 713, 216, 33, 41, 38, 41, 827, 701, 13197, 335, 260, 2376, 282, 260, 6783, 327, 260, 808,
        655, 30, 1069, 5771,
    ],
    // SELECT name, population FROM cities WHERE country = 'Norway' ORDER BY
    [
        23428, 1462, 28, 2155, 18451, 4199, 28531, 1798, 446, 637, 27737, 2384, 23, 7982, 29738, 18172, 2155,
        422, 23110, 35873, 216, 33, 32, 43,
    ],
    // Dear Professor, thank you for your lecture on medieval bridges. I have
    [
        35097, 6785, 28, 9984, 346, 327, 469, 9364, 335, 9649, 12223, 30, 339, 457, 253, 1962, 563, 260,
        28012, 338, 346, 4342, 468, 28,
    ],
    // The heart pumps blood through the body. Blood carries oxygen from the
    [
        504, 1911, 15834, 1670, 738, 260, 1248, 30, 11585, 11046, 4983, 429, 260, 9351, 288, 260, 5501, 28,
        284, 357, 11046, 3118, 7600, 1056,
    ],
    // There are four seasons in a year: spring, summer, autumn and winter. I
    [
        2122, 359, 1876, 12064, 281, 253, 713, 42, 4921, 28, 4018, 28, 15339, 284, 4339, 30, 533, 4921, 260,
        5504, 15612, 28, 281, 4018,
    ],
    // Rust is a systems programming language that is known for its memory sa
    [
        66, 467, 314, 253, 1734, 6256, 1789, 338, 314, 1343, 327, 624, 3500, 2950, 30, 378, 25316, 11139,
        617, 22247, 253, 1685, 284, 327,
    ],
    // The museum opens at nine in the morning and closes at five in the afte
    [
        504, 6508, 10573, 418, 7462, 281, 260, 5738, 284, 29508, 418, 2531, 281, 260, 11342, 30, 31777, 656,
        260, 1850, 282, 11314, 536, 441,
    ],
    // Bees visit flowers to collect nectar. While they do so, pollen sticks
    [
        50, 4123, 3048, 5504, 288, 2072, 21126, 30, 2445, 502, 536, 588, 28, 14021, 15930, 288, 480, 7225,
        284, 314, 4891, 288, 260, 1867,
    ],
    // My grandmother kept a garden behind the house. She grew tomatoes, bean
    [
        5965, 20790, 5454, 253, 4480, 2893, 260, 2291, 30, 2306, 6679, 13886, 28, 9973, 28, 18648, 284, 253,
        2244, 11977, 3187, 28, 284, 281,
    ],
];

#[test]
fn smollm2_agrees_with_candle_on_twenty_prompts_of_64_tokens() {
    let Some(path) = model_file() else { return };
    let checkpoint = Checkpoint::open(&path).unwrap();
    let oracle = Oracle::run(&path, checkpoint.config());
    let limits = RunnerConfig {
        block_size: 16,
        num_blocks: 32,
        max_num_seqs: 4,
        max_num_batched_tokens: 256,
        max_model_len: 256,
    };
    let mut session = Session::with_limits(&path, limits);
    let mut worst = Worst::default();
    for (prompt, decoded) in PROMPTS.iter().zip(&oracle.decoded) {
        let forced: Vec<u32> = prompt.iter().copied().chain(decoded.iter().map(|step| step.token)).collect();
        let logprobs = session.prompt_logprobs(&forced, 20);
        for (place, step) in decoded.iter().enumerate() {
            worst.compare(&logprobs[prompt.len() - 1 + place], step);
        }
        let expected: Vec<u32> = decoded.iter().map(|step| step.token).collect();
        assert_eq!(session.greedy(prompt, NUM_TOKENS as u32), expected, "free-running tokens of {prompt:?}");
    }
    println!(
        "compared {} places: largest difference of a top-5 logprob {:.2e}, smallest gap of the two likeliest {:.2e}",
        worst.num_places, worst.difference, worst.gap
    );
    assert_eq!(worst.num_places, PROMPTS.len() * NUM_TOKENS);
}

/// What candle says about one place: its choice, and its likeliest tokens with logprobs, best first.
struct OracleStep {
    token: u32,
    top: Vec<(u32, f32)>,
}

struct Oracle {
    /// Per prompt, `NUM_TOKENS` steps.
    decoded: Vec<Vec<OracleStep>>,
}

impl Oracle {
    fn run(path: &Path, config: &ModelConfig) -> Self {
        let tensors: HashMap<String, Tensor> = common::dequantized(path);
        let config = candle_config(config);
        let model =
            Llama::load(VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu), &config).unwrap();
        let mut cache = Cache::new(true, DType::F32, &config, &Device::Cpu).unwrap();
        let mut decoded: Vec<Vec<OracleStep>> = PROMPTS.iter().map(|_| Vec::new()).collect();
        let mut input = Tensor::new(&PROMPTS, &Device::Cpu).unwrap();
        let mut position = 0;
        for _ in 0..NUM_TOKENS {
            let logits = model.forward(&input, position, &mut cache).unwrap();
            position += input.dim(1).unwrap();
            let rows = logits.to_vec2::<f32>().unwrap();
            let steps: Vec<OracleStep> = rows.iter().map(|row| OracleStep::new(row)).collect();
            let tokens: Vec<u32> = steps.iter().map(|step| step.token).collect();
            for (sequence, step) in decoded.iter_mut().zip(steps) {
                sequence.push(step);
            }
            input = Tensor::new(tokens, &Device::Cpu).unwrap().reshape((PROMPTS.len(), 1)).unwrap();
        }
        Oracle { decoded }
    }
}

impl OracleStep {
    fn new(logits: &[f32]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
        let log_sum = sum.ln() as f32 + max;
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        let top: Vec<_> = ids[..5].iter().map(|id| (*id, logits[*id as usize] - log_sum)).collect();
        OracleStep { token: top[0].0, top }
    }
}

#[derive(Default)]
struct Worst {
    num_places: usize,
    difference: f32,
    gap: f32,
}

impl Worst {
    fn compare(&mut self, found: &TokenLogprobs, expected: &OracleStep) {
        for (token, logprob) in &expected.top {
            let ours = found.top.iter().find(|(id, _)| id == token);
            let (_, ours) = ours.unwrap_or_else(|| panic!("token {token} is not among our 20 likeliest"));
            let difference = (ours - logprob).abs();
            assert!(difference < LOGPROB_TOLERANCE, "token {token}: {ours} here, {logprob} in candle");
            self.difference = self.difference.max(difference);
        }
        let gap = expected.top[0].1 - expected.top[1].1;
        if gap > TIE_GAP {
            assert_eq!(found.top[0].0, expected.token, "argmax where candle's gap is {gap}");
        }
        self.gap = if self.num_places == 0 { gap } else { self.gap.min(gap) };
        self.num_places += 1;
    }
}

fn candle_config(config: &ModelConfig) -> Config {
    Config {
        hidden_size: config.hidden_size,
        intermediate_size: config.intermediate_size,
        vocab_size: config.vocab_size,
        num_hidden_layers: config.num_layers,
        num_attention_heads: config.num_q_heads,
        num_key_value_heads: config.num_kv_heads,
        use_flash_attn: false,
        rms_norm_eps: f64::from(config.rms_norm_eps),
        rope_theta: config.rope.theta as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: 256,
        tie_word_embeddings: config.tie_word_embeddings,
    }
}

/// The model's file; says why the test is skipped where there is none.
fn model_file() -> Option<PathBuf> {
    let name = "models/smollm2-135m-instruct/SmolLM2-135M-Instruct.Q4_1.gguf";
    let cache = || {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let base = base.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
        Some(base.join("pagoda").join(name))
    };
    let path = std::env::var_os("PAGODA_TEST_MODEL").map(PathBuf::from).or_else(cache)?;
    if path.is_file() {
        return Some(path);
    }
    assert!(std::env::var_os("REQUIRE_ALL").is_none_or(|value| value != "1"), "{} is absent", path.display());
    println!("skipped: {} is absent", path.display());
    None
}
