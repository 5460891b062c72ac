//! The page of examples says what is printed.

use std::fmt::Write as _;
use std::path::Path;

use clap::Parser as _;
use cli::args::{self, Args};

use crate::world::{World, run};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/twill.md");

/// What a command prints on the node, as a terminal would show it.
fn printed(world: &World, subnet_file: &Path, line: &str) -> String {
    let Some(rest) = line.strip_prefix("twill ") else {
        run(&world.node, line);
        return String::new();
    };
    let mut words = vec!["twill", "--offline", "--records"];
    let records = world.records.path().display().to_string();
    let subnet_file = subnet_file.display().to_string();
    words.extend([&*records, "--subnet-file", &*subnet_file]);
    words.extend(rest.split_whitespace());
    let parsed = Args::parse_from(words);
    let mut out = String::new();
    if let Err(error) = world.node.run(|| args::run(&parsed, &mut out)) {
        writeln!(out, "twill: {error:#}").unwrap();
    }
    out
}

#[test]
fn as_a_plugin_it_goes_by_the_name_that_kubectl_has_for_it() {
    let folder = tempfile::tempdir().unwrap();
    for (file, name) in [("twill", "twill"), ("kubectl-twill", "kubectl twill")] {
        let program = folder.path().join(file);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_twill"), &program).unwrap();
        let output = std::process::Command::new(program)
            .args(["trace", "--help"])
            .output();
        let told = String::from_utf8(output.unwrap().stdout).unwrap();
        assert!(told.contains(&format!("Usage: {name} trace ")), "{told}");
    }
}

#[test]
fn what_a_dump_is_made_of_is_told_to_programs_too() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("dump.tar.gz");
    let subnet_file = folder.path().join("none");
    let line = format!("twill support-dump {}", archive.display());
    let json = printed(&world, &subnet_file, &format!("{line} -o json"));
    let told: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(told["file"], archive.display().to_string());
    assert!(
        told["files"]["node/kernel.json"].as_u64() > Some(0),
        "{told}"
    );
    let missing = told["missing"].as_array().unwrap();
    assert!(
        missing.contains(&"objects: no API server is known".into()),
        "{told}"
    );
    assert!(archive.exists());
    let text = printed(&world, &subnet_file, &line);
    assert!(
        text.starts_with(&format!("{}\n", archive.display())),
        "{text}"
    );
    assert!(text.contains("  node/kernel.json\n"), "{text}");

    // Where kubectl is, there may be no right to this machine's kernel.
    let without = ["--bounding-set=-net_admin", "--inh-caps=-net_admin"];
    let program = env!("CARGO_BIN_EXE_twill");
    let file = archive.display().to_string();
    let words = [&without[..], &[program, "support-dump", &file, "--offline"]].concat();
    let text = world.node.sh("setpriv", &words);
    assert!(!text.contains("node/kernel.json"), "{text}");
    assert!(
        text.contains("not seen: this machine's kernel: cannot read nf_tables (this needs root)"),
        "{text}"
    );
    let line = format!("twill trace outside 10.244.2.5:80 --from-dump {file}");
    let text = printed(&world, &subnet_file, &line);
    assert!(text.contains("it was taken without root"), "{text}");
}

#[test]
fn the_page_of_examples_is_what_is_printed() {
    let world = World::new();
    let folder = tempfile::tempdir().unwrap();
    let subnet_file = folder.path().join("subnet.env");
    let subnets = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.2.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    #[expect(clippy::disallowed_methods, reason = "read after it is written")]
    std::fs::write(&subnet_file, subnets).unwrap();
    let page = std::fs::read_to_string(PAGE).unwrap();
    let mut true_page = String::new();
    let mut is_example = false;
    for line in page.lines() {
        if line.starts_with("```") {
            is_example = line == "```console";
        }
        let command = line.strip_prefix("# ").filter(|_| is_example);
        if !is_example || line.starts_with("```") || command.is_some() {
            writeln!(true_page, "{line}").unwrap();
        }
        if let Some(command) = command {
            true_page += &printed(&world, &subnet_file, command);
        }
    }
    if std::env::var_os("UPDATE").is_some() {
        #[expect(clippy::disallowed_methods, reason = "a person's checkout")]
        std::fs::write(PAGE, &true_page).unwrap();
    }
    assert!(
        page == true_page || std::env::var_os("UPDATE").is_some(),
        "docs/twill.md should be:\n{true_page}"
    );
}
