//! Placeholder.
mod event; mod executor; mod ids; mod plan; mod request; mod sampling;
pub use event::*; pub use executor::*; pub use ids::*; pub use plan::*; pub use request::*; pub use sampling::*;
