//! How many CPUs the process may use.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

/// The CPUs that the calling thread may use: those of its affinity, no more than the quota of its cgroup.
///
/// Reading the quota takes as long as a small kernel, so it is read again only when the affinity has changed.
pub fn available() -> usize {
    /// The size of the affinity in the upper half, what goes with it in the lower; 0 before the first call.
    static KNOWN: AtomicU64 = AtomicU64::new(0);
    let affinity = affinity();
    let known = KNOWN.load(Ordering::Relaxed);
    if known != 0 && known >> 32 == affinity {
        return (known & u64::from(u32::MAX)) as usize;
    }
    let available = available_parallelism().map_or(1, NonZero::get);
    KNOWN.store(affinity << 32 | available as u64, Ordering::Relaxed);
    available
}

/// To how many CPUs the calling thread is bound; 0 where that cannot be told.
#[cfg(target_os = "linux")]
fn affinity() -> u64 {
    // SAFETY: a `cpu_set_t` is an array of bits, of which zeros are the empty set; the call writes no more than the
    // size that it is told, and nothing where it fails.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set);
        libc::CPU_COUNT(&set) as u64
    }
}

#[cfg(not(target_os = "linux"))]
fn affinity() -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_what_the_standard_library_says() {
        for _ in 0..2 {
            assert_eq!(available(), available_parallelism().unwrap().get());
        }
    }
}
