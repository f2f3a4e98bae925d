//! Compiles the kernels with g++: the shim and every kernel file into a shared object of its own, so that equal names in
//! two files cannot meet.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::SystemTime;
use std::{fs, io};

/// Whether the code looks after itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sanitize {
    /// Address and undefined behaviour.
    Yes,
    /// Faster to compile and to run.
    No,
}

/// Compiles the shim and all of `kernels` into `out`, several at a time; what is newer than its sources stays.
/// Of several callers with the same folder, in whatever process, one compiles and the others wait.
pub fn compile_all(kernels: &Path, out: &Path, sanitize: Sanitize) -> io::Result<()> {
    fs::create_dir_all(out)?;
    let lock = fs::File::create(out.join("lock"))?;
    // Until it is closed, at the end.
    lock.lock()?;
    let mut sources = vec![kernels.join("simt/simt.cpp")];
    let entries: Vec<PathBuf> =
        fs::read_dir(kernels)?.map(|entry| entry.map(|e| e.path())).collect::<Result<_, _>>()?;
    sources.extend(entries.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "cu")));
    let newest_header = newest(&kernels.join("include"))?.max(newest(&kernels.join("simt"))?);
    let num_jobs = std::thread::available_parallelism().map_or(1, usize::from);
    for group in sources.chunks(num_jobs) {
        let mut jobs = Vec::new();
        for source in group {
            let object = object_of(source, out);
            let newest_source = fs::metadata(source)?.modified()?.max(newest_header);
            if !fs::metadata(&object)
                .and_then(|object| object.modified())
                .is_ok_and(|built| built > newest_source)
            {
                jobs.push((spawn(kernels, source, &object, sanitize)?, object));
            }
        }
        for (job, object) in jobs {
            finish(job, &object)?;
        }
    }
    Ok(())
}

/// Compiles one source, which may lie elsewhere than the headers, into `out`.
pub fn compile_one(kernels: &Path, source: &Path, out: &Path, sanitize: Sanitize) -> io::Result<()> {
    fs::create_dir_all(out)?;
    let object = object_of(source, out);
    finish(spawn(kernels, source, &object, sanitize)?, &object)
}

fn object_of(source: &Path, out: &Path) -> PathBuf {
    out.join(source.file_stem().expect("a source has a name")).with_extension("so")
}

/// Written beside its place first: a compiler that is stopped leaves nothing that looks finished.
fn unfinished(object: &Path) -> PathBuf {
    object.with_extension("so.part")
}

fn spawn(kernels: &Path, source: &Path, object: &Path, sanitize: Sanitize) -> io::Result<Child> {
    let mut command = Command::new("g++");
    command.args(["-std=c++20", "-x", "c++", "-DPAGODA_SIMT", "-fPIC", "-shared", "-g1", "-mf16c"]);
    // Vectors are read through other types, as CUDA code does.
    command.args([
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
    ]);
    match sanitize {
        // An error ends the program; alignment matters, since a device faults where a CPU does not.
        Sanitize::Yes => command.args(["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]),
        Sanitize::No => command.arg("-O2"),
    };
    // Headers beside a changed source come first.
    if let Some(folder) = source.parent() {
        command.arg("-I").arg(folder);
    }
    command.arg("-I").arg(kernels.join("include")).arg("-I").arg(kernels.join("simt"));
    command.arg("-o").arg(unfinished(object)).arg(source).stderr(Stdio::piped()).spawn()
}

fn finish(job: Child, object: &Path) -> io::Result<()> {
    let output = job.wait_with_output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    fs::rename(unfinished(object), object)
}

fn newest(folder: &Path) -> io::Result<SystemTime> {
    let mut newest = SystemTime::UNIX_EPOCH;
    for entry in fs::read_dir(folder)? {
        newest = newest.max(entry?.metadata()?.modified()?);
    }
    Ok(newest)
}
