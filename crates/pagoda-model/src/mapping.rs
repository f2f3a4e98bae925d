//! A read-only memory mapping of one checkpoint file. The only `unsafe` of this crate.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::ModelError;

/// The bytes of a file, paged in by the operating system on first use.
#[derive(Debug)]
pub(crate) struct Mapping {
    path: PathBuf,
    map: Mmap,
}

impl Mapping {
    /// Maps a file. An empty file is an error, because no format has empty files.
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() || metadata.len() == 0 {
            let problem = "is empty or not a regular file".to_owned();
            return Err(ModelError::InvalidFile { path: path.to_owned(), problem });
        }
        // SAFETY: the mapping is private and read-only, and its slices are borrowed from `self`, which owns it. A file that
        // another process truncates while it is mapped raises SIGBUS; that is the documented price of not copying weights.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        Ok(Mapping { path: path.to_owned(), map })
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Where it came from.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}
