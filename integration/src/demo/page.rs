//! How the story is printed: chapters, commands as at a prompt, and lines that are true or not.
//! Coloured on a terminal, plain in a pipe.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Result;

/// Where the story goes, and how much of it was true.
pub struct Page {
    out: Box<dyn Write>,
    coloured: bool,
    chapter: usize,
    told: usize,
    wrong: usize,
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "31";
const GREEN: &str = "32";
const CYAN: &str = "36";

impl Page {
    /// Standard output.
    pub fn stdout() -> Page {
        let stdout = std::io::stdout();
        Page {
            coloured: stdout.is_terminal(),
            out: Box::new(stdout),
            chapter: 0,
            told: 0,
            wrong: 0,
        }
    }

    /// How many lines were told, and how many of them were wrong.
    pub fn score(&self) -> (usize, usize) {
        (self.told, self.wrong)
    }

    /// What stands above the first chapter.
    pub(super) fn title(&mut self, title: &str) -> Result<()> {
        let title = self.paint(BOLD, title);
        self.print(&format!("\n{title}"))
    }

    /// Begins a chapter.
    pub(super) fn chapter(&mut self, title: &str) -> Result<()> {
        self.chapter += 1;
        let title = self.paint(BOLD, &format!("{}. {title}", self.chapter));
        self.print(&format!("\n{title}"))
    }

    /// A sentence that explains.
    pub(super) fn say(&mut self, text: &str) -> Result<()> {
        let text = self.paint(DIM, text);
        self.print(&format!("   {text}"))
    }

    /// A command, as someone would type it there.
    pub(super) fn prompt(&mut self, place: &str, command: &str) -> Result<()> {
        let place = self.paint(CYAN, &format!("{place}#"));
        self.print(&format!("   {place} {command}"))
    }

    /// A line that is as it must be.
    pub(super) fn right(&mut self, line: &str) -> Result<()> {
        self.told += 1;
        let mark = self.paint(GREEN, "✓");
        self.print(&format!(" {mark}   {line}"))
    }

    /// A line that is not: what was wanted, and what there is instead.
    pub(super) fn wrong(&mut self, wanted: &str, found: &str) -> Result<()> {
        self.told += 1;
        self.wrong += 1;
        let mark = self.paint(RED, "✗");
        self.print(&format!(" {mark}   expected: {wanted}"))?;
        for line in found.lines() {
            let line = self.paint(RED, line);
            self.print(&format!("     | {line}"))?;
        }
        Ok(())
    }

    /// The end, and how long it took to get there.
    pub fn verdict(&mut self, took: Duration) -> Result<()> {
        let (told, wrong) = self.score();
        let verdict = match wrong {
            0 => self.paint(GREEN, &format!("All {told} lines are true")),
            _ => self.paint(RED, &format!("{wrong} of {told} lines are not true")),
        };
        self.print(&format!(
            "\n{verdict} ({:.1} s in all).",
            took.as_secs_f64()
        ))
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        match self.coloured {
            true => format!("\x1b[{colour}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn print(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.out, "{line}")?)
    }
}
