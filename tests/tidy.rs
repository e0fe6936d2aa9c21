//! The house's rules that a program can check: floors, headers, lengths, and documents that name what is there.

use std::fs;
use std::path::{Path, PathBuf};

/// The most lines a file may have before its tests.
const LINES_MAX: usize = 600;

/// Which module stands on which floor; a module may use those on lower floors only.
const FLOORS: [(&str, u8); 11] = [
    ("ids", 0),
    ("error", 0),
    ("config", 0),
    ("wire", 1),
    ("sql", 1),
    ("engine", 2),
    ("node", 3),
    ("cluster", 4),
    ("session", 5),
    ("http", 5),
    ("cli", 6),
];

/// Modules that decide and never do: no runtime, no sockets.
const PURE: [&str; 3] = ["wire", "sql", "engine"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files with this extension below a folder of the project, as paths from its root.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(
                    path.strip_prefix(root())
                        .expect("below the root")
                        .to_owned(),
                );
            }
        }
    }
    found.sort();
    found
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The code of a file without its comments and without the tests at its end.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text);
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(line))
        .collect();
    lines.join("\n")
}

fn is_test_file(path: &Path) -> bool {
    let name = path
        .file_stem()
        .and_then(|stem| stem.to_str())
        .unwrap_or("");
    name == "tests"
        || name.ends_with("_tests")
        || path.components().any(|part| part.as_os_str() == "tests")
}

/// `sql` of `src/sql/lexer.rs`, `config` of `src/config.rs`.
fn module(path: &Path) -> String {
    let part = path.components().nth(1).expect("below src");
    let name = part.as_os_str().to_str().expect("plain names");
    name.trim_end_matches(".rs").to_owned()
}

fn floor(module: &str) -> Option<u8> {
    FLOORS
        .iter()
        .find(|(name, _)| *name == module)
        .map(|(_, floor)| *floor)
}

/// The modules that a file names behind `crate::`.
fn used(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let names = rest.strip_prefix('{').map_or_else(
            || vec![rest],
            |list| list.split('}').next().unwrap_or("").split(',').collect(),
        );
        for name in names {
            let name = name.trim();
            let end = name
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(name.len());
            found.push(name[..end].to_owned());
        }
    }
    found
}

fn report(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn each_folder_uses_only_floors_below_it() {
    let mut faults = Vec::new();
    for path in files("src", "rs") {
        let own = module(&path);
        let Some(own_floor) = floor(&own) else {
            if !matches!(own.as_str(), "main" | "lib") {
                faults.push(format!("{}: which floor is {own} on?", path.display()));
            }
            continue;
        };
        for other in used(&code(&read(&path))) {
            let Some(other_floor) = floor(&other) else {
                continue; // A macro, or an item of the crate's root.
            };
            let ground = own_floor == 0 && other_floor == 0;
            if other != own && other_floor >= own_floor && !ground {
                faults.push(format!(
                    "{}: {own} (floor {own_floor}) uses {other} (floor {other_floor})",
                    path.display()
                ));
            }
        }
    }
    report(&faults);
}

#[test]
fn the_check_of_floors_sees_every_way_of_naming() {
    assert_eq!(
        used("use crate::sql::x; fn f() { crate::wire::g() }"),
        ["sql", "wire"]
    );
    assert_eq!(used("use crate::{sql::x, node};"), ["sql", "node"]);
    assert_eq!(
        used(&code("// crate::sql\nlet a = 1; // crate::wire\n")),
        [""; 0]
    );
}

#[test]
fn decisions_know_no_runtime_and_no_sockets() {
    let mut faults = Vec::new();
    for path in files("src", "rs") {
        if !PURE.contains(&module(&path).as_str()) || is_test_file(&path) {
            continue;
        }
        let code = code(&read(&path));
        for banned in [
            "tokio::",
            "std::net",
            "std::fs",
            "Instant::now",
            "SystemTime::now",
            "rand::",
        ] {
            if code.contains(banned) {
                faults.push(format!("{}: {banned}", path.display()));
            }
        }
    }
    report(&faults);
}

#[test]
fn every_file_says_what_it_is_and_is_short() {
    let mut faults = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for path in files(folder, "rs") {
            let text = read(&path);
            if !text.starts_with("//! ") {
                faults.push(format!("{}: does not begin with //!", path.display()));
            }
            let own = text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(&text);
            let lines = own.lines().count();
            if lines > LINES_MAX && !is_test_file(&path) {
                faults.push(format!(
                    "{}: {lines} lines before its tests",
                    path.display()
                ));
            }
        }
    }
    for path in files("src", "sql") {
        if !read(&path).starts_with("-- ") {
            faults.push(format!("{}: does not begin with --", path.display()));
        }
    }
    report(&faults);
}

#[test]
fn the_map_names_every_file() {
    let map = read("ARCHITECTURE.md");
    let mut faults = Vec::new();
    for path in [files("src", "rs"), files("src", "sql")].concat() {
        let name = path
            .strip_prefix("src")
            .expect("below src")
            .display()
            .to_string();
        if !map.contains(&format!("`{name}`")) && !is_test_file(&path) {
            faults.push(format!("ARCHITECTURE.md does not name `{name}`"));
        }
    }
    // And it names nothing that is gone.
    for name in map.split('`').skip(1).step_by(2) {
        let ending = Path::new(name).extension().and_then(|e| e.to_str());
        let is_source = matches!(ending, Some("rs" | "sql"));
        let there = root().join("src").join(name).is_file() || root().join(name).is_file();
        if is_source && !there {
            faults.push(format!(
                "ARCHITECTURE.md names `{name}`, which is not there"
            ));
        }
    }
    report(&faults);
}

#[test]
fn every_test_that_a_guarantee_names_exists() {
    let page = read("docs/guarantees.md");
    let mut faults = Vec::new();
    let mut count = 0;
    for name in page.split('`').skip(1).step_by(2) {
        let Some((file, test)) = name.split_once(".rs::") else {
            continue;
        };
        count += 1;
        let file = format!("{file}.rs");
        let there = fs::read_to_string(root().join(&file))
            .is_ok_and(|text| text.contains(&format!("fn {test}(")));
        if !there {
            faults.push(format!(
                "docs/guarantees.md names {name}, which is not there"
            ));
        }
    }
    assert!(count > 0, "docs/guarantees.md names no test");
    report(&faults);
}

#[test]
fn the_readme_names_only_targets_that_exist() {
    let makefile = read("Makefile");
    for document in ["README.md", "docs/guarantees.md", "ARCHITECTURE.md"] {
        for piece in read(document).split("`make ").skip(1) {
            let target: String = piece
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '-')
                .collect();
            assert!(
                makefile.contains(&format!("\n{target}: ")),
                "{document}: make {target}"
            );
        }
    }
}
