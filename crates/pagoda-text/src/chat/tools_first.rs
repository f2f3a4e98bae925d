//! Tools before the system's text. Agents edit their memory inside the system text all the time and their tools hardly ever;
//! where the tools come behind the text, every edit makes the prefix cache compute them again.
//!
//! No template is rewritten: two renderings of a small conversation show what the template writes between the system
//! text and the end of its block when there are tools, and in the real prompt that section changes places with the text.

use serde_json::{Value, json};

use super::{ChatTemplate, ChatTemplateInput, TemplateError};

/// A prompt, and where its tools stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolsFirstPrompt {
    /// The prompt, with the tools moved if the order is [`ToolsOrder::Moved`].
    pub text: String,
    /// Where the tools stand.
    pub order: ToolsOrder,
}

/// Where the tools of a prompt stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToolsOrder {
    /// There are no tools, or there is no system text: nothing to order.
    Nothing,
    /// The template itself writes them before the system text.
    First,
    /// They stood behind the system text and now stand before it.
    Moved,
    /// The template writes them outside of the system text's block, or not at all: they stay where they are.
    Elsewhere,
}

/// What a template writes around the system text when there are tools.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    /// Before the text.
    before: String,
    /// Behind it, up to where a rendering without tools goes on.
    section: String,
}

/// The text that stands for the system's in the small conversation.
const MARKER: &str = "Pagoda system probe 7f3a";

impl ChatTemplate {
    /// Renders a conversation with its tools before the system text, where the template permits; else as
    /// [`ChatTemplate::render`] does.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_tools_first(&self, input: &ChatTemplateInput) -> Result<ToolsFirstPrompt, TemplateError> {
        let text = self.render(input)?;
        let system = system_text(input.messages).filter(|text| !text.trim().is_empty());
        let tool_name = input.tools.and_then(|tools| tools[0]["function"]["name"].as_str());
        let (Some(system), Some(tool_name)) = (system, tool_name) else {
            return Ok(ToolsFirstPrompt { text, order: ToolsOrder::Nothing });
        };
        let Some(frame) = self.frame(input) else {
            return Ok(ToolsFirstPrompt { text, order: ToolsOrder::Elsewhere });
        };
        if frame.section.is_empty() && frame.before.contains(tool_name) {
            return Ok(ToolsFirstPrompt { text, order: ToolsOrder::First });
        }
        match frame.section.contains(tool_name).then(|| frame.swap(&text, system)).flatten() {
            Some(text) => Ok(ToolsFirstPrompt { text, order: ToolsOrder::Moved }),
            None => Ok(ToolsFirstPrompt { text, order: ToolsOrder::Elsewhere }),
        }
    }

    /// `None` if the tools are not written behind the system text or before it.
    fn frame(&self, input: &ChatTemplateInput) -> Option<Frame> {
        let content = |text: &str| match self.content_support().strings {
            true => json!(text),
            false => json!([{"type": "text", "text": text}]),
        };
        let messages = json!([
            {"role": "system", "content": content(MARKER)},
            {"role": "user", "content": content("x")},
        ]);
        let probe = ChatTemplateInput {
            messages: &messages,
            add_generation_prompt: false,
            continue_final_message: false,
            ..*input
        };
        let with = self.render(&probe).ok()?;
        let without = self.render(&ChatTemplateInput { tools: None, ..probe }).ok()?;
        let (before, behind) = with.split_once(MARKER)?;
        let (_, behind_without) = without.split_once(MARKER)?;
        let section = behind.strip_suffix(behind_without)?;
        // Tools in a block of their own cannot move into the text's.
        let end_of_block = first_mark(behind_without);
        let is_one_block = end_of_block.is_empty() || !section.contains(end_of_block);
        is_one_block.then(|| Frame { before: before.to_owned(), section: section.to_owned() })
    }
}

/// What a text begins with: a mark in brackets (`<|im_end|>`, `[/INST]`), or a word.
fn first_mark(text: &str) -> &str {
    let text = text.trim_start();
    let ends = |(at, char): (usize, char)| match char {
        '>' | ']' => Some(at + 1),
        _ => char.is_whitespace().then_some(at),
    };
    let end = text.char_indices().find_map(ends);
    &text[..end.unwrap_or(text.len())]
}

impl Frame {
    /// The prompt with section and text in the other order. `None` if it is not made as the small one was.
    fn swap(&self, prompt: &str, system: &str) -> Option<String> {
        let rest = prompt.strip_prefix(self.before.as_str())?;
        // Templates may trim the text.
        let shown = [system, system.trim(), system.trim_end(), system.trim_start()];
        let (shown, tail) = shown.into_iter().find_map(|shown| {
            let tail = rest.strip_prefix(shown)?.strip_prefix(self.section.as_str())?;
            Some((shown, tail))
        })?;
        let tools = self.section.trim();
        let (gap, end) = self.section.split_once(tools)?;
        let gap = if gap.is_empty() { "\n\n" } else { gap };
        Some([&self.before, tools, gap, shown, end, tail].concat())
    }
}

/// The text of the conversation's first message, if it is the system's.
fn system_text(messages: &Value) -> Option<&str> {
    let first = messages.get(0).filter(|message| message["role"] == "system")?;
    match &first["content"] {
        Value::String(text) => Some(text),
        Value::Array(parts) if parts.len() == 1 => parts[0]["text"].as_str(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Map;

    use crate::chat::SpecialTokens;

    fn ordered(template: &str, system: &str, with_tools: bool) -> ToolsFirstPrompt {
        let template = ChatTemplate::new(template, SpecialTokens::default()).unwrap();
        let messages = json!([{"role": "system", "content": system}, {"role": "user", "content": "hi"}]);
        let tools = json!([{"type": "function", "function": {"name": "lookup"}}]);
        let input = ChatTemplateInput {
            messages: &messages,
            tools: with_tools.then_some(&tools),
            documents: None,
            add_generation_prompt: true,
            continue_final_message: false,
            kwargs: &Map::new(),
            now: std::time::SystemTime::UNIX_EPOCH,
        };
        template.render_tools_first(&input).unwrap()
    }

    const BEHIND: &str = "{% for m in messages %}[{{ m.role }}:{{ m.content | trim }}\
        {% if m.role == 'system' and tools %}\n\n# Tools\n{% for t in tools %}{{ t.function.name }}{% endfor %}\n{% endif %}]\
        {% endfor %}{% if add_generation_prompt %}[assistant:{% endif %}";
    const BEFORE: &str = "[{% if tools %}{{ tools[0].function.name }}{% endif %}]{% for m in messages %}[{{ m.content }}]{% endfor %}";
    const OWN_BLOCK: &str = "{% for m in messages %}{{ m.role }}: {{ m.content }}<end>\n\
        {% if m.role == 'system' and tools %}tools: {{ tools[0].function.name }}<end>\n{% endif %}{% endfor %}";
    const WITH_USER: &str = "{% for m in messages %}[{% if m.role == 'user' and tools %}{{ tools[0].function.name }}{% endif %}\
        {{ m.content }}]{% endfor %}";

    #[test]
    fn tools_behind_the_text_change_places_with_it() {
        let prompt = ordered(BEHIND, " be kind \n", true);
        assert_eq!(prompt.order, ToolsOrder::Moved);
        assert_eq!(prompt.text, "[system:# Tools\nlookup\nbe kind][user:hi][assistant:");
    }

    #[test]
    fn other_orders_are_left_alone() {
        let cases = [
            (BEFORE, true, ToolsOrder::First),
            (WITH_USER, true, ToolsOrder::Elsewhere),
            ("{% for m in messages %}{{ m.content }}{% endfor %}", true, ToolsOrder::Elsewhere),
            (OWN_BLOCK, true, ToolsOrder::Elsewhere),
            (BEHIND, false, ToolsOrder::Nothing),
        ];
        for (template, with_tools, order) in cases {
            assert_eq!(ordered(template, "be kind", with_tools).order, order, "{template}");
        }
        assert_eq!(ordered(BEHIND, " ", true).order, ToolsOrder::Nothing);
    }

    #[test]
    fn an_edit_of_the_text_leaves_everything_before_it() {
        let [old, new] = ["memory: a", "memory: b"].map(|system| ordered(BEHIND, system, true).text);
        let num_common = old.bytes().zip(new.bytes()).take_while(|(old, new)| old == new).count();
        assert!(old[..num_common].contains("lookup"), "{old}");
    }
}
