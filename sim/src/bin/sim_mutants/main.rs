//! Takes guards out of the lease worker and of the rules, one at a time, and demands that the simulation fails each time.
//!
//! `sim_mutants` tries them all, `sim_mutants quorum lease` those whose name contains a word. It copies the tree, puts every mutant into the
//! copy with a switch of its own, builds that once, and runs the simulation with one switch after the other (`TENURE_MUTANT`), from the same first seed.
//! Prints the table of docs/simulation.md; ends with 1 where a mutant survives that is not known to, or no longer fits the source.
//! First of all the copy has to pass with no switch set.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command that tells its result")]

mod mutants;
mod shipped;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use mutants::{MUTANTS, Mutant, focus};
use shipped::SHIPPED;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Takes one guard after another out of a copy of the tree, and demands that the simulation notices.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only mutants whose name contains one of these.
    words: Vec<String>,
    /// For so long each is tried before it has survived.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The switch, in the copy's `cluster`.
const SWITCH: &str = r#"
/// This guard is taken out in this process.
#[doc(hidden)]
pub fn mutant(name: &str) -> bool {
    static TAKEN_OUT: std::sync::OnceLock<String> = std::sync::OnceLock::new();
    TAKEN_OUT.get_or_init(|| std::env::var("TENURE_MUTANT").unwrap_or_default()) == name
}
"#;

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("{why:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let wanted = |mutant: &&Mutant| arguments.words.is_empty() || arguments.words.iter().any(|word| mutant.name.contains(word.as_str()));
    let chosen: Vec<&Mutant> = MUTANTS.iter().chain(SHIPPED).filter(wanted).collect();
    ensure!(!chosen.is_empty(), "no mutant has one of these words in its name");
    let sim = build(&chosen)?;
    let as_is = Trial::of(&sim, "", arguments)?;
    ensure!(as_is.broke.is_none(), "the simulation fails without any mutant: {:?}", as_is.broke);
    println!("| taken out | fails at seed | after steps | with |\n|---|---|---|---|");
    let mut sound = true;
    for mutant in &chosen {
        let trial = Trial::of(&sim, mutant.name, arguments)?;
        let row = |seed: &str, with: &str| println!("| `{}`: {} | {seed} | {} | {with} |", mutant.name, mutant.what, trial.steps);
        match (&trial.broke, mutant.survives) {
            (Some((seed, with)), _) => row(seed, &format!("`{with}`")),
            (None, Some(why)) => row("-", &format!("survives: {why}")),
            (None, None) => {
                row("-", "**SURVIVES**");
                sound = false;
            }
        }
    }
    Ok(sound)
}

/// What came of one mutant.
struct Trial {
    /// The seed and the invariant.
    broke: Option<(String, String)>,
    steps: String,
}

impl Trial {
    fn of(sim: &Path, name: &str, arguments: &Arguments) -> Result<Trial> {
        let (seed, minutes) = (arguments.seed.to_string(), arguments.minutes.to_string());
        let about = match focus(name) {
            Some(focus) => vec!["--focus", focus],
            None if name.starts_with("depose-") => vec!["--deposes"],
            None if name.starts_with("found-") => vec!["--founds"],
            None => vec!["--forgets", "--copies"],
        };
        let output = Command::new(sim)
            .args(["--seed", &seed, "--minutes", &minutes])
            .args(about)
            .env("TENURE_MUTANT", name)
            .output()
            .context("run the simulation")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let broke = text.lines().find_map(|line| {
            let (seed, with) = line.strip_prefix("FAILED seed ")?.split_once(": ")?;
            Some((seed.to_owned(), with.to_owned()))
        });
        // A guard may be missed by a panic, too: an assertion of the simulation itself.
        let broke = broke.or_else(|| (!output.status.success()).then(|| ("?".to_owned(), "panic".to_owned())));
        let steps = text.lines().find_map(|line| Some(line.split_once(" faults each: ")?.1.split_once(" steps")?.0.to_owned()));
        Ok(Trial { broke, steps: steps.unwrap_or_default() })
    }
}

/// Copies the tree, puts the mutants in, builds the simulation.
fn build(chosen: &[&Mutant]) -> Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().context("find the tree")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| source.join("target"), PathBuf::from);
    // A directory of its own: cargo takes a package of the same name in the same place of another tree for the same one.
    let (copy, built) = (target.join("sim-mutants/tree"), target.join("sim-mutants/target"));
    if copy.exists() {
        std::fs::remove_dir_all(&copy).context("remove the last copy")?;
    }
    std::fs::create_dir_all(&copy).with_context(|| format!("make {}", copy.display()))?;
    let copied = Command::new("sh")
        .args(["-c", "git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t \"$1\"", "copy"])
        .arg(&copy)
        .current_dir(&source)
        .status();
    ensure!(copied.context("run git and cp")?.success(), "cannot copy the tree");
    let append = |file: &str, text: &str| -> Result<()> {
        let path = copy.join(file);
        let before = std::fs::read_to_string(&path).with_context(|| format!("read {file}"))?;
        std::fs::write(&path, before + text).with_context(|| format!("write {file}"))
    };
    append("cluster/src/lib.rs", SWITCH)?;
    for mutant in chosen {
        put_in(&copy, mutant)?;
    }
    let output = Command::new("cargo")
        .args(["build", "--quiet", "--locked", "--release", "-p", "tenure-sim", "--bin", "sim"])
        .current_dir(&copy)
        .env("CARGO_TARGET_DIR", &built)
        .output()
        .context("run cargo build")?;
    if !output.status.success() {
        bail!("the copy does not build:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(built.join("release/sim"))
}

/// The file that the mutant changes, and its text, in this tree.
fn fits(tree: &Path, mutant: &Mutant) -> Result<(PathBuf, String)> {
    let path = tree.join(mutant.file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("mutant {}: read {}", mutant.name, mutant.file))?;
    let fits = text.matches(mutant.from).count();
    ensure!(fits == 1, "the mutant {} fits {} times into {}: {:?}", mutant.name, fits, mutant.file, mutant.from);
    Ok((path, text))
}

fn put_in(copy: &Path, mutant: &Mutant) -> Result<()> {
    let (path, text) = fits(copy, mutant)?;
    let home = if mutant.file.starts_with("cluster/") { "crate" } else { "cluster" };
    let switched = mutant.to.replace("OUT", &format!("{home}::mutant({:?})", mutant.name));
    std::fs::write(&path, text.replace(mutant.from, &switched)).with_context(|| format!("write {}", mutant.file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mutant_fits_the_source() {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let misfits: Vec<String> =
            MUTANTS.iter().chain(SHIPPED).filter_map(|mutant| fits(&tree, mutant).err()).map(|why| format!("{why:#}")).collect();
        assert!(misfits.is_empty(), "{misfits:#?}");
    }

    #[test]
    fn every_mutant_has_a_switch_and_a_name_of_its_own() {
        for (at, mutant) in MUTANTS.iter().enumerate() {
            assert!(mutant.to.contains("OUT") && mutant.from != mutant.to, "{}", mutant.name);
            assert!(MUTANTS[..at].iter().all(|other| other.name != mutant.name), "{}", mutant.name);
        }
    }
}
