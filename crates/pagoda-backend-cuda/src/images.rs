//! The embedded fatbins: one per file of `kernels/`, for every architecture the build was asked for.

include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Embedded bytes begin anywhere; the header of a fatbin has fields of eight bytes.
#[repr(C, align(8))]
struct Aligned<B: ?Sized>(B);

/// Names of the embedded kernel files; empty if the build had no nvcc.
pub fn embedded_kernels() -> impl ExactSizeIterator<Item = &'static str> {
    IMAGES.iter().map(|(name, _)| *name)
}

/// Architectures that the embedded kernels were compiled for (`80`, `90a`); empty if the build had no nvcc.
pub fn embedded_archs() -> impl Iterator<Item = &'static str> {
    ARCHS.split_whitespace()
}

/// Every file and its fatbin.
pub(crate) fn images() -> impl ExactSizeIterator<Item = (&'static str, &'static [u8])> {
    IMAGES.iter().map(|(file, image)| (*file, &image.0))
}

/// The file that holds a kernel, and its fatbin: the file with the longest name that begins the kernel's.
pub(crate) fn image_of(kernel: &str) -> Option<(&'static str, &'static [u8])> {
    let candidates = images().filter(|(file, _)| kernel.starts_with(file));
    candidates.max_by_key(|(file, _)| file.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fatbins_begin_where_their_fields_may_be_read() {
        assert_eq!(images().len(), embedded_kernels().len());
        for (file, image) in images() {
            assert!(image.as_ptr().cast::<u64>().is_aligned() && image.len() > 64, "{file}");
        }
    }
}
