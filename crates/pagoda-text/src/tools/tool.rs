//! The tools of a request.

use serde_json::Value;

/// One function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The JSON Schema of its arguments; None takes none.
    pub parameters: Option<Value>,
    /// Its arguments must follow the schema.
    pub is_strict: bool,
}

/// The functions that the model may call, in the client's order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolSet {
    tools: Vec<Tool>,
}

impl ToolSet {
    /// The set of `tools`.
    pub fn new(tools: Vec<Tool>) -> Self {
        ToolSet { tools }
    }

    /// All of them.
    pub fn tools(&self) -> &[Tool] {
        &self.tools
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
    }

    /// The tool of that name.
    pub fn get(&self, name: &str) -> Option<&Tool> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// The schema of an argument.
    pub(super) fn argument_schema(&self, name: &str, key: &str) -> Option<ArgumentSchema<'_>> {
        let root = self.get(name)?.parameters.as_ref()?;
        Some(ArgumentSchema { root, schema: root.get("properties")?.get(key)? })
    }
}

/// The schema of one argument, within the one that holds the definitions it may refer to.
#[derive(Clone, Copy, Debug)]
pub(super) struct ArgumentSchema<'a> {
    pub(super) root: &'a Value,
    pub(super) schema: &'a Value,
}

/// The types that a schema allows; every one where it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Types {
    pub(super) string: bool,
    pub(super) boolean: bool,
    pub(super) null: bool,
    pub(super) other: bool,
}

impl Types {
    const ANY: Types = Types { string: true, boolean: true, null: true, other: true };

    /// Text is always text.
    pub(super) fn is_string_only(self) -> bool {
        self == Types { string: true, ..Types::default() }
    }

    fn or(self, other: Types) -> Types {
        Types {
            string: self.string || other.string,
            boolean: self.boolean || other.boolean,
            null: self.null || other.null,
            other: self.other || other.other,
        }
    }

    fn named(name: &str) -> Types {
        match name {
            "string" => Types { string: true, ..Types::default() },
            "boolean" => Types { boolean: true, ..Types::default() },
            "null" => Types { null: true, ..Types::default() },
            _ => Types { other: true, ..Types::default() },
        }
    }

    fn of_value(value: &Value) -> Types {
        match value {
            Value::String(_) => Types::named("string"),
            Value::Bool(_) => Types::named("boolean"),
            Value::Null => Types::named("null"),
            _ => Types::named("other"),
        }
    }
}

impl<'a> ArgumentSchema<'a> {
    /// The types of values that it allows.
    pub(super) fn types(self) -> Types {
        self.types_within(8)
    }

    fn types_within(self, num_steps: usize) -> Types {
        let Some(num_steps) = num_steps.checked_sub(1) else { return Types::ANY };
        let all = |types: &mut dyn Iterator<Item = Types>| types.fold(Types::default(), Types::or);
        let within = |schema: &'a Value| ArgumentSchema { schema, ..self }.types_within(num_steps);
        match self.schema.get("type") {
            Some(Value::String(name)) => return Types::named(name),
            Some(Value::Array(names)) => {
                return all(&mut names.iter().filter_map(Value::as_str).map(Types::named));
            }
            _ => {}
        }
        if let Some(value) = self.schema.get("const") {
            return Types::of_value(value);
        }
        if let Some(values) = self.schema.get("enum").and_then(Value::as_array) {
            return all(&mut values.iter().map(Types::of_value));
        }
        for name in ["anyOf", "oneOf"] {
            if let Some(schemas) = self.schema.get(name).and_then(Value::as_array) {
                return all(&mut schemas.iter().map(within));
            }
        }
        let reference = self.schema.get("$ref").and_then(Value::as_str);
        match reference.and_then(|path| self.root.pointer(path.strip_prefix('#')?)) {
            Some(schema) => within(schema),
            None => Types::ANY,
        }
    }
}
