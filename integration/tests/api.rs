//! The public API of each published crate must match `docs/api/CRATE.txt`, and each public type
//! must have an example.
//!
//! The lists are generated from the sources, so no nightly toolchain is needed. Reviews see each
//! API change as a difference. To update the lists:
//!
//! ```console
//! $ LEASEHOLD_RENEW_API=1 cargo test -p leasehold-integration --test api
//! ```

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Expr, ExprLit, Fields, ImplItem, Item, Lit, Meta, TraitItem, Visibility};

const CRATES: [&str; 8] = [
    "leasehold",
    "leasehold-core",
    "leasehold-etcd",
    "leasehold-local",
    "leasehold-postgres",
    "leasehold-redis",
    "leasehold-testkit",
    "leasehold-zookeeper",
];

#[test]
fn public_api_is_what_its_snapshot_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let renew = std::env::var_os("LEASEHOLD_RENEW_API").is_some();
    let mut different = Vec::new();
    for name in CRATES {
        let list = Crate::read(&root.join("crates").join(name).join("src")).list();
        let path = root.join("docs/api").join(format!("{name}.txt"));
        if renew {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &list).unwrap();
        }
        let snapshot = fs::read_to_string(&path).unwrap_or_default();
        let (old, new): (BTreeSet<_>, BTreeSet<_>) =
            (snapshot.lines().collect(), list.lines().collect());
        different.extend(old.difference(&new).map(|line| format!("{name}: - {line}")));
        different.extend(new.difference(&old).map(|line| format!("{name}: + {line}")));
    }
    assert!(
        different.is_empty(),
        "the public API has changed; if that is meant, renew the lists with LEASEHOLD_RENEW_API=1:\n{}",
        different.join("\n")
    );
}

#[test]
fn each_public_type_has_an_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut without = Vec::new();
    for name in CRATES {
        let documented = Crate::read(&root.join("crates").join(name).join("src")).documented;
        assert!(!documented.is_empty(), "{name} has no public type");
        without.extend(
            without_example(&documented)
                .into_iter()
                .map(|of| format!("{name}: {of}")),
        );
    }
    assert!(
        without.is_empty(),
        "these types need an example in their docs, or a sentence `See [`OTHER`] for an example`:\n{}",
        without.join("\n")
    );
}

#[test]
fn type_without_an_example_is_found() {
    let types = [
        ("Shown", "A type.\n\n```\nlet a = 1;\n```"),
        (
            "Linked",
            "A type. See\n[`Shown`](super::Shown) for an example.",
        ),
        ("NotCompiled", "A type.\n\n```text\nlet a = 1;\n```"),
        ("Mentions", "A type like [`Shown`]."),
        ("LinkedToNone", "A type. See [`Mentions`] for an example."),
    ];
    let types = types.map(|(name, docs)| (name.to_owned(), docs.to_owned()));
    assert_eq!(
        without_example(&types),
        ["NotCompiled", "Mentions", "LinkedToNone"]
    );
}

/// Returns the types whose docs have neither a compiled code block nor a sentence that refers to
/// such docs of another type.
fn without_example(documented: &[(String, String)]) -> Vec<&str> {
    let shown: BTreeSet<_> = documented
        .iter()
        .filter(|(_, docs)| has_example(docs))
        .map(|(name, _)| name.as_str())
        .collect();
    documented
        .iter()
        .filter(|(name, docs)| {
            !shown.contains(name.as_str())
                && !referred_to(docs).is_some_and(|other| shown.contains(other.as_str()))
        })
        .map(|(name, _)| name.as_str())
        .collect()
}

fn has_example(docs: &str) -> bool {
    let mut fences = docs
        .lines()
        .filter_map(|line| line.trim().strip_prefix("```"));
    // Each opening fence is followed by a closing one.
    while let Some(info) = fences.next() {
        if ["", "no_run", "rust", "should_panic"].contains(&info) {
            return true;
        }
        fences.next();
    }
    false
}

/// Returns the type `T` of a sentence "See [`T`] for an example."
fn referred_to(docs: &str) -> Option<String> {
    let docs = docs.split_whitespace().collect::<Vec<_>>().join(" ");
    let (before, _) = docs.split_once(" for an example")?;
    let (_, link) = before.rsplit_once("See [`")?;
    link.split('`').next().map(str::to_owned)
}

/// The API lines of one crate. A `pub` item of a private module counts, because the lint
/// `unreachable_pub` guarantees that it is reachable.
#[derive(Default)]
struct Crate {
    lines: BTreeSet<String>,
    types: BTreeSet<String>,
    /// The name and the documentation of each public type, except those in hidden modules.
    documented: Vec<(String, String)>,
    /// Trait implementations, with their types.
    traits: Vec<(String, String)>,
}

impl Crate {
    fn read(src: &Path) -> Self {
        let mut this = Self::default();
        this.file(&src.join("lib.rs"), src, "");
        this
    }

    fn list(mut self) -> String {
        for (line, of) in &self.traits {
            if self.types.contains(of) {
                self.lines.insert(line.clone());
            }
        }
        self.lines.into_iter().map(|line| line + "\n").collect()
    }

    /// Adds the items of a file. `dir` is the folder of its modules; `path` names the module, if it
    /// is public.
    fn file(&mut self, file: &Path, dir: &Path, path: &str) {
        let text =
            fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let parsed =
            syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        self.items(&parsed.items, dir, path);
    }

    fn items(&mut self, items: &[Item], dir: &Path, path: &str) {
        for item in items {
            self.item(item, dir, path);
        }
    }

    fn item(&mut self, item: &Item, dir: &Path, path: &str) {
        match item {
            Item::Mod(module) if !is_for_tests(&module.attrs) => {
                let name = module.ident.to_string();
                let documented = self.documented.len();
                let path = match &module.vis {
                    Visibility::Public(_) => {
                        self.add(path, &module.attrs, &format!("pub mod {name}"));
                        format!("{path}{name}::")
                    }
                    _ => String::new(),
                };
                let inner = dir.join(&name);
                match &module.content {
                    Some((_, items)) => self.items(items, &inner, &path),
                    None => {
                        let files: [PathBuf; 2] =
                            [dir.join(format!("{name}.rs")), inner.join("mod.rs")];
                        if let Some(file) = files.iter().find(|file| file.is_file()) {
                            self.file(file, &inner, &path);
                        }
                    }
                }
                if is_hidden(&module.attrs) {
                    self.documented.truncate(documented);
                }
            }
            Item::Use(import) if is_public(&import.vis) => {
                for name in leaves(&import.tree) {
                    self.add(path, &import.attrs, &format!("pub use {name}"));
                }
            }
            Item::Fn(function) if is_public(&function.vis) => {
                self.add(
                    path,
                    &function.attrs,
                    &format!("pub {}", shown(&function.sig)),
                );
            }
            Item::Const(constant) if is_public(&constant.vis) => {
                self.add(
                    path,
                    &constant.attrs,
                    &format!("pub const {}: {}", constant.ident, shown(&constant.ty)),
                );
            }
            Item::Type(alias) if is_public(&alias.vis) => {
                let (name, of) = (&alias.ident, shown(&alias.ty));
                self.add(
                    path,
                    &alias.attrs,
                    &format!("pub type {name}{} = {of}", shown(&alias.generics)),
                );
            }
            Item::Struct(structure) if is_public(&structure.vis) => {
                let name = structure.ident.to_string();
                self.document(&name, &structure.attrs);
                self.add(
                    path,
                    &structure.attrs,
                    &format!("pub struct {name}{}", shown(&structure.generics)),
                );
                self.fields(&name, &structure.fields);
                self.types.insert(name);
            }
            Item::Enum(enumeration) if is_public(&enumeration.vis) => {
                let name = enumeration.ident.to_string();
                self.document(&name, &enumeration.attrs);
                self.add(
                    path,
                    &enumeration.attrs,
                    &format!("pub enum {name}{}", shown(&enumeration.generics)),
                );
                for variant in &enumeration.variants {
                    let fields = shown(&variant.fields);
                    self.add(
                        "",
                        &variant.attrs,
                        &format!("{name}::{}{fields}", variant.ident),
                    );
                }
                self.types.insert(name);
            }
            Item::Trait(contract) if is_public(&contract.vis) => {
                let name = contract.ident.to_string();
                self.document(&name, &contract.attrs);
                let bounds = shown(&contract.supertraits);
                self.add(
                    path,
                    &contract.attrs,
                    &format!("pub trait {name}{}: {bounds}", shown(&contract.generics)),
                );
                for item in &contract.items {
                    match item {
                        TraitItem::Fn(method) => {
                            let provided = if method.default.is_some() { " {}" } else { "" };
                            self.add(
                                "",
                                &method.attrs,
                                &format!("{name}::{}{provided}", shown(&method.sig)),
                            );
                        }
                        TraitItem::Type(of) => {
                            self.add(
                                "",
                                &of.attrs,
                                &format!("{name}::type {}: {}", of.ident, shown(&of.bounds)),
                            );
                        }
                        other => self.add("", &[], &format!("{name}::{}", shown(other))),
                    }
                }
            }
            Item::Impl(implementation) => self.implementation(implementation),
            Item::Macro(rules) => match &rules.ident {
                Some(name) => {
                    for signature in public_functions(rules.mac.tokens.clone()) {
                        self.lines.insert(format!("{name}!: {signature}"));
                    }
                }
                // Methods added to a type by a macro. Other macros add nothing public.
                None if rules
                    .mac
                    .path
                    .segments
                    .last()
                    .is_some_and(|last| last.ident.to_string().ends_with("_methods")) =>
                {
                    self.lines.insert(shown(&rules.mac));
                }
                None => {}
            },
            _ => {}
        }
    }

    fn implementation(&mut self, implementation: &syn::ItemImpl) {
        let of = shown(&implementation.self_ty);
        let bare = of.split('<').next().unwrap_or_default().trim().to_owned();
        let generics = shown(&implementation.generics);
        if let Some((_, of_trait, _)) = &implementation.trait_ {
            let line = format!("impl{generics} {} for {of}", shown(of_trait));
            self.traits.push((line, bare));
            return;
        }
        for item in &implementation.items {
            match item {
                ImplItem::Fn(method) if is_public(&method.vis) => {
                    self.add("", &method.attrs, &format!("{of}::{}", shown(&method.sig)));
                }
                ImplItem::Const(constant) if is_public(&constant.vis) => {
                    self.add(
                        "",
                        &constant.attrs,
                        &format!("{of}::const {}: {}", constant.ident, shown(&constant.ty)),
                    );
                }
                ImplItem::Macro(invocation) => {
                    self.lines
                        .insert(format!("{of}::{}", shown(&invocation.mac)));
                }
                _ => {}
            }
        }
    }

    fn fields(&mut self, of: &str, fields: &Fields) {
        for (at, field) in fields
            .iter()
            .enumerate()
            .filter(|(_, field)| is_public(&field.vis))
        {
            let name = field
                .ident
                .as_ref()
                .map_or_else(|| at.to_string(), ToString::to_string);
            self.add(
                "",
                &field.attrs,
                &format!("{of}.{name}: {}", shown(&field.ty)),
            );
        }
    }

    fn document(&mut self, name: &str, attributes: &[Attribute]) {
        if is_hidden(attributes) || is_for_tests(attributes) {
            return;
        }
        let lines = attributes.iter().filter_map(|attribute| {
            let Meta::NameValue(pair) = &attribute.meta else {
                return None;
            };
            match &pair.value {
                Expr::Lit(ExprLit {
                    lit: Lit::Str(text),
                    ..
                }) if pair.path.is_ident("doc") => Some(text.value() + "\n"),
                _ => None,
            }
        });
        self.documented.push((name.to_owned(), lines.collect()));
    }

    /// Adds a line, preceded by the attributes that users depend on.
    fn add(&mut self, path: &str, attributes: &[Attribute], text: &str) {
        let kept = attributes.iter().filter(|attribute| {
            ["cfg", "derive", "non_exhaustive", "deprecated"]
                .iter()
                .any(|kept| attribute.path().is_ident(kept))
        });
        let attributes: String = kept
            .map(|attribute| format!(" {}", shown(attribute)))
            .collect();
        self.lines.insert(format!("{path}{text}{attributes}"));
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_hidden(attributes: &[Attribute]) -> bool {
    attributes
        .iter()
        .any(|attribute| attribute.path().is_ident("doc") && shown(attribute).contains("(hidden)"))
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let condition = shown(attribute);
        attribute.path().is_ident("cfg")
            && (condition.contains("test") || condition.contains("fuzzing"))
    })
}

/// Returns the names that a `use` imports.
fn leaves(tree: &syn::UseTree) -> Vec<String> {
    match tree {
        syn::UseTree::Path(path) => leaves(&path.tree)
            .into_iter()
            .map(|leaf| format!("{}::{leaf}", path.ident))
            .collect(),
        syn::UseTree::Group(group) => group.items.iter().flat_map(leaves).collect(),
        other => vec![shown(other)],
    }
}

/// Returns the signatures of the public functions that a macro generates.
fn public_functions(tokens: TokenStream) -> Vec<String> {
    let (mut found, mut signature): (Vec<String>, Option<TokenStream>) = Default::default();
    for token in tokens {
        if let TokenTree::Group(group) = &token
            && group.delimiter() == Delimiter::Brace
        {
            found.extend(
                signature
                    .take()
                    .map(|signature| spaced(&signature.to_string()))
                    .filter(|text| text.contains("fn ")),
            );
            found.extend(public_functions(group.stream()));
            continue;
        }
        match (&token, &mut signature) {
            (TokenTree::Ident(ident), None) if ident == "pub" => {
                signature = Some(TokenStream::from(token));
            }
            (TokenTree::Group(group), Some(begun))
                if group.delimiter() == Delimiter::Parenthesis && begun.to_string() == "pub" =>
            {
                // `pub(crate)`.
                signature = None;
            }
            (_, Some(begun)) => begun.extend([token]),
            _ => {}
        }
    }
    found
}

fn shown(tokens: &impl ToTokens) -> String {
    spaced(&tokens.to_token_stream().to_string())
}

/// Removes spaces that the token printer adds.
fn spaced(text: &str) -> String {
    let mut text = text.replace('\n', " ");
    for (from, to) in [
        (" :: ", "::"),
        (":: ", "::"),
        (" < ", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" ,", ","),
        ("& ", "&"),
        (" ;", ";"),
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" :", ":"),
        (" !", "!"),
        (" [", "["),
        ("# [", "#["),
        (",>", ">"),
        (",)", ")"),
        ("->[", "-> ["),
        ("->(", "-> ("),
        ("$ ", "$"),
    ] {
        text = text.replace(from, to);
    }
    text.trim().to_owned()
}
