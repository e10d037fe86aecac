//! A watchdog device of a story's own: a file whose system calls the kernel sends to us (FUSE), which speaks the watchdog's ioctls, counts,
//! and when nobody feeds it in time does to its node what a reset does to a host.
//!
//! The kernels that tests run on seldom have softdog, and none may reset the machine. Nothing in `tenure` knows the difference: it opens a
//! path, and open(2), ioctl(2), write(2) and close(2) mean what they mean with a device.

use crate::process;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What became of the device so far.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// It counts.
    pub counting: bool,
    /// After so many seconds it fires.
    pub timeout_s: u32,
    /// When it was fed last; opening counts.
    pub fed: Option<Instant>,
    /// How often.
    pub feeds: u64,
    /// When it fired.
    pub fired: Option<Instant>,
    /// When it was closed after the letter that ends it.
    pub disarmed: Option<Instant>,
    /// The last byte written.
    last: u8,
}

/// The mounted device.
pub struct Device {
    mount: PathBuf,
    record: Arc<Mutex<Record>>,
}

const NAME: &str = "watchdog";
const NODE: u64 = 2;

impl Device {
    /// Mounts one that kills every process in this directory when it fires. An error where this user or kernel can't.
    pub fn new(host: &Path) -> Result<Device> {
        let mount = tempfile::Builder::new().prefix("tenure-dog-").tempdir_in("/tmp")?.keep();
        let kernel = File::options().read(true).write(true).open("/dev/fuse").context("open /dev/fuse")?;
        let mut command = Command::new("mount");
        // The descriptor that the mount is served by is the program's standard input.
        command.args(["-i", "-t", "fuse", "-o", "fd=0,rootmode=40000,user_id=0,group_id=0,allow_other", "tenure-watchdog"]).arg(&mount);
        let output = command.stdin(Stdio::from(kernel.try_clone()?)).output()?;
        if !output.status.success() {
            bail!("mount a FUSE file system: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let record = Arc::new(Mutex::new(Record { timeout_s: 60, ..Record::default() }));
        let (serving, counting, host) = (record.clone(), record.clone(), host.to_owned());
        std::thread::spawn(move || serve(kernel, &serving));
        std::thread::spawn(move || count(&counting, &host));
        Ok(Device { mount, record })
    }

    /// The path that a node's file names.
    pub fn path(&self) -> PathBuf {
        self.mount.join(NAME)
    }

    /// What became of it.
    pub fn record(&self) -> Record {
        self.record.lock().expect("nobody panicked with the lock").clone()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount).output();
        let _ = std::fs::remove_dir(&self.mount);
    }
}

/// Ends with the record's other owners.
#[expect(clippy::disallowed_methods, reason = "the device's clock, in a thread of its own")]
fn count(record: &Arc<Mutex<Record>>, host: &Path) {
    while Arc::strong_count(record) > 1 {
        std::thread::sleep(Duration::from_millis(20));
        let due = {
            let mut record = record.lock().expect("nobody panicked with the lock");
            let patience = Duration::from_secs(u64::from(record.timeout_s));
            let due = record.counting && record.fired.is_none() && record.fed.is_some_and(|at| at.elapsed() > patience);
            if due {
                record.fired = Some(Instant::now());
            }
            due
        };
        if due {
            process::kill_below(host);
        }
    }
}

/// Answers the kernel until the file system is unmounted. The messages are those of linux/fuse.h, version 7.31.
fn serve(mut kernel: File, record: &Mutex<Record>) {
    let mut buffer = vec![0; 1 << 20];
    while let Ok(length) = kernel.read(&mut buffer) {
        let Some(message) = Message::of(&buffer[..length]) else { continue };
        let Some(answer) = answer(&message, record) else { continue };
        let (error, body) = answer.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
        let mut reply = Vec::with_capacity(16 + body.len());
        reply.extend(u32::try_from(16 + body.len()).expect("an answer is short").to_ne_bytes());
        reply.extend(error.to_ne_bytes());
        reply.extend(message.unique.to_ne_bytes());
        reply.extend(body);
        if kernel.write_all(&reply).is_err() {
            return;
        }
    }
}

struct Message<'a> {
    operation: u32,
    unique: u64,
    node: u64,
    body: &'a [u8],
}

impl Message<'_> {
    fn of(bytes: &[u8]) -> Option<Message<'_>> {
        Some(Message { operation: number(bytes, 4)?, unique: long(bytes, 8)?, node: long(bytes, 16)?, body: bytes.get(40..)? })
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

const ENOENT: i32 = 2;
const ENOTTY: i32 = 25;
const ENOSYS: i32 = 38;

/// None where the kernel waits for no answer.
fn answer(message: &Message<'_>, record: &Mutex<Record>) -> Option<Result<Vec<u8>, i32>> {
    let body = message.body;
    Some(match message.operation {
        // LOOKUP: a name, ended by a zero.
        1 if body.strip_suffix(b"\0") == Some(NAME.as_bytes()) => {
            let mut entry = [NODE, 0, 1, 1, 0].iter().flat_map(|field| field.to_ne_bytes()).collect::<Vec<u8>>();
            entry.extend(attributes(NODE));
            Ok(entry)
        }
        1 => Err(ENOENT),
        // FORGET, BATCH_FORGET.
        2 | 42 => return None,
        // GETATTR.
        3 => Ok([1_u64, 0].iter().flat_map(|field| field.to_ne_bytes()).chain(attributes(message.node)).collect()),
        // OPEN, without the page cache and without places in the file.
        14 => {
            let mut record = record.lock().expect("nobody panicked with the lock");
            (record.counting, record.fed, record.fired, record.last) = (true, Some(Instant::now()), None, 0);
            Ok(words(&[0, 0, 1 | 4, 0]))
        }
        // WRITE.
        16 => {
            let size = number(body, 16).unwrap_or(0);
            let mut record = record.lock().expect("nobody panicked with the lock");
            record.last = body.get(40..).and_then(<[u8]>::last).copied().unwrap_or(0);
            record.fed = Some(Instant::now());
            record.feeds += 1;
            Ok(words(&[size, 0]))
        }
        // RELEASE: only the letter ends it.
        18 => {
            let mut record = record.lock().expect("nobody panicked with the lock");
            if record.last == b'V' {
                record.counting = false;
                record.disarmed = Some(Instant::now());
            }
            Ok(Vec::new())
        }
        // FLUSH, OPENDIR, RELEASEDIR, ACCESS.
        25 | 29 | 34 => Ok(Vec::new()),
        27 => Ok(words(&[0, 0, 0, 0])),
        // INIT.
        26 => Ok(words(&[7, 31, 0, 0, 0, 4096, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        // IOCTL.
        39 => ioctl(number(body, 12).unwrap_or(0), body.get(32..).unwrap_or(&[]), record).map(|data| {
            let mut out = words(&[0, 0, 0, 0]);
            out.extend(data);
            out
        }),
        _ => Err(ENOSYS),
    })
}

/// WDIOC_GETSUPPORT, WDIOC_SETTIMEOUT and WDIOC_GETTIMEOUT of linux/watchdog.h.
fn ioctl(command: u32, input: &[u8], record: &Mutex<Record>) -> Result<Vec<u8>, i32> {
    let mut record = record.lock().expect("nobody panicked with the lock");
    match command {
        0x8028_5700 => {
            let mut info = words(&[0x80 | 0x100 | 0x8000, 0]);
            info.extend(b"a story's watchdog".iter().chain(std::iter::repeat(&0)).take(32));
            Ok(info)
        }
        0xC004_5706 => {
            record.timeout_s = number(input, 0).ok_or(ENOTTY)?;
            record.fed = Some(Instant::now());
            Ok(words(&[record.timeout_s]))
        }
        0x8004_5707 => Ok(words(&[record.timeout_s])),
        _ => Err(ENOTTY),
    }
}

fn attributes(node: u64) -> Vec<u8> {
    let mode: u32 = if node == NODE { 0o100_666 } else { 0o040_755 };
    let long: Vec<u8> = [node, 0, 0, 0, 0, 0].iter().flat_map(|field| field.to_ne_bytes()).collect();
    // Three times of nanoseconds, then mode, links, user, group, device, block size, flags.
    long.into_iter().chain(words(&[0, 0, 0, mode, 1, 0, 0, 0, 512, 0])).collect()
}
