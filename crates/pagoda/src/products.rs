//! The library of products of a GPU: where it lies on this machine, and whether it may be used.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use pagoda_backend_cuda::{CudaBackend, DriverDevice};

use crate::environment;

/// Folders of Python's packages that hold NVIDIA's library, and its name there: CUDA 13's and CUDA 12's.
const WHEELS: [(&str, &str); 2] =
    [("nvidia/cu13/lib", "libcublasLt.so.13"), ("nvidia/cublas/lib", "libcublasLt.so.12")];

/// `--gemm`: what multiplies many rows on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Gemm {
    /// cuBLASLt where it is on the machine and its products are right, else the own kernel.
    #[default]
    Auto,
    /// The own kernel.
    Own,
}

/// Why a library is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// There is none.
    Absent(String),
    /// It does not compute what it should.
    Wrong(String),
}

/// Gives a GPU the library, if there is one and it passes its test; says so if not.
pub(crate) fn attach(backend: &mut CudaBackend<DriverDevice>) {
    if let Err(Unusable::Absent(why) | Unusable::Wrong(why)) = try_attach(backend) {
        tracing::warn!("products of many rows by the own kernel: {why}");
    }
}

/// As [`attach`], for those who must know.
pub(crate) fn try_attach(backend: &mut CudaBackend<DriverDevice>) -> Result<(), Unusable> {
    let device = backend.device();
    let library = device.open_products(&libraries(&environment::python_folders()));
    let library = library.map_err(|why| Unusable::Absent(format!("no cuBLASLt: {why}")))?;
    let cache = environment::product_cache(device.ordinal());
    backend.use_products(Box::new(library), cache);
    backend.prove_products().map_err(|why| {
        backend.forget_products();
        Unusable::Wrong(format!("cuBLASLt failed its test: {why}"))
    })
}

/// The library's files in Python's folders; what lies elsewhere is found by the system's loader.
pub(crate) fn libraries(folders: &[PathBuf]) -> Vec<PathBuf> {
    let packages: Vec<PathBuf> = folders.iter().flat_map(|folder| package_folders(folder)).collect();
    // Of all the newer ones first.
    let named = |(folder, name): (&str, &str)| {
        packages.iter().map(|root| root.join(folder).join(name)).filter(|file| file.is_file()).collect()
    };
    let files: [Vec<PathBuf>; 2] = WHEELS.map(named);
    files.concat()
}

/// `lib/python3*/{site,dist}-packages` of a Python.
fn package_folders(python: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(python.join("lib")) else { return Vec::new() };
    let versions = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let is_python =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"));
    let mut versions: Vec<PathBuf> = versions.filter(is_python).collect();
    versions.sort_unstable();
    versions.iter().flat_map(|path| ["site-packages", "dist-packages"].map(|name| path.join(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_found_in_every_kind_of_python_folder_and_the_newer_one_first() {
        let folder = tempfile::tempdir().unwrap();
        let place = |path: &str| {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path
        };
        let older = place("venv/lib/python3.12/site-packages/nvidia/cublas/lib/libcublasLt.so.12");
        let newer = place("usr/lib/python3/dist-packages/nvidia/cu13/lib/libcublasLt.so.13");
        place("usr/lib/perl5/site-packages/nvidia/cu13/lib/libcublasLt.so.13");
        place("venv/lib/python3.12/site-packages/nvidia/cublas/lib/libcublas.so.12");
        let folders = ["venv", "usr", "absent"].map(|name| folder.path().join(name));
        assert_eq!(libraries(&folders), [newer, older]);
    }
}
