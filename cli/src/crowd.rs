//! Many asked at one time.

use std::thread;

/// Does the same with each item, so many at one time; the results are in the order of the items.
pub(crate) fn at_once<T: Send, R: Send>(
    items: impl IntoIterator<Item = T>,
    limit: usize,
    each: impl Fn(usize, T) -> R + Sync,
) -> Vec<R> {
    let mut numbered: Vec<(usize, T)> = items.into_iter().enumerate().collect();
    let share = numbered.len().div_ceil(limit).max(1);
    thread::scope(|scope| {
        let mut running = Vec::new();
        while !numbered.is_empty() {
            let rest = numbered.split_off(share.min(numbered.len()));
            let mine = std::mem::replace(&mut numbered, rest);
            let each = &each;
            running.push(scope.spawn(move || {
                let done = mine.into_iter().map(|(n, item)| each(n, item));
                done.collect::<Vec<_>>()
            }));
        }
        let ended = running.into_iter().flat_map(|thread| match thread.join() {
            Ok(share) => share,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        ended.collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_done_and_in_order() {
        for count in [0, 1, 2, 3, 7, 100] {
            let done = at_once(0..count, 3, |n, item| (n, item * 2));
            let wanted: Vec<_> = (0..count).map(|n| (n, n * 2)).collect();
            assert_eq!(done, wanted);
        }
    }
}
