//! Memory that is freed, and goes back to the kernel: in a process of its own, where no other test takes any meanwhile.

use hostnet::memory;

/// In pages of 4096 bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn what_was_freed_goes_back() {
    let mut blocks: Vec<Box<[u8; 1024]>> = (0..16 * 1024).map(|_| Box::new([1; 1024])).collect();
    // What lies above the freed ones keeps them from going by themselves.
    let last = blocks.pop();
    drop(blocks);
    let before = resident();
    memory::release();
    let pages = before.saturating_sub(resident());
    assert!(pages > 2048, "{pages} pages of 4096");
    drop(last);

    memory::map_large_blocks();
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
