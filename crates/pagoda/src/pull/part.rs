//! A file that is still arriving: appended to a `.part` file while it is hashed, so that a cut download goes on where it
//! stopped, and renamed only after size and sha256 were found right.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use sha2::{Digest, Sha256};

use super::progress::bytes_text;

/// What the finished file must be. A hub gives no sha256 for its small text files.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    /// Exact size, if known.
    pub(crate) size_bytes: Option<u64>,
    /// Lower-case hex, if known.
    pub(crate) sha256: Option<String>,
}

/// A file whose content is known beforehand.
pub(crate) struct WantedFile<'a> {
    /// Where it lies in the model's folder.
    pub(crate) path: &'a str,
    /// What it must be.
    pub(crate) expected: Expected,
    /// Where it is to lie.
    pub(crate) target: PathBuf,
}

/// The open `.part` file.
pub(crate) struct PartFile {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    len: u64,
}

impl PartFile {
    /// Opens the part beside `target`, and hashes what an earlier run left in it.
    pub(crate) fn open(target: &Path) -> anyhow::Result<Self> {
        let mut name = target.file_name().context("a download needs a file name")?.to_owned();
        name.push(".part");
        let path = target.with_file_name(name);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let mut hasher = Sha256::new();
        let len =
            hash_reader(&mut file, &mut hasher).with_context(|| format!("reading {}", path.display()))?;
        Ok(PartFile { path, file, hasher, len })
    }

    /// Bytes that are here.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Appends a piece. An error here is the disk's: the piece may be partly written, so the part is cut back to what
    /// was hashed, and a later run goes on from there.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            // Best effort: if even this fails, the wrong hash of the next run removes the part.
            let _ = self.file.set_len(self.len);
            return Err(error).with_context(|| {
                format!(
                    "writing {} after {}: free some space or point XDG_CACHE_HOME to another disk, then run it again; \
                     the download goes on from there",
                    self.path.display(),
                    bytes_text(self.len)
                )
            });
        }
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Starts over.
    pub(crate) fn clear(&mut self) -> anyhow::Result<()> {
        self.file.set_len(0).with_context(|| format!("truncating {}", self.path.display()))?;
        self.hasher = Sha256::new();
        self.len = 0;
        Ok(())
    }

    /// Checks the content and gives it its name. Wrong content is removed: it must not be resumed.
    pub(crate) fn commit(self, expected: &Expected, target: &Path) -> anyhow::Result<()> {
        let sha256 = hex(&self.hasher.finalize());
        let wrong = match expected {
            Expected { size_bytes: Some(size), .. } if *size != self.len => {
                Some(format!("it has {} bytes instead of {size}", self.len))
            }
            Expected { sha256: Some(wanted), .. } if *wanted != sha256 => {
                Some(format!("its sha256 is {sha256} instead of {wanted}"))
            }
            _ => None,
        };
        if let Some(wrong) = wrong {
            std::fs::remove_file(&self.path).with_context(|| format!("removing {}", self.path.display()))?;
            bail!("the file fetched for {} is not the right one and was removed: {wrong}", target.display());
        }
        self.file.sync_all().with_context(|| format!("flushing {}", self.path.display()))?;
        std::fs::rename(&self.path, target).with_context(|| format!("renaming to {}", target.display()))
    }
}

/// The sha256 of a whole file, in hex.
pub(crate) fn sha256_of(path: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    hash_reader(&mut file, &mut hasher).with_context(|| format!("reading {}", path.display()))?;
    Ok(hex(&hasher.finalize()))
}

fn hash_reader(reader: &mut impl Read, hasher: &mut Sha256) -> std::io::Result<u64> {
    let mut buffer = vec![0; 1 << 17];
    let mut len = 0;
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok(len);
        }
        hasher.update(&buffer[..read]);
        len += read as u64;
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
