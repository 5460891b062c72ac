//! Memory of this process that it has freed, and the allocator keeps.

/// Gives it back to the kernel. After work that needed far more than what is left of it; takes milliseconds.
#[expect(unsafe_code, reason = "no crate wraps it")]
pub fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) touches nothing that is in use, and may be called by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has each block of this size or more be a mapping of its own, which goes back to the kernel when it is freed. By
/// itself the allocator raises that limit to what it sees freed, up to 32 MiB; and of the end of a thread's own heap
/// [`release`] gives nothing back. Once, at the start.
#[expect(unsafe_code, reason = "no crate wraps it")]
pub fn map_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) sets a number, under the allocator's lock.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// In bytes.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 256 << 10;

#[cfg(test)]
mod tests {
    /// In pages of 4096 bytes.
    fn resident() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn what_was_freed_goes_back() {
        let mut blocks: Vec<Box<[u8; 1024]>> =
            (0..16 * 1024).map(|_| Box::new([1; 1024])).collect();
        // What lies above the freed ones keeps them from going by themselves.
        let last = blocks.pop();
        drop(blocks);
        let before = resident();
        super::release();
        let pages = before.saturating_sub(resident());
        assert!(pages > 2048, "{pages} pages of 4096");
        drop(last);

        super::map_large_blocks();
        let kept = || {
            let before = resident();
            // By the second the allocator knows that there are such.
            for _ in 0..2 {
                drop(std::hint::black_box(vec![1_u8; 24 << 20]));
            }
            resident().saturating_sub(before)
        };
        // A thread has a heap of its own.
        let pages = std::thread::spawn(kept).join().unwrap();
        assert!(pages < 2048, "{pages} pages of 4096");
    }
}
