//! The figures of a bench, and the table at the end.
#![allow(clippy::print_stdout, reason = "its table is what a bench is for")]

use std::{fmt, path::PathBuf, time::Duration};

use anyhow::{Result, bail, ensure};
use serde::Serialize;

#[derive(Debug, Default, Serialize)]
pub struct Report {
    series: Vec<Series>,
    /// What could not be measured, and why.
    failures: Vec<String>,
    /// What the figures depend on.
    notes: Vec<String>,
}

/// One thing, measured over and over.
#[derive(Debug, Serialize)]
pub struct Series {
    name: String,
    unit: Unit,
    values: Vec<f64>,
    /// So many hundredths of all values, and what they may be at most.
    goals: Vec<(usize, f64)>,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    Seconds,
    Milliseconds,
    Megabytes,
    Requests,
    Percent,
}

impl Series {
    pub fn new(name: impl Into<String>, unit: Unit) -> Self {
        Self { name: name.into(), unit, values: Vec::new(), goals: Vec::new() }
    }

    /// None of the values may be more.
    #[must_use]
    pub fn at_most(mut self, most: f64) -> Self {
        self.goals.push((100, most));
        self
    }

    #[must_use]
    pub fn median_at_most(mut self, most: f64) -> Self {
        self.goals.push((50, most));
        self
    }

    /// The median and the 95th percentile.
    #[must_use]
    pub fn percentiles(mut self, median: f64, most: f64) -> Self {
        self.goals.extend([(50, median), (95, most)]);
        self
    }

    pub fn add(&mut self, value: f64) {
        eprintln!("  {}: {}", self.name, self.unit.show(value));
        self.values.push(value);
    }

    pub fn add_time(&mut self, time: Duration) {
        self.add(self.unit.of(time));
    }

    /// One of thousands.
    pub fn add_quietly(&mut self, time: Duration) {
        self.values.push(self.unit.of(time));
    }

    /// The value that so many hundredths of all are not above (nearest rank).
    fn percentile(&self, hundredths: usize) -> f64 {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * hundredths).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
    }

    pub fn median(&self) -> f64 {
        self.percentile(50)
    }

    fn is_met(&self) -> bool {
        !self.values.is_empty() && self.goals.iter().all(|(hundredths, most)| self.percentile(*hundredths) <= *most)
    }

    fn goal(&self) -> String {
        let of = |hundredths: usize| match hundredths {
            100 => "max".to_owned(),
            hundredths => format!("p{hundredths}"),
        };
        let goals =
            self.goals.iter().map(|(hundredths, most)| format!("{} <= {}", of(*hundredths), self.unit.show(*most)));
        goals.collect::<Vec<_>>().join(", ")
    }
}

impl Unit {
    fn of(self, time: Duration) -> f64 {
        match self {
            Self::Milliseconds => time.as_secs_f64() * 1000.0,
            Self::Seconds | Self::Megabytes | Self::Requests | Self::Percent => time.as_secs_f64(),
        }
    }

    fn show(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.2} s"),
            Self::Milliseconds => format!("{value:.1} ms"),
            Self::Megabytes => format!("{value:.1} MB"),
            Self::Requests => format!("{value:.0}"),
            Self::Percent => format!("{value:.2} %"),
        }
    }
}

/// How a bench of several parts is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Asked {
    /// Parts that are measured, parted by commas; all, if nothing is said
    #[arg(long, value_name = "PARTS", value_delimiter = ',')]
    only: Vec<String>,
    /// Writes the figures down
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Asked {
    /// Measures the parts that are wanted, one after the other, and tells of all.
    ///
    /// # Errors
    /// There is no such part, a figure is short of its goal, or something could not be measured.
    pub async fn measure(&self, parts: &[&str], measure: impl AsyncFn(&str, &mut Report) -> Result<()>) -> Result<()> {
        if let Some(unknown) = self.only.iter().find(|wanted| !parts.contains(&wanted.as_str())) {
            bail!("there is no part `{unknown}`; the parts are {}", parts.join(", "));
        }
        let mut report = Report::default();
        for part in parts.iter().filter(|part| self.only.is_empty() || self.only.iter().any(|wanted| wanted == *part)) {
            eprintln!("{part}:");
            // A part that can't be measured takes none of the others with it.
            if let Err(error) = measure(part, &mut report).await {
                report.failed(part, &error);
            }
        }
        println!("{report}");
        if let Some(path) = &self.json {
            std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
        }
        match report.missed() {
            0 => Ok(()),
            missed => bail!("{missed} of the figures are short of their goals, or were not measured"),
        }
    }
}

/// A number of runs, from a command line.
///
/// # Errors
/// It is no number, or none.
pub fn at_least_one(text: &str) -> Result<usize> {
    let count = text.parse()?;
    ensure!(count > 0, "at least one");
    Ok(count)
}

impl Report {
    pub fn add(&mut self, series: Series) {
        self.series.push(series);
    }

    /// Says what figures depend on, once.
    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            eprintln!("  {note}");
            self.notes.push(note);
        }
    }

    pub fn failed(&mut self, what: &str, error: &anyhow::Error) {
        eprintln!("  {what} failed: {error:#}");
        let whole = format!("{error:#}");
        let sentence = whole.lines().next().unwrap_or_default();
        self.failures.push(format!("{what}: {sentence}"));
    }

    fn missed(&self) -> usize {
        self.series.iter().filter(|series| !series.is_met()).count() + self.failures.len()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | runs | p50 | p95 | p99 | max | goal | |")?;
        writeln!(f, "|---|---:|---:|---:|---:|---:|---:|---|")?;
        for series in &self.series {
            let show = |value| series.unit.show(value);
            let goal = series.goal();
            writeln!(
                f,
                "| {} | {} | {} | {} | {} | {} | {goal} | {} |",
                series.name,
                series.values.len(),
                show(series.percentile(50)),
                show(series.percentile(95)),
                show(series.percentile(99)),
                show(series.percentile(100)),
                if series.is_met() { "" } else { "**missed**" },
            )?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "\n{note}"))?;
        self.failures.iter().try_for_each(|failure| writeln!(f, "\nnot measured: {failure}"))
    }
}
