#!/usr/bin/env python3
"""Rewrites paths of implementors' names: `leasehold_core::Lease` -> `leasehold_core::backend::Lease`.

Run in the root of a checkout; can be run again (idempotent). Formats the files that it changed with rustfmt.
"""
import os, re, subprocess, sys

CONTRACT = set("""LockBackend Lease Attempt Contention Request LossSink Upkeep SessionId BoxFuture LiveDeadline async_trait
acquire_by_attempts LazyBackend""".split())
SUPPORT = set("""contained supervised DriverThread on_driver_thread check_runtime ReleaseState Trouble Patience Within
Elapsed""".split())
LOCAL_OWN = set("FileBackend FileConfig FileLease MemoryBackend MemoryLease".split())
ROOTS = "leasehold_core|leasehold_local|leasehold"

def items(text):
    out, depth, cur = [], 0, ""
    for ch in text:
        if ch == "," and depth == 0:
            out.append(cur.strip()); cur = ""; continue
        depth += (ch == "{") - (ch == "}")
        cur += ch
    out.append(cur.strip())
    return [i for i in out if i]

def head(item):
    return item.split(" as ")[0].strip()

def closing(s, i):
    d = 1
    while d:
        d += (s[i] == "{") - (s[i] == "}"); i += 1
    return i

def tree(root, its):
    contract, support, rest = [], [], []
    for it in its:
        if head(it) in CONTRACT: contract.append(it)
        elif head(it) in SUPPORT: support.append(it)
        elif it.startswith("backend::"):
            inner = it[len("backend::"):]
            inner = items(inner[1:-1]) if inner.startswith("{") else [inner]
            for i in inner:
                if i.startswith("support::"):
                    j = i[len("support::"):]
                    support += items(j[1:-1]) if j.startswith("{") else [j]
                else: contract.append(i)
        else: rest.append(it)
    def group(name, xs):
        return f"{name}::{xs[0]}" if len(xs) == 1 else f"{name}::{{{', '.join(xs)}}}"
    if support: contract.append(group("support", sorted(support)))
    if contract: rest.append(group("backend", contract))
    if len(rest) == 1: return f"use {root}::{rest[0]};"
    return f"use {root}::{{{', '.join(rest)}}};"

def uses(s):
    out, i = "", 0
    for m in iter(lambda: re.compile(rf"\buse ({ROOTS})::\{{").search(s, i), None):
        end = closing(s, m.end())
        if s[end:end+1] != ";":
            out += s[i:end]; i = end; continue
        body = s[m.end():end-1]
        if re.search(r"^\s*(//|#)", body, re.M):  # over several lines of a comment
            marks = set(re.findall(r"^\s*(?://[/!]|#) ?", body, re.M))
            body = re.sub(r"^\s*(?://[/!]|#) ?", "", body, flags=re.M)
        its = items(" ".join(body.split()))
        root = m.group(1)
        if root == "leasehold_local":
            own = [x for x in its if head(x) in LOCAL_OWN or head(x) == "self"]
            core = [x for x in its if x not in own]
            prefix = s[s.rfind("\n", 0, m.start())+1:m.start()]
            new = ""
            if core: new += tree("leasehold_core", core)
            if own:
                if new: new += "\n" + prefix
                new += f"use leasehold_local::{own[0]};" if len(own) == 1 else f"use leasehold_local::{{{', '.join(own)}}};"
        elif root == "leasehold" :
            new = tree(root, its)
        else: new = tree(root, its)
        out += s[i:m.start()] + new; i = end + 1
    return out + s[i:]

def paths(s, core):
    def path(m):
        root, name = m.group(1), m.group(2)
        if root == "leasehold_local":
            if name in LOCAL_OWN: return m.group(0)
            root = "leasehold_core"
        if name in CONTRACT: return f"{root}::backend::{name}"
        if name in SUPPORT: return f"{root}::backend::support::{name}"
        return f"{root}::{name}"
    s = re.sub(rf"\b({ROOTS})::([A-Za-z_]+)\b(?!::\{{)", lambda m: path(m) if (m.group(2) in CONTRACT | SUPPORT or
        (m.group(1) == "leasehold_local" and m.group(2) in ("Result", "Error", "ErrorKind"))) else m.group(0), s)
    if core:
        s = re.sub(r"\bcrate::([A-Za-z_]+)\b", lambda m: f"crate::backend::{m.group(1)}" if m.group(1) in CONTRACT
                   else f"crate::backend::support::{m.group(1)}" if m.group(1) in SUPPORT else m.group(0), s)
    return s

changed = []
for top in ("crates", "integration", "examples", "docs", "README.md"):
    for folder, _, files in (os.walk(top) if os.path.isdir(top) else [(".", [], [top])]):
        if "/target" in folder: continue
        for f in files:
            if not f.endswith((".rs", ".md")): continue
            p = os.path.join(folder, f)
            s = open(p).read()
            core = p.startswith("crates/leasehold-core/src/")
            t = paths(uses(s), core and not p.endswith(("src/lib.rs", "src/backend.rs")))
            if core and p.endswith("src/backend.rs"):
                t = s
            if t != s:
                open(p, "w").write(t); changed.append(p)
rs = [p for p in changed if p.endswith(".rs")]
print(len(changed), "files")
if rs:
    subprocess.run(["rustfmt", "--edition", "2024", "--config-path", "rustfmt.toml", "--config", "skip_children=true",
                    "--unstable-features"][:5] + rs, check=False)
