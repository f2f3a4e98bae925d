//! The file of measured algorithms. Text: a line for the format, one for the [`super::ProductLibrary::identity`] that they belong
//! to, one per algorithm, and a sum over all of it, so that a damaged file is noticed before its bits reach the library.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::{Algorithm, ProductShape};
use crate::element::Element;

const FORMAT: &str = "pagoda products 1";

/// A shape, the bucket of its rows, and what was the fastest for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) shape: ProductShape,
    pub(super) bucket: u32,
    pub(super) algorithm: Algorithm,
}

/// Where they are kept.
pub(super) struct CacheFile {
    path: PathBuf,
    identity: String,
}

impl CacheFile {
    pub(super) fn new(path: PathBuf, identity: &str) -> Self {
        // One line, whatever a device is called.
        CacheFile { path, identity: identity.replace('\n', " ") }
    }

    /// What was measured before on this device with this driver and library. A file that cannot be used is as good as none.
    pub(super) fn load(&self) -> Vec<Entry> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => return self.ignored(&error.to_string()),
        };
        match parse(&text) {
            Some((identity, entries)) if identity == self.identity => entries,
            Some((identity, _)) => {
                tracing::info!(path = %self.path.display(), identity, "algorithms of another device or library: measuring anew");
                Vec::new()
            }
            None => self.ignored("it is damaged"),
        }
    }

    fn ignored(&self, why: &str) -> Vec<Entry> {
        tracing::warn!(path = %self.path.display(), why, "the file of measured algorithms is ignored");
        Vec::new()
    }

    /// Replaces the file. If that fails, the next start measures again.
    pub(super) fn store(&self, entries: &[Entry]) {
        if let Err(error) = write_whole(&self.path, &format(&self.identity, entries)) {
            tracing::warn!(path = %self.path.display(), %error, "measured algorithms are not kept");
        }
    }
}

/// A reader sees the old file or the new one.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}", std::process::id()));
    std::fs::write(&partial, text)?;
    std::fs::rename(&partial, path)
}

fn format(identity: &str, entries: &[Entry]) -> String {
    let mut text = format!("{FORMAT}\n{identity}\n");
    for Entry { shape, bucket, algorithm } in entries {
        let element = match shape.element {
            Element::Bf16 => "bf16",
            Element::F16 => "f16",
        };
        let ProductShape { rows, cols, out_stride, .. } = shape;
        let (out, bias) = (u8::from(shape.out_is_f32), u8::from(shape.has_bias));
        let _infallible = write!(text, "{element} {rows} {cols} {out_stride} {out} {bias} {bucket} ");
        for word in algorithm.0 {
            let _infallible = write!(text, "{word:016x}");
        }
        text.push('\n');
    }
    let sum = sum_of(&text);
    text + &format!("sum {sum:016x}\n")
}

/// Identity and entries, if the file is whole.
fn parse(text: &str) -> Option<(&str, Vec<Entry>)> {
    let (body, sum) = text.strip_suffix('\n')?.rsplit_once("\nsum ")?;
    let body = &text[..body.len() + 1];
    if u64::from_str_radix(sum, 16).ok()? != sum_of(body) {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()? != FORMAT {
        return None;
    }
    let identity = lines.next()?;
    let entries = lines.map(parse_entry).collect::<Option<Vec<Entry>>>()?;
    Some((identity, entries))
}

fn parse_entry(line: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [element, rows, cols, out_stride, out, bias, bucket, words] = fields[..] else { return None };
    let flag = |text| match text {
        "0" => Some(false),
        "1" => Some(true),
        _ => None,
    };
    let shape = ProductShape {
        element: match element {
            "bf16" => Element::Bf16,
            "f16" => Element::F16,
            _ => return None,
        },
        rows: rows.parse().ok()?,
        cols: cols.parse().ok()?,
        out_stride: out_stride.parse().ok()?,
        out_is_f32: flag(out)?,
        has_bias: flag(bias)?,
    };
    if words.len() != 128 || !words.is_ascii() {
        return None;
    }
    let mut algorithm = Algorithm([0; 8]);
    for (index, word) in algorithm.0.iter_mut().enumerate() {
        *word = u64::from_str_radix(&words[index * 16..][..16], 16).ok()?;
    }
    Some(Entry { shape, bucket: bucket.parse().ok()?, algorithm })
}

/// FNV-1a.
fn sum_of(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let shape = ProductShape {
            element: Element::Bf16,
            rows: 4096,
            cols: 14_336,
            out_stride: 4096,
            out_is_f32: false,
            has_bias: true,
        };
        let other = ProductShape { element: Element::F16, out_is_f32: true, has_bias: false, ..shape };
        let algorithm = Algorithm([1, u64::MAX, 0x0123_4567_89ab_cdef, 0, 5, 6, 7, 8]);
        vec![
            Entry { shape, bucket: 64, algorithm },
            Entry { shape: other, bucket: 8192, algorithm: Algorithm([9; 8]) },
        ]
    }

    #[test]
    fn what_was_stored_is_loaded_under_the_same_identity_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/products.txt");
        let file = CacheFile::new(path.clone(), "H200, driver 13000, cuBLASLt 131000");
        assert_eq!(file.load(), []);
        file.store(&entries());
        assert_eq!(file.load(), entries());
        file.store(&entries()[..1]);
        assert_eq!(file.load(), entries()[..1]);
        assert_eq!(CacheFile::new(path, "H200, driver 13010, cuBLASLt 131000").load(), []);
        assert_eq!(std::fs::read_dir(folder.path().join("a/b")).unwrap().count(), 1, "nothing half written");
    }

    #[test]
    fn a_damaged_file_is_ignored_whatever_the_damage() {
        let whole = format("H200", &entries());
        assert_eq!(parse(&whole), Some(("H200", entries())));
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), None, "cut after {len} bytes");
            let mut bytes = whole.clone().into_bytes();
            bytes[len] ^= 1;
            assert_eq!(String::from_utf8(bytes).ok().as_deref().and_then(parse), None, "bit of byte {len}");
        }
        // Whole, but of another kind.
        let other = whole.replace("products 1", "products 2");
        let other = other[..other.rfind("sum ").unwrap()].to_owned();
        let other = format!("{other}sum {:016x}\n", sum_of(&other));
        assert_eq!(parse(&other), None);
    }

    #[test]
    fn a_folder_in_its_place_is_no_obstacle() {
        let folder = tempfile::tempdir().unwrap();
        let file = CacheFile::new(folder.path().to_owned(), "H200");
        assert_eq!(file.load(), []);
        file.store(&entries());
        assert_eq!(file.load(), []);
    }
}
