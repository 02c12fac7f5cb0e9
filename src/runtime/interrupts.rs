//! What the process does at an interrupt, whoever has told it so: Python knows of no handler but its own.

/// The handler of SIGINT, with its flags.
#[cfg(unix)]
pub struct Handler(libc::sigaction);

#[cfg(unix)]
impl Handler {
    /// The one that there is.
    pub fn current() -> Self {
        // SAFETY: zeros are a `sigaction`, that of the default; the call writes it, and nothing where it fails.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGINT, std::ptr::null(), &raw mut action);
            Self(action)
        }
    }

    /// Makes it the process's again.
    pub fn install(&self) {
        // SAFETY: it is as the system gave it, and so was fit to be called.
        unsafe { libc::sigaction(libc::SIGINT, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Where nobody but the C library handles signals, which Python's handler is told to.
#[cfg(not(unix))]
pub struct Handler;

#[cfg(not(unix))]
impl Handler {
    pub fn current() -> Self {
        Self
    }

    pub fn install(&self) {}
}
