//! Where something was measured, and with which versions.

use std::fs;
use std::process::Command;

/// One machine on one day.
#[derive(Debug, Clone)]
pub struct Machine {
    /// When it began.
    pub date: String,
    /// How many of which.
    pub processor: String,
    /// All of it.
    pub memory_mib: u64,
    /// Its release.
    pub kernel: String,
    /// Of everything that took part.
    pub versions: Vec<String>,
    /// The mean of the last minute before it began.
    pub load_before: f64,
    /// The same at its end.
    pub load_after: f64,
}

impl Machine {
    /// This one, now, with the first lines that these programs print.
    pub fn here(programs: &mut [Command]) -> Machine {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = field(&processors, "model name").unwrap_or("processor of unknown make");
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let kib = field(&memory, "MemTotal").and_then(|text| text.split(' ').next()?.parse::<u64>().ok()).unwrap_or_default();
        let load = load();
        Machine {
            date: said(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
            processor: format!("{} x {model}", std::thread::available_parallelism().map_or(1, std::num::NonZero::get)),
            memory_mib: kib / 1024,
            kernel: said(Command::new("uname").arg("-r")),
            versions: programs.iter_mut().map(|program| said(program.arg("--version"))).collect(),
            load_before: load,
            load_after: load,
        }
    }
}

/// The mean of the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default()
}

/// What stands behind the first line of this name.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start().strip_prefix(':')?.trim()))
}

/// The first line that it prints.
fn said(command: &mut Command) -> String {
    let output = command.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = output.ok().and_then(|text| text.lines().next().map(str::trim).map(str::to_owned)).filter(|line| !line.is_empty());
    line.unwrap_or_else(|| format!("{} of unknown version", command.get_program().to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::field;

    #[test]
    fn a_field_stands_behind_a_colon() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nMemTotal:        8152 kB\n";
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2 GHz"));
        assert_eq!(field(text, "MemTotal"), Some("8152 kB"));
        assert_eq!(field(text, "flags"), None);
    }
}
