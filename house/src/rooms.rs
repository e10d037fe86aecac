//! The order of the rooms of a crate: ARCHITECTURE.md's table of them, from the top down. A room uses those below it.

use crate::imports::Crate;
use std::path::Path;

/// Two rooms at the top, neither of which knows of the other: what a daemon needs of a command, or a command of the daemon, lies below both.
const STRANGERS: [&str; 2] = ["cli", "daemon"];

/// The crates whose rooms have an order.
pub const ORDERED: [&str; 2] = ["extension", "arbiter"];

/// The rooms of a crate in the order of its table.
pub fn order(architecture: &str, crate_name: &str) -> Vec<String> {
    let head = format!("| room of {crate_name}/src |");
    let rows = architecture.lines().skip_while(|line| !line.starts_with(&head)).take_while(|line| line.starts_with('|'));
    rows.filter_map(|row| row.strip_prefix("| `")?.split_once("/` |")).map(|(room, _)| room.to_owned()).collect()
}

/// The imports that go up, and those between strangers.
pub fn against(name: &str, read: &Crate, order: &[String]) -> Vec<String> {
    let place = |file: &Path| file.iter().next().and_then(|room| order.iter().position(|name| room == name.as_str()));
    let mut against = Vec::new();
    for (from, to) in read.uses() {
        let (Some(below), Some(above)) = (place(from), place(to)) else { continue };
        let strangers = below != above && STRANGERS.contains(&order[below].as_str()) && STRANGERS.contains(&order[above].as_str());
        if above < below || strangers {
            against.push(format!("{name}: against the order of its rooms: {} uses {}", from.display(), to.display()));
        }
    }
    against
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn only_what_goes_up_is_against_the_order() {
        let order = order(
            "| room of other/src | for |\n|---|---|\n| `not/` | x |\n\n| room of this/src | for |\n|---|---|\n| `cli/` | a |\n| `daemon/` | b |\n| `ground/` | c |\n\n| `other/` |",
            "this",
        );
        assert_eq!(order, ["cli", "daemon", "ground"]);
        let files: Vec<PathBuf> = ["main.rs", "cli/mod.rs", "daemon/mod.rs", "ground/a.rs", "ground/b.rs"].map(PathBuf::from).to_vec();
        for (from, to, faults) in [(0, 1, 0), (1, 3, 0), (2, 3, 0), (3, 4, 0), (3, 2, 1), (1, 2, 1), (2, 1, 1)] {
            let read = Crate { files: files.clone(), edges: [(from, [to].into())].into() };
            assert_eq!(against("this", &read, &order).len(), faults, "{from} {to}");
        }
    }
}
