//! An engine without work parks. A process of its own, so that no other engine's thread is measured with it.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use pagoda_engine::{EngineConfig, EngineHandle, Request, SamplingParams, StopCriteria};
use pagoda_testkit::{TokenMemoryConfig, TokenMemoryExecutor, block_on, wait_until};

const WINDOW: Duration = Duration::from_millis(1500);

#[test]
fn an_idle_engine_uses_less_than_one_percent_of_a_core() {
    let config = EngineConfig::default();
    let memory = TokenMemoryConfig { block_size: 16, num_blocks: config.num_blocks, vocab_size: 100 };
    let handle = EngineHandle::spawn(config, TokenMemoryExecutor::new(memory)).unwrap();
    let request = Request {
        prompt: vec![1, 2, 3],
        sampling: SamplingParams::greedy().into(),
        stop: StopCriteria { max_tokens: 10, ..StopCriteria::default() },
        num_sequences: 1,
        priority: 0,
        cache_salt: Default::default(),
        prompt_logprobs: None,
        constraint: None,
    };
    // It has worked before, and has found its way back to sleep.
    block_on(handle.submit(request).unwrap().collect::<Vec<_>>());
    let Some(start) = engine_thread_ticks() else {
        println!("skipped: no /proc on this system");
        return;
    };
    let since = Instant::now();
    wait_until("the window is over", || since.elapsed() >= WINDOW);
    let used = engine_thread_ticks().expect("the thread lives as long as its handle") - start;
    // A tick is 10 ms; 1 % of the window is 15 ms.
    assert!(used <= 1, "{used} ticks of 10 ms in {WINDOW:?}");
}

/// User and system time of the thread `pagoda-engine`, in clock ticks.
fn engine_thread_ticks() -> Option<u64> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?;
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let stat = stats.into_iter().find(|stat| stat.contains("(pagoda-engine)"))?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields[11].parse::<u64>().ok()? + fields[12].parse::<u64>().ok()?)
}
