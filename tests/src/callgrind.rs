//! Instructions that a server's backends execute, counted by valgrind's callgrind: the same on a busy machine as on a quiet one.
//!
//! Counted is what a backend does in user space from the beginning of `PostgresMain`; the kernel's work is not.
//! Valgrind has no vDSO, so reading a clock is a system call there and its own hundred instructions are not counted.

use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// What the fence's library is called in a profile.
const LIBRARY: &str = "pg_tenure.so";

/// Where our hooks call onward: what these cost is Postgres' and not the fence's.
const ONWARD: [&str; 2] = ["standard_ExecutorStart", "standard_ProcessUtility"];

/// Arguments for `valgrind`, to be followed by the program.
pub fn arguments(profiles: &Path) -> Vec<String> {
    vec![
        "--tool=callgrind".to_owned(),
        "--trace-children=yes".to_owned(),
        "--toggle-collect=PostgresMain".to_owned(),
        format!("--callgrind-out-file={}/%p", profiles.display()),
        format!("--log-file={}/log.%p", profiles.display()),
    ]
}

/// Instructions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// All of them.
    pub all: u64,
    /// In the library's own code.
    pub own: u64,
    /// In what the library calls, apart from the work that a hook passes on.
    pub called: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.all += other.all;
        self.own += other.own;
        self.called += other.called;
    }
}

/// Adds up and removes the profiles of all processes that have ended.
pub fn take(profiles: &Path) -> Result<Count> {
    let mut count = Count::default();
    for entry in fs::read_dir(profiles).with_context(|| format!("list {}", profiles.display()))? {
        let path = entry?.path();
        let is_profile = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.parse::<u32>().is_ok());
        if !is_profile {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        // Of a process that lives: the file is made at its start and written at its end.
        let lives = || path.file_name().is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if text.is_empty() || !text.contains("totals: ") && lives() {
            continue;
        }
        count += read(&text).with_context(|| format!("understand {}", path.display()))?;
        fs::remove_file(&path)?;
    }
    Ok(count)
}

/// Names are given once, as `(number) name`, and by their number after that.
#[derive(Default)]
struct Names(HashMap<String, String>);

impl Names {
    fn of(&mut self, text: &str) -> String {
        let (number, name) = text.split_once(' ').unwrap_or((text, ""));
        if !name.is_empty() {
            self.0.insert(number.to_owned(), name.to_owned());
        }
        self.0.get(number).cloned().unwrap_or_default()
    }
}

/// Reads one profile in callgrind's own format.
fn read(text: &str) -> Result<Count> {
    let (mut objects, mut functions) = (Names::default(), Names::default());
    let (mut object, mut called_object, mut called_function) = (String::new(), None, String::new());
    let (mut count, mut total, mut is_call) = (Count::default(), None, false);
    for line in text.lines() {
        if let Some((key, value)) = line.split_once('=').filter(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase())) {
            match key {
                "ob" => object = objects.of(value),
                "cob" => called_object = Some(objects.of(value)),
                "fn" => drop(functions.of(value)),
                "cfn" => called_function = functions.of(value),
                "calls" => is_call = true,
                _ => {}
            }
        } else if let Some(value) = line.strip_prefix("totals: ") {
            total = Some(value.trim().parse::<u64>().context("read the total")?);
        } else if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) {
            let cost: u64 = line.split(' ').nth(1).unwrap_or("0").parse().with_context(|| format!("read {line}"))?;
            let ours = object.ends_with(LIBRARY);
            if !is_call {
                count.all += cost;
                count.own += if ours { cost } else { 0 };
            } else if ours
                && called_object.as_ref().is_some_and(|object| !object.ends_with(LIBRARY))
                && !ONWARD.contains(&called_function.as_str())
            {
                count.called += cost;
            }
            if is_call {
                (is_call, called_object) = (false, None);
            }
        }
    }
    match total {
        Some(total) if total == count.all => Ok(count),
        Some(total) => bail!("the lines add up to {}, the total is {total}", count.all),
        None => bail!("it has no total: its process has not written it to the end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_cost_and_what_is_called_are_told_from_what_is_passed_on() {
        let text = "version: 1\nevents: Ir\n\nob=(1) /bin/postgres\nfl=(1) ???\nfn=(1) PostgresMain\n0 100\ncob=(2) /lib/pg_tenure.so\ncfi=(2) ???\n\
                    cfn=(2) pg_tenure::fence::executor_start\ncalls=1 0\n0 55\n\nob=(2)\nfn=(2)\n0 20\ncob=(1)\ncfn=(3) standard_ExecutorStart\ncalls=1 0\n0 30\n\
                    cob=(3) /lib/libc.so.6\ncfn=(4) clock_gettime\ncalls=1 0\n0 5\ncfn=(5) pg_tenure::inner\ncalls=1 0\n0 0\n\n\
                    ob=(1)\nfn=(3)\n0 30\n\nob=(3)\nfn=(4)\n0 5\n\ntotals: 155\n";
        assert_eq!(read(text).expect("a profile"), Count { all: 155, own: 20, called: 5 });
        assert!(read(&text.replace("totals: 155", "")).is_err());
        assert!(read(&text.replace("0 100", "0 99")).is_err());
    }
}
