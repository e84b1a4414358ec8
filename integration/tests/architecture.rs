//! Imports between the files of a crate run one way.
//!
//! A file that imports from another one depends on it. In each crate these arrows form no cycle,
//! and in the crates with folders they run down the list of folders, never up. A `mod.rs` or
//! `lib.rs` that re-exports an item is looked through: the arrow ends at the file that defines the
//! item. Code in macros and in tests is not read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use syn::{Attribute, Item, UseTree, Visibility, visit::Visit};
use tempfile::TempDir;

/// The crates whose files are read, with the order of their top-level folders and files, from the
/// top to the bottom. An empty order allows every arrow that is part of no cycle.
const CRATES: [(&str, &[&str]); 9] = [
    ("leasehold-core", &CORE),
    ("leasehold", &[]),
    ("leasehold-cli", &[]),
    ("leasehold-testkit", &[]),
    ("leasehold-redis", &[]),
    ("leasehold-etcd", &[]),
    ("leasehold-zookeeper", &[]),
    ("leasehold-postgres", &[]),
    ("leasehold-local", &[]),
];

/// The folders and files of `leasehold-core`. A new one is added where its imports allow it.
const CORE: [&str; 24] = [
    // The public API of users.
    "once",
    "election",
    "lock",
    "client",
    "lease",
    "local_queue",
    // Backends made of other parts, and what the client reports about itself.
    "quorum",
    "session",
    "serde_impls",
    "telemetry",
    "context",
    // The contract.
    "backend",
    // The bottom: each of these is used by many.
    "signal",
    "panics",
    "runtime",
    "label",
    "url",
    "clock",
    "ttl",
    "mode",
    "fencing",
    "key",
    "error",
    "text",
];

/// A file of a crate, as far as its imports are concerned.
#[derive(Default)]
struct Module {
    /// The modules that it declares in files of their own.
    children: BTreeSet<String>,
    /// The names that it imports or re-exports, with their paths.
    imports: BTreeMap<String, Vec<String>>,
    /// The paths whose items are all imported.
    globs: Vec<Vec<String>>,
    /// The paths that it uses, other than by re-exporting.
    uses: BTreeSet<Vec<String>>,
}

/// The modules of one crate, each by its path from the root.
type Modules = BTreeMap<Vec<String>, Module>;

/// Reads the module in `file` and the modules below it, those for tests left out.
fn read(file: &Path, path: &[String], modules: &mut Modules) {
    let text =
        fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let source =
        syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let declares = ["lib.rs", "main.rs", "mod.rs"]
        .iter()
        .any(|name| file.ends_with(name));
    let folder = if declares {
        file.parent().unwrap().to_owned()
    } else {
        file.with_extension("")
    };
    let mut reader = Reader {
        module: Module::default(),
        path,
        declares,
        inline: 0,
    };
    for item in &source.items {
        reader.visit_item(item);
    }
    let module = reader.module;
    for child in &module.children {
        let nested = folder.join(child).join("mod.rs");
        let below = if nested.exists() {
            nested
        } else {
            folder.join(child).with_extension("rs")
        };
        read(
            &below,
            &[path, std::slice::from_ref(child)].concat(),
            modules,
        );
    }
    modules.insert(path.to_owned(), module);
}

/// Collects the imports of one file.
struct Reader<'a> {
    module: Module,
    path: &'a [String],
    /// Whether the file is one that declares modules and re-exports their items.
    declares: bool,
    /// How many modules within the file surround what is read.
    inline: usize,
}

impl Reader<'_> {
    /// Returns `segments` as a path from the root of the crate, or nothing for a path into another
    /// crate.
    fn absolute(&self, segments: &[String]) -> Option<Vec<String>> {
        let (first, rest) = segments.split_first()?;
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([self.path, rest].concat()),
            "super" => {
                let supers = segments.iter().take_while(|segment| *segment == "super");
                let supers = supers.count();
                let above = supers.saturating_sub(self.inline);
                let parent = self.path.len().checked_sub(above)?;
                Some([&self.path[..parent], &segments[supers..]].concat())
            }
            child if self.module.children.contains(child) => Some([self.path, segments].concat()),
            _ => None,
        }
    }

    /// Records the names that a `use` item brings in.
    fn flatten(&mut self, tree: &UseTree, before: &[String], exported: bool) {
        let with = |name: &syn::Ident| [before, &[name.to_string()]].concat();
        match tree {
            UseTree::Path(path) => self.flatten(&path.tree, &with(&path.ident), exported),
            UseTree::Group(group) => group
                .items
                .iter()
                .for_each(|tree| self.flatten(tree, before, exported)),
            UseTree::Name(name) if name.ident == "self" => {
                let alias = before.last().cloned().unwrap_or_default();
                self.import(&alias, before, exported);
            }
            UseTree::Name(name) => {
                self.import(&name.ident.to_string(), &with(&name.ident), exported);
            }
            UseTree::Rename(rename) => {
                self.import(&rename.rename.to_string(), &with(&rename.ident), exported);
            }
            UseTree::Glob(_) => {
                if let Some(path) = self.absolute(before) {
                    self.module.globs.push(path.clone());
                    if !exported {
                        self.module.uses.insert(path);
                    }
                }
            }
        }
    }

    /// Records one name and its path.
    fn import(&mut self, alias: &str, segments: &[String], exported: bool) {
        if let Some(path) = self.absolute(segments) {
            if !(exported && self.declares) {
                self.module.uses.insert(path.clone());
            }
            self.module.imports.insert(alias.to_owned(), path);
        }
    }
}

/// Returns whether an item exists in tests only.
fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<syn::Path>()
                    .is_ok_and(|condition| condition.is_ident("test"))
    })
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Mod(module) if is_for_tests(&module.attrs) => {}
            Item::Fn(function) if is_for_tests(&function.attrs) => {}
            Item::Mod(module) if module.content.is_none() => {
                self.module.children.insert(module.ident.to_string());
            }
            Item::Use(item) if is_for_tests(&item.attrs) => {}
            Item::Use(item) => {
                let exported = !matches!(item.vis, Visibility::Inherited);
                self.flatten(&item.tree, &[], exported);
            }
            Item::Mod(_) => {
                self.inline += 1;
                syn::visit::visit_item(self, item);
                self.inline -= 1;
            }
            item => syn::visit::visit_item(self, item),
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if ["crate", "self", "super"].contains(&segments[0].as_str()) && segments.len() > 1 {
            self.module.uses.extend(self.absolute(&segments));
        }
        syn::visit::visit_path(self, path);
    }
}

/// Returns the module whose file defines what `path` names; re-exports are looked through.
fn definition(modules: &Modules, path: &[String]) -> Vec<String> {
    let mut at: Vec<String> = Vec::new();
    for (index, segment) in path.iter().enumerate() {
        let module = &modules[&at];
        if module.children.contains(segment) {
            at.push(segment.clone());
            continue;
        }
        if let Some(target) = module.imports.get(segment)
            && target != path
        {
            return definition(modules, &[target.as_slice(), &path[index + 1..]].concat());
        }
        return at;
    }
    at
}

/// Returns the arrows between the files of a crate.
fn arrows(modules: &Modules) -> BTreeMap<&[String], BTreeSet<Vec<String>>> {
    let targets = |path: &Vec<String>, module: &Module| {
        let defined = module.uses.iter().map(|used| definition(modules, used));
        defined.filter(|target| target != path).collect()
    };
    modules
        .iter()
        .map(|(path, module)| (path.as_slice(), targets(path, module)))
        .collect()
}

/// Returns the arrows that are part of a cycle, as text.
fn cycles(arrows: &BTreeMap<&[String], BTreeSet<Vec<String>>>) -> Vec<String> {
    let reachable = |from: &[String]| {
        let mut seen: BTreeSet<&[String]> = BTreeSet::new();
        let mut open = vec![from];
        while let Some(next) = open.pop() {
            for target in &arrows[next] {
                if seen.insert(target) {
                    open.push(target);
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&[String], _> =
        arrows.keys().map(|path| (*path, reachable(path))).collect();
    let all = arrows
        .iter()
        .flat_map(|(from, targets)| targets.iter().map(move |to| (*from, to)));
    all.filter(|(from, to)| reached[to.as_slice()].contains(from))
        .map(|(from, to)| format!("{} -> {}", from.join("::"), to.join("::")))
        .collect()
}

/// Returns the arrows that run up the list of folders, as text.
fn upward(arrows: &BTreeMap<&[String], BTreeSet<Vec<String>>>, order: &[&str]) -> Vec<String> {
    let rank = |path: &[String]| {
        let folder = path.first().map_or("lib", String::as_str);
        let found = order.iter().position(|listed| *listed == folder);
        found.unwrap_or_else(|| panic!("the list of folders lacks `{folder}`"))
    };
    // The root of the crate declares the folders and is above all of them.
    let below = arrows.iter().filter(|(from, _)| !from.is_empty());
    let all = below.flat_map(|(from, targets)| targets.iter().map(move |to| (*from, to)));
    all.filter(|(from, to)| to.is_empty() || rank(to) < rank(from))
        .map(|(from, to)| format!("{} -> {}", from.join("::"), to.join("::")))
        .collect()
}

/// Reads the modules of a crate whose sources are in `folder`.
fn sources(folder: &Path) -> Modules {
    let root = ["lib.rs", "main.rs"].map(|file| folder.join(file));
    let root = root.into_iter().find(|file| file.exists()).unwrap();
    let mut modules = Modules::new();
    read(&root, &[], &mut modules);
    modules
}

fn crate_sources(name: &str) -> Modules {
    let crates = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../crates");
    sources(&crates.join(name).join("src"))
}

/// Writes the sources of a small crate.
fn write_crate(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (file, text) in files {
        let file = folder.path().join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    folder
}

#[test]
fn files_import_each_other_in_no_cycle() {
    let mut found = String::new();
    for (name, _) in CRATES {
        for cycle in cycles(&arrows(&crate_sources(name))) {
            found += &format!("{name}: {cycle}\n");
        }
    }
    assert!(
        found.is_empty(),
        "imports between files that are part of a cycle:\n{found}"
    );
}

#[test]
fn imports_run_down_the_list_of_folders() {
    for (name, order) in CRATES.iter().filter(|(_, order)| !order.is_empty()) {
        let modules = crate_sources(name);
        let arrows = arrows(&modules);
        assert!(arrows.len() > order.len(), "{name}: files were not read");
        let wrong = upward(&arrows, order).join("\n");
        assert!(wrong.is_empty(), "{name} has imports that run up:\n{wrong}");
    }
}

#[test]
fn a_cycle_through_a_reexport_is_found() {
    let folder = write_crate(&[
        ("lib.rs", "mod high; mod low; pub use high::top::Top;"),
        ("high/mod.rs", "mod side; pub mod top;"),
        ("high/side.rs", "pub struct Side;"),
        (
            "high/top.rs",
            "use crate::low::Low; pub struct Top(Low, super::side::Side);",
        ),
        ("low.rs", "pub struct Low; fn up(_: crate::Top) {}"),
    ]);
    let modules = sources(folder.path());
    let arrows = arrows(&modules);
    assert_eq!(cycles(&arrows), ["high::top -> low", "low -> high::top"]);
    assert_eq!(upward(&arrows, &["high", "low"]), ["low -> high::top"]);
}

#[test]
fn arrows_in_one_direction_are_no_cycle() {
    let folder = write_crate(&[
        ("lib.rs", "mod high; mod low; pub use low::Low;"),
        (
            "high.rs",
            "use crate::Low; pub struct High(Low); #[cfg(test)] mod tests { use super::High; }",
        ),
        (
            "low.rs",
            "pub struct Low; #[cfg(test)] mod tests { use crate::high::High; }",
        ),
    ]);
    let modules = sources(folder.path());
    let arrows = arrows(&modules);
    assert!(cycles(&arrows).is_empty());
    assert!(upward(&arrows, &["high", "low"]).is_empty());
    assert_eq!(upward(&arrows, &["low", "high"]), ["high -> low"]);
}
