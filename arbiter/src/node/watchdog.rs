//! The watchdog device: opened before this node may write, fed and closed by `upkeep/watchdog.rs`.

use crate::config::WatchdogConfig;
use anyhow::{Context, Result, bail};
use cluster::watchdog::{self, Mode};
use rustix::ioctl;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

/// `struct watchdog_info` of linux/watchdog.h.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Info {
    options: u32,
    firmware_version: u32,
    identity: [u8; 32],
}

/// The device's time can be set.
const CAN_SET_TIMEOUT: u32 = 0x80;
/// A `V` before the close ends it.
const CAN_BE_CLOSED: u32 = 0x100;

/// `'W'` in linux/watchdog.h.
const GROUP: u8 = b'W';
const GET_SUPPORT: ioctl::Opcode = ioctl::opcode::read::<Info>(GROUP, 0);
const SET_TIMEOUT: ioctl::Opcode = ioctl::opcode::read_write::<i32>(GROUP, 6);
const GET_TIMEOUT: ioctl::Opcode = ioctl::opcode::read::<i32>(GROUP, 7);

/// An open device: it counts, and resets the host when it is not fed.
#[derive(Debug)]
struct Device {
    file: File,
    can_be_closed: bool,
    can_set_timeout: bool,
    name: String,
    /// What was asked for.
    wanted: Duration,
    /// What it does.
    fires_after: Duration,
}

impl Device {
    /// Opens it, which starts it, and sets its time. Blocks.
    fn open(path: &Path, wanted: Duration) -> Result<Device> {
        let file = File::options().write(true).open(path).with_context(|| format!("open {}", path.display()))?;
        // SAFETY: the opcode writes one `struct watchdog_info`, which `Info` is.
        let info = unsafe { ioctl::ioctl(file.as_fd(), ioctl::Getter::<GET_SUPPORT, Info>::new()) };
        let info = info.with_context(|| format!("{} is no watchdog: ask what it can do", path.display()))?;
        let name = info.identity.split(|byte| *byte == 0).next().map(|name| String::from_utf8_lossy(name).into_owned()).unwrap_or_default();
        let mut device = Device {
            file,
            can_be_closed: info.options & CAN_BE_CLOSED != 0,
            can_set_timeout: info.options & CAN_SET_TIMEOUT != 0,
            name: format!("{} ({name})", path.display()),
            wanted,
            fires_after: Duration::ZERO,
        };
        let set = device.set(wanted);
        if set.is_err() || device.fires_after < watchdog::SHORTEST {
            device.disarm();
            set?;
            bail!("{} fires after {} s, and can't be fed in time", path.display(), device.fires_after.as_secs());
        }
        Ok(device)
    }

    /// Sets its time where it can be set, and asks what came of it.
    fn set(&mut self, wanted: Duration) -> Result<()> {
        self.wanted = wanted;
        if self.can_set_timeout {
            let mut seconds = i32::try_from(wanted.as_secs()).unwrap_or(i32::MAX);
            // SAFETY: the opcode reads and writes one int.
            unsafe { ioctl::ioctl(self.file.as_fd(), ioctl::Updater::<SET_TIMEOUT, i32>::new(&mut seconds)) }
                .with_context(|| format!("set {} to {} s", self.name, wanted.as_secs()))?;
        }
        // SAFETY: the opcode writes one int.
        let seconds = unsafe { ioctl::ioctl(self.file.as_fd(), ioctl::Getter::<GET_TIMEOUT, i32>::new()) };
        let seconds = seconds.with_context(|| format!("ask {} for its time", self.name))?;
        self.fires_after = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Ok(())
    }

    fn feed(&mut self) -> Result<()> {
        self.file.write_all(b"1").with_context(|| format!("feed {}", self.name))
    }

    /// The letter that makes the close the end of it; the close follows with the drop.
    fn disarm(&mut self) {
        if !self.can_be_closed {
            let _ = self.feed();
            tracing::warn!("{} can't be told to stop: it resets this host in {} s", self.name, self.fires_after.as_secs());
        }
        if let Err(why) = self.file.write_all(b"V") {
            tracing::error!("{} was not told to stop, and resets this host in {} s: {why}", self.name, self.fires_after.as_secs());
        }
    }
}

/// The device of this node, open or not. What touches it runs on a thread for blocking calls.
#[derive(Debug, Default)]
pub struct Watchdog {
    device: Arc<Mutex<Option<Device>>>,
    armed: AtomicBool,
    /// Procedures that make a primary and have armed it.
    promoting: AtomicUsize,
    /// What was last said.
    told: std::sync::Mutex<Option<String>>,
}

/// While it lives, the device is not taken for one that nobody needs: a primary is being made.
pub struct Armed<'a>(&'a Watchdog);

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.0.promoting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Watchdog {
    /// It is open.
    pub fn is_armed(&self) -> bool {
        self.armed.load(Ordering::Relaxed)
    }

    /// There is something to be fed, now or as soon as this node leads.
    pub fn is_wanted(&self, config: &WatchdogConfig) -> bool {
        self.is_armed() || config.mode == Mode::Required || (config.mode == Mode::Automatic && usable(&config.device).is_ok())
    }

    /// Why this node must not lead, where it must not. The device is not opened for that: that would start it.
    pub fn bars(&self, config: &WatchdogConfig, ttl: Duration) -> Option<String> {
        if config.mode != Mode::Required || self.is_armed() {
            return None;
        }
        let why = match watchdog::timeout(ttl, config.safety_margin_s) {
            None => too_short(ttl, config),
            Some(_) => usable(&config.device).err()?,
        };
        let words = format!("{}: {why}", watchdog::REQUIRED);
        self.tell(format!("this node does not stand: {words}"));
        Some(words)
    }

    /// Opens the device before a server becomes a primary. An error only where the file says that it is required.
    pub async fn arm(&self, config: &WatchdogConfig, ttl: Duration) -> Result<Armed<'_>> {
        self.promoting.fetch_add(1, Ordering::Relaxed);
        let armed = Armed(self);
        match self.open(config, ttl).await {
            Err(why) if config.mode == Mode::Required => Err(why.context(watchdog::REQUIRED)),
            _ => Ok(armed),
        }
    }

    /// Opens it, unless it is open or not wanted.
    pub async fn open(&self, config: &WatchdogConfig, ttl: Duration) -> Result<()> {
        if config.mode == Mode::Off {
            return Ok(());
        }
        let mut held = self.device.clone().lock_owned().await;
        if held.is_some() {
            return Ok(());
        }
        let Some(wanted) = watchdog::timeout(ttl, config.safety_margin_s) else {
            let why = too_short(ttl, config);
            if usable(&config.device).is_ok() {
                self.tell(format!("the watchdog is not used: {why}"));
            }
            bail!("{why}");
        };
        let (path, required) = (config.device.clone(), config.mode == Mode::Required);
        let opened = tokio::task::spawn_blocking(move || {
            let mut device = Device::open(&path, wanted)?;
            if required && device.fires_after > wanted {
                device.disarm();
                bail!("{} fires after {} s, later than the {} s it must", device.name, device.fires_after.as_secs(), wanted.as_secs());
            }
            device.feed()?;
            let said = (device.name.clone(), device.fires_after);
            *held = Some(device);
            Ok(said)
        });
        match opened.await? {
            Ok((name, fires_after)) => {
                self.armed.store(true, Ordering::Relaxed);
                *self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
                tracing::info!(
                    "watchdog {name} armed: it resets this host {} s after the last look at an open page",
                    fires_after.as_secs()
                );
                if fires_after > wanted {
                    tracing::warn!("{name} can't be set to {} s: a host that hangs is reset only after another may lead", wanted.as_secs());
                }
                Ok(())
            }
            Err(why) => {
                let absent = why
                    .chain()
                    .any(|cause| cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound));
                if required || !absent {
                    self.tell(format!("the watchdog is not used: {why:#}; hint: the arbiter's user must be able to write to the device"));
                }
                Err(why)
            }
        }
    }

    /// Said once, until it changes.
    pub fn tell(&self, words: String) {
        let mut told = self.told.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if told.as_ref() != Some(&words) {
            tracing::warn!("{words}");
            *told = Some(words);
        }
    }

    /// What shows that this node lives.
    pub async fn feed(&self, config: &WatchdogConfig, ttl: Duration) -> Result<()> {
        let mut held = self.device.clone().lock_owned().await;
        let wanted = watchdog::timeout(ttl, config.safety_margin_s);
        tokio::task::spawn_blocking(move || {
            let Some(device) = held.as_mut() else { return Ok(()) };
            if let Some(wanted) = wanted.filter(|wanted| *wanted != device.wanted) {
                device.set(wanted)?;
                tracing::info!("watchdog {} now fires after {} s", device.name, device.fires_after.as_secs());
            }
            device.feed()
        })
        .await?
    }

    /// A primary is being made, for which it was armed.
    pub fn is_promoting(&self) -> bool {
        self.promoting.load(Ordering::Relaxed) > 0
    }

    /// Once more as it is, without a look at what it is set to: all the time there is, for the next arbiter to start.
    pub async fn feed_at_end(&self) {
        if let Some(device) = self.device.lock().await.as_mut() {
            let _ = device.feed();
        }
    }

    /// Tells the device to stop and closes it. No process is left that it would have to end.
    pub async fn disarm(&self) {
        if !self.is_armed() {
            return;
        }
        let mut held = self.device.clone().lock_owned().await;
        let disarmed = tokio::task::spawn_blocking(move || {
            let device = held.take();
            device.map(|mut device| {
                device.disarm();
                device.name.clone()
            })
        });
        if let Ok(Some(name)) = disarmed.await {
            tracing::info!("watchdog {name} disarmed");
        }
        self.armed.store(false, Ordering::Relaxed);
    }
}

fn too_short(ttl: Duration, config: &WatchdogConfig) -> String {
    format!(
        "a ttl of {} s less a safety_margin of {} s leaves the device less than {} s; hint: raise ttl or lower watchdog.safety_margin",
        ttl.as_secs(),
        config.safety_margin_s,
        watchdog::SHORTEST.as_secs()
    )
}

/// May this user write to the device? It is not opened.
fn usable(device: &Path) -> Result<(), String> {
    rustix::fs::access(device, rustix::fs::Access::WRITE_OK).map_err(|why| {
        format!("{}: {why}; hint: load its driver (modprobe softdog) and let the arbiter's user write to it", device.display())
    })
}
