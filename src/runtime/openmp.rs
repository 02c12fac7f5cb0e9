//! torch's own threads, where torch runs on GNU OpenMP (its Linux wheels do).
//!
//! After each parallel region of torch, libgomp's workers spin for some milliseconds. A thread of ours would have to
//! share its core with one of them, which made the step of a 200k-element model slower on two threads (160 us) than
//! on one (70 us) inside a training loop; the spinning worker itself begins our work at once. Hence, once torch is
//! loaded, parallel work goes through libgomp's entry point for compiled `#pragma omp parallel` regions.

use std::ffi::{c_uint, c_void};
use std::sync::OnceLock;

/// `GOMP_parallel` of libgomp: calls the function on each thread of a team with the caller, then waits for all.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// The entry point, with the process that found it: libgomp does not survive a fork.
static PARALLEL: OnceLock<(u32, Parallel)> = OnceLock::new();

/// Uses libgomp from now on if the process has loaded it. Returns whether it has.
pub fn adopt() -> bool {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: looking up a name has no other effect.
        let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"GOMP_parallel".as_ptr()) };
        if !symbol.is_null() {
            // SAFETY: the function of this name has had this type since GCC 4.9.
            let parallel = unsafe { std::mem::transmute::<*mut c_void, Parallel>(symbol) };
            let _ = PARALLEL.set((std::process::id(), parallel));
        }
    }
    PARALLEL.get().is_some()
}

/// Calls `work` on the calling thread and up to `threads - 1` others and waits for all; false if there is no libgomp
/// to do it with.
pub fn run(threads: usize, work: &(dyn Fn() + Sync)) -> bool {
    extern "C" fn call(work: *mut c_void) {
        // SAFETY: `work` points to the reference below, alive until `GOMP_parallel` returns.
        unsafe { (*work.cast::<&(dyn Fn() + Sync)>())() }
    }
    match PARALLEL.get() {
        Some((process, parallel)) if *process == std::process::id() => {
            let mut work = work;
            // SAFETY: libgomp calls `call` with this pointer on its threads and returns when all have ended; `work`
            // is `Sync`, and its panics are caught within (see `Job::participate`).
            unsafe { parallel(call, (&raw mut work).cast(), threads as c_uint, 0) };
            true
        }
        _ => false,
    }
}
