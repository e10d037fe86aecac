//! The way from a log line to standard error: through a queue and a thread of its own, so that a reader that is gone, or that reads no
//! more, ends and delays nothing. Lines that the queue has no room for are counted, and the count is said once there is room again.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

/// So many lines may wait. A reader that stops for a moment (a terminal that is being scrolled, a busy collector) costs no line; one
/// that has gone costs at most this many lines of memory.
const ROOM: usize = 1000;

enum Item {
    Line(Vec<u8>),
    /// Everything before this was written: say so.
    Flush(SyncSender<()>),
}

/// Hands lines to the thread that writes them.
#[derive(Clone)]
pub struct Lines {
    queue: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Lines that end in `sink`; None where no thread can be had.
    pub fn to(sink: impl Write + Send + 'static) -> Option<Lines> {
        let (queue, lines) = mpsc::sync_channel(ROOM);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = lost.clone();
        let thread = std::thread::Builder::new().name("log".to_owned()).stack_size(128 * 1024);
        thread.spawn(move || write_all(sink, &lines, &counted)).ok()?;
        Some(Lines { queue, lost })
    }

    /// Waits until what was logged so far is written, but not longer than this.
    pub fn flush(&self, bound: Duration) {
        let (done, written) = mpsc::sync_channel(1);
        let queue = self.queue.clone();
        // Without room this waits for the reader, which may have stopped for a moment only: on a thread that ends with the process.
        let waits = std::thread::Builder::new().name("log flush".to_owned()).stack_size(64 * 1024);
        if waits.spawn(move || queue.send(Item::Flush(done)).is_ok()).is_ok() {
            let _ = written.recv_timeout(bound);
        }
    }
}

fn write_all(mut sink: impl Write, lines: &Receiver<Item>, lost: &AtomicU64) {
    // An error means that nobody reads: there is nobody to tell, and the next line may find a reader again.
    while let Ok(item) = lines.recv() {
        match item {
            Item::Line(line) => {
                let _ = sink.write_all(&line);
                let lost = lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    let _ = writeln!(sink, "{lost} lines of this log are missing here: its reader did not keep up");
                }
            }
            Item::Flush(done) => {
                let _ = sink.flush();
                let _ = done.try_send(());
            }
        }
    }
}

impl Write for Lines {
    /// Takes the whole line: the subscriber writes each event by one call.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Item::Line(line.to_vec())) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;

    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Instant;

    /// Fails as a pipe whose reader has gone.
    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    /// Blocks until the gate opens, as a pipe that nobody reads.
    struct Stuck(Arc<Mutex<()>>, Arc<Mutex<Vec<u8>>>);

    impl Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _open = self.0.lock().unwrap();
            self.1.lock().unwrap().extend_from_slice(line);
            Ok(line.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_is_gone_ends_nothing() {
        let mut lines = Lines::to(Gone).unwrap();
        for _ in 0..5 {
            lines.write_all(b"told\n").unwrap();
        }
        lines.flush(Duration::from_secs(5));
    }

    #[test]
    fn a_reader_that_reads_no_more_delays_nothing_and_hears_later_what_is_missing() {
        let (gate, written) = (Arc::new(Mutex::new(())), Arc::new(Mutex::new(Vec::new())));
        let shut = gate.lock().unwrap();
        let mut lines = Lines::to(Stuck(gate.clone(), written.clone())).unwrap();
        let began = Instant::now();
        for number in 0..ROOM + 500 {
            lines.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        lines.flush(Duration::from_millis(50));
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        drop(shut);
        lines.flush(Duration::from_secs(20));
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert!(text.starts_with("0\n"), "{text}");
        assert!(text.contains("lines of this log are missing here"), "{text}");
    }
}
