//! What chat templates do that no comparison with Python shows: typed errors, limits, choice of template, content forms.

use std::collections::BTreeMap;
use std::time::SystemTime;

use pagoda_text::{
    ChatTemplate, ChatTemplateInput, ContentSupport, SpecialTokens, TemplateError, TemplateLimits,
    TemplateSources,
};
use serde_json::{Map, Value, json};

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, SpecialTokens::default()).expect("the template is valid")
}

fn limited(source: &str, limits: TemplateLimits) -> ChatTemplate {
    let sources = TemplateSources { default: source.to_owned(), tool_use: None };
    ChatTemplate::with_sources(sources, SpecialTokens::default(), limits).expect("the template is valid")
}

fn render_with(
    template: &ChatTemplate,
    tools: Option<&Value>,
    kwargs: Value,
) -> Result<String, TemplateError> {
    template.render(&ChatTemplateInput {
        messages: &json!([{"role": "user", "content": "Hi"}]),
        tools,
        documents: None,
        add_generation_prompt: true,
        continue_final_message: false,
        kwargs: kwargs.as_object().expect("kwargs are an object"),
        now: SystemTime::UNIX_EPOCH,
    })
}

fn render(template: &ChatTemplate) -> Result<String, TemplateError> {
    render_with(template, None, json!({}))
}

#[test]
fn a_template_that_raises_gives_its_message() {
    let template = template(
        "{% macro check() %}{{ raise_exception('Roles must alternate: ' ~ 1) }}{% endmacro %}{{ check() }}",
    );
    assert_eq!(render(&template), Err(TemplateError::Raised { message: "Roles must alternate: 1".into() }));
}

#[test]
fn a_syntax_error_names_its_line() {
    let error = ChatTemplate::new("a\nb\n{% if %}", SpecialTokens::default()).unwrap_err();
    assert!(matches!(error, TemplateError::Syntax { line: 3, .. }), "{error:?}");
}

#[test]
fn a_failure_on_the_conversation_is_told_without_a_panic() {
    assert!(matches!(
        render(&template("{{ messages[0].nope.x }}")),
        Err(TemplateError::Render { line: 1, .. })
    ));
    assert!(matches!(render(&template("{{ 1 // 0 }}")), Err(TemplateError::Render { .. })));
    assert!(matches!(render(&template("{{ 'é'.nope() }}")), Err(TemplateError::Render { .. })));
}

#[test]
fn endless_and_huge_renderings_end_at_their_limits() {
    let limits = TemplateLimits { max_output_bytes: 10_000, max_steps: 100_000, ..TemplateLimits::default() };
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    let steps = TemplateError::LimitExceeded { limit: 100_000, unit: "steps" };
    assert_eq!(render(&limited(endless, limits)), Err(steps));
    let bytes = TemplateError::LimitExceeded { limit: 10_000, unit: "bytes of output" };
    assert_eq!(render(&limited("{{ 'x' * 20000 }}", limits)), Err(bytes.clone()));
    assert_eq!(render(&limited("{% for a in range(9999) %}{{ 'ab' }}{% endfor %}", limits)), Err(bytes));
    let sources = TemplateSources { default: "x".repeat(101), tool_use: None };
    let limits = TemplateLimits { max_source_bytes: 100, ..limits };
    let error = ChatTemplate::with_sources(sources, SpecialTokens::default(), limits).unwrap_err();
    assert_eq!(error, TemplateError::LimitExceeded { limit: 100, unit: "bytes of template" });
}

#[test]
fn endless_recursion_and_deep_nesting_fit_the_stack_of_a_small_thread() {
    let sources = [
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".to_owned(),
        format!("{{{{ {}1{} }}}}", "(".repeat(5_000), ")".repeat(5_000)),
        format!("{{{{ {}1{} }}}}", "[".repeat(5_000), "]".repeat(5_000)),
        "{% if true %}".repeat(5_000),
        format!("{{{{ {}1 }}}}", "not ".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(500_000)),
        format!("{{{{ 1{} }}}}", "|s".repeat(250_000)),
        format!("{{{{ 1{} }}}}", "+1".repeat(250_000)),
        format!("{{{{ {}1 }}}}", "1if x else ".repeat(45_000)),
        format!("{{% if x %}}{}{{% endif %}}{{{{ x.y.z }}}}", "{%elif x%}".repeat(50_000)),
        "{% set ns = namespace(x=[]) %}{% for i in range(9999) %}{% for j in range(60) %}{% set ns.x = [ns.x] %}{% endfor %}{% endfor %}{% set ns.x = 1 %}{{ x.y }}".into(),
    ];
    for source in sources {
        let name: String = source.chars().take(40).collect();
        let worker = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
            ChatTemplate::new(&source, SpecialTokens::default())
                .and_then(|template| render(&template))
                .map(|text| text.len())
        });
        let outcome =
            worker.expect("threads can be started").join().expect("the thread ends without a panic");
        println!("{name}: {outcome:?}");
    }
}

#[test]
fn reserved_names_cannot_be_passed_as_arguments() {
    let template = template("{{ messages | length }}{{ flag }}");
    assert_eq!(render_with(&template, None, json!({"flag": true})), Ok("1True".into()));
    for name in ["messages", "tools", "add_generation_prompt", "documents"] {
        let kwargs = Value::Object(Map::from_iter([(name.to_owned(), json!([]))]));
        let error = render_with(&template, None, kwargs).unwrap_err();
        assert_eq!(error, TemplateError::ReservedArgument { name: name.to_owned() });
    }
}

#[test]
fn the_template_for_tools_is_taken_when_there_are_tools() {
    let sources = TemplateSources {
        default: "plain {{ bos_token }}".into(),
        tool_use: Some("tools {{ image_token }}".into()),
    };
    let special_tokens = SpecialTokens {
        bos_token: Some("<s>".into()),
        others: BTreeMap::from([("image_token".to_owned(), "<image>".to_owned())]),
        ..SpecialTokens::default()
    };
    let template = ChatTemplate::with_sources(sources, special_tokens, TemplateLimits::default()).unwrap();
    assert_eq!(render(&template).unwrap(), "plain <s>");
    assert_eq!(render_with(&template, Some(&json!([])), json!({})).unwrap(), "tools <image>");
}

fn continued(source: &str, messages: Value) -> Result<String, TemplateError> {
    template(source).render(&ChatTemplateInput {
        messages: &messages,
        tools: None,
        documents: None,
        add_generation_prompt: false,
        continue_final_message: true,
        kwargs: &Map::new(),
        now: SystemTime::UNIX_EPOCH,
    })
}

#[test]
fn a_continued_message_ends_the_prompt_where_it_ends() {
    let plain = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}";
    let messages = json!([{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, "}]);
    assert_eq!(continued(plain, messages.clone()).unwrap(), "<user>Count</user><assistant>One, ");
    let trimming = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}";
    assert_eq!(continued(trimming, messages.clone()).unwrap(), "<user>Count</user><assistant>One,");
    let is_refused = |outcome| matches!(outcome, Err(TemplateError::ContinueFinalMessage { .. }));
    assert!(is_refused(continued("{{ messages[0].content }}", messages)));
    assert!(is_refused(continued(plain, json!([]))));
    assert!(is_refused(continued(plain, json!([{"role": "assistant", "content": null}]))));
    assert!(is_refused(continued(plain, json!([{"role": "assistant", "content": [{"type": "image"}]}]))));
    assert!(is_refused(continued("{{ messages | length }}", json!([{"role": "assistant", "content": "x"}]))));
}

const STRINGS_ONLY: &str = "{% for m in messages %}{{ m.role + ': ' + m.content }}\n{% endfor %}";
const PRINTS_LISTS: &str = "{% for m in messages %}{{ m.content }}\n{% endfor %}";
const PARTS_ONLY: &str =
    "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}";
const BOTH: &str = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}";

#[test]
fn the_forms_of_content_that_a_template_reads_are_found_by_trying() {
    let support = |source: &str| template(source).content_support();
    assert_eq!(support(STRINGS_ONLY), ContentSupport { strings: true, parts: false });
    assert_eq!(support(PRINTS_LISTS), ContentSupport { strings: true, parts: false });
    assert_eq!(support(PARTS_ONLY), ContentSupport { strings: false, parts: true });
    assert_eq!(support(BOTH), ContentSupport { strings: true, parts: true });
    assert_eq!(support("{{ raise_exception('never') }}"), ContentSupport { strings: true, parts: false });
}

#[test]
fn content_is_brought_into_the_form_that_the_template_reads() {
    let messages = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": null, "tool_calls": []},
        {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]},
    ]);
    let normalized = |strings: bool, parts: bool| {
        let mut messages = messages.clone();
        ContentSupport { strings, parts }.normalize(&mut messages);
        messages
    };
    assert_eq!(normalized(true, true), messages);
    let as_strings = normalized(true, false);
    assert_eq!(as_strings[0], messages[0]);
    assert_eq!(as_strings[1]["content"], "one\ntwo");
    assert_eq!(as_strings[2], messages[2]);
    assert_eq!(as_strings[3], messages[3], "what is not text stays as it is");
    let as_parts = normalized(false, true);
    assert_eq!(as_parts[0]["content"], json!([{"type": "text", "text": "Be brief."}]));
    assert_eq!(as_parts[1], messages[1]);
}
