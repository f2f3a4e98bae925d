//! Every op of the fast path against its f64 oracle, on every instruction set of this CPU.

mod support;

use pagoda_backend::{
    Activation, AddRmsNorm, Backend, BatchMetadata, BlockCopy, Embed, GatedActivation, GatherRows,
    HeadLayout, InputToken, KvLayout, Linear, PagedAttention, QkNorm, RmsNorm, RopeStoreKv, RopeTable,
    WeightFormat,
};
use pagoda_backend_cpu::{Arithmetic, CpuBackend, reference};
use support::{
    Random, assert_close, backend, backend_with, batch, instruction_sets, matrix, poisoned, relative_l2,
    tensor, values,
};

#[test]
fn linear_matches_for_every_format_and_shape() {
    for isa in instruction_sets() {
        check_linear(&mut backend(isa, 2), 2e-6, &format!("{isa}"));
    }
}

/// Int16 activations are within 2^-16 of the largest of their block of 32.
#[test]
fn linear_with_int16_activations_matches_nearly_as_well() {
    for isa in instruction_sets() {
        check_linear(&mut backend_with(isa, 2, Arithmetic::Int16), 4e-5, &format!("{isa} int16"));
    }
}

#[test]
fn int16_activations_keep_zeros_and_do_not_hide_what_is_not_finite() {
    let mut random = Random(10);
    for isa in instruction_sets() {
        let mut backend = backend_with(isa, 1, Arithmetic::Int16);
        let weight = backend.pack_weight(&[matrix(&mut random, 20, 64, WeightFormat::Q8_0)]).unwrap();
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = random.numbers(3 * 64);
            x[..64].fill(0.0);
            x[64 + 40] = poison;
            let x = tensor(&mut backend, &x, 64, 0);
            let mut out = poisoned(&mut backend, 3, 20);
            backend
                .linear(Linear { x: &x, weight: &weight, bias: None, num_rows: 3, out: &mut out })
                .unwrap();
            assert!(out.row(0).iter().all(|&value| value == 0.0), "{isa} {poison}");
            assert!(out.row(1).iter().all(|value| value.is_nan()), "{isa} {poison}");
            assert!(out.row(2).iter().all(|value| value.is_finite()), "{isa} {poison}");
        }
    }
}

fn check_linear(backend: &mut CpuBackend, limit: f64, name: &str) {
    let mut random = Random(1);
    for case in 0..240 {
        let seed = random.0;
        let format = WeightFormat::ALL[case % 6];
        let cols = if format.block_len() == 1 {
            random.pick(&[1, 31, 32, 37, 257, 600, 2049, 4100])
        } else {
            random.pick(&[32, 64, 96, 288, 576, 2080])
        };
        let num_rows = random.pick(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 17, 33]);
        let part_rows = [random.pick(&[1, 15, 16, 17, 40]), random.pick(&[0, 16, 31]), random.pick(&[0, 48])];
        let parts = part_rows.map(|rows| matrix(&mut random, rows, cols, format));
        let rows = part_rows.iter().sum();
        let bias = random.numbers(rows);
        let x = random.numbers(num_rows * cols);
        let dense: Vec<f32> = parts.iter().flat_map(reference::dequantize).collect();
        let has_bias = case % 4 < 2;
        let expected = reference::linear(&x, &dense, cols, has_bias.then_some(&bias[..]));

        let weight = backend.pack_weight(&parts).expect("shapes fit");
        let bias = backend.upload_vector(&bias).expect("shapes fit");
        let x = tensor(backend, &x, cols, 0);
        let mut out = poisoned(backend, num_rows + 1, rows);
        let bias = has_bias.then_some(&bias);
        backend.linear(Linear { x: &x, weight: &weight, bias, num_rows, out: &mut out }).expect("shapes fit");
        let what = format!("{name} {format} {num_rows} x {cols} -> {part_rows:?}, seed {seed}");
        assert_close(&values(&out, num_rows), &expected, limit, &what);
        assert!(out.row(num_rows).iter().all(|value| value.is_nan()), "{what}: wrote behind the last row");
    }
}

#[test]
fn one_packed_weight_may_hold_panels_of_different_formats() {
    let mut random = Random(2);
    for isa in instruction_sets() {
        let mut backend = backend(isa, 2);
        let parts = WeightFormat::ALL.map(|format| matrix(&mut random, 17, 64, format));
        let dense: Vec<f32> = parts.iter().flat_map(reference::dequantize).collect();
        let weight = backend.pack_weight(&parts).unwrap();
        for num_rows in [1, 2, 7, 20] {
            let x = random.numbers(num_rows * 64);
            let expected = reference::linear(&x, &dense, 64, None);
            let x = tensor(&mut backend, &x, 64, 0);
            let mut out = poisoned(&mut backend, num_rows, 6 * 17);
            backend.linear(Linear { x: &x, weight: &weight, bias: None, num_rows, out: &mut out }).unwrap();
            assert_close(&values(&out, num_rows), &expected, 2e-6, &format!("{isa}, {num_rows} rows"));
        }
    }
}

#[test]
fn weights_stay_as_small_as_their_format() {
    let mut backend = backend(pagoda_backend_cpu::Isa::Portable, 1);
    for format in WeightFormat::ALL {
        let weight = backend.pack_weight(&[matrix(&mut Random(3), 64, 320, format)]).unwrap();
        assert_eq!(backend.weight_bytes(&weight), 64 * format.row_bytes(320) as u64, "{format}");
    }
}

/// The numbers of a row must be those of the format's definition, bit for bit, and the same that `linear` multiplies by.
#[test]
fn embedding_rows_are_the_definition_and_what_linear_uses() {
    let mut random = Random(4);
    for isa in instruction_sets() {
        let mut backend = backend(isa, 2);
        for format in WeightFormat::ALL {
            let parts = [matrix(&mut random, 37, 64, format), matrix(&mut random, 5, 64, WeightFormat::F16)];
            let dense: Vec<f32> = parts.iter().flat_map(reference::dequantize).collect();
            let table = backend.pack_weight(&parts).unwrap();
            let tokens: Vec<u32> = (0..42).rev().collect();
            let mut metadata = BatchMetadata {
                input_tokens: tokens.iter().map(|&token| InputToken::Known(token)).collect(),
                ..BatchMetadata::default()
            };
            let mut batch = backend.alloc_batch(64, 1, 1).unwrap();
            backend.upload_batch(&mut batch, &mut metadata).unwrap();
            for scale in [1.0, 3.5] {
                let mut out = poisoned(&mut backend, 42, 64);
                backend.embed(Embed { batch: &batch, table: &table, scale, out: &mut out }).unwrap();
                assert_eq!(values(&out, 42), reference::embed(&dense, 64, &tokens, scale), "{format}");
            }
            // Column k of the weight is the product with the k-th unit vector.
            for num_rows in [1, 2, 64] {
                let unit = |row: usize| (0..64).map(move |col| if col == row { 1.0 } else { 0.0 });
                let x: Vec<f32> = (0..num_rows).flat_map(unit).collect();
                let x = tensor(&mut backend, &x, 64, 0);
                let mut out = poisoned(&mut backend, num_rows, 42);
                backend
                    .linear(Linear { x: &x, weight: &table, bias: None, num_rows, out: &mut out })
                    .unwrap();
                for row in 0..num_rows {
                    let column: Vec<f32> = (0..42).map(|output| dense[output * 64 + row]).collect();
                    assert_eq!(out.row(row), column, "{isa} {format}, column {row} of {num_rows}");
                }
            }
        }
    }
}

#[test]
fn norms_match() {
    let mut random = Random(5);
    for isa in instruction_sets() {
        let mut backend = backend(isa, 2);
        for (num_rows, width) in [(1, 1), (1, 576), (3, 17), (70, 576), (5, 4096)] {
            let (x, residual, weight) =
                (random.numbers(num_rows * width), random.numbers(num_rows * width), random.numbers(width));
            let eps = 1e-5;
            let vector = backend.upload_vector(&weight).unwrap();
            let x_tensor = tensor(&mut backend, &x, width, 0);
            let mut out = poisoned(&mut backend, num_rows + 1, width);
            let what = format!("{isa} {num_rows} x {width}");
            backend
                .rms_norm(RmsNorm { x: &x_tensor, weight: &vector, eps, num_rows, out: &mut out })
                .unwrap();
            assert_close(&values(&out, num_rows), &reference::rms_norm(&x, &weight, eps), 1e-6, &what);
            assert!(out.row(num_rows)[0].is_nan(), "{what}: wrote behind the last row");

            let mut expected_residual = residual.clone();
            let expected = reference::add_rms_norm(&x, &mut expected_residual, &weight, eps);
            let mut residual = tensor(&mut backend, &residual, width, 0);
            let mut out = poisoned(&mut backend, num_rows, width);
            let op = AddRmsNorm {
                x: &x_tensor,
                residual: &mut residual,
                weight: &vector,
                eps,
                num_rows,
                out: &mut out,
            };
            backend.add_rms_norm(op).unwrap();
            assert_close(&values(&out, num_rows), &expected, 1e-6, &what);
            assert_eq!(values(&residual, num_rows), expected_residual, "{what}");
        }
    }
}

#[test]
fn gated_activations_match_from_minus_to_plus_a_thousand() {
    let mut random = Random(6);
    for isa in instruction_sets() {
        let mut backend = backend(isa, 2);
        for activation in [Activation::Silu, Activation::GeluTanh] {
            for (num_rows, width) in [(1, 1), (2, 33), (40, 1536)] {
                for range in [0.1, 5.0, 1000.0] {
                    let gate_up: Vec<f32> =
                        random.numbers(num_rows * 2 * width).iter().map(|value| value * range).collect();
                    let expected = reference::gated_activation(&gate_up, width, activation);
                    let gate_up = tensor(&mut backend, &gate_up, 2 * width, 0);
                    let mut out = poisoned(&mut backend, num_rows, width);
                    backend
                        .gated_activation(GatedActivation {
                            gate_up: &gate_up,
                            activation,
                            num_rows,
                            out: &mut out,
                        })
                        .unwrap();
                    let what = format!("{isa} {activation:?} {num_rows} x {width}, range {range}");
                    assert_close(&values(&out, num_rows), &expected, 1e-6, &what);
                }
            }
        }
    }
}

#[test]
fn gather_takes_the_named_rows() {
    let mut random = Random(7);
    let mut backend = backend(pagoda_backend_cpu::Isa::detect(), 2);
    let x = random.numbers(9 * 5);
    let x_tensor = tensor(&mut backend, &x, 5, 0);
    let mut out = poisoned(&mut backend, 4, 5);
    backend.gather_rows(GatherRows { x: &x_tensor, rows: &[8, 0, 8], out: &mut out }).unwrap();
    assert_eq!(values(&out, 3), reference::gather_rows(&x, 5, &[8, 0, 8]));
    assert!(out.row(3).iter().all(|value| value.is_nan()));
}

fn inverse_frequencies(rotary_dim: usize) -> Vec<f64> {
    (0..rotary_dim / 2).map(|index| 10_000f64.powf(-2.0 * index as f64 / rotary_dim as f64)).collect()
}

struct Case {
    heads: HeadLayout,
    layout: KvLayout,
    rotary_dim: usize,
    has_qk_norm: bool,
    window: Option<u32>,
    softcap: Option<f32>,
    /// `(context, query)` of each sequence; the context before the query is stored by an earlier step.
    sequences: Vec<(usize, usize)>,
}

impl Case {
    fn random(random: &mut Random) -> Case {
        let (num_kv_heads, group) = (random.pick(&[1, 2, 3]), random.pick(&[1, 2, 3, 4, 7]));
        let head_dim = random.pick(&[16, 32, 48, 64, 128, 256]);
        let block_size = random.pick(&[8, 16, 24, 32, 64]);
        let edges = [1usize, 7, 8, 9, 15, 16, 17, 63, 64, 65, 100, 129];
        let sequences = (0..random.pick(&[1, 2, 4]))
            .map(|_| {
                let context_len = random.pick(&edges);
                let query_len = random.pick(&[1, 1, context_len.div_ceil(2), context_len]);
                (context_len, query_len)
            })
            .collect();
        Case {
            heads: HeadLayout { num_q_heads: num_kv_heads * group, num_kv_heads, head_dim },
            layout: KvLayout { num_layers: 2, num_blocks: 80, block_size, num_kv_heads, head_dim },
            rotary_dim: random.pick(&[head_dim, head_dim / 2]),
            has_qk_norm: random.below(2) == 0,
            window: random.pick(&[None, None, Some(1), Some(20), Some(64)]),
            softcap: random.pick(&[None, None, Some(2.0)]),
            sequences,
        }
    }
}

/// Two steps over layer 1: the contexts before the queries, then the queries. Compares Q, and the attention of the second.
fn run_case(backend: &mut CpuBackend, random: &mut Random, case: &Case, what: &str) {
    let Case { heads, layout, .. } = *case;
    let (width, layer, eps) = (heads.qkv_width(), 1, 1e-6);
    let (q_weight, k_weight) = (random.numbers(heads.head_dim), random.numbers(heads.head_dim));
    let q_norm = backend.upload_vector(&q_weight).expect("shapes fit");
    let k_norm = backend.upload_vector(&k_weight).expect("shapes fit");
    let table = RopeTable::new(&inverse_frequencies(case.rotary_dim), 130, 1.0);
    let rope = backend.upload_rope(&table).expect("shapes fit");
    let mut kv = backend.alloc_kv(layout).expect("shapes fit");
    let mut expected_kv = reference::KvCache::new(layout);
    let seed = random.0;
    let earlier: Vec<_> =
        case.sequences.iter().map(|&(context, query)| (context - query, context - query)).collect();
    let mut later = batch(&mut Random(seed), layout, &case.sequences);
    let mut earlier = batch(&mut Random(seed), layout, &earlier);
    // Both steps use the tables of the second.
    earlier.block_tables = later.block_tables.clone();
    earlier.block_table_starts = later.block_table_starts.clone();
    for sequence in 0..case.sequences.len() {
        for row in earlier.query_start_loc[sequence]..earlier.query_start_loc[sequence + 1] {
            let position = earlier.positions[row as usize] as usize;
            let block = later.block_table(sequence)[position / layout.block_size] as usize;
            earlier.slot_mapping[row as usize] =
                (block * layout.block_size + position % layout.block_size) as u32;
        }
    }
    for metadata in [&mut earlier, &mut later] {
        let num_rows = metadata.num_tokens();
        let mut expected_qkv = random.numbers(num_rows * width);
        let mut qkv = tensor(backend, &expected_qkv, width, 1);
        let input = reference::RopeInput {
            batch: metadata,
            heads,
            qk_norm: case.has_qk_norm.then_some((&q_weight, &k_weight, eps)),
            rope: &table,
            layer,
        };
        reference::rope_store_kv(&input, &mut expected_qkv, &mut expected_kv);
        let scale = 1.0 / (heads.head_dim as f32).sqrt();
        let (window, softcap) = (case.window, case.softcap);
        let input = reference::AttentionInput { batch: metadata, heads, layer, scale, window, softcap };
        let expected = reference::paged_attention(&input, &expected_qkv, &expected_kv);

        let mut device_batch = backend.alloc_batch(1, 1, 1).expect("shapes fit");
        backend.upload_batch(&mut device_batch, metadata).expect("shapes fit");
        let batch = &device_batch;
        let qk_norm = case.has_qk_norm.then_some(QkNorm { q_weight: &q_norm, k_weight: &k_norm, eps });
        let op = RopeStoreKv { batch, qkv: &mut qkv, heads, qk_norm, rope: &rope, kv: &mut kv, layer };
        backend.rope_store_kv(op).expect("shapes fit");
        let mut out = poisoned(backend, num_rows + 1, heads.q_width());
        let op =
            PagedAttention { batch, qkv: &qkv, heads, kv: &kv, layer, scale, window, softcap, out: &mut out };
        backend.paged_attention(op).expect("shapes fit");
        if num_rows > 0 {
            assert_close(&values(&qkv, num_rows), &expected_qkv, 1e-6, what);
            assert_close(&values(&out, num_rows), &expected, 3e-6, what);
        }
        assert!(out.row(num_rows).iter().all(|value| value.is_nan()), "{what}: wrote behind the last row");
    }
}

#[test]
fn rope_and_paged_attention_match_over_random_shapes() {
    for isa in instruction_sets() {
        let mut backend = backend(isa, 2);
        let mut random = Random(8);
        for index in 0..80 {
            let seed = random.0;
            let case = Case::random(&mut random);
            let what = format!(
                "{isa} case {index} seed {seed}: {:?} {:?} {:?} window {:?} cap {:?}",
                case.heads, case.layout, case.sequences, case.window, case.softcap
            );
            run_case(&mut backend, &mut random, &case, &what);
        }
    }
}

/// Reads the whole cache back through attention: one query per slot whose window is the slot alone returns that slot's V.
#[test]
fn copied_blocks_hold_the_leading_slots_and_nothing_else() {
    let layout = KvLayout { num_layers: 2, num_blocks: 4, block_size: 16, num_kv_heads: 2, head_dim: 32 };
    let heads = HeadLayout { num_q_heads: 2, num_kv_heads: 2, head_dim: 32 };
    let mut random = Random(9);
    let mut backend = backend(pagoda_backend_cpu::Isa::detect(), 2);
    let rope = backend.upload_rope(&RopeTable::new(&inverse_frequencies(32), 16, 1.0)).unwrap();
    for num_slots in [1, 5, 15, 16] {
        let mut kv = backend.alloc_kv(layout).unwrap();
        let mut sources = Vec::new();
        let batch_over = |backend: &mut CpuBackend, block: u32, num_queries: usize| {
            let mut metadata = BatchMetadata {
                input_tokens: vec![InputToken::Known(0); num_queries],
                positions: (16 - num_queries as u32..16).collect(),
                slot_mapping: (block * 16 + 16 - num_queries as u32..block * 16 + 16).collect(),
                query_start_loc: vec![0, num_queries as u32],
                context_lens: vec![16],
                block_tables: vec![block],
                block_table_starts: vec![0, 1],
            };
            let mut batch = backend.alloc_batch(16, 1, 1).unwrap();
            backend.upload_batch(&mut batch, &mut metadata).unwrap();
            batch
        };
        // Blocks 1 and 2 get different numbers in both layers.
        for block in [1, 2] {
            for layer in 0..2 {
                let rows = random.numbers(16 * heads.qkv_width());
                let mut qkv = tensor(&mut backend, &rows, heads.qkv_width(), 0);
                let batch = batch_over(&mut backend, block, 16);
                let (batch, kv) = (&batch, &mut kv);
                let op = RopeStoreKv { batch, qkv: &mut qkv, heads, qk_norm: None, rope: &rope, kv, layer };
                backend.rope_store_kv(op).unwrap();
                sources.push(qkv);
            }
        }
        backend
            .copy_blocks(&mut kv, &[BlockCopy { source: 1, target: 2, num_slots: num_slots as u32 }])
            .unwrap();
        for layer in 0..2 {
            let batch = batch_over(&mut backend, 2, 16);
            // A query that picks its best key over all 16 tells K and V apart: sharp scores, causal mask on the last row.
            let queries = random.numbers(16 * heads.qkv_width());
            let qkv = tensor(&mut backend, &queries, heads.qkv_width(), 0);
            let mut out = poisoned(&mut backend, 16, heads.q_width());
            let op = PagedAttention {
                batch: &batch,
                qkv: &qkv,
                heads,
                kv: &kv,
                layer,
                scale: 4.0,
                window: None,
                softcap: None,
                out: &mut out,
            };
            backend.paged_attention(op).unwrap();
            let mut expected_kv = reference::KvCache::new(layout);
            for slot in 0..16 {
                let source = if slot < num_slots { &sources[layer] } else { &sources[2 + layer] };
                for kv_head in 0..2 {
                    let to = expected_kv.offset(layer, 32 + slot, kv_head);
                    expected_kv.k[to..to + 32].copy_from_slice(&source.row(slot)[64 + kv_head * 32..][..32]);
                    expected_kv.v[to..to + 32].copy_from_slice(&source.row(slot)[128 + kv_head * 32..][..32]);
                }
            }
            let mut metadata = BatchMetadata::default();
            let mut batch = batch;
            backend.upload_batch(&mut batch, &mut metadata).unwrap();
            let input = reference::AttentionInput {
                batch: &metadata,
                heads,
                layer,
                scale: 4.0,
                window: None,
                softcap: None,
            };
            let expected = reference::paged_attention(&input, &queries, &expected_kv);
            assert_close(&values(&out, 16), &expected, 1e-5, &format!("{num_slots} slots, layer {layer}"));
        }
    }
}

#[test]
fn a_wrong_answer_is_noticed() {
    assert!(relative_l2(&[1.0, 2.0, 3.001], &[1.0, 2.0, 3.0]) > 1e-4);
    assert!(relative_l2(&[1.0, f32::NAN], &[1.0, 2.0]).is_nan());
}
