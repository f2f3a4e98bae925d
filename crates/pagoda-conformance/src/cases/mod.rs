//! The table: one variant per op, one line per shape.

mod attention;
mod elementwise;
mod kv;
mod linear;
mod sampling;

use std::fmt;

use pagoda_backend::{Activation, Backend, WeightFormat};

use self::attention::AttentionCase;
use self::kv::RopeCase;
use self::linear::LinearCase;
use self::sampling::SampleCase;
use crate::random::Random;
use crate::subject::Subject;

/// One op at one shape; its name is its `Display`.
#[derive(Clone, Debug)]
pub struct Case(Op);

#[derive(Clone, Debug)]
enum Op {
    /// `rms_norm` of `rows` rows.
    RmsNorm { rows: usize, width: usize },
    /// `add_rms_norm` of `rows` rows.
    AddRmsNorm { rows: usize, width: usize },
    /// `gated_activation` of `rows` rows.
    Gated { rows: usize, width: usize, activation: Activation },
    /// `gather_rows` of `rows` of 9 rows.
    Gather { rows: usize, width: usize },
    /// `embed` of `rows` tokens, known and sampled ones.
    Embed { rows: usize, width: usize, format: WeightFormat },
    /// `linear`.
    Linear(LinearCase),
    /// `copy_blocks` of whole and part blocks.
    CopyBlocks { block_size: usize, head_dim: usize },
    /// What the cache keeps of numbers of every size.
    KvRange,
    /// `rope_store_kv`.
    Rope(RopeCase),
    /// `paged_attention`.
    Attention(AttentionCase),
    /// `sample`.
    Sample(SampleCase),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::RmsNorm { rows, width } => write!(f, "rms_norm/{rows}x{width}"),
            Op::AddRmsNorm { rows, width } => write!(f, "add_rms_norm/{rows}x{width}"),
            Op::Gated { rows, width, activation } => {
                write!(f, "gated_activation/{rows}x{width}/{activation:?}")
            }
            Op::Gather { rows, width } => write!(f, "gather_rows/{rows}x{width}"),
            Op::Embed { rows, width, format } => write!(f, "embed/{rows}x{width}/{format}"),
            Op::Linear(case) => write!(f, "linear/{case}"),
            Op::CopyBlocks { block_size, head_dim } => write!(f, "copy_blocks/{block_size}/d{head_dim}"),
            Op::KvRange => f.write_str("kv_range"),
            Op::Rope(case) => write!(f, "rope_store_kv/{case}"),
            Op::Attention(case) => write!(f, "attention/{case}"),
            Op::Sample(case) => write!(f, "sample/{case}"),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Case {
    /// Runs the case on inputs of the seed. The error found, or what is wrong.
    pub fn run<B: Backend>(&self, subject: &mut Subject<B>, seed: u64) -> Result<f64, String> {
        let random = &mut Random(seed);
        match &self.0 {
            Op::RmsNorm { rows, width } => elementwise::rms_norm(subject, random, *rows, *width),
            Op::AddRmsNorm { rows, width } => elementwise::add_rms_norm(subject, random, *rows, *width),
            Op::Gated { rows, width, activation } => {
                elementwise::gated(subject, random, (*rows, *width), *activation)
            }
            Op::Gather { rows, width } => elementwise::gather(subject, random, *rows, *width),
            Op::Embed { rows, width, format } => {
                elementwise::embed(subject, random, (*rows, *width), *format)
            }
            Op::Linear(case) => linear::linear(subject, random, case),
            Op::CopyBlocks { block_size, head_dim } => {
                kv::copy_blocks(subject, random, *block_size, *head_dim)
            }
            Op::KvRange => kv::kv_range(subject, random),
            Op::Rope(case) => kv::rope_store_kv(subject, random, case),
            Op::Attention(case) => attention::paged_attention(subject, random, case),
            Op::Sample(case) => sampling::sample(subject, random, case),
        }
    }
}

/// Every case.
pub fn cases() -> Vec<Case> {
    let mut ops = Vec::new();
    for (rows, width) in [(1, 8), (3, 576), (2, 2048), (5, 2056)] {
        ops.push(Op::RmsNorm { rows, width });
        ops.push(Op::AddRmsNorm { rows, width });
        ops.push(Op::Gather { rows, width });
        for activation in [Activation::Silu, Activation::GeluTanh] {
            ops.push(Op::Gated { rows, width, activation });
        }
    }
    for format in WeightFormat::ALL {
        ops.push(Op::Embed { rows: 5, width: 96, format });
    }
    for (block_size, head_dim) in [(16, 64), (32, 96)] {
        ops.push(Op::CopyBlocks { block_size, head_dim });
    }
    ops.extend(linear::cases().into_iter().map(Op::Linear));
    ops.push(Op::KvRange);
    ops.extend(kv::rope_cases().into_iter().map(Op::Rope));
    ops.extend(attention::cases().into_iter().map(Op::Attention));
    ops.extend(sampling::cases().into_iter().map(Op::Sample));
    ops.into_iter().map(Case).collect()
}
