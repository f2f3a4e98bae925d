//! Python's methods on strings, lists and dicts, as far as templates call them.

use minijinja::{Error, State, Value};

/// Calls `value.method(args)`.
pub(crate) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}
