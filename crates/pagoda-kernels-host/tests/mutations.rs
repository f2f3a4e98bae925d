//! A test of the tests: kernels with one deliberate mistake each must fail the case table. Half of the mistakes at least
//! must go unnoticed in the happy case of one block, or the table would prove nothing that a demonstration does not.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use pagoda_kernels_host::{Sanitize, compile_one};

/// One mistake: `from`, which occurs once in `file`, becomes `to`.
struct Mutation {
    kernel: &'static str,
    file: &'static str,
    from: &'static str,
    to: &'static str,
    /// Cases of which one must fail.
    cases: &'static [&'static str],
    /// The case of one block and round numbers.
    happy: &'static str,
    /// Of the run: how K and V are kept, which kernel does prompts.
    options: &'static [&'static str],
}

const DECODE: &str = "paged_attention_decode";
const PREFILL: &str = "paged_attention_prefill";
const HAPPY_DECODE: &str = "attention/2:1/d64/block16/1@16";
const HAPPY_PREFILL: &str = "attention/2:1/d64/block16/64@64";
const EDGES: &str = "attention/2:1/d64/block16/1@1+";
const CHUNKS: &str = "attention/2:1/d64/block32/3@100";
const PROMPTS: &str = "attention/2:1/d64/block16/2@2";
const WINDOWS: &str = "attention/4:2/d64/block16/1@600";
const FP8: &[&str] = &["--fp8-kv"];
const WGMMA: &[&str] = &["--wgmma"];
const LONG: &str = "attention/1:1/d64/block64/130@900";
const GROUPS: &str = "attention/18:1";

fn decode(
    file: &'static str,
    from: &'static str,
    to: &'static str,
    cases: &'static [&'static str],
) -> Mutation {
    Mutation { kernel: DECODE, file, from, to, cases, happy: HAPPY_DECODE, options: &[] }
}

fn prefill(
    file: &'static str,
    from: &'static str,
    to: &'static str,
    cases: &'static [&'static str],
) -> Mutation {
    Mutation { kernel: PREFILL, file, from, to, cases, happy: HAPPY_PREFILL, options: &[] }
}

fn mutations() -> Vec<Mutation> {
    const DECODE_FILE: &str = "paged_attention_decode.cu";
    const PREFILL_FILE: &str = "paged_attention_prefill.cu";
    const SHARED: &str = "include/attention.cuh";
    let gemm = |from, to| Mutation {
        kernel: "gemm",
        file: "gemm.cu",
        from,
        to,
        cases: &["linear/17x96", "linear/130x64", "linear/18x"],
        happy: "linear/130x64x136/bf16",
        options: &[],
    };
    let skinny = |from, to| Mutation {
        kernel: "skinny_gemm",
        file: "skinny_gemm.cu",
        from,
        to,
        cases: &["linear/9x96", "linear/3x288", "linear/5x1312", "linear/2x1000", "linear/2x40"],
        happy: "linear/1x64x16/bf16",
        options: &[],
    };
    let sampling = |from, to| Mutation {
        kernel: "sample",
        file: "sample.cu",
        from,
        to,
        cases: &[
            "sample/TopK/1003",
            "sample/TopP/1003",
            "sample/Masked/1003",
            "sample/Greedy/10003",
            "sample/Failing/10003",
        ],
        happy: "sample/Greedy/5",
        options: &[],
    };
    vec![
        // Barriers.
        decode(DECODE_FILE, "    __syncthreads();\n    RowState", "    RowState", &[EDGES, HAPPY_DECODE]),
        decode(DECODE_FILE, "    __syncthreads();\n    gather<", "    gather<", &[EDGES, WINDOWS]),
        decode(DECODE_FILE, "    __syncthreads();\n    add_warps<", "    add_warps<", &[EDGES]),
        prefill(
            PREFILL_FILE,
            "        copy_async_wait<1>();\n        __syncthreads();\n",
            "        copy_async_wait<1>();\n",
            &[CHUNKS, PROMPTS],
        ),
        prefill(
            PREFILL_FILE,
            "        // The next turn fills this stage.\n        __syncthreads();\n",
            "",
            &[CHUNKS, PROMPTS],
        ),
        gemm("        __syncthreads();\n        const uint32_t next", "        const uint32_t next"),
        skinny("    __syncthreads();\n", ""),
        // Waits for copies.
        decode(DECODE_FILE, "copy_async_wait<NUM_STAGES - 1>();", "copy_async_wait<NUM_STAGES>();", &[EDGES]),
        prefill(
            PREFILL_FILE,
            "        copy_async_wait<1>();",
            "        copy_async_wait<2>();",
            &[CHUNKS, PROMPTS],
        ),
        gemm("copy_async_wait<STAGES - 2>();", "copy_async_wait<STAGES - 1>();"),
        // Bounds: the causal end, the context's end, the block's end, the rows' end.
        prefill(
            "include/attention.cuh",
            "position + 1 - window : 0, position + 1};",
            "position + 1 - window : 0, position + 2};",
            &[CHUNKS, PROMPTS],
        ),
        decode(
            DECODE_FILE,
            "first_key + key < split.visible.end",
            "first_key + key <= split.visible.end",
            &[EDGES],
        ),
        prefill(
            PREFILL_FILE,
            "is_valid = key < tile.context_len",
            "is_valid = key <= tile.context_len",
            &[CHUNKS, PROMPTS],
        ),
        decode(
            DECODE_FILE,
            "(context_len + DECODE_SPLIT_KEYS - 1) / DECODE_SPLIT_KEYS",
            "context_len / DECODE_SPLIT_KEYS + 1",
            &[EDGES],
        ),
        prefill("include/prefill.cuh", "if (row >= tile.num_rows) continue;", "", &[CHUNKS, PROMPTS]),
        decode(
            DECODE_FILE,
            "(end_key - split.first_key + STEP_KEYS - 1) / STEP_KEYS",
            "(end_key - split.first_key) / STEP_KEYS",
            &[EDGES],
        ),
        prefill(
            PREFILL_FILE,
            "(tile.first_position + tile.num_rows + NUM_KEYS - 1) / NUM_KEYS",
            "(tile.first_position + tile.num_rows) / NUM_KEYS",
            &[CHUNKS, PROMPTS],
        ),
        skinny("    if (col >= params.weight.cols) return operands;\n", ""),
        skinny("min(row + 8, last_row)", "row + 8"),
        skinny("(params, col + IN_FLIGHT * STRIDE)", "(params, col + STRIDE)"),
        // Strides.
        decode(
            DECODE_FILE,
            "params.block_tables + params.block_table_starts[split.sequence]",
            "params.block_tables",
            &[EDGES],
        ),
        prefill(
            PREFILL_FILE,
            "(params.num_q_heads + 2 * params.kv.num_kv_heads) * HEAD_DIM",
            "params.num_q_heads * HEAD_DIM",
            &[CHUNKS, PROMPTS],
        ),
        decode(
            "include/kv.cuh",
            "* 2 + which) * kv.num_kv_heads + head",
            "* 2 + head) * kv.num_kv_heads + which",
            &[WINDOWS, GROUPS, EDGES],
        ),
        gemm("size_t(row) * params.out_stride + col", "size_t(row) * params.weight.cols + col"),
        // The splits and the warps of a decode.
        decode(DECODE_FILE, "num_splits - 1;", "split.end_index - 1;", &[WINDOWS]),
        decode(
            DECODE_FILE,
            "for (uint32_t other = split.first_index; other < split.end_index; ++other) {\n            const size_t place = size_t(split.first_partial + other) * params.num_q_heads + head;\n            const float factor",
            "for (uint32_t other = split.first_index + 1; other < split.end_index; ++other) {\n            const size_t place = size_t(split.first_partial + other) * params.num_q_heads + head;\n            const float factor",
            &[EDGES],
        ),
        decode(DECODE_FILE, "    if (threadIdx.x == 0) *arrivals = 0;\n", "", &[EDGES]),
        decode(
            DECODE_FILE,
            "out += factor * gathered.out[warp][row][channel];",
            "out += gathered.out[warp][row][channel];",
            &[EDGES],
        ),
        // Uninitialised shared memory.
        sampling("for (uint32_t bin = threadIdx.x; bin < BINS; bin += THREADS) shared.bins[bin] = 0;", ""),
        Mutation {
            kernel: "rms_norm",
            file: "include/reduce.cuh",
            from: "if (threadIdx.x % WARP_SIZE == 0) partial",
            to: "if (threadIdx.x == 0) partial",
            cases: &["rms_norm/3x576"],
            happy: "rms_norm/1x8",
            options: &[],
        },
        decode(
            DECODE_FILE,
            "        if (threadIdx.x % 4 == 0) {\n",
            "        if (threadIdx.x == 0) {\n",
            &[EDGES],
        ),
        // Masks.
        decode(SHARED, "return key >= first && key < end;", "return key < end;", &[WINDOWS]),
        prefill(
            SHARED,
            "const float factor = exp2f(state.maximum[half] - base);",
            "const float factor = 1.0f;",
            &[CHUNKS, PROMPTS],
        ),
        sampling("start += IN_FLIGHT * THREADS * 4", "start += (IN_FLIGHT + 1) * THREADS * 4"),
        sampling(
            "(params.masks[rule.first_mask_word + word] >> (token % 32) & 1)",
            "(params.masks[rule.first_mask_word + word] >> (token % 31) & 1)",
        ),
    ]
}

/// Mistakes with K and V in eight bits.
fn fp8_mutations() -> Vec<Mutation> {
    const CODES: &str = "include/e4m3.cuh";
    let store = |file, from, to, cases| Mutation {
        kernel: "rope_store_kv",
        file,
        from,
        to,
        cases,
        happy: "rope_store_kv/1:1/d64",
        options: FP8,
    };
    let decode =
        |from, to, cases| Mutation { options: FP8, ..decode("paged_attention_decode.cu", from, to, cases) };
    let prefill =
        |from, to, cases| Mutation { options: FP8, ..prefill("paged_attention_prefill.cu", from, to, cases) };
    vec![
        // Ties, small numbers, the ends of the scales, what is not finite.
        store(CODES, " + (bits >> 20 & 1)) >> 20", ") >> 20", &["kv_range", "rope_store_kv/9:3"]),
        store(CODES, "magnitude < 0.015625f", "magnitude < 0.001f", &["kv_range"]),
        store(
            CODES,
            "max(exponent + (E4M3_SCALE_BIAS - 127 - 8), E4M3_MIN_SCALE)",
            "exponent + (E4M3_SCALE_BIAS - 127 - 8)",
            &["kv_range"],
        ),
        store(CODES, "    if (largest_bits >= 0x7F800000) return E4M3_NOT_FINITE;\n", "", &["kv_range"]),
        // Scales: of the wrong keys, behind the context, not copied.
        decode("min(split.visible.end - first_key, SCALE_GROUP)", "SCALE_GROUP", &[EDGES]),
        prefill(
            "key < tile.context_len ? min(tile.context_len - key, SCALE_GROUP) : 0",
            "SCALE_GROUP",
            &[CHUNKS, PROMPTS],
        ),
        decode(
            "kv_scales(params.kv, v_tile) + offset",
            "kv_scales(params.kv, v_tile)",
            &["attention/2:1/d64/block32"],
        ),
        Mutation {
            kernel: DECODE,
            file: "include/attention.cuh",
            from: "e4m3_factor<T>(scales[1]) << 16",
            to: "e4m3_factor<T>(scales[0]) << 16",
            cases: &[EDGES, WINDOWS],
            happy: HAPPY_DECODE,
            options: FP8,
        },
        Mutation {
            kernel: "copy_blocks",
            file: "copy_blocks.cu",
            from: "kv_scales(kv, to)[slot] = kv_scales(kv, from)[slot]",
            to: "kv_scales(kv, to)[slot] = kv_scales(kv, from)[0]",
            cases: &["copy_blocks"],
            happy: "rope_store_kv/1:1/d64",
            options: FP8,
        },
    ]
}

/// Mistakes with copies by the TMA, the barriers of the stages, and what lies behind the context.
fn wgmma_mutations() -> Vec<Mutation> {
    let wgmma = |from, to, cases| Mutation {
        kernel: "paged_attention_prefill_wgmma",
        file: "paged_attention_prefill_wgmma.cu",
        from,
        to,
        cases,
        happy: HAPPY_PREFILL,
        options: WGMMA,
    };
    vec![
        wgmma("        mbarrier_wait(shared.v_full[stage], parity);\n", "", &[CHUNKS, PROMPTS]),
        wgmma("        if (lane == 0) mbarrier_arrive(shared.empty[stage]);\n", "", &[LONG]),
        wgmma(
            "        __syncwarp();\n        if (lane == 0) mbarrier_arrive(shared.empty",
            "        if (lane == 0) mbarrier_arrive(shared.empty",
            &[LONG],
        ),
        wgmma("mbarrier_wait(shared.empty[stage], turn / STAGES % 2 ^ 1);", "", &[LONG]),
        wgmma(
            "clean_values<T, HEAD_DIM>(tile.context_len - first_key,",
            "clean_values<T, HEAD_DIM>(tile.context_len - first_key + 1,",
            &[PROMPTS],
        ),
        wgmma("(key & ((1u << kv.log2_block_size) - 1))", "0", &[CHUNKS]),
        wgmma("(threadIdx.x / GROUP - 1) * GROUP_ROWS", "(threadIdx.x / GROUP - 1) * 16", &[CHUNKS, LONG]),
        wgmma(
            "tile.first_position + min(group_row + GROUP_ROWS, tile.num_rows)",
            "tile.first_position + group_row",
            &[CHUNKS, LONG],
        ),
    ]
}

#[test]
fn every_mistake_is_caught_and_half_of_them_only_beyond_the_happy_case() {
    let Some(base) = support::compiled("mutations") else { return };
    let mutations: Vec<Mutation> =
        mutations().into_iter().chain(fp8_mutations()).chain(wgmma_mutations()).collect();
    assert!(mutations.len() >= 20, "{} mutations", mutations.len());
    assert_right_kernels_pass(&base, &mutations);
    let next = AtomicUsize::new(0);
    let (caught, happy) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failures: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut failures = Vec::new();
            while let Some(mutation) = mutations.get(next.fetch_add(1, Ordering::Relaxed)) {
                let folder = tempfile::tempdir().expect("a temporary folder");
                if let Err(why) = build(mutation, &base, folder.path()) {
                    failures.push(format!("{:?} -> {:?}: {why}", mutation.from, mutation.to));
                    continue;
                }
                let survives = |cases: &[&str], order: &str| {
                    survives(folder.path(), cases, &[&["--order", order], mutation.options].concat())
                };
                if ["forward", "reverse", "random"].into_iter().all(|order| survives(mutation.cases, order)) {
                    failures.push(format!(
                        "{} of {}: {:?} -> {:?} goes unnoticed",
                        mutation.kernel, mutation.file, mutation.from, mutation.to
                    ));
                } else {
                    caught.fetch_add(1, Ordering::Relaxed);
                }
                happy.fetch_add(usize::from(survives(&[mutation.happy], "forward")), Ordering::Relaxed);
            }
            failures
        };
        let jobs: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        jobs.into_iter().flat_map(|job| job.join().expect("a job does not panic")).collect()
    });
    let (caught, happy) = (caught.into_inner(), happy.into_inner());
    println!("{caught} of {} mistakes caught, {happy} of them invisible in the happy case", mutations.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(2 * happy >= mutations.len(), "only {happy} of {} survive the happy case", mutations.len());
}

/// What catches a mistake must be there, and pass without one.
fn assert_right_kernels_pass(base: &Path, mutations: &[Mutation]) {
    for options in [&[], FP8, WGMMA] {
        let own = mutations.iter().filter(|mutation| mutation.options == options);
        let cases: BTreeSet<&str> =
            own.flat_map(|mutation| mutation.cases.iter().copied().chain([mutation.happy])).collect();
        let seed = support::fresh_seed().to_string();
        let only = cases.iter().flat_map(|case| ["--only", case]);
        let arguments: Vec<&str> = options.iter().copied().chain(["--seed", &seed]).chain(only).collect();
        let output = support::run(base, &arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "without a mistake, {arguments:?}:\n{text}");
        for case in cases {
            assert!(text.lines().any(|line| line.starts_with(case)), "no case begins with {case}:\n{text}");
        }
    }
}

/// The compiled kernels with the mistaken one in place of its original.
fn build(mutation: &Mutation, base: &Path, folder: &Path) -> Result<(), String> {
    let kernels = support::kernels();
    let text = |error: std::io::Error| error.to_string();
    let original = fs::read_to_string(kernels.join(mutation.file)).map_err(text)?;
    let num_places = original.matches(mutation.from).count();
    if num_places != 1 {
        return Err(format!("occurs {num_places} times in {}", mutation.file));
    }
    let changed = original.replace(mutation.from, mutation.to);
    let source_name = format!("{}.cu", mutation.kernel);
    let is_header = mutation.file != source_name;
    let source = if is_header {
        fs::read_to_string(kernels.join(&source_name)).map_err(text)?
    } else {
        changed.clone()
    };
    // Headers beside the source are found before those in the include folder.
    for entry in fs::read_dir(kernels.join("include")).map_err(text)? {
        let path = entry.map_err(text)?.path();
        fs::copy(&path, folder.join(path.file_name().expect("an entry has a name"))).map_err(text)?;
    }
    if is_header {
        let name = Path::new(mutation.file).file_name().expect("a file has a name");
        fs::write(folder.join(name), &changed).map_err(text)?;
    }
    let source_path = folder.join(&source_name);
    fs::write(&source_path, one_instantiation(&source)).map_err(text)?;
    for entry in fs::read_dir(base).map_err(text)? {
        let path = entry.map_err(text)?.path();
        let link = folder.join(path.file_name().expect("an entry has a name"));
        if path.file_stem().is_some_and(|stem| stem != mutation.kernel)
            && path.extension().is_some_and(|e| e == "so")
        {
            std::os::unix::fs::symlink(&path, link).map_err(text)?;
        }
    }
    compile_one(&kernels, &source_path, folder, Sanitize::Yes).map_err(text)
}

/// Leaves out the instantiations but bf16 and head_dim 64.
fn one_instantiation(source: &str) -> String {
    let is_other = |line: &str| {
        let starts = ["DECODE(", "PREFILL(", "WGMMA_PREFILL("];
        (starts.iter().any(|start| line.starts_with(start)) && !line.ends_with(", 64)"))
            || (line.starts_with("PAGODA_KERNEL(") && line.contains("_f16,"))
            || line.contains("(f16, ")
    };
    source.lines().filter(|line| !is_other(line)).flat_map(|line| [line, "\n"]).collect()
}

fn survives(folder: &Path, cases: &[&str], options: &[&str]) -> bool {
    let seed = support::fresh_seed().to_string();
    let only = cases.iter().flat_map(|case| ["--only", case]);
    let arguments: Vec<&str> = options.iter().copied().chain(["--seed", &seed]).chain(only).collect();
    support::run(folder, &arguments).status.success()
}
