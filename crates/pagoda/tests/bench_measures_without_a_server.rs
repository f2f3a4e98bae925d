//! `pagoda bench throughput`, `kernels`, `agreement` and `consistency` on the CPU: they count what they say, and their lines of JSON hold it.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use serde_json::Value;
use support::server::Server;

fn config(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).join(name)
}

/// Runs a benchmark and returns its lines, or what it complained of.
fn bench(arguments: &[&str]) -> Result<Vec<Value>, String> {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("results.jsonl");
    let output = support::pagoda().arg("bench").args(arguments).arg("--json").arg(&json).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = std::fs::read_to_string(&json).unwrap();
    Ok(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn number(line: &Value, field: &str) -> f64 {
    let value = line[field].as_f64().unwrap_or_else(|| panic!("{field} in {line}"));
    assert!(value.is_finite() && value >= 0.0, "{field}: {value}");
    value
}

#[test]
fn throughput_runs_every_workload_on_random_weights() {
    let model = config("models/tiny/config.json");
    let lines = bench(&[
        "throughput",
        model.to_str().unwrap(),
        "--load-format=dummy:3",
        "--device=cpu",
        "--workload=nano,decode,prefill",
        "--num-requests=12",
        "--request-len=4-40",
        "--batch-size=1,8,64",
        "--context-len=128,4000,4090",
        "--prompt-len=100,5000",
        "--num-steps=8",
        "--max-num-seqs=16",
        "--kv-cache-memory=40M",
    ])
    .unwrap();
    let of = |workload: &str| lines.iter().filter(|line| line["workload"] == workload).collect::<Vec<_>>();
    let (nano, decode, prefill) = (of("nano"), of("decode"), of("prefill"));
    // random.seed(0), twelve prompts of randint(4, 40) ids of randint(0, 10000), then twelve lengths.
    assert_eq!(
        (nano[0]["num_prompt_tokens"].as_u64(), nano[0]["num_output_tokens"].as_u64()),
        (Some(246), Some(196))
    );
    assert_eq!(nano[0]["repeats"].as_array().unwrap().len(), 3);
    // 64 sequences are more than 16, and 4090 tokens and the steps are more than the model's 4096.
    let points: Vec<_> =
        decode.iter().map(|line| (line["context_len"].as_u64(), line["batch_size"].as_u64())).collect();
    let expected = [(128, 1), (128, 8), (4000, 1), (4000, 8)];
    assert_eq!(points, expected.map(|(context, batch)| (Some(context), Some(batch))));
    assert_eq!(prefill.len(), 1);
    for line in &lines {
        assert_eq!(line["model"], "config");
        assert!(number(line, "percent_of_roof") > 0.0 && number(line, "roof_tokens_per_s") > 0.0);
        assert!(number(&line["probe"], "copy_gb_per_s") > 0.0);
    }
    for line in &decode {
        let step_s = number(line, "step_ms") / 1e3;
        let rate = number(line, "output_tokens_per_s");
        assert!((rate * step_s / number(line, "batch_size") - 1.0).abs() < 1e-6, "{line}");
        assert!(number(line, "step_ms_p50") <= number(line, "step_ms_p99"));
        let of_median = number(line, "percent_of_roof_p50") * number(line, "step_ms_p50");
        let of_mean = number(line, "percent_of_roof") * number(line, "step_ms");
        assert!((of_median / of_mean - 1.0).abs() < 1e-6, "{line}");
        // There is no GPU to be idle, and no graph to be captured.
        assert!(line["gpu_idle_percent"].is_null() && line["tries"] == 1 && line["has_captures"] == false);
    }
    // Contexts are there although no prompt was computed: a longer one makes a longer step.
    assert!(number(decode[3], "step_ms") > 1.5 * number(decode[1], "step_ms"), "{decode:?}");
}

#[test]
fn kernels_are_measured_beside_a_probe_and_an_absent_gpu_is_said() {
    let lines = bench(&["kernels", "--device=cpu", "--only=rms_norm", "--only=linear/3072x2048/1"]).unwrap();
    let names: Vec<&str> = lines.iter().map(|line| line["case"].as_str().unwrap()).collect();
    assert_eq!(names, ["rms_norm/2048x2048", "linear/3072x2048/1", "linear/3072x2048/128"]);
    for line in &lines {
        let seconds = number(line, "us") / 1e6;
        assert!((number(line, "gb_per_s") * 1e9 * seconds / number(line, "bytes") - 1.0).abs() < 1e-6);
        let share = number(line, "gb_per_s") / number(&line["probe"], "copy_gb_per_s");
        assert!((100.0 * share / number(line, "percent_of_copy") - 1.0).abs() < 1e-6);
    }
    let error = bench(&["kernels", "--device=cuda:9999"]).unwrap_err();
    assert!(error.contains("cuda:9999"), "{error}");
}

#[test]
fn agreement_tells_an_arithmetic_that_rounds_from_the_exact_one() {
    let Some(model) = support::real_model() else { return };
    let model = model.to_str().unwrap();
    let flags = ["agreement", model, "--device=cpu", "--num-tokens=96"];
    let exact = bench(&flags).unwrap();
    assert_eq!((number(&exact[0], "num_places"), number(&exact[0], "num_same")), (95.0, 95.0));
    assert_eq!(number(&exact[0], "max_logprob_difference"), 0.0);
    let rounded = [&flags[..], &["--cpu-arithmetic=int16"]].concat();
    let lines = bench(&rounded).unwrap();
    let mean = number(&lines[0], "mean_logprob_difference");
    assert!(mean > 0.0 && mean <= 0.02, "{mean}");
    let error = bench(&[&rounded[..], &["--max-difference=0"]].concat()).unwrap_err();
    assert!(error.contains("does not agree"), "{error}");
}

#[test]
fn consistency_compares_the_ways_to_run_the_same_requests() {
    let model = config("models/tiny/config.json");
    let flags = [
        "consistency",
        model.to_str().unwrap(),
        "--load-format=dummy:3",
        "--device=cpu",
        "--deterministic",
        "--num-requests=12",
        "--prompt-len=5-60",
        "--output-len=16",
        "--num-exact=3",
        // Prompts are cut into chunks beside sequences that decode.
        "--max-num-batched-tokens=48",
        "--kv-cache-memory=40M",
    ];
    let lines = bench(&flags).unwrap();
    let ways: Vec<&str> = lines.iter().map(|line| line["way"].as_str().unwrap()).collect();
    assert_eq!(ways.len(), 3, "{ways:?}");
    for line in &lines {
        assert_eq!((number(line, "num_tokens"), number(line, "num_same_as_first")), (192.0, 192.0));
        assert_eq!(line["must_be_same"], true);
        // The CPU is the exact arithmetic, in decode steps as in prompts.
        assert_eq!((number(line, "num_places"), number(line, "num_same")), (48.0, 48.0));
        assert_eq!(number(line, "max_logprob_difference"), 0.0);
    }
    let error = bench(&[&flags[..], &["--min-percent=101"]].concat()).unwrap_err();
    assert!(error.contains("does not agree"), "{error}");
}

#[test]
fn random_weights_are_served_with_a_tokenizer_of_numbers() {
    let server = Server::start(&config("models/tiny/config.json"), &["--load-format=dummy", "--device=cpu"]);
    let output = support::pagoda()
        .args(["bench", "serve", &server.url(), "--num-requests=9", "--concurrency=3", "--vocab-size=512"])
        .args(["--prompt-len=20", "--output-len=12", "--json=-"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (report["num_completed"].as_u64(), report["num_output_tokens"].as_u64()),
        (Some(9), Some(108))
    );
}
