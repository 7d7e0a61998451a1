//! Checks of the repository itself: who depends on whom, links between documents, promises and their tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::Outcome;

/// Which crates of the workspace each may depend on, development aside: the picture in `ARCHITECTURE.md`.
const LAYERS: &[(&str, &[&str])] = &[
    ("einfall-equation", &[]),
    ("einfall-tensor", &[]),
    ("einfall-plan", &["einfall-equation", "einfall-tensor"]),
    // Devices know nothing of each other.
    ("einfall-cpu", &["einfall-plan", "einfall-tensor"]),
    ("einfall-cuda", &["einfall-plan", "einfall-tensor"]),
    ("einfall", &["einfall-cpu", "einfall-cuda", "einfall-equation", "einfall-plan", "einfall-tensor"]),
    ("einfall-cli", &["einfall"]),
    ("einfall-testing", &["einfall-equation", "einfall-tensor"]),
];

/// Runs every check.
///
/// # Errors
/// All violations, a line each.
pub(crate) fn run(root: &Path) -> Outcome {
    println!("+ checking layers, links and promises");
    let mut wrong = layers(root);
    wrong.extend(links(root));
    wrong.extend(promises(root));
    if wrong.is_empty() { Ok(()) } else { Err(format!("error: {}", wrong.join("\nerror: "))) }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Crates that depend on what they must not know.
fn layers(root: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut crates: Vec<String> = entries(&root.join("crates")).iter().filter_map(|path| name(path)).collect();
    crates.sort();
    for name in crates {
        let manifest = read(&root.join("crates").join(&name).join("Cargo.toml"));
        let Some((_, allowed)) = LAYERS.iter().find(|(known, _)| *known == name) else {
            wrong.push(format!("crate `{name}` has no row in the table of layers"));
            continue;
        };
        let bad = dependencies(&manifest).into_iter().filter(|dependency| !allowed.contains(dependency));
        wrong.extend(bad.map(|dependency| format!("crate `{name}` must not depend on `{dependency}`")));
    }
    wrong
}

/// Crates of this workspace under `[dependencies]` of a manifest.
fn dependencies(manifest: &str) -> Vec<&str> {
    let section = manifest.lines().skip_while(|line| line.trim() != "[dependencies]").skip(1);
    section
        .take_while(|line| !line.starts_with('['))
        .filter_map(|line| line.split(['.', '=', ' ']).next())
        .filter(|dependency| dependency.starts_with("einfall"))
        .collect()
}

/// Links of the documents to files that are not there.
fn links(root: &Path) -> Vec<String> {
    let mut documents: Vec<PathBuf> = Vec::new();
    find(root, "md", &mut documents);
    let mut wrong = Vec::new();
    for document in documents {
        let text = read(&document);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let inside = !link.is_empty() && !link.contains("://") && !link.contains(' ');
            if inside && !document.parent().expect("a file").join(link).exists() {
                wrong.push(format!("{} links to `{link}`, which is not there", document.display()));
            }
        }
    }
    wrong
}

/// Tests that the promises of `README.md` name and that do not exist.
fn promises(root: &Path) -> Vec<String> {
    let mut sources = Vec::new();
    find(&root.join("crates"), "rs", &mut sources);
    let functions: BTreeSet<String> = sources
        .iter()
        .flat_map(|path| {
            let text = read(path);
            let tests = text.split("#[test]").skip(1).filter_map(|rest| rest.split("fn ").nth(1));
            tests.filter_map(|rest| rest.split('(').next()).map(str::to_string).collect::<Vec<_>>()
        })
        .collect();
    let readme = read(&root.join("README.md"));
    let section = readme.split("\n## ").find(|section| section.starts_with("Promises")).unwrap_or_default();
    let named: Vec<&str> = section.split('`').skip(1).step_by(2).filter(|text| is_test_name(text)).collect();
    if named.is_empty() {
        return vec!["README.md promises nothing that a test is named for".into()];
    }
    let missing = named.into_iter().filter(|name| !functions.contains(*name));
    missing.map(|name| format!("README.md names the test `{name}`, which does not exist")).collect()
}

/// Words with underscores: `the_number_of_threads_does_not_change_a_bit`.
fn is_test_name(text: &str) -> bool {
    text.contains('_') && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn name(path: &Path) -> Option<String> {
    path.is_dir().then(|| path.file_name()?.to_str().map(str::to_string))?
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.flatten().map(|entry| entry.path()).collect()
}

/// Files with an extension, hidden folders and build outputs left out.
fn find(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for path in entries(folder) {
        let skipped = |name: &str| name.starts_with('.') || matches!(name, "target" | "shared");
        if path.file_name().and_then(|name| name.to_str()).is_none_or(skipped) {
            continue;
        }
        if path.is_dir() {
            find(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_their_section_alone() {
        let manifest = "[package]\nname = \"einfall\"\n\n[dependencies]\neinfall-plan.workspace = true\nhalf = \"2\"\n\
                        einfall-tensor = { workspace = true }\n\n[dev-dependencies]\neinfall-testing = \"1\"\n";
        assert_eq!(dependencies(manifest), ["einfall-plan", "einfall-tensor"]);
    }

    #[test]
    fn names_of_tests_are_told_from_code() {
        assert!(is_test_name("same_bits_2"));
        assert!(["out", "Einsum::run", "a-b_c", "plan.workspace_bytes"].iter().all(|text| !is_test_name(text)));
    }
}
