//! The table at the end.

use std::fmt;

use serde::Serialize;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    figures: Vec<Figure>,
}

#[derive(Debug, Serialize)]
struct Figure {
    name: String,
    value: f64,
    unit: &'static str,
    goal: Option<Goal>,
    met: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl Report {
    pub(crate) fn add(&mut self, name: &str, value: f64, unit: &'static str, goal: Option<Goal>) {
        let met = match goal {
            None => true,
            Some(Goal::AtLeast(least)) => value >= least,
            Some(Goal::AtMost(most)) => value <= most,
        };
        eprintln!("{name}: {value:.2} {unit}");
        self.figures.push(Figure { name: name.to_owned(), value, unit, goal, met });
    }

    pub(crate) fn missed(&self) -> usize {
        self.figures.iter().filter(|figure| !figure.met).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | measured | goal | |")?;
        writeln!(f, "|---|---:|---:|---|")?;
        for Figure { name, value, unit, goal, met } in &self.figures {
            let goal = match goal {
                None => String::new(),
                Some(Goal::AtLeast(least)) => format!(">= {least:.2} {unit}"),
                Some(Goal::AtMost(most)) => format!("<= {most:.2} {unit}"),
            };
            writeln!(f, "| {name} | {value:.2} {unit} | {goal} | {} |", if *met { "" } else { "**missed**" })?;
        }
        Ok(())
    }
}
