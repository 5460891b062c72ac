//! The files of a dump, as one tar.gz.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::Context as _;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use hostnet::atomic_file;

/// More than any dump is: what is larger is not read to its end.
const LARGEST: u64 = 1 << 30;

/// Files by their names.
#[derive(Clone, Debug, Default)]
pub struct Archive(BTreeMap<String, Vec<u8>>);

impl Archive {
    /// Puts a file in.
    pub fn add(&mut self, name: impl Into<String>, contents: impl Into<Vec<u8>>) {
        self.0.insert(name.into(), contents.into());
    }

    /// What a file holds.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.get(name).map(Vec::as_slice)
    }

    /// The files' names and sizes.
    pub fn files(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(name, of)| (name.as_str(), of.len()))
    }

    /// Reads one.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    pub fn read(path: &Path) -> anyhow::Result<Archive> {
        let wrong = || format!("cannot read {}", path.display());
        let file = File::open(path).with_context(wrong)?;
        let mut archive = Archive::default();
        let mut tar = tar::Archive::new(GzDecoder::new(file).take(LARGEST));
        for entry in tar.entries().with_context(wrong)? {
            let mut entry = entry.with_context(wrong)?;
            let name = entry.path().with_context(wrong)?.display().to_string();
            let mut contents = Vec::new();
            entry.read_to_end(&mut contents).with_context(wrong)?;
            archive.add(name, contents);
        }
        Ok(archive)
    }

    /// Writes it for its owner alone.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        for (name, contents) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o600);
            tar.append_data(&mut header, name, contents.as_slice())
                .with_context(|| format!("cannot pack {name}"))?;
        }
        let packed = tar.into_inner().and_then(GzEncoder::finish);
        let packed = packed.context("cannot pack")?;
        atomic_file::replace(path, &packed, 0o600)?;
        Ok(())
    }
}
