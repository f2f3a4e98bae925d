//! The tensors of a checkpoint: names to byte ranges of mapped files, checked once when a file is opened. Knows no
//! architecture. Invariant: the range of every readable tensor lies in its file and is exactly as long as its shape needs.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use half::{bf16, f16};
use pagoda_backend::{HostMatrix, WeightFormat};

use crate::ModelError;
use crate::drawn::Drawn;
use crate::mapping::Mapping;

/// Every tensor of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct TensorTable {
    parts: Vec<Mapping>,
    entries: HashMap<String, TensorEntry>,
}

#[derive(Debug)]
struct TensorEntry {
    /// The file; no tensor that is drawn has one.
    part: usize,
    shape: Vec<usize>,
    storage: Storage,
}

#[derive(Debug)]
enum Storage {
    Absent { format: WeightFormat },
    Drawn { format: WeightFormat, drawn: Drawn },
    Readable { format: WeightFormat, range: Range<usize> },
    Unreadable { type_name: String },
}

/// A tensor as a file describes it, before any check.
pub(crate) struct DeclaredTensor {
    /// Its name.
    pub(crate) name: String,
    /// Row-major; the last axis is contiguous.
    pub(crate) shape: Vec<usize>,
    /// The format, or the name of a type that has none here.
    pub(crate) format: Result<WeightFormat, String>,
    /// First byte in the file.
    pub(crate) start: Option<usize>,
}

impl TensorTable {
    /// Adds a file together with its tensors. A name that another file has already given is an error.
    pub(crate) fn add_part(
        &mut self,
        mapping: Mapping,
        tensors: Vec<DeclaredTensor>,
    ) -> Result<(), ModelError> {
        let part = self.parts.len();
        for tensor in tensors {
            let bounds = |problem: String| ModelError::TensorBounds {
                tensor: tensor.name.clone(),
                path: mapping.path().to_owned(),
                problem,
            };
            let storage = match &tensor.format {
                Ok(format) => {
                    let range = byte_range(&tensor.shape, *format, tensor.start, mapping.bytes().len());
                    Storage::Readable { format: *format, range: range.map_err(bounds)? }
                }
                Err(type_name) => Storage::Unreadable { type_name: type_name.clone() },
            };
            let entry = TensorEntry { part, shape: tensor.shape.clone(), storage };
            if self.entries.insert(tensor.name.clone(), entry).is_some() {
                return Err(bounds("occurs twice".to_owned()));
            }
        }
        self.parts.push(mapping);
        Ok(())
    }

    /// Adds a tensor that is drawn.
    pub(crate) fn add_drawn(&mut self, name: String, shape: Vec<usize>, format: WeightFormat, drawn: Drawn) {
        self.entries.insert(name, TensorEntry { part: 0, shape, storage: Storage::Drawn { format, drawn } });
    }

    /// The same names, shapes and formats: matrices have no bytes, and vectors are zero.
    pub(crate) fn without_data(&self) -> Self {
        let entry = |entry: &TensorEntry| TensorEntry {
            part: 0,
            shape: entry.shape.clone(),
            storage: match &entry.storage {
                Storage::Absent { format }
                | Storage::Drawn { format, .. }
                | Storage::Readable { format, .. } => Storage::Absent { format: *format },
                Storage::Unreadable { type_name } => Storage::Unreadable { type_name: type_name.clone() },
            },
        };
        let entries = self.entries.iter().map(|(name, tensor)| (name.clone(), entry(tensor))).collect();
        TensorTable { parts: Vec::new(), entries }
    }

    /// Whether there is such a tensor.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// All names, in no order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    pub(crate) fn shape(&self, name: &str) -> Result<&[usize], ModelError> {
        Ok(&self.entry(name)?.shape)
    }

    /// Bytes of all tensors as they are, or would be, stored.
    pub(crate) fn stored_bytes(&self) -> u64 {
        let bytes = |entry: &TensorEntry| match &entry.storage {
            Storage::Drawn { format, .. } => {
                format.row_bytes(1) as u64 * entry.shape.iter().product::<usize>() as u64
            }
            Storage::Readable { range, .. } => range.len() as u64,
            Storage::Absent { .. } | Storage::Unreadable { .. } => 0,
        };
        self.entries.values().map(bytes).sum()
    }

    /// A `[rows, cols]` weight matrix, borrowed from the mapping or drawn.
    pub(crate) fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<HostMatrix<'_>, ModelError> {
        let (format, bytes) = self.readable(name, &[rows, cols])?;
        Ok(HostMatrix { rows, cols, format, data: bytes })
    }

    /// A parameter vector, widened to f32.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let (format, bytes) = self.readable(name, &[len])?;
        if bytes.is_empty() {
            return Ok(vec![0.0; len]);
        }
        let halves = || bytes.as_chunks::<2>().0.iter().copied();
        Ok(match format {
            WeightFormat::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            WeightFormat::Bf16 => halves().map(|b| bf16::from_le_bytes(b).to_f32()).collect(),
            WeightFormat::F16 => halves().map(|b| f16::from_le_bytes(b).to_f32()).collect(),
            WeightFormat::Q8_0 | WeightFormat::Q4_0 | WeightFormat::Q4_1 => {
                let type_name = format!("a {format} vector");
                return Err(ModelError::UnsupportedTensorType { tensor: name.to_owned(), type_name });
            }
        })
    }

    fn entry(&self, name: &str) -> Result<&TensorEntry, ModelError> {
        self.entries.get(name).ok_or_else(|| ModelError::MissingTensor { tensor: name.to_owned() })
    }

    fn readable(&self, name: &str, expected: &[usize]) -> Result<(WeightFormat, Cow<'_, [u8]>), ModelError> {
        let entry = self.entry(name)?;
        if entry.shape != expected {
            return Err(ModelError::TensorShape {
                tensor: name.to_owned(),
                expected: expected.to_vec(),
                found: entry.shape.clone(),
            });
        }
        match &entry.storage {
            Storage::Absent { format } => Ok((*format, Cow::Borrowed(&[]))),
            Storage::Drawn { format, drawn } => {
                Ok((*format, Cow::Owned(drawn.bytes(expected.iter().product(), *format))))
            }
            Storage::Readable { format, range } => {
                Ok((*format, Cow::Borrowed(&self.parts[entry.part].bytes()[range.clone()])))
            }
            Storage::Unreadable { type_name } => Err(ModelError::UnsupportedTensorType {
                tensor: name.to_owned(),
                type_name: type_name.clone(),
            }),
        }
    }
}

/// The bytes a tensor occupies, checked against overflow, block size and the end of the file.
fn byte_range(
    shape: &[usize],
    format: WeightFormat,
    start: Option<usize>,
    file_len: usize,
) -> Result<Range<usize>, String> {
    let too_large = || format!("shape {shape:?} is too large");
    let num_weights = shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim)).ok_or_else(too_large)?;
    let row_len = shape.last().copied().unwrap_or(1);
    if !row_len.is_multiple_of(format.block_len()) {
        return Err(format!("rows of {row_len} are not whole {format} blocks"));
    }
    let num_bytes =
        (num_weights / format.block_len()).checked_mul(format.block_bytes()).ok_or_else(too_large)?;
    let start = start.ok_or_else(|| "its offset is too large".to_owned())?;
    match start.checked_add(num_bytes) {
        Some(end) if end <= file_len => Ok(start..end),
        _ => Err(format!("{num_bytes} bytes at {start} end after the file's {file_len}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked_against_blocks_overflow_and_file_end() {
        let range = |shape: &[usize], start, len| byte_range(shape, WeightFormat::Q4_1, start, len);
        assert_eq!(range(&[2, 64], Some(8), 88), Ok(8..88));
        assert!(range(&[2, 64], Some(8), 87).unwrap_err().contains("end after"));
        assert!(range(&[64, 2], Some(8), 1000).unwrap_err().contains("whole Q4_1 blocks"));
        assert!(range(&[usize::MAX, 64], Some(8), 1000).unwrap_err().contains("too large"));
        assert!(range(&[2, 64], Some(usize::MAX), 1000).unwrap_err().contains("end after"));
        assert!(range(&[2, 64], None, 1000).unwrap_err().contains("too large"));
        assert_eq!(range(&[0, 64], Some(0), 10), Ok(0..0));
    }
}
