//! The code map: ARCHITECTURE.md has a row for every file of source, made from the file's own first sentence (`house --write`).

use crate::imports::rust_files;
use std::path::Path;

/// Begins a table of the files below a directory; what follows the directory are those that another table has.
const BEGIN: &str = "<!-- files of ";

/// Ends it.
const END: &str = "<!-- end of files -->";

/// The text with every table as the files are now, and the files that are in none.
pub fn drawn(root: &Path, text: &str, directories: &[&str]) -> std::io::Result<(String, Vec<String>)> {
    let mut drawn = String::with_capacity(text.len());
    let mut named = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        drawn.push_str(line);
        drawn.push('\n');
        let Some(directory) = line.strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(" -->")) else { continue };
        named.push(directory.to_owned());
        drawn.push_str(&table(root, directory)?);
        for skipped in lines.by_ref() {
            if skipped == END {
                drawn.push_str(END);
                drawn.push('\n');
                break;
            }
        }
    }
    let covered = |file: &str| named.iter().any(|directory| file.starts_with(&format!("{directory}/")));
    let mut left_out = Vec::new();
    for directory in directories {
        left_out.extend(files_of(root, directory)?.into_iter().map(|file| format!("{directory}/{file}")).filter(|file| !covered(file)));
    }
    Ok((drawn, left_out))
}

/// Where the text is not what it would be drawn as.
pub fn faults(root: &Path, text: &str, directories: &[&str]) -> std::io::Result<Vec<String>> {
    let (drawn, left_out) = drawn(root, text, directories)?;
    let mut faults: Vec<String> = left_out.into_iter().map(|file| format!("ARCHITECTURE.md has no table for {file}")).collect();
    if drawn != text {
        let differs = |(now, then): &(&str, &str)| now != then;
        let line = drawn.lines().zip(text.lines()).find(differs).map_or("its end", |(now, _)| now);
        faults.push(format!("ARCHITECTURE.md is not as the files are (at: {line}); `make map` draws its tables"));
    }
    Ok(faults)
}

/// The files below a directory, a room's own file before the others of the room.
pub fn files_of(root: &Path, directory: &str) -> std::io::Result<Vec<String>> {
    let place = root.join(directory);
    let mut files = Vec::new();
    if place.is_dir() {
        rust_files(&place, &place, &mut files)?;
    }
    let mut names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    // A room's own file first.
    names.sort_by_key(|name| name.replace("mod.rs", "").replace("lib.rs", "").replace("main.rs", ""));
    Ok(names)
}

fn table(root: &Path, directory: &str) -> std::io::Result<String> {
    let mut table = String::from("| file | for |\n|---|---|\n");
    for file in files_of(root, directory)? {
        let text = std::fs::read_to_string(root.join(directory).join(&file))?;
        table.push_str(&format!("| `{file}` | {} |\n", first_sentence(&text)));
    }
    Ok(table)
}

/// The first sentence of a file's first paragraph.
fn first_sentence(text: &str) -> String {
    let paragraph: Vec<&str> = text.lines().map_while(|line| line.strip_prefix("//! ")).collect();
    let paragraph = paragraph.join(" ");
    let sentence = paragraph.split_once(". ").map_or(paragraph.as_str(), |(first, _)| first);
    sentence.trim_end_matches('.').replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_the_first_sentence() {
        for (text, sentence) in [
            ("//! One. Two.\n//!\n//! Three", "One"),
            ("//! One line,\n//! and its end.\nuse a;", "One line, and its end"),
            ("//! `a | b` of e.g.x", "`a \\| b` of e.g.x"),
            ("use a;", ""),
        ] {
            assert_eq!(first_sentence(text), sentence, "{text}");
        }
    }

    #[test]
    fn a_table_is_drawn_and_its_absence_noticed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let (text, left_out) = drawn(root, "a\n<!-- files of src -->\nold\n<!-- end of files -->\nb\n", &["src"]).unwrap();
        assert!(text.starts_with("a\n<!-- files of src -->\n| file | for |\n|---|---|\n| `main.rs` | "), "{text}");
        assert!(text.ends_with("|\n<!-- end of files -->\nb\n") && !text.contains("old"), "{text}");
        assert!(text.contains("\n| `map.rs` | The code map: "), "{text}");
        assert!(left_out.is_empty());
        assert!(drawn(root, "a\n", &["src"]).unwrap().1.contains(&"src/map.rs".to_owned()));
        assert_eq!(faults(root, &text, &["src"]).unwrap(), Vec::<String>::new());
        assert_eq!(faults(root, &text.replace("code map", "house"), &["src"]).unwrap().len(), 1);
    }
}
