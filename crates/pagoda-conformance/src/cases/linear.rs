//! Matrix products.

use std::fmt;

use pagoda_backend::{Backend, HostMatrix, Linear, WeightFormat};
use pagoda_backend_cpu::reference;

use crate::compare::worst_row;
use crate::random::Random;
use crate::subject::{Subject, text};

/// `linear` of `rows` rows to `width` features.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinearCase {
    rows: usize,
    cols: usize,
    width: usize,
    format: WeightFormat,
    has_bias: bool,
    /// Into a matrix of logits.
    is_logits: bool,
}

impl fmt::Display for LinearCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}/{}", self.rows, self.cols, self.width, self.format)?;
        f.write_str(if self.has_bias { "/bias" } else { "" })?;
        f.write_str(if self.is_logits { "/logits" } else { "" })
    }
}

pub(super) fn cases() -> Vec<LinearCase> {
    let mut cases = Vec::new();
    for format in WeightFormat::ALL {
        // One row, a part tile, the last skinny row count, the first of the tile kernel, more than one tile each way.
        for (rows, cols, width) in
            [(1, 64, 16), (3, 288, 40), (9, 96, 23), (16, 32, 24), (17, 96, 40), (130, 64, 136)]
        {
            // An odd width goes into logits only: activations are multiples of 8.
            cases.push(LinearCase {
                rows,
                cols,
                width,
                format,
                has_bias: rows % 2 == 1,
                is_logits: width == 23,
            });
        }
    }
    // More columns than are loaded ahead.
    for format in WeightFormat::ALL {
        cases.push(LinearCase { rows: 5, cols: 1312, width: 24, format, has_bias: false, is_logits: false });
    }
    // Columns that are no whole pieces.
    for (cols, width) in [(8, 16), (40, 24), (1000, 128), (2600, 24)] {
        for rows in [2, 18] {
            let (format, has_bias, is_logits) = (WeightFormat::Bf16, false, false);
            cases.push(LinearCase { rows, cols, width, format, has_bias, is_logits });
        }
    }
    cases
}

pub(super) fn linear<B: Backend>(
    subject: &mut Subject<B>,
    random: &mut Random,
    case: &LinearCase,
) -> Result<f64, String> {
    let LinearCase { rows, cols, width, format, has_bias, is_logits } = *case;
    let matrix = random.matrix(width, cols, format, subject.round);
    let x = random.rounded(rows * cols, subject.round);
    let bias = has_bias.then(|| random.rounded(width, subject.round));
    let expected = reference::linear(&x, &reference::dequantize(&matrix), cols, bias.as_deref());
    // Stacked from two parts, as QKV is.
    let (first, second) = split(&matrix, width / 2);
    let weight = subject.backend.pack_weight(&[first, second]).map_err(text)?;
    let x = subject.tensor(&x, cols)?;
    let bias = bias.map(|bias| subject.backend.upload_vector(&bias).map_err(text)).transpose()?;
    let nothing = vec![f32::NAN; rows * width];
    let mut out =
        if is_logits { subject.logits(&nothing, width)? } else { subject.tensor(&nothing, width)? };
    let op = Linear { x: &x, weight: &weight, bias: bias.as_ref(), num_rows: rows, out: &mut out };
    subject.backend.linear(op).map_err(text)?;
    let actual = subject.output(&out, rows, width)?;
    // A quantised weight is rounded once more than a dense one.
    let factor = if format.block_len() == 1 { 1.0 } else { 2.0 };
    subject.accept(worst_row(&actual, &expected, width)?, factor)
}

fn split<'a>(matrix: &'a HostMatrix<'a>, first_rows: usize) -> (HostMatrix<'a>, HostMatrix<'a>) {
    let (first, second) = matrix.data.split_at(first_rows * matrix.format.row_bytes(matrix.cols));
    let part = |rows, data: &'a [u8]| HostMatrix {
        rows,
        cols: matrix.cols,
        format: matrix.format,
        data: data.into(),
    };
    (part(first_rows, first), part(matrix.rows - first_rows, second))
}
