//! Real chat templates render byte for byte as in Python, and fail where they fail in Python.
//!
//! The templates are those of an sdist on PyPI and the reference is `transformers`, both put in the cache folder by
//! `scripts/setup_tests.sh`; neither is committed.

mod conversations;
mod expressions;
mod known_templates;
mod test_cache;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use pagoda_text::{ChatTemplate, ChatTemplateInput, ContentSupport, SpecialTokens, TemplateError};
use serde_json::{Map, Value, json};

/// 2026-03-05 09:07:03 UTC: single digits, so that padding shows.
const NOW_US: u64 = 1_772_701_623_000_000;

/// What a template gave for a conversation: the prompt, or the reason why not.
type Outcome = Result<String, String>;

/// A template and the cases it is rendered with.
struct Subject {
    source: String,
    template: Result<ChatTemplate, TemplateError>,
    cases: Map<String, Value>,
}

impl Subject {
    fn new(source: &str, cases: impl Fn(ContentSupport) -> Map<String, Value>) -> Self {
        let (bos_token, eos_token) = (Some("<|bos|>".to_owned()), Some("<|eos|>".to_owned()));
        let template =
            ChatTemplate::new(source, SpecialTokens { bos_token, eos_token, ..SpecialTokens::default() });
        let any = ContentSupport { strings: true, parts: true };
        let support = template.as_ref().map_or(any, ChatTemplate::content_support);
        Self { source: source.to_owned(), template, cases: cases(support) }
    }

    fn render(&self, arguments: &Value) -> Outcome {
        let no_kwargs = Map::new();
        let template = self.template.as_ref().map_err(ToString::to_string)?;
        let input = ChatTemplateInput {
            messages: &arguments["messages"],
            tools: arguments.get("tools"),
            documents: None,
            add_generation_prompt: arguments["add_generation_prompt"] == true,
            continue_final_message: arguments["continue_final_message"] == true,
            kwargs: arguments["kwargs"].as_object().unwrap_or(&no_kwargs),
            now: SystemTime::UNIX_EPOCH + Duration::from_micros(NOW_US),
        };
        template.render(&input).map_err(|error| error.to_string())
    }
}

/// The templates of the cache folder, sources by name.
fn templates() -> Option<BTreeMap<String, String>> {
    let files = std::fs::read_dir(test_cache::path("test/templates"))
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()));
    let jinja = files.filter(|path| path.extension().is_some_and(|extension| extension == "jinja"));
    let named = jinja.map(|path| {
        let name = path.file_stem().expect("a .jinja file has a stem").to_string_lossy().into_owned();
        (name, std::fs::read_to_string(&path).expect("templates are UTF-8"))
    });
    Some(named.collect())
}

/// What Python makes of every template and case.
fn rendered_by_python(subjects: &BTreeMap<String, Subject>) -> Value {
    let templates: Map<String, Value> = subjects
        .iter()
        .map(|(name, subject)| (name.clone(), json!({"source": subject.source, "cases": subject.cases})))
        .collect();
    let job = json!({
        "templates": templates,
        "now_us": NOW_US,
        "special_tokens": {"bos_token": "<|bos|>", "eos_token": "<|eos|>"},
    });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/render_templates.py");
    let mut python = Command::new(test_cache::python())
        .arg(script)
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("python starts");
    python
        .stdin
        .take()
        .expect("stdin is piped")
        .write_all(job.to_string().as_bytes())
        .expect("python reads its job");
    let output = python.wait_with_output().expect("python ends");
    assert!(output.status.success(), "python failed: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("python answers in JSON")
}

/// The first place where two texts differ, with what stands around it.
fn difference(ours: &str, theirs: &str) -> String {
    let at = ours.bytes().zip(theirs.bytes()).take_while(|(a, b)| a == b).count();
    let around = |text: &str| {
        let bytes = &text.as_bytes()[at.saturating_sub(60)..(at + 60).min(text.len())];
        String::from_utf8_lossy(bytes).into_owned()
    };
    format!("at byte {at}:\n    ours   {:?}\n    python {:?}", around(ours), around(theirs))
}

fn disagreement(ours: &Outcome, python: &Value) -> Option<String> {
    match (ours, python["text"].as_str()) {
        (Ok(ours), Some(theirs)) if ours == theirs => None,
        (Ok(ours), Some(theirs)) => Some(difference(ours, theirs)),
        (Err(ours), Some(_)) => Some(format!("ours failed: {ours}")),
        (Ok(_), None) => Some(format!("python alone failed: {}", python["error"])),
        (Err(_), None) => None,
    }
}

/// Both sides' outcomes of every template and case.
struct Comparison {
    /// Where they differ, by template and case.
    disagreements: BTreeMap<(String, String), String>,
    /// The cases of each template that both rendered, to equal bytes.
    equal: BTreeMap<String, BTreeSet<String>>,
}

impl Comparison {
    fn new(subjects: &BTreeMap<String, Subject>) -> Self {
        let reference = rendered_by_python(subjects);
        let mut comparison = Self { disagreements: BTreeMap::new(), equal: BTreeMap::new() };
        for (name, subject) in subjects {
            for (case, arguments) in &subject.cases {
                let (ours, python) = (subject.render(arguments), &reference[name][case]);
                if let Some(difference) = disagreement(&ours, python) {
                    comparison.disagreements.insert((name.clone(), case.clone()), difference);
                } else if ours.is_ok() {
                    comparison.equal.entry(name.clone()).or_default().insert(case.clone());
                }
            }
        }
        comparison
    }
}

/// Whether a difference is one of those described in the environment's documentation.
fn is_known(template: &str, difference: &str) -> bool {
    known_templates::DIFFERING.iter().any(|(name, reason)| *name == template && difference.contains(reason))
}

#[test]
fn real_templates_render_as_in_python() {
    let Some(templates) = templates().filter(|_| test_cache::python().exists()) else {
        return test_cache::skip(
            "no templates or no Python environment in the cache; run scripts/setup_tests.sh",
        );
    };
    let subjects: BTreeMap<String, Subject> = templates
        .iter()
        .map(|(name, source)| (name.clone(), Subject::new(source, conversations::cases_for)))
        .collect();
    let comparison = Comparison::new(&subjects);
    let unexpected: Vec<String> = comparison
        .disagreements
        .iter()
        .filter(|((name, _), difference)| !is_known(name, difference))
        .map(|((name, case), difference)| format!("{name} / {case}: {difference}"))
        .collect();
    assert!(unexpected.is_empty(), "{}", unexpected.join("\n"));
    for name in known_templates::AGREEING {
        assert!(templates.contains_key(*name), "{name} is not among the templates");
        let agrees = !comparison.disagreements.keys().any(|(other, _)| other == name);
        assert!(agrees && comparison.equal.contains_key(*name), "{name} does not agree");
    }
    let is_in_full =
        |cases: &&BTreeSet<String>| conversations::REQUIRED.iter().all(|&case| cases.contains(case));
    let num_in_full = comparison.equal.values().filter(is_in_full).count();
    let num_texts: usize = comparison.equal.values().map(BTreeSet::len).sum();
    println!(
        "{} templates: {} agree on every case, {num_in_full} render all six conversations, {num_texts} equal texts",
        templates.len(),
        known_templates::AGREEING.len(),
    );
    assert!(num_in_full >= 20, "only {num_in_full} templates rendered all six conversations");
}

#[test]
fn expressions_evaluate_as_in_python() {
    if !test_cache::python().exists() {
        return test_cache::skip("no Python environment in the cache; run scripts/setup_tests.sh");
    }
    let messages = json!([
        {"role": "system", "content": "Be brief.\n\n And kind. "},
        {"role": "user", "content": "Hi"},
    ]);
    let case = json!({"case": {"messages": messages, "add_generation_prompt": true}});
    let cases = |_| case.as_object().expect("the literal is an object").clone();
    let subject = |&source: &&str| (source.to_owned(), Subject::new(source, cases));
    let found = Comparison::new(&expressions::EXPRESSIONS.iter().map(subject).collect()).disagreements;
    let told = |((source, _), difference): (&(String, String), &String)| format!("{source}\n  {difference}");
    assert!(found.is_empty(), "{}", found.iter().map(told).collect::<Vec<_>>().join("\n"));
}
