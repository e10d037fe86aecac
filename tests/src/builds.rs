//! Two builds of pg_tenure, and for each node a host of its own to install them on: programs, `$libdir` and scripts of a server that no other node uses.

use crate::programs;
use crate::room::Room;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the packages of one release bring: `tenure`, `pg_tenure.so`, the control file and the SQL scripts, in one directory.
#[derive(Debug, Clone)]
pub struct Build {
    directory: PathBuf,
    /// Its release, by its control file.
    pub release: String,
}

/// An older and a newer one.
#[derive(Debug, Clone)]
pub struct Builds {
    /// The directory that `MIXED_OLD` names.
    pub old: Build,
    /// The directory that `MIXED_NEW` names.
    pub new: Build,
}

/// What a node has: the arbiter of one build, the library of one build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    /// The arbiter is the newer one.
    pub new_arbiter: bool,
    /// The library is the newer one.
    pub new_library: bool,
}

impl Kind {
    /// `on`: old arbiter, new library.
    pub fn of(letters: &str) -> Kind {
        let mut letters = letters.chars().map(|letter| letter == 'n');
        Kind { new_arbiter: letters.next() == Some(true), new_library: letters.next() == Some(true) }
    }

    /// For people.
    pub fn words(self) -> String {
        let age = |new| if new { "new" } else { "old" };
        format!("{} arbiter, {} library", age(self.new_arbiter), age(self.new_library))
    }
}

impl Build {
    fn named(variable: &str) -> Option<Build> {
        let directory = PathBuf::from(std::env::var_os(variable)?);
        let control = fs::read_to_string(directory.join("pg_tenure.control")).unwrap_or_else(|why| panic!("{variable}: {why}"));
        let release = control.lines().find_map(|line| line.strip_prefix("default_version = ")).expect("a control file names the release");
        Some(Build { release: release.trim_matches('\'').to_owned(), directory })
    }

    fn script(&self) -> String {
        let path = self.directory.join(format!("pg_tenure--{}.sql", self.release));
        fs::read_to_string(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
    }
}

impl Builds {
    /// Both, or nothing where the environment names none, said loudly.
    pub fn both() -> Option<Builds> {
        let both = Build::named("MIXED_OLD").zip(Build::named("MIXED_NEW"));
        if both.is_none() {
            println!("SKIPPED: MIXED_OLD and MIXED_NEW name no two builds; hint: `make mixed OLD=COMMIT`");
        }
        both.map(|(old, new)| Builds { old, new })
    }

    /// The script from the older release to the newer one. The newer build brings it once releases are tagged; without, it is what the newer script
    /// has and the older lacks.
    fn update(&self) -> (String, String) {
        let name = format!("pg_tenure--{}--{}.sql", self.old.release, self.new.release);
        let there = fs::read_to_string(self.new.directory.join(&name));
        (name, there.unwrap_or_else(|_| brought(&self.old.script(), &self.new.script())))
    }
}

/// The statements of the newer script that the older one lacks, as an update runs them. Those on rights all come again: they say `ALL FUNCTIONS`, and
/// anybody may call a new one before that.
fn brought(old: &str, new: &str) -> String {
    let had: Vec<&str> = old.split_inclusive(";\n").map(str::trim).collect();
    let is_of_rights = |statement: &str| {
        let first = statement.lines().find(|line| !line.is_empty() && !line.starts_with("--"));
        first.is_some_and(|line| line.starts_with("GRANT") || line.starts_with("REVOKE"))
    };
    new.split_inclusive(";\n")
        .filter(|statement| !had.contains(&statement.trim()) || is_of_rights(statement))
        .map(|statement| {
            statement.replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION").replace("CREATE VIEW", "CREATE OR REPLACE VIEW")
        })
        .collect()
}

/// One node's own installation: PostgreSQL finds its libraries and scripts relative to its programs, so these are copied, and the rest is linked.
#[derive(Debug)]
pub struct Host {
    root: PathBuf,
    bin: PathBuf,
    library: PathBuf,
    scripts: PathBuf,
}

impl Host {
    /// A server as this machine's, without pg_tenure.
    pub fn new(room: &Room, node: &str) -> Host {
        let root = room.directory(&format!("{node}.host"));
        let bin = programs::postgres_bin();
        let config = |what: &str| {
            let told = Command::new(bin.join("pg_config")).arg(what).output().expect("ask pg_config");
            PathBuf::from(String::from_utf8(told.stdout).expect("a path").trim())
        };
        let (library, share) = (config("--pkglibdir"), config("--sharedir"));
        let here = |path: &Path| root.join(path.strip_prefix("/").expect("an absolute path"));
        let host = Host { bin: here(&bin), library: here(&library), scripts: here(&share.join("extension")), root: root.clone() };
        mirror(&bin, &host.bin, |from, to| fs::copy(from, to).map(|_| ()));
        mirror(&library, &host.library, |from, to| symlink(from, to));
        mirror(&share, &here(&share), |from, to| if from.ends_with("extension") { Ok(()) } else { symlink(from, to) });
        mirror(&share.join("extension"), &host.scripts, |from, to| symlink(from, to));
        host
    }

    /// `postgresql.bin_dir` of its node.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// Where its `tenure` is, whichever.
    pub fn tenure(&self) -> PathBuf {
        self.root.join("tenure")
    }

    /// The arbiter's package: a program that runs keeps the file that it was started from.
    pub fn install_arbiter(&self, build: &Build) {
        replace(&build.directory.join("tenure"), &self.tenure(), 0o755);
    }

    /// The library's package: the library, the control file and the scripts, those to the newer release with it.
    pub fn install_library(&self, build: &Build, of: &Builds) {
        replace(&build.directory.join("pg_tenure.so"), &self.library.join("pg_tenure.so"), 0o755);
        for entry in fs::read_dir(&self.scripts).expect("read the scripts").flatten() {
            if entry.file_name().to_string_lossy().starts_with("pg_tenure") {
                fs::remove_file(entry.path()).expect("remove a script of the package before");
            }
        }
        replace(&build.directory.join("pg_tenure.control"), &self.scripts.join("pg_tenure.control"), 0o644);
        let script = format!("pg_tenure--{}.sql", build.release);
        replace(&build.directory.join(&script), &self.scripts.join(&script), 0o644);
        if build.release == of.new.release {
            let (name, text) = of.update();
            fs::write(self.scripts.join(name), text).expect("write the script of the update");
        }
    }
}

/// A directory with what another one has, but for pg_tenure.
fn mirror(from: &Path, to: &Path, make: impl Fn(&Path, &Path) -> std::io::Result<()>) {
    fs::create_dir_all(to).expect("make a directory of a host");
    for entry in fs::read_dir(from).unwrap_or_else(|why| panic!("{}: {why}", from.display())).flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("pg_tenure") {
            make(&entry.path(), &to.join(&name)).unwrap_or_else(|why| panic!("{}: {why}", entry.path().display()));
        }
    }
}

/// As packages do it: the old file goes on for whom has it open.
fn replace(from: &Path, to: &Path, mode: u32) {
    let new = to.with_extension("dpkg-new");
    fs::copy(from, &new).unwrap_or_else(|why| panic!("{}: {why}", from.display()));
    fs::set_permissions(&new, fs::Permissions::from_mode(mode)).expect("set the file's mode");
    fs::rename(&new, to).expect("put the file in its place");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_brings_what_the_older_script_lacks() {
        let old = "CREATE FUNCTION a();\n\nCREATE VIEW v AS SELECT 1;\nGRANT a;\n";
        let new = "CREATE FUNCTION a();\n\nCREATE FUNCTION b();\nCREATE VIEW v AS SELECT 2;\nGRANT a;\n";
        assert_eq!(brought(old, new), "\nCREATE OR REPLACE FUNCTION b();\nCREATE OR REPLACE VIEW v AS SELECT 2;\nGRANT a;\n");
        assert_eq!(Kind::of("on"), Kind { new_arbiter: false, new_library: true });
    }
}
