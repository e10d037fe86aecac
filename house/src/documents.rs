//! Documents name files of source that are there: one that was moved or renamed is looked for in them, too.

use crate::map::files_of;
use std::path::Path;

/// Decisions of the past (docs/adr) name what was there when they were taken, and are left out.
const DIRECTORIES: [&str; 2] = ["", "docs"];

/// A file that a document names and that is nowhere.
pub fn faults(root: &Path, directories: &[&str]) -> std::io::Result<Vec<String>> {
    let mut files = Vec::new();
    for directory in directories {
        files.extend(files_of(root, directory)?.into_iter().map(|file| format!("{directory}/{file}")));
    }
    let mut faults = Vec::new();
    for directory in DIRECTORIES {
        let mut documents: Vec<_> = std::fs::read_dir(root.join(directory))?.collect::<Result<Vec<_>, _>>()?;
        documents.sort_by_key(std::fs::DirEntry::path);
        for document in documents.iter().map(std::fs::DirEntry::path).filter(|path| path.extension().is_some_and(|ending| ending == "md")) {
            let text = std::fs::read_to_string(&document)?;
            let name = document.strip_prefix(root).unwrap_or(&document).display();
            faults.extend(unknown(&text, &files).map(|file| format!("{name} names {file}, which is nowhere")));
        }
    }
    Ok(faults)
}

/// The names in a text that end in `.rs` and are the end of no file's path.
fn unknown<'a>(text: &'a str, files: &'a [String]) -> impl Iterator<Item = &'a str> {
    let is_path = |letter: char| letter.is_alphanumeric() || "_-/.".contains(letter);
    let words = text.split(move |letter| !is_path(letter)).map(|word| word.trim_matches('.'));
    let named =
        words.filter(|word| word.strip_suffix(".rs").is_some_and(|before| before.ends_with(|letter: char| letter.is_alphanumeric())));
    // The host and the two ends of a range of names (`a.rs-b.rs`) are no files.
    named.filter(|word| word.matches(".rs").count() == 1 && *word != "docs.rs").filter(|word| {
        let file = word.trim_start_matches('/');
        !files.iter().any(|known| known.strip_suffix(file).is_some_and(|before| before.is_empty() || before.ends_with('/')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_nowhere_is_found() {
        let files = ["cluster/src/race.rs".to_owned(), "cluster/src/duty/mod.rs".to_owned()];
        for (text, found) in [
            ("`race.rs` and cluster/src/race.rs. `duty/mod.rs`, see docs.rs", vec![]),
            ("(`ace.rs`)", vec!["ace.rs"]),
            ("race.rs: a_story, races.rs.", vec!["races.rs"]),
            ("keeper/src/race.rs", vec!["keeper/src/race.rs"]),
        ] {
            assert_eq!(unknown(text, &files).collect::<Vec<_>>(), found, "{text}");
        }
    }
}
