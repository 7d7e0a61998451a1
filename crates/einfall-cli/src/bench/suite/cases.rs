//! The suites as they are written down, and which of their cases were asked for.
//!
//! In: `testdata/suites`, which is part of the program, and names. Out: cases in the order of the file. A name is that of
//! a case, or of a section, which stands for all its cases.

use std::collections::BTreeMap;

use einfall::DType;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::random;
use crate::failure::Failure;

/// A contraction of dense operands.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Dense {
    pub(super) name: String,
    pub(super) equation: String,
    pub(super) sizes: BTreeMap<String, usize>,
    #[serde(deserialize_with = "dtype")]
    pub(super) dtype: DType,
    pub(super) source: String,
}

/// A contraction whose keys a table or a window selects.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Lookup {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// The subscripts of the table, or `window`.
    pub(super) scope: String,
    pub(super) sizes: BTreeMap<String, usize>,
    #[serde(deserialize_with = "dtype")]
    pub(super) dtype: DType,
    #[serde(rename = "where")]
    places: Vec<Place>,
}

impl Lookup {
    /// Whether such shapes are trained too, not only run.
    pub(super) fn is_trained(&self) -> bool {
        !["dsa-", "decode-"].iter().any(|served| self.name.starts_with(served))
    }
}

/// What is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Dense,
    Scores,
    Values,
    Attention,
    Spmm,
    Moe,
}

impl Kind {
    /// The name in requests to peers, and of the section.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Scores => "scores",
            Self::Values => "values",
            Self::Attention => "attention",
            Self::Spmm => "spmm",
            Self::Moe => "moe",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    Cpu,
    Gpu,
}

fn dtype<'de, D: serde::Deserializer<'de>>(from: D) -> Result<DType, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

fn read<T: DeserializeOwned>(text: &str) -> Vec<T> {
    #[derive(Deserialize)]
    struct File<T> {
        cases: Vec<T>,
    }
    // The files are part of the program, and a test reads them.
    serde_json::from_str::<File<T>>(text).map(|file| file.cases).unwrap_or_default()
}

/// A case with a name, in a section of its suite.
pub(super) trait Named {
    fn name(&self) -> &str;
    fn section(&self) -> &str;
}

impl Named for Dense {
    fn name(&self) -> &str {
        &self.name
    }

    fn section(&self) -> &str {
        match (self.name.split_once('/'), self.source.as_str()) {
            (Some((section, _)), _) => section,
            (None, "classic") => "classic",
            (None, _) => "issues",
        }
    }
}

impl Named for Lookup {
    fn name(&self) -> &str {
        &self.name
    }

    fn section(&self) -> &str {
        self.kind.name()
    }
}

/// The contractions with these names; all without names. Of the suite, or so many drawn from a seed.
pub(super) fn dense(only: &[String], random: Option<(usize, u64)>) -> Result<Vec<Dense>, Failure> {
    let all = match random {
        Some((count, seed)) => random::cases(count, seed),
        None => read(include_str!("../../../../../testdata/suites/contractions.json")),
    };
    named(all, only)
}

/// The lookups with these names, as far as they are for the processor, or for a GPU.
pub(super) fn lookups(only: &[String], on_gpu: bool) -> Result<Vec<Lookup>, Failure> {
    let place = if on_gpu { Place::Gpu } else { Place::Cpu };
    let (mut cases, mut elsewhere) = (Vec::new(), Vec::new());
    for case in named::<Lookup>(read(include_str!("../../../../../testdata/suites/lookups.json")), only)? {
        if case.places.contains(&place) {
            cases.push(case);
        } else {
            elsewhere.push(case.name);
        }
    }
    if cases.is_empty() {
        let (names, other) = (elsewhere.join(", "), if on_gpu { "cpu" } else { "cuda" });
        return Err(Failure::bad_input(format!("{names} is not for this device\nhint: `--device {other}`")));
    }
    Ok(cases)
}

fn named<T: Named>(all: Vec<T>, only: &[String]) -> Result<Vec<T>, Failure> {
    for name in only {
        if !all.iter().any(|case| case.name() == name || case.section() == name) {
            let mut known: Vec<&str> = all.iter().flat_map(|case| [case.section(), case.name()]).collect();
            known.sort_unstable();
            known.dedup();
            // The first of those that are nearest.
            let hint = match known.iter().min_by_key(|known| distance(known, name)) {
                Some(near) if distance(near, name) <= name.chars().count().div_ceil(2) => {
                    format!("did you mean `{near}`?")
                }
                _ => "`--list` names them".to_owned(),
            };
            return Err(Failure::bad_input(format!("the suite has no case `{name}`\nhint: {hint}")));
        }
    }
    let wanted = |case: &T| only.is_empty() || only.iter().any(|name| case.name() == name || case.section() == name);
    Ok(all.into_iter().filter(wanted).collect())
}

/// Least number of letters to add, drop or replace that make one text of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suites_are_read_whole() {
        let dense = dense(&[], None).unwrap();
        assert_eq!(dense.len(), 71);
        assert_eq!(dense.iter().filter(|case| case.section() == "tccg").count(), 24);
        let (cpu, gpu) = (lookups(&[], false).unwrap(), lookups(&[], true).unwrap());
        assert!(cpu.iter().any(|case| case.name == "heads-cpu") && gpu.iter().any(|case| case.name == "heads"));
        assert_eq!((cpu.len(), gpu.len()), (22, 27));
    }

    #[test]
    fn names_select_cases_and_sections() {
        let only = |names: &[&str]| dense(&names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>(), None);
        assert_eq!(only(&["matmul"]).unwrap().len(), 1);
        assert_eq!(only(&["tccg", "bmm", "matmul"]).unwrap().len(), 26);
        let refused = |name: &str| only(&[name]).unwrap_err().to_string();
        assert_eq!(refused("matmull"), "the suite has no case `matmull`\nhint: did you mean `matmul`?");
        assert_eq!(refused("xyzzyxyzzy"), "the suite has no case `xyzzyxyzzy`\nhint: `--list` names them");
        let gpu_only = lookups(&["heads".to_owned()], false).unwrap_err().to_string();
        assert_eq!(gpu_only, "heads is not for this device\nhint: `--device cuda`");
        assert_eq!((distance("kitten", "sitting"), distance("", "ab"), distance("ab", "ab")), (3, 2, 0));
    }
}
