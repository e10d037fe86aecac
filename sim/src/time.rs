//! Simulated time: an executor of one thread whose tasks can be frozen and killed as processes are.
//!
//! Each task belongs to a process. A frozen process is not polled: what would have woken it is kept for
//! the thaw. A killed one is dropped at whatever `await` it was, as SIGKILL would have ended it there.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// What runs on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Postgres: postmaster, backends, walsenders.
    Server,
    /// The WAL receiver.
    Receiver,
    /// The lease worker.
    Worker,
    /// The arbiter.
    Arbiter,
    /// Nothing of the cluster's: clients, schedule.
    Outside,
}

/// A process: a part of a node.
pub type Process = (usize, Part);

pub(crate) type TaskId = u64;
type Body = Pin<Box<dyn Future<Output = ()>>>;

enum Due {
    Wake(TaskId),
    Act(Box<dyn FnOnce()>),
}

/// The clock and everything that waits for it.
#[derive(Default)]
pub struct Time {
    now: Cell<Duration>,
    sequence: Cell<u64>,
    queue: RefCell<BTreeMap<(Duration, u64), Due>>,
    ready: RefCell<VecDeque<TaskId>>,
    tasks: RefCell<BTreeMap<TaskId, (Process, Option<Body>)>>,
    frozen: RefCell<BTreeSet<Process>>,
    deferred: RefCell<BTreeSet<TaskId>>,
    running: Cell<TaskId>,
    /// Polls and messages so far.
    pub steps: Cell<u64>,
}

impl Time {
    /// True time.
    pub fn now(&self) -> Duration {
        self.now.get()
    }

    fn next(&self) -> u64 {
        self.sequence.set(self.sequence.get() + 1);
        self.sequence.get()
    }

    /// Does something at a moment, whichever processes live by then: a message that is under way.
    pub fn at(&self, moment: Duration, act: impl FnOnce() + 'static) {
        let key = (moment.max(self.now()), self.next());
        self.queue.borrow_mut().insert(key, Due::Act(Box::new(act)));
    }

    /// Starts a task of a process.
    pub fn spawn(&self, process: Process, body: impl Future<Output = ()> + 'static) -> TaskId {
        let id = self.next();
        self.tasks.borrow_mut().insert(id, (process, Some(Box::pin(body))));
        self.ready.borrow_mut().push_back(id);
        id
    }

    /// Ends one task.
    pub fn abort(&self, task: TaskId) {
        let dropped = self.tasks.borrow_mut().remove(&task);
        drop(dropped);
    }

    /// Ends every task of a process, except the one that runs now.
    pub fn kill(&self, process: Process) {
        let running = self.running.get();
        let doomed: Vec<TaskId> =
            self.tasks.borrow().iter().filter(|(id, (owner, _))| *owner == process && **id != running).map(|(id, _)| *id).collect();
        for task in doomed {
            self.abort(task);
        }
        self.frozen.borrow_mut().remove(&process);
    }

    /// Has the process a task that lives?
    pub fn lives(&self, process: Process) -> bool {
        self.tasks.borrow().values().any(|(owner, _)| *owner == process)
    }

    /// Drops everything that is still to come, and with it what it holds.
    pub fn forget(&self) {
        let queue = std::mem::take(&mut *self.queue.borrow_mut());
        drop(queue);
        let tasks = std::mem::take(&mut *self.tasks.borrow_mut());
        drop(tasks);
    }

    /// SIGSTOP.
    pub fn freeze(&self, process: Process) {
        self.frozen.borrow_mut().insert(process);
    }

    /// SIGCONT.
    pub fn thaw(&self, process: Process) {
        self.frozen.borrow_mut().remove(&process);
        let tasks = self.tasks.borrow();
        let mut deferred = self.deferred.borrow_mut();
        let due: Vec<TaskId> = deferred.iter().copied().filter(|id| tasks.get(id).is_none_or(|(owner, _)| *owner == process)).collect();
        for id in due {
            deferred.remove(&id);
            self.ready.borrow_mut().push_back(id);
        }
    }

    /// Is the process stopped by a signal?
    pub fn is_frozen(&self, process: Process) -> bool {
        self.frozen.borrow().contains(&process)
    }

    fn wake(&self, task: TaskId) {
        self.ready.borrow_mut().push_back(task);
    }

    /// Runs whatever is due until `end`, or until `stop` says so (asked after each step).
    pub fn run_until(&self, end: Duration, mut stop: impl FnMut() -> bool) {
        loop {
            while let Some(task) = { self.ready.borrow_mut().pop_front() } {
                self.poll(task);
                if stop() {
                    return;
                }
            }
            let Some((moment, _)) = self.queue.borrow().first_key_value().map(|(key, _)| *key) else { break };
            if moment > end {
                break;
            }
            let Some((_, due)) = self.queue.borrow_mut().pop_first() else { break };
            self.now.set(moment);
            match due {
                Due::Wake(task) => self.wake(task),
                Due::Act(act) => {
                    self.steps.set(self.steps.get() + 1);
                    act();
                    if stop() {
                        return;
                    }
                }
            }
        }
        self.now.set(self.now().max(end));
    }

    fn poll(&self, task: TaskId) {
        let body = match self.tasks.borrow_mut().get_mut(&task) {
            None => return,
            Some((owner, _)) if self.frozen.borrow().contains(owner) => {
                self.deferred.borrow_mut().insert(task);
                return;
            }
            Some((_, body)) => body.take(),
        };
        let Some(mut body) = body else { return };
        self.steps.set(self.steps.get() + 1);
        let before = self.running.replace(task);
        let done = body.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        self.running.set(before);
        if !done && let Some((_, slot)) = self.tasks.borrow_mut().get_mut(&task) {
            *slot = Some(body);
            return;
        }
        drop(self.tasks.borrow_mut().remove(&task));
        drop(body);
    }

    /// Waits until a moment.
    pub fn until(self: &Rc<Self>, moment: Duration) -> impl Future<Output = ()> + use<> {
        let time = self.clone();
        let mut asked = None;
        poll_fn(move |_| {
            if time.now() >= moment {
                return Poll::Ready(());
            }
            let me = time.running.get();
            if asked != Some(me) {
                asked = Some(me);
                let key = (moment, time.next());
                time.queue.borrow_mut().insert(key, Due::Wake(me));
            }
            Poll::Pending
        })
    }

    /// Waits for a span.
    pub fn sleep(self: &Rc<Self>, span: Duration) -> impl Future<Output = ()> + use<> {
        self.until(self.now().saturating_add(span.min(Duration::from_secs(1_000_000))))
    }

    /// The result, or None if it takes longer. What is there is taken before the time is looked at.
    pub async fn timeout<T>(self: &Rc<Self>, span: Duration, future: impl Future<Output = T>) -> Option<T> {
        match either(future, self.sleep(span)).await {
            First::Left(value) => Some(value),
            First::Right(()) => None,
        }
    }
}

/// Which of two came first.
pub enum First<A, B> {
    /// The first.
    Left(A),
    /// The second.
    Right(B),
}

/// Waits for the first of two; the left one is asked first.
pub async fn either<A, B>(left: impl Future<Output = A>, right: impl Future<Output = B>) -> First<A, B> {
    let mut left = pin!(left);
    let mut right = pin!(right);
    poll_fn(|context| {
        if let Poll::Ready(value) = left.as_mut().poll(context) {
            return Poll::Ready(First::Left(value));
        }
        right.as_mut().poll(context).map(First::Right)
    })
    .await
}

/// A "look again" signal: one permit, any number of waiters woken.
#[derive(Default)]
pub struct Signal {
    permit: Cell<bool>,
    waiting: RefCell<BTreeSet<TaskId>>,
}

impl Signal {
    /// Wakes who waits, or the next that will.
    pub fn notify(&self, time: &Time) {
        self.permit.set(true);
        for task in std::mem::take(&mut *self.waiting.borrow_mut()) {
            time.wake(task);
        }
    }

    /// Waits for the permit and takes it.
    pub fn notified<'a>(&'a self, time: &'a Time) -> impl Future<Output = ()> + 'a {
        poll_fn(move |_| {
            if self.permit.replace(false) {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().insert(time.running.get());
            Poll::Pending
        })
    }
}

/// Waits until a look says something; looked again after each [`Changes::tell`].
#[derive(Default)]
pub struct Changes(RefCell<BTreeSet<TaskId>>);

impl Changes {
    /// Something changed.
    pub fn tell(&self, time: &Time) {
        for task in std::mem::take(&mut *self.0.borrow_mut()) {
            time.wake(task);
        }
    }

    /// Waits until `look` gives something.
    pub fn wait<'a, T>(&'a self, time: &'a Time, mut look: impl FnMut() -> Option<T> + 'a) -> impl Future<Output = T> + 'a {
        poll_fn(move |_| {
            if let Some(found) = look() {
                return Poll::Ready(found);
            }
            self.0.borrow_mut().insert(time.running.get());
            Poll::Pending
        })
    }
}
