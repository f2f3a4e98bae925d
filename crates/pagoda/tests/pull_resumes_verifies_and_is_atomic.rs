//! `pagoda pull org/repo` against a hub on loopback that misbehaves: what ends up under the model's name is complete and
//! verified, or is not there.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::{Command, Output};

use support::hub::{Hub, HubFiles, sha256};

/// A user's machine: a hub and a cache folder.
struct Machine {
    hub: Hub,
    cache: tempfile::TempDir,
}

impl Machine {
    fn new(files: HubFiles) -> Self {
        Machine { hub: Hub::start(files), cache: tempfile::tempdir().unwrap() }
    }

    fn equip(&self, command: &mut Command) {
        command.env("XDG_CACHE_HOME", self.cache.path()).env("HF_ENDPOINT", self.hub.endpoint());
        command.env("NO_PROXY", "127.0.0.1").env_remove("HF_TOKEN");
    }

    fn pull(&self, model: &str) -> Output {
        let mut command = support::pagoda();
        self.equip(&mut command);
        command.args(["pull", model]).output().unwrap()
    }

    fn models(&self) -> PathBuf {
        self.cache.path().join("pagoda/models")
    }

    fn weights(&self) -> Option<Vec<u8>> {
        std::fs::read(self.models().join("org--repo/model.safetensors")).ok()
    }
}

/// Bytes that repeat nowhere near the buffer size.
fn weights() -> Vec<u8> {
    (0..300_000u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn repository() -> HubFiles {
    let files =
        [("model.safetensors", weights()), ("config.json", b"{}".to_vec()), ("README.md", b"#".to_vec())];
    let files =
        files.into_iter().map(|(path, content)| (path.to_owned(), content)).collect::<HashMap<_, _>>();
    HubFiles { files, ..HubFiles::default() }
}

/// What an interrupted run of `commit` left behind.
fn leave_part(machine: &Machine, commit: &str, bytes: &[u8]) {
    let staging = machine.models().join(".org--repo.partial");
    std::fs::create_dir_all(&staging).unwrap();
    std::fs::write(staging.join(".origin"), commit).unwrap();
    std::fs::write(staging.join("model.safetensors.part"), bytes).unwrap();
}

fn assert_ok(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn assert_fails_with(output: &Output, text: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains(text), "wanted {text:?} in: {stderr}");
}

#[test]
fn a_repository_is_fetched_once_and_its_folder_is_printed() {
    let machine = Machine::new(repository());
    let output = machine.pull("org/repo");
    assert_ok(&output);
    let folder = machine.models().join("org--repo");
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), folder.to_str().unwrap());
    assert_eq!(machine.weights(), Some(weights()));
    assert!(folder.join("config.json").is_file());
    assert!(!folder.join("README.md").exists());
    assert_ok(&machine.pull("org/repo"));
    assert_eq!(machine.hub.downloads().len(), 2, "{:?}", machine.hub.downloads());
}

#[test]
fn a_cut_connection_is_resumed_where_it_stopped() {
    let machine = Machine::new(HubFiles { cut_after: Some(500_000), ..repository() });
    assert_ok(&machine.pull("org/repo"));
    assert_eq!(machine.weights(), Some(weights()));
    let path = "/org/repo/resolve/c0ffee/model.safetensors";
    let resumed: Vec<_> = machine.hub.downloads().into_iter().filter(|line| line.starts_with(path)).collect();
    assert_eq!(resumed, [path.to_owned(), format!("{path} from 500000"), format!("{path} from 1000000")]);
}

#[test]
fn a_server_without_ranges_starts_over_and_still_ends_right() {
    let machine = Machine::new(HubFiles { cut_after: Some(500_000), ..repository() });
    leave_part(&machine, "c0ffee", &weights()[..700_000]);
    machine.hub.set(HubFiles { ignores_ranges: true, ..repository() });
    assert_ok(&machine.pull("org/repo"));
    assert_eq!(machine.weights(), Some(weights()));
}

#[test]
fn a_later_run_goes_on_with_what_an_earlier_one_left() {
    let machine = Machine::new(repository());
    leave_part(&machine, "c0ffee", &weights()[..700_000]);
    assert_ok(&machine.pull("org/repo"));
    assert_eq!(machine.weights(), Some(weights()));
    let downloads = machine.hub.downloads();
    assert!(downloads.iter().any(|line| line.ends_with("model.safetensors from 700000")), "{downloads:?}");
}

#[test]
fn parts_of_another_commit_are_not_mixed_in() {
    let machine = Machine::new(repository());
    leave_part(&machine, "0ld", &[7; 700_000]);
    assert_ok(&machine.pull("org/repo"));
    assert_eq!(machine.weights(), Some(weights()));
}

#[test]
fn a_wrong_sha256_is_refused_and_removed() {
    let machine = Machine::new(HubFiles { lies_about_sha256: true, ..repository() });
    assert_fails_with(&machine.pull("org/repo"), "its sha256 is");
    assert_eq!(machine.weights(), None);
    let staging = machine.models().join(".org--repo.partial");
    assert!(!staging.join("model.safetensors.part").exists());
    // Nothing of the wrong file is resumed when the server has come to its senses.
    machine.hub.set(repository());
    assert_ok(&machine.pull("org/repo"));
    assert_eq!(machine.weights(), Some(weights()));
}

#[test]
fn a_server_that_is_busy_for_a_moment_is_asked_again() {
    let machine = Machine::new(HubFiles { num_unavailable: 2, ..repository() });
    assert_ok(&machine.pull("org/repo"));
    assert_eq!(machine.weights(), Some(weights()));
}

#[test]
fn a_full_disk_is_one_clear_error_and_the_next_run_goes_on() {
    let machine = Machine::new(repository());
    // A file size limit stands in for the full disk: the write fails in the same place. 1024 blocks of 512 bytes.
    let mut command = Command::new("sh");
    machine.equip(&mut command);
    let script = r#"trap "" XFSZ; ulimit -f 1024; exec "$@""#;
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_pagoda"), "pull", "org/repo"]);
    let output = command.output().unwrap();
    assert_fails_with(&output, "free some space");
    assert_eq!(machine.weights(), None, "an incomplete model got its name");
    let part = machine.models().join(".org--repo.partial/model.safetensors.part");
    let kept = std::fs::metadata(part).unwrap().len();
    assert!(kept > 0 && kept <= 1024 * 1024, "{kept} bytes were kept");
    assert_ok(&machine.pull("org/repo"));
    assert_eq!(machine.weights(), Some(weights()));
    let downloads = machine.hub.downloads();
    assert!(downloads.iter().any(|line| line.contains("model.safetensors from ")), "{downloads:?}");
}

#[test]
fn a_model_has_no_name_until_all_its_files_are_right() {
    let mut incomplete = repository();
    incomplete.files.insert("tokenizer.json".into(), vec![b' '; 9]);
    let machine = Machine::new(HubFiles { cut_after: Some(0), ..incomplete });
    assert_fails_with(&machine.pull("org/repo"), "run it again");
    assert!(!machine.models().join("org--repo").exists());
}

#[test]
fn a_catalogue_can_name_the_files_of_a_hub_and_falls_back_to_the_next_source() {
    let machine = Machine::new(repository());
    let catalogue = machine.cache.path().join("catalogue.toml");
    let source =
        |repo: &str| format!("[[model.sources]]\nkind = \"hub\"\nrepo = \"{repo}\"\nrevision = \"c0ffee\"\n");
    let file = |path: &str, content: &[u8]| {
        let (size, hash) = (content.len(), sha256(content));
        format!("[[model.files]]\npath = \"{path}\"\nsize_bytes = {size}\nsha256 = \"{hash}\"\n")
    };
    let text = format!(
        "default = \"own\"\n[[model]]\nname = \"own\"\ndescription = \"d\"\nlicense = \"l\"\n{}{}{}{}",
        file("model.safetensors", &weights()),
        file("config.json", b"{}"),
        source("org/gone"),
        source("org/repo"),
    );
    std::fs::write(&catalogue, text).unwrap();
    let pull = || {
        let mut command = support::pagoda();
        machine.equip(&mut command);
        command.arg("pull").arg("--catalogue").arg(&catalogue).output().unwrap()
    };
    let folder = machine.models().join("own");
    let output = pull();
    assert_ok(&output);
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), folder.to_str().unwrap());
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), weights());
    // `pull` looks again at what is there, and mends it.
    std::fs::write(folder.join("config.json"), "damaged").unwrap();
    assert_ok(&pull());
    assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), b"{}");
}

#[test]
fn without_python_the_error_names_what_is_missing() {
    let machine = Machine::new(repository());
    let mut command = support::pagoda();
    machine.equip(&mut command);
    let output =
        command.env("PATH", machine.cache.path()).args(["pull", "smollm2-135m-instruct"]).output().unwrap();
    assert_fails_with(&output, "python3 is not on the PATH");
}

#[test]
fn unknown_names_and_missing_files_are_explained() {
    let machine = Machine::new(repository());
    assert_fails_with(&machine.pull("no-such-model"), "known: smollm2-135m-instruct");
    assert_fails_with(&machine.pull("./gone.gguf"), "there is no file or folder");
    assert_fails_with(&machine.pull("org/other"), "does not exist");
}
