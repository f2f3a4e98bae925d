//! A model hub repository: which of its files a model needs, pinned to one commit.

use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;
use ureq::Agent;

use super::http::{self, RemoteFile};
use super::part::{Expected, WantedFile};

/// The folder of the chat templates that are not the default one.
const NAMED_TEMPLATES: &str = "additional_chat_templates/";

/// Where the hub is and who asks.
pub(crate) struct Hub {
    /// Without a slash at the end.
    pub(crate) endpoint: String,
    /// For gated repositories.
    pub(crate) token: Option<String>,
    /// The shared client.
    pub(crate) agent: Agent,
}

/// One file of a repository.
#[derive(Clone, Debug)]
pub(crate) struct HubFile {
    path: String,
    expected: Expected,
}

/// The files of one commit.
pub(crate) struct Snapshot {
    repo: String,
    commit: String,
    files: Vec<HubFile>,
}

impl Hub {
    /// The listing of `repo` at `revision`.
    pub(crate) fn snapshot(&self, repo: &str, revision: &str) -> anyhow::Result<Snapshot> {
        let url = format!("{}/api/models/{repo}/revision/{revision}?blobs=true", self.endpoint);
        let listing = http::get_json(&self.agent, &self.remote(url, Expected::default()))?;
        let commit = listing["sha"].as_str().unwrap_or(revision).to_owned();
        let siblings = listing["siblings"].as_array().with_context(|| format!("{repo} lists no files"))?;
        let files = siblings.iter().filter_map(hub_file).collect();
        Ok(Snapshot { repo: repo.to_owned(), commit, files })
    }

    /// Fetches every file to `folder`. Files that an interrupted run had finished are not fetched again.
    pub(crate) fn fetch(&self, snapshot: &Snapshot, files: &[HubFile], folder: &Path) -> anyhow::Result<()> {
        for file in files {
            // Weights may lie in a folder of their own there, but not here; templates are told apart by theirs.
            let is_template = file.path.starts_with(NAMED_TEMPLATES);
            let name =
                if is_template { &file.path } else { file.path.rsplit('/').next().unwrap_or(&file.path) };
            let target = folder.join(name);
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
            }
            self.fetch_file(snapshot, file, &target)?;
        }
        Ok(())
    }

    /// Fetches one file to `target`.
    fn fetch_file(&self, snapshot: &Snapshot, file: &HubFile, target: &Path) -> anyhow::Result<()> {
        if target.exists() {
            return Ok(());
        }
        let url = format!("{}/{}/resolve/{}/{}", self.endpoint, snapshot.repo, snapshot.commit, file.path);
        http::download(&self.agent, &self.remote(url, file.expected.clone()), target)
    }

    /// Fetches a file whose content is known beforehand.
    pub(crate) fn fetch_known(
        &self,
        repo: &str,
        revision: &str,
        file: &WantedFile<'_>,
    ) -> anyhow::Result<()> {
        let url = format!("{}/{repo}/resolve/{revision}/{}", self.endpoint, file.path);
        http::download(&self.agent, &self.remote(url, file.expected.clone()), &file.target)
    }

    fn remote(&self, url: String, expected: Expected) -> RemoteFile {
        RemoteFile { url, token: self.token.clone(), expected }
    }
}

impl Snapshot {
    /// The commit that everything is fetched from.
    pub(crate) fn commit(&self) -> &str {
        &self.commit
    }

    /// The files of the model: the safetensors with their JSON, else the GGUF file that `selector` names.
    pub(crate) fn select(&self, selector: Option<&str>) -> anyhow::Result<Vec<HubFile>> {
        let ggufs: Vec<&HubFile> = self.files.iter().filter(|file| file.path.ends_with(".gguf")).collect();
        if let Some(selector) = selector {
            let wanted = selector.to_lowercase();
            let chosen = ggufs.iter().filter(|file| file.path.to_lowercase().contains(&wanted));
            return self.one_gguf(chosen.copied().collect());
        }
        let is_top_level = |file: &&HubFile| !file.path.contains('/');
        let weights =
            self.files.iter().filter(is_top_level).filter(|file| file.path.ends_with(".safetensors"));
        // `consolidated` files are a second copy of the same weights in another layout.
        let mut wanted: Vec<HubFile> =
            weights.filter(|file| !file.path.starts_with("consolidated")).cloned().collect();
        if wanted.is_empty() {
            return self.one_gguf(ggufs);
        }
        wanted.extend(self.files.iter().filter(|file| is_side_file(&file.path)).cloned());
        Ok(wanted)
    }

    /// All parts of the one model in `candidates`.
    fn one_gguf(&self, candidates: Vec<&HubFile>) -> anyhow::Result<Vec<HubFile>> {
        let mut models: Vec<&str> = candidates.iter().map(|file| split_stem(&file.path)).collect();
        models.sort_unstable();
        models.dedup();
        match models.len() {
            0 => bail!("{} has no safetensors or GGUF file that fits", self.repo),
            1 => Ok(candidates.into_iter().cloned().collect()),
            _ => bail!(
                "{} has several GGUF files; name one as {}:PART_OF_ITS_NAME, out of {}",
                self.repo,
                self.repo,
                models.join(", ")
            ),
        }
    }
}

/// What belongs to the weights: configuration, tokenizer, shard index, chat templates.
fn is_side_file(path: &str) -> bool {
    let is_named_template = path
        .strip_prefix("additional_chat_templates/")
        .is_some_and(|name| name.ends_with(".jinja") && !name.contains('/'));
    is_named_template || (!path.contains('/') && (path.ends_with(".json") || path.ends_with(".jinja")))
}

/// `model-00001-of-00003.gguf` and its sisters are one model.
fn split_stem(path: &str) -> &str {
    let stem = path.strip_suffix(".gguf").unwrap_or(path);
    let bytes = stem.as_bytes();
    let is_split = bytes.len() > 15 && &bytes[bytes.len() - 9..bytes.len() - 5] == b"-of-";
    if is_split { &stem[..stem.len() - 15] } else { stem }
}

fn hub_file(sibling: &Value) -> Option<HubFile> {
    let path = sibling["rfilename"].as_str()?.to_owned();
    // A listing is a stranger's word: no path may lead out of the folder.
    if path.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
        return None;
    }
    let size_bytes = sibling["size"].as_u64();
    let sha256 = sibling["lfs"]["sha256"].as_str().map(str::to_lowercase);
    Some(HubFile { path, expected: Expected { size_bytes, sha256 } })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(paths: &[&str]) -> Snapshot {
        let files = paths
            .iter()
            .filter_map(|path| hub_file(&serde_json::json!({ "rfilename": path, "size": 1 })))
            .collect();
        Snapshot { repo: "org/repo".into(), commit: "c0ffee".into(), files }
    }

    fn names(files: &[HubFile]) -> Vec<&str> {
        files.iter().map(|file| file.path.as_str()).collect()
    }

    #[test]
    fn safetensors_come_with_their_json_and_without_second_copies() {
        let snapshot = snapshot(&[
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "model.safetensors",
            "onnx/model.onnx",
            "original/a.safetensors",
            "../evil.json",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
        ]);
        assert_eq!(
            names(&snapshot.select(None).unwrap()),
            [
                "model.safetensors",
                "config.json",
                "chat_template.jinja",
                "additional_chat_templates/tool_use.jinja"
            ]
        );
    }

    #[test]
    fn gguf_repositories_need_a_selector_when_they_hold_several_models() {
        let snapshot = snapshot(&["a-Q4_0.gguf", "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"]);
        let error = snapshot.select(None).unwrap_err().to_string();
        assert!(error.contains("a-Q4_0, a-Q8_0"), "{error}");
        assert_eq!(names(&snapshot.select(Some("q8_0")).unwrap()).len(), 2);
        assert_eq!(names(&snapshot.select(Some("q4_0")).unwrap()), ["a-Q4_0.gguf"]);
    }
}
