//! The reader's test: ARCHITECTURE.md's table of questions, each with the file and the name in it that answer, is true.

use std::path::Path;

/// Rows whose file or name is not there; a table that is too short is a fault, too.
pub fn faults(root: &Path, architecture: &str) -> Vec<String> {
    let rows = architecture.lines().skip_while(|line| !line.starts_with("| question |")).skip(2).take_while(|line| line.starts_with('|'));
    let mut faults = Vec::new();
    let mut count = 0;
    for row in rows {
        count += 1;
        let quoted: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        let [file, name] = quoted[..] else {
            faults.push(format!("a question has to name one file and one name in it: {row}"));
            continue;
        };
        match std::fs::read_to_string(root.join(file)) {
            Ok(text) if text.contains(name) => {}
            Ok(_) => faults.push(format!("ARCHITECTURE.md sends readers to `{name}` in {file}, which is not there")),
            Err(why) => faults.push(format!("ARCHITECTURE.md sends readers to {file}: {why}")),
        }
    }
    if count < 10 {
        faults.push(format!("ARCHITECTURE.md answers {count} questions of the ten that a reader has"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_not_true_is_a_fault() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let table = |rows: &[&str]| format!("x\n| question | file | name |\n|---|---|---|\n{}\n\ny", rows.join("\n"));
        let good = "| Who? | `src/main.rs` | `fn main` |";
        assert_eq!(faults(root, &table(&[good; 10])), Vec::<String>::new());
        assert_eq!(faults(root, &table(&[good; 9])).len(), 1);
        for bad in
            ["| Who? | `src/main.rs` | `fn nobody` |", "| Who? | `src/nobody.rs` | `fn main` |", "| Who? | src/main.rs | `fn main` |"]
        {
            assert_eq!(faults(root, &table(&[&[good; 10][..], &[bad]].concat())).len(), 1, "{bad}");
        }
    }
}
