//! Memory of this process that it has freed, and the allocator keeps.

/// Gives it back to the kernel. After work that needed far more than what is left of it; takes milliseconds.
#[cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "no crate wraps it"))]
pub fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) touches nothing that is in use, and may be called by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has each block of this size or more be a mapping of its own, which goes back to the kernel when it is freed. By
/// itself the allocator raises that limit to what it sees freed, up to 32 MiB; and of the end of a thread's own heap
/// [`release`] gives nothing back. Once, at the start. What is smaller is reused: each mapping costs its pages anew.
#[cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "no crate wraps it"))]
pub fn map_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) sets a number, under the allocator's lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// In bytes.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 2 << 20;
