//! What `tenure` prints: every command's help, and what it says to input that is wrong. What it prints of a cluster
//! that runs is in `tests/tests/operating.rs`.

use std::fmt::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `tenure` in `home` with nothing in its environment; gives its exit code and what it printed.
fn tenure(home: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_tenure"))
        .args(arguments)
        .current_dir(home)
        .env_clear()
        .env("HOME", home)
        .env("TZ", "UTC")
        .stdin(Stdio::null())
        .output()
        .expect("run tenure");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("an exit code"), text(output.stdout), text(output.stderr))
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("make a directory")
}

#[test]
fn every_command_explains_itself() {
    let home = home();
    let (code, help, _) = tenure(home.path(), &["--help"]);
    assert_eq!(code, 0);
    insta::assert_snapshot!("help", help);
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|word| *word != "help")
        .collect();
    assert!(commands.len() > 20, "{help}");
    for command in commands {
        let (code, short, _) = tenure(home.path(), &[command, "-h"]);
        assert_eq!(code, 0, "{command}");
        insta::assert_snapshot!(format!("help of {command}"), short);
    }
}

/// Files that a newcomer might have got wrong.
const FILES: [(&str, &str); 5] = [
    ("empty.yml", ""),
    ("broken.yml", "scope: demo\n  name: [\n"),
    ("list.yml", "- scope\n- name\n"),
    ("misspelt.yml", "scope: demo\nname: n0\netcd3:\n  hosts: 127.0.0.1:1\npostgresqll:\n  data_dir: /tmp\n"),
    ("nobody.yml", "scope: demo\nname: n0\netcd3:\n  hosts: 127.0.0.1:1\n"),
];

/// Command lines that can't work, without any cluster.
const WRONG: &[&str] = &[
    "",
    "lst",
    "list",
    "list demo",
    "list -c nowhere.yml",
    "list -c empty.yml",
    "list -c broken.yml",
    "list -c list.yml",
    "list -c nobody.yml",
    "list -d etcd3://127.0.0.1:1 de/mo",
    "list -f xml",
    "list -w soon",
    "topology -d consul://127.0.0.1:1 demo",
    "history -c nobody.yml",
    "switchover -c nobody.yml --force",
    "switchover -c nobody.yml --scheduled tomorrow --force",
    "failover -c nobody.yml --force",
    "restart -c nobody.yml --pg-version new --force",
    "restart -c nobody.yml -r king",
    "reload -c nobody.yml --force",
    "reinit -c nobody.yml --force",
    "pause -c nobody.yml",
    "resume -c nobody.yml",
    "edit-config -c nobody.yml -s ttl --force",
    "edit-config -c nobody.yml --apply nowhere.yml --force",
    "show-config -c nobody.yml",
    "flush -c nobody.yml everything",
    "dsn -c nobody.yml -m a -r replica",
    "version -c nobody.yml",
    "remove -c nobody.yml",
    "query -c nobody.yml",
    "query -c nobody.yml -C SELECT -f nowhere.sql",
    "explain -c nobody.yml -n many",
    "check -c nobody.yml",
    "validate",
    "validate nowhere.yml",
    "validate empty.yml",
    "validate broken.yml",
    "validate list.yml",
    "validate misspelt.yml",
    "validate nobody.yml",
    "completion tcsh",
    "man empty.yml/below",
    "arbiter",
    "arbiter nowhere.yml",
    "arbiter misspelt.yml",
];

#[test]
fn whoever_types_something_wrong_is_told_what_and_what_next() {
    let home = home();
    for (name, text) in FILES {
        std::fs::write(home.path().join(name), text).expect("write a file");
    }
    let mut seen = String::new();
    for line in WRONG {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (code, out, err) = tenure(home.path(), &words);
        assert!(code == 1 || code == 2, "{line} ended with {code}: {out}{err}");
        assert!(!err.contains("panicked"), "{line}: {err}");
        // Usage is in the help; what concerns us is the sentence before it.
        let said: String = err.lines().take_while(|line| !line.starts_with("Usage:")).filter(|line| !line.is_empty()).fold(
            String::new(),
            |mut said, line| {
                writeln!(said, "    {}", line.trim_end()).expect("a string");
                said
            },
        );
        assert!(!said.is_empty() || !out.is_empty(), "{line} says nothing");
        writeln!(seen, "$ tenure {line}\n    [{code}]\n{said}").expect("a string");
    }
    // Addresses of system errors and the time in a log line differ between machines.
    insta::with_settings!({filters => vec![(r"\d{4}-\d\d-\d\dT[0-9:.]+Z", "TIME"), (r"(?m)[ \t]+$", "")]}, {
        insta::assert_snapshot!("wrong input", seen);
    });
}
