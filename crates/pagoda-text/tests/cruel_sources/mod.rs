//! Schemas, regexes and grammars that are known to hurt compilers, worked out by hand.

use pagoda_text::GrammarSource;
use serde_json::{Map, Value, json};

/// Worked out by hand: what is known to hurt.
pub(crate) fn cruel(index: usize) -> Option<GrammarSource> {
    let nested =
        |open: &str, close: &str, num: usize| format!("{}\"a\"{}", open.repeat(num), close.repeat(num));
    let chain = |num: usize| {
        let rules: Vec<String> = (0..num).map(|index| format!("r{index}: r{}", index + 1)).collect();
        format!("start: r0\n{}\nr{num}: \"a\"", rules.join("\n"))
    };
    let defs = |num: usize, keyword: &str| {
        let def = |index: usize| json!({"type": "object", "properties": {"x": {keyword: [{"$ref": format!("#/$defs/d{}", (index + 1) % num)}, {"$ref": format!("#/$defs/d{}", (index + 7) % num)}]}}});
        let defs: Map<String, Value> = (0..num).map(|index| (format!("d{index}"), def(index))).collect();
        json!({"$defs": defs, "$ref": "#/$defs/d0"})
    };
    let number = |kind: &str, multiple: f64| {
        GrammarSource::JsonSchema(json!({"type": ["null", kind], "multipleOf": multiple}))
    };
    let ladder = |num: usize| {
        let names = |of: &str| (0..num).map(|n| format!("{of}{n}")).collect::<Vec<_>>().join(" | ");
        let rules = (0..num).map(|n| format!("x{n}: f \"c{n}\"\ny{n}: B \"d{n}\""));
        let rules = rules.collect::<Vec<_>>().join("\n");
        GrammarSource::Lark(format!(
            "start: \"a\" e*\ne: {}\nf: {}\nB: \"b\"\n{rules}",
            names("x"),
            names("y")
        ))
    };
    let deep = (0..60).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}));

    let optional = |num: usize| {
        let named = (0..num).map(|index| (format!("p{index}"), json!({"type": "string"})));
        GrammarSource::JsonSchema(json!({"type": "object", "properties": named.collect::<Map<_, _>>()}))
    };
    Some(match index {
        0 => GrammarSource::Regex("(a{1,1000}){1,1000}".into()),
        1 => GrammarSource::Regex("(.*a.{20}|.*b.{21}|.*c.{22}){1,50}".into()),
        2 => GrammarSource::Regex("((((a*)*)*)*)*b".into()),
        3 => GrammarSource::Regex("(".repeat(8000) + "a" + &")".repeat(8000)),
        4 => GrammarSource::Lark(format!("start: {}", nested("(", ")", 20_000))),
        5 => GrammarSource::Lark(format!("start: {}", nested("[", "]", 20_000))),
        6 => GrammarSource::Lark(chain(20_000)),
        7 => GrammarSource::Lark("start: start start | \"a\"".into()),
        8 => GrammarSource::Lark("start: a\na: b\nb: a".into()),
        9 => GrammarSource::Lark(format!(
            "start: (\"a\" | \"b\" | {})*",
            (0..3000).map(|n| format!("\"w{n}\"")).collect::<Vec<_>>().join(" | ")
        )),
        10 => GrammarSource::JsonSchema(defs(3000, "anyOf")),
        11 => GrammarSource::JsonSchema(defs(300, "allOf")),
        12 => GrammarSource::JsonSchema(
            json!({"enum": (0..4096).map(|n| format!("value {n} {}", "y".repeat(60))).collect::<Vec<_>>()}),
        ),
        13 => GrammarSource::JsonSchema(
            json!({"type": "array", "maxItems": 1_000_000_000u64, "items": {"type": "array", "maxItems": 1_000_000_000u64, "items": {"type": "string", "maxLength": u64::MAX}}}),
        ),
        14 => GrammarSource::JsonSchema(deep),
        15 => GrammarSource::JsonSchema(json!({"type": "string", "pattern": "(x+x+)+y", "minLength": 5000})),
        16 => GrammarSource::JsonSchema(json!({"type": "string", "minLength": 60_000, "maxLength": 65_536})),
        17 => optional(4000),
        24 => optional(1000),
        25 => optional(500),
        26 => optional(250),
        18 => GrammarSource::JsonSchema(json!({"$ref": "#"})),
        19 => GrammarSource::JsonSchema(json!({"allOf": [{"$ref": "#"}, {"type": "object"}]})),
        20 => GrammarSource::Choice((0..4096).map(|n| format!("{}{n}", "z".repeat(100))).collect()),
        21 => GrammarSource::JsonSchema(
            json!({"anyOf": (0..60).map(|n| json!({"type": "string", "pattern": format!(".*{n}.{{{n}}}x")})).collect::<Vec<_>>()}),
        ),
        22 => GrammarSource::JsonSchema(
            json!({"type": "object", "patternProperties": {"^(a|b)*c": {"type": "string"}, "^(a|b)*d.{30}": {"type": "integer"}}}),
        ),
        23 => GrammarSource::Regex("[^\\n]{0,60000}(a|b|c|d|e|f)[^\\n]{12}".into()),
        // Searches without an end for what a lexeme may begin with.
        27 => number("integer", 1_000_000_000.0),
        28 => number("number", 999_983.0),
        29 => number("integer", 1e-300),
        30 => GrammarSource::Lark(r#"start: %json {"type": "integer", "multipleOf": 1000000000}"#.into()),
        31 => GrammarSource::Lark(
            r#"start: %json {"type": "array", "items": {"type": "integer", "multipleOf": 3999999999}}"#
                .into(),
        ),
        32 => GrammarSource::Lark("start: T\nT: /.*a.{12}/ & /.*b.{12}/ & /.*c.{12}/".into()),
        33 => GrammarSource::Lark("start: T\nT: /(.|\\n)*a(.|\\n){60}/ & ~/(.|\\n)*b(.|\\n){60}/".into()),
        34 => GrammarSource::Lark(format!(
            "start: T\nT: ({}) & ({})",
            (0..800).map(|n| format!("/[ab]{n}.*/")).collect::<Vec<_>>().join("|"),
            (0..800).map(|n| format!("/[ac].*{n}/")).collect::<Vec<_>>().join("|")
        )),
        // Texts that can be read in ever more ways.
        35 => GrammarSource::Lark("start: e\ne: e e | \"a\"".into()),
        36 => GrammarSource::Lark("start: e\ne: e e e e | e e e | e e | \"a\"".into()),
        37 => GrammarSource::Lark("start: s\ns: \"a\" s \"a\" | \"a\"".into()),
        38 => GrammarSource::Lark(
            "start: x{0,100000} y{0,100000}\nx: (\"a\"|\"b\"){0,5000}\ny: x{0,3000} \"b\"{0,3000}".into(),
        ),
        39 => GrammarSource::Lark("start: x{0,100} y{0,100}\nx: \"a\"{0,50}\ny: x{0,7} x{0,9}".into()),
        // Many alternatives at one place, behind many ways there.
        40 => ladder(400),
        41 => ladder(20),
        42 => ladder(4000),
        // Lexers that grow with every step.
        43 => GrammarSource::Regex("(a?){4000}a{4000}".into()),
        44 => GrammarSource::Regex("a?".repeat(4000)),
        45 => GrammarSource::Regex(".*a.{200}.*b.{300}.*c.{400}".into()),
        46 => GrammarSource::Regex("(([a-j]{1,5}){1,50}[a-j ]{1,50}([a-j0-9]{1,50}){1,10}){1,1000}".into()),
        47 => optional(128),
        _ => return None,
    })
}
