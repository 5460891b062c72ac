//! The random numbers of one run: each is tried with each outcome, like the digits of a counter.

/// The numbers drawn so far.
#[derive(Debug, Default)]
pub(super) struct Choices {
    taken: Vec<(usize, Vec<f64>)>,
    at: usize,
}

impl Choices {
    pub(super) fn restart(&mut self) {
        self.at = 0;
    }

    pub(super) fn choose(&mut self, weights: impl FnOnce() -> Vec<f64>) -> usize {
        if self.at == self.taken.len() {
            self.taken.push((0, weights()));
        }
        self.at += 1;
        self.taken[self.at - 1].0
    }

    pub(super) fn chance(&self) -> f64 {
        self.taken.iter().map(|(index, of)| of[*index]).product()
    }

    pub(super) fn next(&mut self) -> bool {
        while let Some((index, of)) = self.taken.last_mut() {
            *index += 1;
            if *index < of.len() {
                return true;
            }
            self.taken.pop();
        }
        false
    }
}
