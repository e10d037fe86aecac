//! Takes out one guard of the fence after another, in a copy of the tree, and demands that a story fails each time.
//!
//! `fence_mutants` runs them all, `fence_mutants prepare copy` those whose name contains a word. For each it builds
//! the extension from the changed copy (dev profile, seconds) and runs the stories named beside it against that
//! library (`TENURE_TEST_LIBRARY`); for stories of whole clusters it builds the arbiter too (`TENURE_BIN`) and makes an installation of
//! PostgreSQL that has the library (`PG_BIN`). Prints the table of docs/fence-proof.md; ends with 1 where a mutant
//! survives, no longer fits the source, or does not build. First of all the untouched copy has to pass.

mod members;
mod mutants;

use anyhow::{Context, Result, bail, ensure};
use members::OF_MEMBERS;
use mutants::{Mutant, OF_THE_FENCE};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many stories run side by side.
const AT_ONCE: usize = 3;

/// Files of stories that run whole clusters: their servers load the installed library, and their arbiter is the built one.
const OF_CLUSTERS: [&str; 3] = ["voters", "by_hand", "deposition"];

/// Tests of one crate, by what stands for their file, and how they are built: with the guard out.
const OF_CRATES: [(&str, &[&str]); 3] = [
    ("worker", &["-p", "tenure-keeper", "--test", "worker"]),
    ("keeper", &["-p", "tenure-keeper", "--lib"]),
    ("tables", &["-p", "tenure-cluster", "--test", "deposition"]),
];

/// All of them.
fn mutants() -> impl Iterator<Item = &'static Mutant> {
    OF_THE_FENCE.iter().chain(OF_MEMBERS)
}

/// What the stories run against.
#[derive(Clone)]
struct Built {
    library: PathBuf,
    /// The directory of PostgreSQL's programs, and the arbiter; None where no story runs a cluster.
    cluster: Option<(PathBuf, PathBuf)>,
    /// Tests of one crate, by their file.
    of_crates: Vec<(&'static str, PathBuf)>,
}

/// The copy of the tree and what is built from it.
struct Bench {
    source: PathBuf,
    copy: PathBuf,
    target: PathBuf,
    libraries: PathBuf,
}

impl Bench {
    fn new() -> Result<Bench> {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().context("find the tree")?;
        let home = std::env::var_os("TENURE_MUTANTS").map_or_else(|| PathBuf::from("/tmp/tenure-mutants"), PathBuf::from);
        let bench = Bench { source, copy: home.join("tree"), target: home.join("target"), libraries: home.join("libraries") };
        if bench.copy.exists() {
            std::fs::remove_dir_all(&bench.copy).context("remove the last copy")?;
        }
        for dir in [&bench.copy, &bench.libraries] {
            std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        // Without the times of the originals: cargo would take an old file for built already.
        let copied = Command::new("sh")
            .args(["-c", "git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t \"$1\"", "copy"])
            .arg(&bench.copy)
            .current_dir(&bench.source)
            .status();
        ensure!(copied.context("run git and cp")?.success(), "cannot copy the tree");
        Ok(bench)
    }

    /// Builds the copy as it stands.
    fn build(&self, name: &str, stories: &[(&str, &str)]) -> Result<Built> {
        let whole = stories.iter().any(|(file, _)| OF_CLUSTERS.contains(file));
        let output = Command::new("cargo")
            .args(["build", "--quiet", "--locked", "-p", "pg_tenure"])
            .args(if whole { &["-p", "tenure-arbiter", "--lib", "--bin", "tenure"][..] } else { &[] })
            .current_dir(&self.copy)
            .env("CARGO_TARGET_DIR", &self.target)
            .output()
            .context("run cargo build")?;
        if !output.status.success() {
            bail!("{name} does not build:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        let library = self.libraries.join(format!("{name}.so"));
        std::fs::copy(self.target.join("debug/libpg_tenure.so"), &library).context("keep the library")?;
        let cluster = if whole {
            let arbiter = self.libraries.join(format!("{name}.tenure"));
            std::fs::copy(self.target.join("debug/tenure"), &arbiter).context("keep the arbiter")?;
            Some((self.install(name, &library)?, arbiter))
        } else {
            None
        };
        let wanted = OF_CRATES.into_iter().filter(|(test, _)| stories.iter().any(|(file, _)| file == test));
        let of_crates = wanted.map(|(test, which)| Ok((test, self.build_tests(name, test, which)?))).collect::<Result<_>>()?;
        Ok(Built { library, cluster, of_crates })
    }

    /// Builds tests of one crate of the copy.
    fn build_tests(&self, name: &str, test: &str, which: &[&str]) -> Result<PathBuf> {
        let output = Command::new("cargo")
            .args(["test", "--locked", "--no-run"])
            .args(which)
            .current_dir(&self.copy)
            .env("CARGO_TARGET_DIR", &self.target)
            .output()
            .context("run cargo test")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{test} with {name} does not build:\n{text}");
        let built =
            text.lines().filter(|line| line.contains("Executable")).find_map(|line| Some(line.rsplit_once('(')?.1.trim_end_matches(')')));
        let kept = self.libraries.join(format!("{name}.{test}"));
        std::fs::copy(self.copy.join(built.with_context(|| format!("cargo names no program of {test}:\n{text}"))?), &kept)?;
        Ok(kept)
    }

    /// Makes an installation of PostgreSQL with this library; gives the directory of its programs. A server finds its libraries by
    /// where its own file lies, so the programs are copied and the rest is linked.
    fn install(&self, name: &str, library: &Path) -> Result<PathBuf> {
        let bin = stories::programs::postgres_bin();
        let asked =
            Command::new(bin.join("pg_config")).args(["--bindir", "--pkglibdir", "--sharedir"]).output().context("run pg_config")?;
        let text = String::from_utf8_lossy(&asked.stdout).into_owned();
        let [bin, lib, share] = text.lines().collect::<Vec<_>>()[..] else { bail!("pg_config says {text}") };
        let root = self.libraries.join(name);
        let script = "rm -rf \"$1\" && mkdir -p \"$1$2\" \"$1$3\" \"$1$(dirname \"$4\")\" && cp -a \"$2/.\" \"$1$2\" \
                      && cp -as \"$3/.\" \"$1$3\" && ln -s \"$4\" \"$1$4\" && rm -f \"$1$3/pg_tenure.so\" && cp \"$5\" \"$1$3/pg_tenure.so\"";
        let made = Command::new("sh").args(["-ec", script, "install"]).arg(&root).args([bin, lib, share]).arg(library).status();
        ensure!(made.context("run sh")?.success(), "cannot make an installation for {name}");
        Ok(root.join(bin.trim_start_matches('/')))
    }

    /// Builds the copy with one guard taken out, and puts it back.
    fn build_mutant(&self, mutant: &Mutant) -> Result<Built> {
        let file = self.copy.join(mutant.file);
        let whole = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
        let places = whole.matches(mutant.from).count();
        ensure!(places == 1, "{} fits {places} places of {}, not one", mutant.name, mutant.file);
        std::fs::write(&file, whole.replacen(mutant.from, mutant.to, 1)).context("take the guard out")?;
        let built = self.build(mutant.name, mutant.stories);
        std::fs::write(&file, whole).context("put the guard back")?;
        built
    }

    /// Runs one story against what was built: None where it passes, else what it said.
    fn story(&self, built: &Built, (file, test): (&str, &str)) -> Result<Option<String>> {
        let cluster = built.cluster.iter().flat_map(|(bin, arbiter)| [("PG_BIN", bin), ("TENURE_BIN", arbiter)]);
        let mut command = match built.of_crates.iter().find(|(name, _)| *name == file) {
            Some((_, program)) => Command::new(program),
            None => {
                let mut cargo = Command::new("cargo");
                cargo.args(["test", "--quiet", "--locked", "-p", "tenure-tests", "--test", file, "--"]);
                cargo
            }
        };
        let output = command
            .args(["--exact", test])
            .current_dir(&self.source)
            .env("TENURE_TEST_LIBRARY", &built.library)
            .envs(cluster)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .output()
            .context("run the test")?;
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(text.contains("running 1 test"), "{file} has no test {test}:\n{text}");
        if output.status.success() {
            return Ok(None);
        }
        let said = text.lines().skip_while(|line| !line.contains("panicked at")).nth(1).unwrap_or("it failed");
        Ok(Some(said.chars().take(140).collect::<String>().replace('|', "/")))
    }
}

/// A story to run against what was built.
type Job = (usize, Built, (&'static str, &'static str));

fn run_all(bench: &Bench, jobs: &[Job]) -> Result<Vec<Option<String>>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; jobs.len()]);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    let Some((_, built, story)) = jobs.get(index) else { return };
                    let said = bench.story(built, *story);
                    results.lock().expect("nobody panicked with the lock")[index] = Some(said.map_err(|error| format!("{error:#}")));
                }
            });
        }
    });
    let results = results.into_inner().expect("nobody panicked with the lock");
    results.into_iter().map(|said| said.expect("every job ran").map_err(anyhow::Error::msg)).collect()
}

fn run() -> Result<bool> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let chosen: Vec<&Mutant> =
        mutants().filter(|mutant| words.is_empty() || words.iter().any(|word| mutant.name.contains(word.as_str()))).collect();
    let bench = Bench::new()?;

    let stories: BTreeSet<_> = chosen.iter().flat_map(|mutant| mutant.stories.iter().copied()).collect();
    let untouched = bench.build("untouched", &stories.iter().copied().collect::<Vec<_>>())?;
    let jobs: Vec<Job> = stories.into_iter().map(|story| (0, untouched.clone(), story)).collect();
    for ((_, _, (_, test)), said) in jobs.iter().zip(run_all(&bench, &jobs)?) {
        if let Some(said) = said {
            bail!("{test} fails with every guard in place: {said}");
        }
    }
    println!("with every guard in place {} stories pass", jobs.len());

    let mut jobs: Vec<Job> = Vec::new();
    let mut unfit = 0;
    for (index, mutant) in chosen.iter().enumerate() {
        match bench.build_mutant(mutant) {
            Ok(built) => jobs.extend(mutant.stories.iter().map(|story| (index, built.clone(), *story))),
            Err(error) => {
                println!("{error:#}");
                unfit += 1;
            }
        }
    }
    let said = run_all(&bench, &jobs)?;
    println!("\n| guard | taken out | story that fails | what it says |\n|---|---|---|---|");
    let mut survivors = 0;
    for ((index, _, (file, test)), said) in jobs.iter().zip(said) {
        let mutant = chosen[*index];
        survivors += usize::from(said.is_none());
        let said = said.unwrap_or_else(|| "**it passes: the mutant survives**".to_owned());
        println!("| {} | `{}` in {} | {file}: {test} | {said} |", mutant.guard, mutant.name, mutant.file);
    }
    println!("\n{} mutants, {survivors} survivors, {unfit} that do not fit the source", chosen.len());
    Ok(survivors + unfit == 0)
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("fence_mutants: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else a guard that moved is known to be untested only when somebody runs all mutants.
    #[test]
    fn every_mutant_fits_the_source_at_one_place() {
        let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let unfit = mutants().filter_map(|mutant| {
            let whole = std::fs::read_to_string(tree.join(mutant.file)).unwrap_or_default();
            let places = whole.matches(mutant.from).count();
            (places != 1).then(|| format!("{} fits {places} places of {}", mutant.name, mutant.file))
        });
        let unfit: Vec<String> = unfit.collect();
        assert!(unfit.is_empty(), "{unfit:#?}");
    }
}
