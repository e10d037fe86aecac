//! The shared memory of a running server, written over from outside: as if its release kept something else there.

use rustix::process::Pid;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

/// After the three queues of waiting commits: written, flushed, applied.
const FLUSHED: u64 = 48 + 8;

/// Writes this where the fence reads what the synchronous standbys have flushed. False, and a line says so, where that can't be found here.
pub fn overwrite_flushed_by_standbys(process: Pid, word: u64) -> bool {
    let pid = process.as_raw_nonzero();
    let program = fs::read_link(format!("/proc/{pid}/exe")).expect("which program it runs");
    let said = Command::new("readelf").args(["-hW", "--dyn-syms"]).arg(&program).output();
    let Some(said) = said.ok().filter(|said| said.status.success()).map(|said| String::from_utf8_lossy(&said.stdout).into_owned()) else {
        println!("SKIPPED: no readelf here, which finds the server's variables");
        return false;
    };
    // Number, value, size, type, bind, visibility, section, name.
    let symbol = said.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words.get(7) == Some(&"WalSndCtl")).then(|| words[1].to_owned())
    });
    let symbol = u64::from_str_radix(&symbol.expect("the server has this variable"), 16).expect("an address");
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("read its mappings");
    let first = maps.lines().find(|line| line.ends_with(&*program.to_string_lossy())).expect("the program's own mapping");
    let base = u64::from_str_radix(first.split('-').next().expect("an address"), 16).expect("an address");
    // One that may lie anywhere counts from where it lies.
    let anywhere = said.lines().any(|line| line.trim_start().starts_with("Type:") && line.contains("DYN"));
    let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem")).expect("open its memory");
    let mut pointer = [0; 8];
    memory.read_exact_at(&mut pointer, if anywhere { base + symbol } else { symbol }).expect("read the variable");
    memory.write_all_at(&word.to_ne_bytes(), u64::from_ne_bytes(pointer) + FLUSHED).expect("write its shared memory");
    true
}
