//! The embedded fatbins: one per file of `kernels/`, for every architecture the build was asked for.

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Names of the embedded kernel files; empty if the build had no nvcc.
pub fn embedded_kernels() -> impl ExactSizeIterator<Item = &'static str> {
    IMAGES.iter().map(|(name, _)| *name)
}

/// Architectures that the embedded kernels were compiled for (`80`, `90a`); empty if the build had no nvcc.
pub fn embedded_archs() -> impl Iterator<Item = &'static str> {
    ARCHS.split_whitespace()
}

/// Every file and its fatbin.
pub(crate) fn images() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    IMAGES.iter().copied()
}

/// The file that holds a kernel, and its fatbin: the file with the longest name that begins the kernel's.
pub(crate) fn image_of(kernel: &str) -> Option<(&'static str, &'static [u8])> {
    let candidates = IMAGES.iter().filter(|(file, _)| kernel.starts_with(file));
    candidates.max_by_key(|(file, _)| file.len()).copied()
}
