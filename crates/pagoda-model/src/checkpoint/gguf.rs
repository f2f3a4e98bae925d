//! Opening a GGUF, single or split, by candle-core's reader over the mapping.

use std::io::{Cursor, Read, Seek, SeekFrom};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Content;
use pagoda_backend::WeightFormat;

use super::{Checkpoint, CheckpointFormat};
use crate::config::GgufMetadata;
use crate::mapping::Mapping;
use crate::tensors::{DeclaredTensor, TensorTable};
use crate::{GenerationDefaults, ModelError, TextAssets};

/// The largest split that is accepted; real ones have at most a few dozen parts.
const MAX_PARTS: usize = 1000;

/// Opens the file and, if it is one part of a split, the parts beside it.
pub(super) fn open(path: &Path) -> Result<Checkpoint, ModelError> {
    let paths = part_paths(path)?;
    let num_parts = paths.len();
    let mut tensors = TensorTable::default();
    let mut first = None;
    for (part, path) in paths.into_iter().enumerate() {
        let mapping = Mapping::open(&path)?;
        let content = read_content(&mapping)?;
        let metadata = GgufMetadata(content.metadata);
        check_split(&metadata, &path, part, num_parts)?;
        let declared = content.tensor_infos.into_iter().map(|(name, info)| DeclaredTensor {
            name,
            shape: info.shape.into_dims(),
            format: weight_format(info.ggml_dtype),
            start: content
                .tensor_data_offset
                .checked_add(info.offset)
                .and_then(|start| start.try_into().ok()),
        });
        let declared = declared.collect();
        tensors.add_part(mapping, declared)?;
        first.get_or_insert(metadata);
    }
    let metadata = first.expect("a split has at least one part");
    Ok(Checkpoint {
        config: metadata.resolve(&tensors)?,
        text_assets: TextAssets::from_gguf(&metadata)?,
        generation_defaults: GenerationDefaults::from_gguf(&metadata)?,
        tensors,
        format: CheckpointFormat::Gguf,
    })
}

/// `name-00002-of-00003.gguf` names three files; any other name is one file.
fn part_paths(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let Some((prefix, num_parts)) = path.file_name().and_then(|name| name.to_str()).and_then(split_name)
    else {
        return Ok(vec![path.to_owned()]);
    };
    if num_parts == 0 || num_parts > MAX_PARTS {
        let problem = format!("names {num_parts} parts; between 1 and {MAX_PARTS} are accepted");
        return Err(ModelError::InvalidFile { path: path.to_owned(), problem });
    }
    let name = |part| format!("{prefix}-{part:05}-of-{num_parts:05}.gguf");
    Ok((1..=num_parts).map(|part| path.with_file_name(name(part))).collect())
}

/// Prefix and number of parts of a split's file name.
fn split_name(name: &str) -> Option<(&str, usize)> {
    let (rest, num_parts) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, part) = rest.rsplit_once('-')?;
    let is_number = |digits: &str| digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit());
    if !is_number(part) || !is_number(num_parts) {
        return None;
    }
    Some((prefix, num_parts.parse().ok()?))
}

/// The parts' own numbers must agree with their names, or a renamed part would give a model with holes.
fn check_split(
    metadata: &GgufMetadata,
    path: &Path,
    part: usize,
    num_parts: usize,
) -> Result<(), ModelError> {
    let declared_count = metadata.integer("split.count")?.unwrap_or(0).max(1);
    let declared_part = metadata.integer("split.no")?.unwrap_or(part);
    if declared_count != num_parts || declared_part != part {
        let problem = format!(
            "is part {} of {declared_count}, but its name says part {} of {num_parts} (parts are named NAME-00001-of-0000N.gguf)",
            declared_part.saturating_add(1),
            part + 1
        );
        return Err(ModelError::InvalidFile { path: path.to_owned(), problem });
    }
    Ok(())
}

/// Reads the header. The reader bounds every count by the file's length; the one number that it divides by unchecked
/// (`general.alignment` 0) panics, which is caught and becomes an error like the others.
fn read_content(mapping: &Mapping) -> Result<Content, ModelError> {
    let invalid = |problem: String| ModelError::InvalidFile { path: mapping.path().to_owned(), problem };
    let mut reader = ReadLog { cursor: Cursor::new(mapping.bytes()), last_reads: Vec::new() };
    if !mapping.bytes().starts_with(b"GGUF") {
        return Err(invalid("is not a GGUF file".to_owned()));
    }
    let read = catch_unwind(AssertUnwindSafe(|| Content::read(&mut reader)));
    match read {
        Ok(Ok(content)) => Ok(content),
        Ok(Err(error)) => match reader.unknown_tensor_type() {
            Some((tensor, type_name)) if error.to_string().contains("unknown dtype") => {
                Err(ModelError::UnsupportedTensorType { tensor, type_name })
            }
            _ => Err(invalid(format!("is not a readable GGUF file: {}", first_line(&error.to_string())))),
        },
        Err(_) => Err(invalid("is not a readable GGUF file: its alignment is 0".to_owned())),
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn weight_format(dtype: GgmlDType) -> Result<WeightFormat, String> {
    match dtype {
        GgmlDType::F32 => Ok(WeightFormat::F32),
        GgmlDType::F16 => Ok(WeightFormat::F16),
        GgmlDType::BF16 => Ok(WeightFormat::Bf16),
        GgmlDType::Q8_0 => Ok(WeightFormat::Q8_0),
        GgmlDType::Q4_0 => Ok(WeightFormat::Q4_0),
        GgmlDType::Q4_1 => Ok(WeightFormat::Q4_1),
        other => Err(format!("{other:?}")),
    }
}

/// Types that candle's reader refuses without saying which tensor has them.
fn unreadable_type_name(id: u32) -> String {
    let name = match id {
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("type {id}"),
    };
    name.to_owned()
}

/// Remembers the last reads, so that an unknown type can be reported with its tensor's name: a tensor's entry is read as
/// name length, name, number of axes, axes, type.
struct ReadLog<'a> {
    cursor: Cursor<&'a [u8]>,
    /// Start and end of the last four reads, the oldest first.
    last_reads: Vec<(usize, usize)>,
}

impl ReadLog<'_> {
    fn unknown_tensor_type(&self) -> Option<(String, String)> {
        let [name, _num_axes, _axes, type_id] = self.last_reads.as_slice() else { return None };
        let bytes = |(start, end): &(usize, usize)| self.cursor.get_ref().get(*start..*end);
        let name = std::str::from_utf8(bytes(name)?).ok()?;
        let type_id = u32::from_le_bytes(bytes(type_id)?.try_into().ok()?);
        Some((name.to_owned(), unreadable_type_name(type_id)))
    }
}

impl Read for ReadLog<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let start = self.cursor.position() as usize;
        let num_bytes = self.cursor.read(buffer)?;
        if self.last_reads.len() == 4 {
            self.last_reads.remove(0);
        }
        self.last_reads.push((start, start + num_bytes));
        Ok(num_bytes)
    }
}

impl Seek for ReadLog<'_> {
    fn seek(&mut self, position: SeekFrom) -> std::io::Result<u64> {
        self.cursor.seek(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_name_gives_all_parts_in_order() {
        let parts = part_paths(Path::new("/m/a-b-00002-of-00003.gguf")).unwrap();
        assert_eq!(parts[0], Path::new("/m/a-b-00001-of-00003.gguf"));
        assert_eq!(parts.len(), 3);
        assert_eq!(part_paths(Path::new("/m/one-of-many.gguf")).unwrap().len(), 1);
        assert!(part_paths(Path::new("/m/a-00001-of-99999.gguf")).is_err());
        assert!(part_paths(Path::new("/m/a-00001-of-00000.gguf")).is_err());
    }
}
