//! Which published templates let the tools stand before the system's text, and that nothing but their place changes.

mod test_cache;

use std::collections::BTreeMap;
use std::time::SystemTime;

use pagoda_text::{ChatTemplate, ChatTemplateInput, SpecialTokens, ToolsOrder};
use serde_json::{Map, json};

fn render(template: &ChatTemplate, system: &str) -> Option<(String, ToolsOrder, String)> {
    let mut messages = json!([
        {"role": "system", "content": system},
        {"role": "user", "content": "What is the weather in Oslo?"},
        {"role": "assistant", "content": "Let me see."},
        {"role": "user", "content": "Please do."},
    ]);
    template.content_support().normalize(&mut messages);
    let tools = json!([{"type": "function", "function": {"name": "get_weather", "description": "Looks out of the window.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "A city."}},
            "required": ["city"]}}}]);
    let input = ChatTemplateInput {
        messages: &messages,
        tools: Some(&tools),
        documents: None,
        add_generation_prompt: true,
        continue_final_message: false,
        kwargs: &Map::new(),
        now: SystemTime::UNIX_EPOCH,
    };
    let prompt = template.render_tools_first(&input).ok()?;
    Some((prompt.text, prompt.order, template.render(&input).ok()?))
}

/// The bytes of a text in order, without white space: a blank line may be added between tools and text.
fn sorted(text: &str) -> Vec<u8> {
    let mut bytes: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    bytes.sort_unstable();
    bytes
}

/// The orders of the templates in the cache folder.
fn orders() -> Option<BTreeMap<String, ToolsOrder>> {
    let mut orders = BTreeMap::new();
    for entry in std::fs::read_dir(test_cache::path("test/templates")).ok()? {
        let path = entry.ok()?.path();
        if path.extension().is_none_or(|extension| extension != "jinja") {
            continue;
        }
        let name = path.file_stem().expect("a .jinja file has a stem").to_string_lossy().into_owned();
        let source = std::fs::read_to_string(&path).expect("templates are UTF-8");
        let Ok(template) = ChatTemplate::new(&source, SpecialTokens::default()) else { continue };
        let Some((moved, order, plain)) = render(&template, "You remember: nothing yet.") else { continue };
        if order == ToolsOrder::Moved {
            assert_eq!(sorted(&moved), sorted(&plain), "{name}: only places change");
            let (edited, _, _) = render(&template, "You remember: everything.").expect("it rendered before");
            let num_common = moved.bytes().zip(edited.bytes()).take_while(|(a, b)| a == b).count();
            let tools_end = moved.find("A city.").expect("the tools are shown");
            assert!(tools_end < num_common, "{name}: an edit leaves the tools before it");
        } else {
            assert_eq!(moved, plain, "{name}");
        }
        orders.insert(name, order);
    }
    (!orders.is_empty()).then_some(orders)
}

#[test]
fn published_templates_permit_it_or_are_left_alone() {
    let Some(orders) = orders() else { return test_cache::skip("there are no chat templates") };
    let with = |order| -> Vec<&str> {
        orders.iter().filter(|(_, found)| **found == order).map(|(name, _)| name.as_str()).collect()
    };
    println!("moved: {:?}", with(ToolsOrder::Moved));
    println!("first already: {:?}", with(ToolsOrder::First));
    println!("elsewhere: {:?}", with(ToolsOrder::Elsewhere));
    for (name, order) in [
        ("Qwen-Qwen2.5-7B-Instruct", ToolsOrder::Moved),
        ("Qwen-Qwen3-0.6B", ToolsOrder::Moved),
        ("meta-llama-Llama-3.1-8B-Instruct", ToolsOrder::Elsewhere),
        ("google-gemma-2-2b-it", ToolsOrder::Elsewhere),
    ] {
        if let Some(found) = orders.get(name) {
            assert_eq!(*found, order, "{name}");
        }
    }
    assert_eq!(with(ToolsOrder::Nothing), Vec::<&str>::new());
}
