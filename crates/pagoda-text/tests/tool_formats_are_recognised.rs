//! Which form of tool calls and which reasoning tags are recognised in real chat templates.

mod known_formats;
mod test_cache;

use std::collections::BTreeMap;

use pagoda_text::{ChatTemplate, ReasoningTags, SpecialTokens, ToolSupport};

/// What is recognised: the markup around calls and their syntax, or `generic`; then the tag before reasoning.
fn recognised(source: &str) -> Option<String> {
    let special_tokens = SpecialTokens {
        bos_token: Some("<|bos|>".into()),
        eos_token: Some("<|eos|>".into()),
        ..SpecialTokens::default()
    };
    let template = ChatTemplate::new(source, special_tokens).ok()?;
    let tools = ToolSupport::probe(&template);
    let tags = ReasoningTags::probe(&template).map_or("-".into(), |tags| tags.open);
    let format = if tools.is_native() { tools.format().to_string() } else { "generic".into() };
    Some(format!("{format} | {tags}"))
}

#[test]
fn every_known_template_gets_its_format() {
    let Ok(folder) = std::fs::read_dir(test_cache::path("test/templates")) else {
        return test_cache::skip("no templates in the cache; run scripts/setup_tests.sh");
    };
    let mut found = BTreeMap::new();
    for path in folder.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_none_or(|extension| extension != "jinja") {
            continue;
        }
        let name = path.file_stem().expect("a .jinja file has a stem").to_string_lossy().into_owned();
        let source = std::fs::read_to_string(&path).expect("templates are UTF-8");
        found.extend(recognised(&source).map(|format| (name, format)));
    }
    let known: BTreeMap<String, String> =
        known_formats::FORMATS.iter().map(|(name, format)| ((*name).into(), (*format).into())).collect();
    for (name, format) in &known {
        assert_eq!(found.get(name), Some(format), "{name}");
    }
    let num_native = found.values().filter(|format| !format.starts_with("generic")).count();
    println!("{} templates: {num_native} show a form of calls that is recognised", found.len());
    assert!(num_native >= 44, "only {num_native}");
}

/// SmolLM2's own template, which knows neither tools nor the role of their results.
#[test]
fn a_template_without_tools_gets_the_generic_rendering() {
    let smollm2 = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
                   {{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}\
                   {% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
                   {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    assert_eq!(recognised(smollm2).as_deref(), Some("generic | -"));
}
