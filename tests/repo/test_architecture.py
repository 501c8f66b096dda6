"""The areas of the program and the arrows between them, read from its imports."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from support.paths import ADDON
from support.processes import run

PACKAGE = "hubcache"
MAX_LINES = 400

# The areas that each area may import besides itself. Arrows point down: an area that is not named here does not exist.
WINGS = {
    "oci": set[str](),
    "decide": {"oci"},
    "store": {"oci", "decide"},
    "transfer": {"oci", "decide", "store"},
    "fleet": {"oci", "decide", "store", "transfer"},
    "serve": {"oci", "decide", "store", "transfer"},
    "setup": {"serve"},
    "operate": {"oci", "decide", "store", "serve", "setup"},
    "control": {"oci", "decide", "store", "transfer", "fleet", "serve", "operate"},
    "workers": {"oci", "store", "transfer", "serve", "operate"},
    "cli": {"oci", "operate", "control"},
    "clients": {"oci", "decide", "operate"},
    "mitm": {"oci", "decide", "transfer", "serve", "operate", "clients"},
    "direct": {"oci", "transfer", "serve", "operate", "clients", "mitm"},
}
TOP = {
    "housekeeping": {"oci", "store", "serve", "operate"},
    "rate_limit_reserve": {"oci", "transfer", "operate"},
    "fleet_builder": {"oci", "store", "transfer", "fleet", "serve", "operate"},
    "engine": {
        *("oci", "decide", "store", "transfer", "fleet", "serve", "setup", "operate", "control"),
        *("housekeeping", "rate_limit_reserve", "fleet_builder"),
    },
    "access_hooks": {"decide", "serve", "operate", "clients", "mitm"},
    "public_hooks": {"oci", "serve", "clients", "mitm"},
    "connection_hooks": {"serve", "operate", "clients", "mitm", "direct", "public_hooks"},
    "plugin": {"oci", "transfer", "serve", "operate", "workers", "mitm", "engine", "access_hooks"},
    "mitmproxy_commands": {"oci", "control", "mitm"},
    "shutdown": {"workers", "clients", "mitm", "engine"},
    "start_report": {"store", "operate"},
    "startup": {
        *("oci", "setup", "operate", "workers", "clients", "mitm", "engine"),
        *("access_hooks", "public_hooks", "connection_hooks", "plugin", "mitmproxy_commands", "shutdown"),
        "start_report",
    },
}
AREAS = WINGS | TOP
# Additional imports of single modules: metrics and the status report show the circuit breakers, the report also the
# running fills, and a report of its own the fleet.
ALLOWED = {
    ("hubcache.operate.fleet_report", "hubcache.fleet.fleet_status"),
    ("hubcache.operate.fleet_report", "hubcache.fleet.request_cost"),
    ("hubcache.operate.fleet_report", "hubcache.fleet.fleet_status"),
    ("hubcache.operate.metrics", "hubcache.transfer.breaker"),
    ("hubcache.operate.problems", "hubcache.transfer.breaker"),
    ("hubcache.operate.status_report", "hubcache.transfer.breaker"),
    ("hubcache.operate.status_report", "hubcache.transfer.fills"),
}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
PURE = ("oci", "decide")
IMPURE = {
    *("asyncio", "logging", "os", "pathlib", "random", "secrets", "select", "shutil", "signal", "socket", "sqlite3"),
    *("ssl", "subprocess", "tempfile", "threading", "time", "uuid", "http.client", "urllib.request"),
}
PURE_LIBRARIES = {"cachetools", "publicsuffixlist"}
READS_CODE = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "jsonpickle", "marshal", "shelve"}

LIBRARIES = ("mitmproxy", "OpenSSL")
# The modules that mitmproxy and pyOpenSSL document, and three undocumented modules of utilities.
DOCUMENTED = {
    *("mitmproxy.addonmanager", "mitmproxy.command", "mitmproxy.connection", "mitmproxy.contentviews", "mitmproxy.ctx"),
    *("mitmproxy.exceptions", "mitmproxy.flow"),
    *("mitmproxy.dns", "mitmproxy.http", "mitmproxy.options", "mitmproxy.tcp", "mitmproxy.tls", "mitmproxy.udp"),
    *("mitmproxy.utils.human", "mitmproxy.utils.typecheck", "mitmproxy.optmanager"),
    *("mitmproxy.version", "mitmproxy.proxy.layer", "mitmproxy.proxy.mode_specs", "mitmproxy.proxy.server_hooks"),
    "OpenSSL.SSL",
}
# Names without an underscore that mitmproxy does not document. `vars(x)["name"] = ...` sets an attribute without the
# check that an assignment would run.
UNDOCUMENTED = {"certstore", "lookup", "timeout_watchdog", "transports", "vars()[]"}

FILES = sorted(path for path in ADDON.rglob("*.py"))
MODULES = [path for path in FILES if path.is_relative_to(ADDON / PACKAGE)]


def dotted(path: Path) -> str:
    """`hubcache.oci.digest`; a package is called by its own name."""
    return ".".join(path.relative_to(ADDON).with_suffix("").parts).removesuffix(".__init__")


NAMES = {dotted(path) for path in MODULES}


def imports(path: Path) -> Iterator[str]:
    """Absolute names of the modules that a file imports, at its top or in functions."""
    own = dotted(path)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                yield submodule if submodule in NAMES or module == PACKAGE else module


def imported_names(path: Path, *, top: bool = False) -> Iterator[str]:
    """Full names that a file imports from libraries; with `top`, only those that it imports when it is itself
    imported."""
    tree = ast.parse(path.read_bytes())
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_at_the_top(path: Path) -> list[str]:
    """Modules of the package that are imported when the file itself is."""
    tree = ast.parse(path.read_bytes())
    inner = {id(node) for each in ast.walk(tree) if isinstance(each, FUNCTIONS) for node in ast.walk(each)}
    later = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and id(node) in inner
        for name in named(node, path)
    }
    return [name for name in imports(path) if inside(name) and name not in later]


def named(node: ast.ImportFrom, path: Path) -> set[str]:
    base = dotted(path).rpartition(".")[0].rsplit(".", node.level - 1)[0]
    module = ".".join(filter(None, (base, node.module)))
    return {module, *(f"{module}.{alias.name}" for alias in node.names)}


def is_internal(name: str) -> bool:
    """Whether an imported name of a library is not documented."""
    is_library = name.partition(".")[0] in LIBRARIES and name not in LIBRARIES
    return is_library and not any(f"{name}.".startswith(f"{each}.") for each in DOCUMENTED)


def used_names(path: Path) -> Iterator[str]:
    """Names of attributes that a file uses of any object, and `vars()[]` where it uses an item of `vars(object)`."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Call):
            function = node.value.func
            if isinstance(function, ast.Name) and function.id == "vars":
                yield "vars()[]"


def defined_names(path: Path) -> Iterator[str]:
    """Names that a file gives to functions, classes, and attributes of `self`."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id == "self":
                yield node.attr
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def area(name: str) -> str:
    """The wing, or the module at the top, that a module of the package is in; the package itself is in none."""
    return name.split(".")[1] if "." in name else ""


def inside(name: str) -> bool:
    return name == PACKAGE or name.startswith(f"{PACKAGE}.")


def third_party(name: str) -> bool:
    return not inside(name) and name.partition(".")[0] not in sys.stdlib_module_names


def importers(*roots: str) -> set[str]:
    """Modules that import any of these, or something below them."""
    return {
        dotted(path)
        for path in FILES
        for name in imports(path)
        if any(name == root or name.startswith(f"{root}.") for root in roots)
    }


def test_imports_finds_every_kind_of_import() -> None:
    plugin = set(imports(ADDON / PACKAGE / "plugin.py"))
    assert {"asyncio", "mitmproxy", "hubcache.engine", "hubcache.oci.errors", "hubcache.serve.messages"} <= plugin
    assert set(imports(ADDON / "cache.py")) == {"hubcache.startup"}


def test_every_module_is_in_an_area() -> None:
    assert {area(name) for name in NAMES} - {""} == set(AREAS)
    assert all((ADDON / PACKAGE / wing / "__init__.py").is_file() for wing in WINGS)
    assert not (ADDON / "__init__.py").exists(), "mitmproxy puts addon/ on sys.path; it is not a package"


def test_arrows_point_down() -> None:
    arrows = {(dotted(path), name) for path in MODULES for name in imports(path) if inside(name)}
    wrong = {
        f"{module} imports {name}"
        for module, name in arrows - ALLOWED
        if area(name) != area(module) and area(name) not in AREAS.get(area(module), set())
    }
    assert wrong == set()
    assert arrows >= ALLOWED, "an exception that is not needed any more"


def test_no_imports_form_a_cycle() -> None:
    graph = {dotted(path): [name for name in imports(path) if name in NAMES] for path in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(NAMES)


def test_oci_and_decide_have_no_side_effects() -> None:
    wrong = {
        f"{dotted(path)} imports {name}"
        for path in MODULES
        if area(dotted(path)) in PURE
        for name in imports(path)
        if (third_party(name) and name not in PURE_LIBRARIES) or name in IMPURE or name.partition(".")[0] in IMPURE
    }
    assert wrong == set()


def test_every_arrow_is_used() -> None:
    used = {(area(dotted(path)), area(name)) for path in MODULES for name in imports(path) if inside(name)}
    assert {(source, target) for source, targets in AREAS.items() for target in targets} - used == set()


def test_mitmproxy_is_imported_only_at_the_top() -> None:
    allowed = {"hubcache.operate.options", "worker"}
    assert {area(name) for name in importers("mitmproxy") - allowed} <= {"clients", "mitm", "direct", *TOP}


def test_internals_of_mitmproxy_and_pyopenssl_are_imported_in_one_wing() -> None:
    wrong = {
        f"{dotted(path)} imports {name}"
        for path in MODULES
        if area(dotted(path)) != "mitm"
        for name in imported_names(path)
        if is_internal(name)
    }
    assert wrong == set()


def test_private_names_of_others_are_used_in_one_wing() -> None:
    own = {name for path in FILES for name in defined_names(path)}
    wrong = {
        f"{dotted(path)} uses {name}"
        for path in MODULES
        if area(dotted(path)) != "mitm" and any(name.startswith(LIBRARIES) for name in imports(path))
        for name in used_names(path)
        if name in UNDOCUMENTED or (name.startswith("_") and not name.startswith("__") and name not in own)
    }
    assert wrong == set()


def test_used_names_finds_the_private_names_of_the_wing() -> None:
    used = {name for path in MODULES if area(dotted(path)) == "mitm" for name in used_names(path)}
    assert {"_servers", "_raise_ssl_error", "transports", "vars()[]"} <= used


def test_untested_versions_import_no_internals() -> None:
    """Modules that are loaded with an untested mitmproxy import only names that exist in any version."""
    reached, waiting = set[str](), ["hubcache.startup"]
    paths = {dotted(path): path for path in MODULES}
    while waiting:
        name = waiting.pop()
        if name in paths and name not in reached:
            reached.add(name)
            waiting += imported_at_the_top(paths[name])
    assert {"hubcache.plugin", "hubcache.public_hooks", "hubcache.mitm.compat"} <= reached
    wrong = {
        f"{module} imports {name}"
        for module in reached
        for name in imported_names(paths[module], top=True)
        if is_internal(name)
    }
    assert wrong == set()


def test_diskcache_is_imported_only_in_the_store() -> None:
    assert {area(name) for name in importers("diskcache")} == {"store"}


def test_client_of_object_stores_is_loaded_only_for_a_fleet() -> None:
    assert {area(name) for name in importers("obstore")} == {"fleet"}
    command = "import sys, hubcache.startup; print([name for name in sys.modules if name.startswith('obstore')])"
    assert run(sys.executable, "-c", command, cwd=ADDON).strip() == "[]"


def test_no_module_imports_pickle_or_its_like() -> None:
    assert importers(*READS_CODE) == set()


def test_files_are_short_and_have_docstrings() -> None:
    assert [path for path in FILES if len(path.read_text().splitlines()) > MAX_LINES] == []
    assert [path for path in FILES if not ast.get_docstring(ast.parse(path.read_bytes()))] == []
