//! The flags that bound the values of JSON schemas.

use clap::Args;
use pagoda_text::SchemaBounds;

/// Bounds for what a JSON schema leaves open, so that its values end.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct SchemaArgs {
    /// Most characters of a string whose schema has no maxLength.
    #[arg(long, value_name = "CHARS", default_value_t = SchemaBounds::default().max_string_chars)]
    pub(crate) schema_max_string_length: usize,
    /// Most items of an array whose schema has no maxItems.
    #[arg(long, value_name = "ITEMS", default_value_t = SchemaBounds::default().max_items)]
    pub(crate) schema_max_items: usize,
    /// Most properties of an object beyond those that its schema names.
    #[arg(long, value_name = "PROPERTIES", default_value_t = SchemaBounds::default().max_extra_properties)]
    pub(crate) schema_max_properties: usize,
    /// Most levels of a value about which a schema says nothing; a schema within itself goes twice as deep.
    #[arg(long, value_name = "LEVELS", default_value_t = SchemaBounds::default().max_depth)]
    pub(crate) schema_max_depth: usize,
}

impl SchemaArgs {
    /// The bounds; none is 0, and depths stay within what can be laid out.
    pub(crate) fn bounds(&self) -> SchemaBounds {
        SchemaBounds {
            max_string_chars: self.schema_max_string_length.max(1),
            max_items: self.schema_max_items.max(1),
            max_extra_properties: self.schema_max_properties.max(1),
            max_depth: self.schema_max_depth.clamp(1, 16),
            ..SchemaBounds::default()
        }
    }
}
