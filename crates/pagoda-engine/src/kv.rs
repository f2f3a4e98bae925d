//! The paged KV cache: who holds which block, which blocks can be shared, which one is handed out next. Knows block ids
//! and token ids only; the memory behind them belongs to the executor.

mod block_pool;
mod block_table;
mod check;
mod disposal;
mod ghosts;
mod hashed_tokens;
mod manager;
mod prefix_cache;
mod prefix_match;
mod prefix_report;

pub use block_pool::{BlockPool, QueueEnd};
pub use block_table::BlockTable;
pub use disposal::Disposal;
pub use hashed_tokens::{BlockHash, HashedTokens};
pub use manager::KvCacheManager;
pub use prefix_cache::PrefixCache;
pub use prefix_match::PrefixMatch;
pub use prefix_report::{CacheMiss, PrefixReport};
