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

#[cfg(test)]
mod tests {
    #[test]
    fn what_was_freed_goes_back() {
        let resident = || -> usize {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').nth(1).unwrap().parse().unwrap()
        };
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
    }
}
