//! Work spread over threads. The calling thread always takes part and never waits for a worker to wake up: it only
//! waits for work that a worker has begun. That matters because torch's OpenMP workers keep spinning after each of
//! torch's parallel regions, so a core for our worker may come late.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;

use arc_swap::ArcSwapOption;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::openmp;

/// How often the caller polls for the last workers before it sleeps: a few microseconds, the price of a sleep.
const POLLS: usize = 2_000;

/// Without a lock, because a `fork` could copy it in the locked state.
static POOL: ArcSwapOption<Pool> = ArcSwapOption::const_empty();

struct Pool {
    /// The process that the threads live in: a forked child has none of its parent's.
    process: u32,
    threads: ThreadPool,
}

/// Calls `work(i)` for every `i < count`, on the calling thread and up to `threads - 1` workers. Which thread takes
/// which index is not determined; the calls must not depend on it. Returns when all calls have ended.
pub fn for_each(threads: usize, count: usize, work: &(dyn Fn(usize) + Sync)) {
    let participants = threads.min(count);
    if participants <= 1 {
        (0..count).for_each(work);
        return;
    }
    // SAFETY: only the lifetime changes. `Job::participate` calls `work` only with an index below `count` that it
    // claimed, and `Job::wait` returns only when all `count` claimed calls have ended; later workers find no index.
    let work: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(work) };
    let job = Arc::new(Job::new(work, count, participants));
    if openmp::run(participants, &|| job.participate()) {
        return job.wait();
    }
    if let Some(pool) = workers(participants - 1) {
        for _ in 1..participants {
            let job = Arc::clone(&job);
            pool.threads.spawn(move || job.participate());
        }
    }
    job.participate();
    job.wait();
}

struct Job {
    work: &'static (dyn Fn(usize) + Sync),
    count: usize,
    /// A contiguous share of the indices for each participant. Whoever comes first takes the first, so that the same
    /// memory tends to meet the same core's cache from call to call; who has finished helps with the others' shares.
    shares: Box<[Share]>,
    arrived: AtomicUsize,
    ended: AtomicUsize,
    panicked: AtomicBool,
    caller: Thread,
}

/// On a cache line of its own.
#[repr(align(64))]
struct Share {
    next: AtomicUsize,
    end: usize,
}

impl Job {
    fn new(work: &'static (dyn Fn(usize) + Sync), count: usize, participants: usize) -> Job {
        let start = |i: usize| i * count / participants;
        let share = |i| Share {
            next: AtomicUsize::new(start(i)),
            end: start(i + 1),
        };
        Job {
            work,
            count,
            shares: (0..participants).map(share).collect(),
            arrived: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            caller: std::thread::current(),
        }
    }

    fn participate(&self) {
        // The caller takes the first share even if a worker was quicker.
        let is_caller = std::thread::current().id() == self.caller.id();
        let own = if is_caller {
            0
        } else {
            1 + self.arrived.fetch_add(1, Ordering::Relaxed)
        };
        for i in 0..self.shares.len() {
            self.finish(&self.shares[(own + i) % self.shares.len()]);
        }
    }

    fn finish(&self, share: &Share) {
        loop {
            let index = share.next.fetch_add(1, Ordering::Relaxed);
            if index >= share.end {
                return;
            }
            if catch_unwind(AssertUnwindSafe(|| (self.work)(index))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
            // Release: what this call wrote is visible to the caller once it has seen the count.
            if self.ended.fetch_add(1, Ordering::Release) + 1 == self.count {
                self.caller.unpark();
            }
        }
    }

    fn wait(&self) {
        let mut polls = 0;
        while self.ended.load(Ordering::Acquire) < self.count {
            if polls < POLLS {
                polls += 1;
                std::hint::spin_loop();
            } else {
                std::thread::park();
            }
        }
        assert!(!self.panicked.load(Ordering::Relaxed), "a kernel panicked");
    }
}

/// The pool of this process with at least `size` workers; none if the operating system refuses to start them.
fn workers(size: usize) -> Option<Arc<Pool>> {
    let process = std::process::id();
    if let Some(pool) = &*POOL.load()
        && pool.process == process
        && pool.threads.current_num_threads() >= size
    {
        return Some(Arc::clone(pool));
    }
    log::debug!("starting {size} worker thread(s) in process {process}");
    let threads = ThreadPoolBuilder::new()
        .num_threads(size)
        .thread_name(|i| format!("ferrostep-{i}"))
        .build()
        .inspect_err(|error| log::warn!("the calling thread works alone: {error}"))
        .ok()?;
    let pool = Arc::new(Pool { process, threads });
    if let Some(old) = POOL.swap(Some(Arc::clone(&pool)))
        && old.process != process
    {
        // Its threads live in the parent only: shutting it down would wait for locks that they may hold.
        std::mem::forget(old);
    }
    Some(pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_called_once_for_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            for count in [0, 1, 2, 7, 1000] {
                let calls: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
                for_each(threads, count, &|i| {
                    calls[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    calls.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {count} calls"
                );
            }
        }
    }

    #[test]
    fn calls_from_several_threads_at_once_do_not_mix() {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        for_each(3, 50, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 49 * 50 / 2);
                    }
                });
            }
        });
    }

    #[test]
    #[should_panic(expected = "a kernel panicked")]
    fn a_panic_reaches_the_caller_after_all_calls_ended() {
        for_each(2, 10, &|i| assert!(i != 3));
    }
}
