//! The cases: an op and a shape each, and what it must move and compute at least.

use pagoda_backend::HeadLayout;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case(Op);

/// How large the shapes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scale {
    /// Those of 8B and 1B models in a full batch.
    Gpu,
    /// Those of a 1B model in a small batch.
    Cpu,
    /// To see that everything runs.
    #[cfg(test)]
    Tiny,
}

/// How a context lies in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Blocks of this many slots in random order.
    Scattered(usize),
    /// The largest blocks, in order: as near as this layout comes to no pages at all.
    InOrder,
}

/// So many contexts of so many tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contexts {
    pub(crate) batch_size: usize,
    pub(crate) len: usize,
}

/// An op at a shape.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Op {
    RmsNorm {
        rows: usize,
        width: usize,
    },
    AddRmsNorm {
        rows: usize,
        width: usize,
    },
    Gated {
        rows: usize,
        width: usize,
    },
    Gather {
        rows: usize,
        width: usize,
    },
    Sample {
        rows: usize,
        vocab: usize,
    },
    /// `num_rows` rows of x by a bf16 weight of `[rows, cols]`.
    Linear {
        rows: usize,
        cols: usize,
        num_rows: usize,
    },
    Rope {
        rows: usize,
        heads: HeadLayout,
    },
    CopyBlocks {
        num_blocks: usize,
        heads: HeadLayout,
    },
    Decode {
        heads: HeadLayout,
        contexts: Contexts,
        pages: Pages,
    },
    /// One prompt, causal.
    Prefill {
        heads: HeadLayout,
        len: usize,
    },
}

/// What an op needs at least.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cost {
    pub(crate) bytes: f64,
    pub(crate) flop: f64,
}

/// Slots of a block, where a case does not say.
pub(crate) const BLOCK_SIZE: usize = 16;

impl Case {
    pub(crate) fn op(&self) -> Op {
        self.0
    }

    /// Op and shape.
    pub(crate) fn name(&self) -> String {
        let heads =
            |heads: HeadLayout| format!("{}:{}/d{}", heads.num_q_heads, heads.num_kv_heads, heads.head_dim);
        match self.0 {
            Op::RmsNorm { rows, width } => format!("rms_norm/{rows}x{width}"),
            Op::AddRmsNorm { rows, width } => format!("add_rms_norm/{rows}x{width}"),
            Op::Gated { rows, width } => format!("gated_activation/{rows}x{width}"),
            Op::Gather { rows, width } => format!("gather_rows/{rows}x{width}"),
            Op::Sample { rows, vocab } => format!("sample/{rows}x{vocab}"),
            Op::Linear { rows, cols, num_rows } => format!("linear/{rows}x{cols}/{num_rows}"),
            Op::Rope { rows, heads: layout } => format!("rope_store_kv/{}/{rows}", heads(layout)),
            Op::CopyBlocks { num_blocks, heads: layout } => {
                format!("copy_blocks/{}/{num_blocks}", heads(layout))
            }
            Op::Decode { heads: layout, contexts: Contexts { batch_size, len }, pages } => {
                let pages = match pages {
                    Pages::Scattered(block_size) => format!("block{block_size}"),
                    Pages::InOrder => "in-order".to_owned(),
                };
                format!("decode/{}/{batch_size}x{len}/{pages}", heads(layout))
            }
            Op::Prefill { heads: layout, len } => format!("prefill/{}/{len}", heads(layout)),
        }
    }

    /// Every operand once, in activations of `element_bytes` (K and V too); weights are bf16, logits f32.
    pub(crate) fn cost(&self, element_bytes: usize) -> Cost {
        let element = element_bytes as f64;
        let bytes = |numbers: usize| Cost { bytes: numbers as f64 * element, flop: 0.0 };
        match self.0 {
            Op::RmsNorm { rows, width } | Op::Gather { rows, width } => bytes(2 * rows * width),
            Op::AddRmsNorm { rows, width } => bytes(4 * rows * width),
            Op::Gated { rows, width } => bytes(3 * rows * width),
            Op::Sample { rows, vocab } => Cost { bytes: (rows * vocab * 4) as f64, flop: 0.0 },
            Op::Linear { rows, cols, num_rows } => Cost {
                bytes: (2 * rows * cols) as f64 + element * (num_rows * (rows + cols)) as f64,
                flop: 2.0 * (rows * cols) as f64 * num_rows as f64,
            },
            // The row in; Q back, K and V to their slots.
            Op::Rope { rows, heads } => bytes(2 * rows * heads.qkv_width()),
            Op::CopyBlocks { num_blocks, heads } => {
                bytes(2 * num_blocks * BLOCK_SIZE * 2 * heads.num_kv_heads * heads.head_dim)
            }
            Op::Decode { heads, contexts: Contexts { batch_size, len }, .. } => Cost {
                bytes: element * (2 * batch_size * len * heads.num_kv_heads * heads.head_dim) as f64,
                flop: 4.0 * (batch_size * len * heads.q_width()) as f64,
            },
            // Half of the len x len scores; the rows in, K and V once, the outputs.
            Op::Prefill { heads, len } => Cost {
                bytes: element * (len * (heads.qkv_width() + heads.q_width())) as f64,
                flop: 2.0 * (len * len) as f64 * heads.q_width() as f64,
            },
        }
    }
}

const fn heads(num_q_heads: usize, num_kv_heads: usize, head_dim: usize) -> HeadLayout {
    HeadLayout { num_q_heads, num_kv_heads, head_dim }
}

/// Every case of a scale.
pub(crate) fn cases(scale: Scale) -> Vec<Case> {
    let ops = match scale {
        Scale::Gpu => gpu_ops(),
        Scale::Cpu => cpu_ops(),
        #[cfg(test)]
        Scale::Tiny => tiny_ops(),
    };
    ops.into_iter().map(Case).collect()
}

fn gpu_ops() -> Vec<Op> {
    let (rows, width) = (16_384, 4096);
    let (large, small, wide) = (heads(32, 8, 128), heads(32, 8, 64), heads(16, 8, 128));
    let mut ops = vec![
        Op::RmsNorm { rows, width },
        Op::AddRmsNorm { rows, width },
        Op::Gated { rows: 8192, width: 14_336 },
        Op::Gather { rows, width },
        Op::Rope { rows, heads: large },
        Op::CopyBlocks { num_blocks: 4096, heads: large },
        Op::Sample { rows: 256, vocab: 128_256 },
    ];
    for (layout, pages) in [
        (large, Pages::Scattered(16)),
        (large, Pages::Scattered(32)),
        (large, Pages::InOrder),
        (small, Pages::Scattered(16)),
        (wide, Pages::Scattered(16)),
    ] {
        for (batch_size, len) in [(1, 16_384), (8, 4096), (64, 1024), (64, 2048), (64, 4096), (256, 1024)] {
            ops.push(Op::Decode { heads: layout, contexts: Contexts { batch_size, len }, pages });
        }
    }
    for layout in [large, small, heads(8, 4, 256)] {
        ops.extend([512, 1024, 2048, 4096, 8192, 16_384].map(|len| Op::Prefill { heads: layout, len }));
    }
    // Those of an 8B model (QKV, attention output, gate and up, down, lm_head), then the smallest of a 0.6B one.
    for (rows, cols) in [
        (6144, 4096),
        (4096, 4096),
        (28_672, 4096),
        (4096, 14_336),
        (128_256, 4096),
        (4096, 1024),
        (1024, 2048),
    ] {
        for num_rows in [1, 2, 4, 8, 16, 32, 64, 128, 256, 2048, 8192] {
            // Logits of more rows are never asked for at once.
            if rows < 100_000 || num_rows <= 256 {
                ops.push(Op::Linear { rows, cols, num_rows });
            }
        }
    }
    ops
}

fn cpu_ops() -> Vec<Op> {
    let layout = heads(32, 8, 64);
    let mut ops = vec![
        Op::RmsNorm { rows: 2048, width: 2048 },
        Op::AddRmsNorm { rows: 2048, width: 2048 },
        Op::Gated { rows: 512, width: 8192 },
        Op::Gather { rows: 2048, width: 2048 },
        Op::Rope { rows: 512, heads: layout },
        Op::CopyBlocks { num_blocks: 512, heads: layout },
        Op::Sample { rows: 4, vocab: 128_256 },
        Op::Prefill { heads: layout, len: 512 },
    ];
    for (batch_size, len) in [(1, 4096), (8, 1024)] {
        for pages in [Pages::Scattered(16), Pages::InOrder] {
            ops.push(Op::Decode { heads: layout, contexts: Contexts { batch_size, len }, pages });
        }
    }
    for (rows, cols) in [(3072, 2048), (16_384, 2048), (2048, 8192)] {
        ops.extend([1, 8, 128].map(|num_rows| Op::Linear { rows, cols, num_rows }));
    }
    ops
}

#[cfg(test)]
fn tiny_ops() -> Vec<Op> {
    let layout = heads(4, 2, 64);
    let contexts = Contexts { batch_size: 2, len: 40 };
    vec![
        Op::RmsNorm { rows: 3, width: 64 },
        Op::AddRmsNorm { rows: 3, width: 64 },
        Op::Gated { rows: 3, width: 64 },
        Op::Gather { rows: 3, width: 64 },
        Op::Sample { rows: 2, vocab: 128 },
        Op::Linear { rows: 64, cols: 32, num_rows: 3 },
        Op::Rope { rows: 9, heads: layout },
        Op::CopyBlocks { num_blocks: 3, heads: layout },
        Op::Decode { heads: layout, contexts, pages: Pages::Scattered(16) },
        Op::Decode { heads: layout, contexts, pages: Pages::InOrder },
        Op::Prefill { heads: layout, len: 20 },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(op: Op) -> Cost {
        Case(op).cost(2)
    }

    #[test]
    fn costs_are_those_worked_out_by_hand() {
        let heads = heads(32, 8, 128);
        assert_eq!(cost(Op::RmsNorm { rows: 10, width: 8 }).bytes, 320.0);
        assert_eq!(cost(Op::AddRmsNorm { rows: 10, width: 8 }).bytes, 640.0);
        assert_eq!(cost(Op::Gated { rows: 10, width: 8 }).bytes, 480.0);
        // 64 contexts x 2048 tokens x K and V x 8 heads x 128 channels x 2 bytes.
        let contexts = Contexts { batch_size: 64, len: 2048 };
        let decode = cost(Op::Decode { heads, contexts, pages: Pages::InOrder });
        assert_eq!(decode, Cost { bytes: 536_870_912.0, flop: 2_147_483_648.0 });
        // 4096^2 / 2 scores x 2 products x 2 FLOPs x 32 heads x 128 channels.
        assert_eq!(cost(Op::Prefill { heads, len: 4096 }).flop, 137_438_953_472.0);
        let linear = cost(Op::Linear { rows: 6144, cols: 4096, num_rows: 1 });
        assert_eq!(linear, Cost { bytes: 50_331_648.0 + 20_480.0, flop: 50_331_648.0 });
        // A row of 48 heads of 128 channels, in and out.
        assert_eq!(cost(Op::Rope { rows: 1, heads }).bytes, 24_576.0);
        assert_eq!(cost(Op::CopyBlocks { num_blocks: 1, heads }).bytes, 131_072.0);
        assert_eq!(cost(Op::Sample { rows: 2, vocab: 100 }).bytes, 800.0);
    }

    #[test]
    fn names_are_unique() {
        for scale in [Scale::Gpu, Scale::Cpu, Scale::Tiny] {
            let mut names: Vec<String> = cases(scale).iter().map(Case::name).collect();
            let num_cases = names.len();
            names.sort();
            names.dedup();
            assert_eq!(names.len(), num_cases);
        }
    }
}
