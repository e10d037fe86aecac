//! Which file of a crate uses which other one, and the circles among them.

use crate::source;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The path of a module within its crate; the root is empty.
type ModulePath = Vec<String>;

/// One crate's files, and what each of them uses of the others.
pub struct Crate {
    /// The files, relative to the source directory.
    pub files: Vec<PathBuf>,
    /// From file to file (by their numbers).
    pub edges: BTreeMap<usize, BTreeSet<usize>>,
}

impl Crate {
    /// Reads every file below a `src`. Modules of tests are left out.
    pub fn read(src: &Path) -> std::io::Result<Crate> {
        let mut files = Vec::new();
        rust_files(src, src, &mut files)?;
        // A program below `bin` is a crate of its own.
        files.retain(|file| !file.starts_with("bin"));
        files.sort();
        let text = |file: &PathBuf| std::fs::read_to_string(src.join(file));
        let tests = files.iter().map(|file| Ok(tests_of(file, &text(file)?))).collect::<std::io::Result<Vec<_>>>()?.concat();
        files.retain(|file| !tests.contains(&module_of(file)));
        let texts = files.iter().map(text).collect::<Result<Vec<_>, _>>()?;
        let codes: Vec<String> = texts.iter().map(|text| source::code(text)).collect();
        let modules: BTreeMap<ModulePath, usize> = files.iter().enumerate().map(|(number, file)| (module_of(file), number)).collect();
        let mut edges = BTreeMap::new();
        for (number, code) in codes.iter().enumerate() {
            let here = module_of(&files[number]);
            let used = paths(code, &here, &modules).into_iter().map(|path| file_of(&path, &modules)).filter(|used| *used != number);
            edges.insert(number, used.collect());
        }
        Ok(Crate { files, edges })
    }

    /// Groups of files each of which uses, by some way, every other one of its group.
    pub fn circles(&self) -> Vec<Vec<usize>> {
        let reached: Vec<BTreeSet<usize>> = (0..self.files.len()).map(|from| self.reached(from)).collect();
        let mut circles: Vec<Vec<usize>> = Vec::new();
        for from in 0..self.files.len() {
            if reached[from].contains(&from) && !circles.iter().any(|circle| circle.contains(&from)) {
                circles.push((0..self.files.len()).filter(|to| reached[from].contains(to) && reached[*to].contains(&from)).collect());
            }
        }
        circles
    }

    fn reached(&self, from: usize) -> BTreeSet<usize> {
        let mut reached = BTreeSet::new();
        let mut open = vec![from];
        while let Some(at) = open.pop() {
            for next in self.edges.get(&at).into_iter().flatten() {
                if reached.insert(*next) {
                    open.push(*next);
                }
            }
        }
        reached
    }

    /// Every use, as pairs of files.
    pub fn uses(&self) -> impl Iterator<Item = (&Path, &Path)> {
        self.edges.iter().flat_map(|(from, to)| to.iter().map(|to| (self.files[*from].as_path(), self.files[*to].as_path())))
    }
}

/// Every `.rs` below a directory.
pub fn rust_files(root: &Path, directory: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && let Ok(relative) = path.strip_prefix(root)
        {
            files.push(relative.to_owned());
        }
    }
    Ok(())
}

/// The modules in files of their own that a file has for tests only.
fn tests_of(file: &Path, text: &str) -> Vec<ModulePath> {
    let here = module_of(file);
    let marked = text.split("#[cfg(test)]").skip(1);
    let names = marked.filter_map(|item| item.trim_start().strip_prefix("mod ")?.split_once(';').map(|(name, _)| name));
    names.filter(|name| is_name(name)).map(|name| here.iter().cloned().chain([name.to_owned()]).collect()).collect()
}

fn module_of(file: &Path) -> ModulePath {
    let mut path: ModulePath = file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if path.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        path.pop();
    }
    path
}

/// The file of the longest part of a path that is a module.
fn file_of(path: &[String], modules: &BTreeMap<ModulePath, usize>) -> usize {
    (0..=path.len()).rev().find_map(|length| modules.get(&path[..length])).copied().unwrap_or_default()
}

/// Every path into this crate that a file's code names: in `use`, and in between.
fn paths(code: &str, here: &[String], modules: &BTreeMap<ModulePath, usize>) -> Vec<ModulePath> {
    let words = words(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < words.len() {
        let before = at.checked_sub(1).map(|before| words[before].as_str());
        // `use<'a>` says what a type borrows.
        if words[at] == "use" && words.get(at + 1).is_some_and(|next| next != "<") {
            let mut tails = Vec::new();
            at = tree(&words, at + 1, &mut Vec::new(), &mut tails);
            found.extend(tails.iter().filter_map(|tail| resolve(tail, here, modules)));
        } else if before != Some("::") && words.get(at + 1).is_some_and(|next| next == "::") {
            let mut path = vec![words[at].clone()];
            while words.get(at + 1).is_some_and(|next| next == "::") && words.get(at + 2).is_some_and(|word| is_name(word)) {
                path.push(words[at + 2].clone());
                at += 2;
            }
            found.extend(resolve(&path, here, modules));
            at += 1;
        } else {
            at += 1;
        }
    }
    found
}

/// The tree of a `use` from this word on, as whole paths; gives the word after it.
fn tree(words: &[String], mut at: usize, prefix: &mut Vec<String>, tails: &mut Vec<Vec<String>>) -> usize {
    let depth = prefix.len();
    while at < words.len() {
        match words[at].as_str() {
            ";" | "}" | "," => break,
            "::" => at += 1,
            "as" => at += 2,
            "{" => {
                at += 1;
                while at < words.len() && words[at] != "}" {
                    at = match words[at].as_str() {
                        "," | ";" => at + 1,
                        _ => tree(words, at, prefix, tails),
                    };
                }
                prefix.truncate(depth);
                return at + 1;
            }
            word => {
                prefix.push(word.to_owned());
                at += 1;
            }
        }
    }
    if prefix.len() > depth {
        tails.push(prefix.clone());
    }
    prefix.truncate(depth);
    at
}

/// A path from the crate's root; none where it leads to another crate or is no path of modules.
fn resolve(path: &[String], here: &[String], modules: &BTreeMap<ModulePath, usize>) -> Option<ModulePath> {
    let (first, rest) = path.split_first()?;
    let mut whole = match first.as_str() {
        "crate" => Vec::new(),
        "self" => here.to_vec(),
        "super" => here[..here.len().checked_sub(1)?].to_vec(),
        child => {
            let whole: ModulePath = here.iter().chain([&child.to_owned()]).cloned().collect();
            modules.contains_key(&whole).then_some(whole)?
        }
    };
    for word in rest {
        match word.as_str() {
            "super" => drop(whole.pop()),
            "self" => {}
            word => whole.push(word.to_owned()),
        }
    }
    Some(whole)
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Names, `::`, and every other sign by itself.
fn words(code: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut letters = code.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter.is_alphanumeric() || letter == '_' {
            let mut word = String::from(letter);
            while let Some(more) = letters.next_if(|c| c.is_alphanumeric() || *c == '_') {
                word.push(more);
            }
            words.push(word);
        } else if letter == ':' && letters.next_if_eq(&':').is_some() {
            words.push("::".to_owned());
        } else if !letter.is_whitespace() {
            words.push(letter.to_string());
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree_of(files: &[(&str, &str)]) -> (tempfile::Room, Crate) {
        let room = tempfile::room();
        for (name, text) in files {
            let path = room.0.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let read = Crate::read(&room.0).unwrap();
        (room, read)
    }

    /// A directory that goes away with its test; a crate for that would be this crate's only dependency.
    mod tempfile {
        pub struct Room(pub std::path::PathBuf);

        pub fn room() -> Room {
            use std::sync::atomic::{AtomicU32, Ordering};
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("house-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            Room(std::env::temp_dir().join(name))
        }

        impl Drop for Room {
            fn drop(&mut self) {
                let _ = std::fs::remove_dir_all(&self.0);
            }
        }
    }

    #[test]
    fn every_way_to_name_a_module_is_seen() {
        for used in [
            "use crate::b::B;",
            "use crate::{c::C, b::{self, B}};",
            "use super::b;",
            "fn f() { crate::b::g() }",
            "fn f() -> super::b::B { todo }",
            "pub use crate::b::B as X;",
            "pub(crate) use crate::b::*;",
        ] {
            let (_room, read) = tree_of(&[("lib.rs", "mod a; mod b; mod c;"), ("a.rs", used), ("b.rs", ""), ("c.rs", "")]);
            assert!(read.uses().any(|pair| pair == (Path::new("a.rs"), Path::new("b.rs"))), "{used}");
        }
        for not in ["// use crate::b::B;", "fn f() { \"crate::b\" }", "use b::B;", "#[cfg(test)]\nmod tests { use crate::b; }"] {
            let (_room, read) = tree_of(&[("lib.rs", "mod a; mod b;"), ("a.rs", not), ("b.rs", "")]);
            assert_eq!(read.uses().count(), 0, "{not}");
        }
    }

    #[test]
    fn a_circle_is_found_however_long_it_is() {
        let files = [
            ("main.rs", "mod a; mod d; fn main() { a::f() }"),
            ("a/mod.rs", "mod b; use b::B; use crate::d;"),
            ("a/b.rs", "mod c; use self::c::C;"),
            ("a/b/c.rs", "use super::super::A;"),
            ("d.rs", ""),
        ];
        let (_room, read) = tree_of(&files);
        let circles = read.circles();
        assert_eq!(circles.len(), 1);
        let names: Vec<_> = circles[0].iter().map(|number| read.files[*number].display().to_string()).collect();
        assert_eq!(names, ["a/b/c.rs", "a/b.rs", "a/mod.rs"]);
    }
}
