"""The house plan, held by a test: imports go down only, and nothing imports in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import app

ROOT = Path(app.__file__).parent

# From the ground up. A module belongs to the longest entry that its name begins with, and may import from its own
# layer and those below.
LAYERS = (
    (
        "app",
        "app.errors",
        "app.settings",
        "app.definitions",
        "app.identifiers",
        "app.child",
        "app.logs",
        "app.sharing",
        "app.tasks",
        "app.terminology",
        "app.coordination.codes",
    ),
    (
        "app.fhir_json",
        "app.meta",
        "app.layout",
        "app.embedded",
        "app.security.caller",
    ),
    ("app.fhir_xml", "app.summary", "app.element_tree", "app.element_steps", "app.element_path"),
    ("app.formats", "app.patch", "app.patch_value", "app.xml_patch"),
    (
        "app.validation",
        "app.mongo",
        "app.group_commit",
        "app.snapshot",
        "app.security",
        "app.search",
    ),
    ("app.versions", "app.runtime", "app.audit"),
    ("app.commit",),
    ("app.store", "app.revival", "app.fhirpath_patch"),
    (
        "app.exchange",
        "app.subscriptions",
        "app.routing",
        "app.consent",
        "app.coordination.clock",
        "app.reindexing",
        "app.security.access",
        "app.security.belonging",
        "app.security.candidates",
        "app.security.disclosure",
        "app.security.panel",
        "app.security.relations",
        "app.security.reserved",
        "app.security.view",
        "app.security.writing",
    ),
    ("app.context",),
    ("app.references", "app.resources"),
    ("app.write", "app.history", "app.bundle_references"),
    ("app.interactions", "app.audit.reading", "app.audit.recorder"),
    ("app.coordination", "app.proof"),
    ("app.bulk",),
    ("app.operations", "app.bundle"),
    ("app.capabilities", "app.published"),
    ("app.admin_contracts", "app.admin_clients"),
    ("app.limits", "app.websocket_limits"),
    ("app.router", "app.transport", "app.admin", "app.smart"),
    ("app.websocket",),
    ("app.main",),
    ("app.http_protocol", "app.websocket_protocol"),
    (
        "app.receiver",
        "app.load",
        "app.load_mend",
        "app.load_outcome",
        "app.load_plan",
        "app.load_report",
        "app.serve",
        "app.cli_database",
    ),
    ("app.demo_server",),
    ("app.demo_practices",),
    ("app.demo_story",),
    ("app.server_client",),
    ("app.demo",),
    ("app.deliveries_cli", "app.report_cli", "app.clients_cli", "app.audit_cli"),
    ("app.cli",),
)


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path, known: set[str]) -> Iterator[str]:
    """Modules of ours that are imported when this one is; not those for type checkers alone, nor inside functions."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in known else str(node.module)


def layer(module: str) -> int:
    found = [
        (len(name), height)
        for height, names in enumerate(LAYERS)
        for name in names
        if module == name or (name != "app" and module.startswith(name + "."))
    ]
    assert found, f"{module} has no layer: decide where it belongs"
    return max(found)[1]


def graph() -> dict[str, set[str]]:
    files = dict(modules())
    return {name: set(imports(path, set(files))) - {name} for name, path in files.items()}


def test_imports_go_down_only() -> None:
    upward = [
        f"{module} imports {other}"
        for module, others in graph().items()
        for other in sorted(others)
        if layer(other) > layer(module)
    ]
    assert upward == []


def test_nothing_imports_in_a_circle() -> None:
    edges = graph()
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in done:
            for other in sorted(edges[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())
