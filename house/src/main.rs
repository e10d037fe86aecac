//! `house`: is the source in the shape that ARCHITECTURE.md says? What `make lint` runs; `house DIRECTORY` looks at another tree, `house --write` draws the code map.

mod documents;
mod imports;
mod map;
mod places;
mod reader;
mod rooms;
mod source;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The crates, in none of which files use each other in a circle.
const CRATES: [&str; 10] = ["cluster", "dcs", "keeper", "steward", "extension", "arbiter", "sim", "writer", "tests", "house"];

/// Directories of source, each file of which is in a table of ARCHITECTURE.md.
const MAPPED: [&str; 15] = [
    "cluster/src",
    "cluster/tests",
    "dcs/src",
    "keeper/src",
    "keeper/tests",
    "steward/src",
    "extension/src",
    "arbiter/src",
    "arbiter/tests",
    "sim/src",
    "sim/tests",
    "writer/src",
    "tests/src",
    "tests/tests",
    "house/src",
];

fn main() -> ExitCode {
    let mut writes = false;
    let mut root = here();
    for word in std::env::args_os().skip(1) {
        if word == "--write" {
            writes = true;
        } else {
            root = PathBuf::from(word);
        }
    }
    match if writes { write(&root) } else { look(&root) } {
        Ok((counts, faults)) => {
            // Nobody is left to tell where standard output is closed.
            let _ = std::io::stdout().write_all(format!("{counts}{faults}").as_bytes());
            if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(why) => {
            let _ = std::io::stderr().write_all(format!("house: read {}: {why}\n", root.display()).as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// The tree that this program was built from.
fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Draws the tables of ARCHITECTURE.md.
fn write(root: &Path) -> std::io::Result<(String, String)> {
    let path = root.join("ARCHITECTURE.md");
    let (drawn, left_out) = map::drawn(root, &std::fs::read_to_string(&path)?, &MAPPED)?;
    std::fs::write(path, drawn)?;
    Ok((String::new(), left_out.iter().map(|file| format!("house: ARCHITECTURE.md has no table for {file}\n")).collect()))
}

/// The counts in one line for each crate, and every fault in a line.
fn look(root: &Path) -> std::io::Result<(String, String)> {
    let (mut counts, mut faults) = (String::new(), String::new());
    let mut circles = 0;
    for name in CRATES {
        let src = root.join(name).join("src");
        if !src.is_dir() {
            continue;
        }
        let read = imports::Crate::read(&src)?;
        let found = read.circles();
        circles += found.len();
        counts.push_str(&format!("house: {name}: {} files, {} uses, {} circles\n", read.files.len(), read.uses().count(), found.len()));
        faults.push_str(&found.iter().map(|circle| described(name, &read, circle)).collect::<String>());
    }
    let architecture = std::fs::read_to_string(root.join("ARCHITECTURE.md"))?;
    counts.push_str(&format!("house: {circles} circles\n"));
    let mut found = Vec::new();
    for name in rooms::ORDERED {
        let order = rooms::order(&architecture, name);
        let against = rooms::against(name, &imports::Crate::read(&root.join(name).join("src"))?, &order);
        counts.push_str(&format!("house: {name}: {} imports against the order of the rooms ({})\n", against.len(), order.join(" > ")));
        if order.is_empty() {
            found.push(format!("ARCHITECTURE.md has no table of the rooms of {name}/src"));
        }
        found.extend(against);
    }
    let arbiter = imports::Crate::read(&root.join("arbiter/src"))?;
    found.extend(places::faults(&root.join("arbiter/src"), &arbiter.files)?);
    found.extend(map::faults(root, &architecture, &MAPPED)?);
    found.extend(reader::faults(root, &architecture));
    found.extend(documents::faults(root, &MAPPED)?);
    for line in found {
        faults.push_str(&format!("house: {line}\n"));
    }
    Ok((counts, faults))
}

/// A circle with the uses that make it.
fn described(name: &str, read: &imports::Crate, circle: &[usize]) -> String {
    let mut text = format!("house: {name}: a circle of {} files\n", circle.len());
    for (from, to) in circle.iter().flat_map(|from| read.edges[from].iter().map(move |to| (from, to))).filter(|(_, to)| circle.contains(to))
    {
        text.push_str(&format!("    {} uses {}\n", read.files[*from].display(), read.files[*to].display()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_has_the_shape_that_the_architecture_says() {
        let (_, faults) = look(&here()).unwrap();
        assert!(faults.is_empty(), "{faults}");
    }
}
