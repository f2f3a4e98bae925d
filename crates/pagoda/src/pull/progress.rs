//! How far a download is: a bar on a terminal, a line per tenth elsewhere. Writes to stderr only.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// The progress of one file.
pub(crate) enum Progress {
    /// A terminal is watching.
    Bar(ProgressBar),
    /// A log file is watching.
    Lines {
        /// What is being fetched.
        label: String,
        /// 0 if unknown.
        total_bytes: u64,
        /// So far.
        done_bytes: u64,
        /// The last tenth that was printed.
        last_tenth: u64,
    },
}

impl Progress {
    /// Starts to show the progress of `label`.
    pub(crate) fn start(label: &str, total_bytes: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            eprintln!("{label}: {}", bytes_text(total_bytes));
            return Progress::Lines { label: label.to_owned(), total_bytes, done_bytes: 0, last_tenth: 0 };
        }
        let style =
            ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
        Progress::Bar(ProgressBar::new(total_bytes).with_message(label.to_owned()).with_style(style))
    }

    /// `done_bytes` of the file are here.
    pub(crate) fn set(&mut self, done: u64) {
        match self {
            Progress::Bar(bar) => bar.set_position(done),
            Progress::Lines { label, total_bytes, done_bytes, last_tenth } => {
                *done_bytes = done;
                let tenth = (done * 10).checked_div(*total_bytes).unwrap_or(0);
                if tenth > *last_tenth {
                    *last_tenth = tenth;
                    eprintln!("{label}: {} %", tenth * 10);
                }
            }
        }
    }

    /// A remark between two updates.
    pub(crate) fn note(&self, text: &str) {
        match self {
            Progress::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
            Progress::Lines { .. } => eprintln!("{text}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Progress::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// `98.4 MB`, as a person says it.
pub(crate) fn bytes_text(bytes: u64) -> String {
    let units = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}
