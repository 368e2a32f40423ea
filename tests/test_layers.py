"""The map of modules in CONTRIBUTING.md holds: a module imports only from rows below its own."""

import ast
from pathlib import Path

import flora_hpc

PACKAGE = Path(flora_hpc.__file__).parent
ROWS = [  # from the top down; names on a row do not import each other
    ["__main__"],
    ["cli"],
    ["bench", "report"],
    ["api", "studies"],
    ["loop", "jobs"],
    ["resume", "forecast"],
    ["experiment"],
    ["building"],
    ["firstgradient"],
    ["round"],
    ["accuracy", "footprint", "groups", "parts", "personal"],
    ["setup"],
    ["identity", "shared", "versions"],
    ["embed", "evaluate", "checkpoint", "trainer", "groupsize", "cohort", "observers"],
    ["firststep", "memories", "rows", "tensorfile"],
    ["assembly"],
    ["misfits"],
    ["federation"],
    ["factors"],
    ["products"],
    ["productsums", "stacks", "pruning"],
    ["lowrank"],
    ["attackers", "roles", "tried"],
    ["algorithms", "attacks", "methods", "losses", "optimizers"],
    ["job", "rundir"],
    ["comm", "data", "clip", "records"],
    ["configfile"],
    ["configtree"],
    ["config", "configerrors"],
    ["plugins", "owner"],
    ["userparts", "bundled"],
    ["exact", "svd", "seeds", "screen", "spill", "strict", "yamltext", "extras"],
    ["errors", "filekinds"],
]
ROW = {name: number for number, row in enumerate(ROWS) for name in row}
NO_TORCH = [
    "config",
    "configfile",
    "configtree",
    "configerrors",
    "plugins",
    "userparts",
    "owner",
    "seeds",
    "screen",
    "spill",
    "errors",
    "extras",
    "strict",
    "yamltext",
    "filekinds",
    "cohort",
    "records",
]


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]


def test_contributing_has_these_rows() -> None:
    page = (PACKAGE.parent / "CONTRIBUTING.md").read_text().partition("## Where things are")[2]
    block = page.partition("\n    ")[2].partition("\n\n")[0]
    columns = [line.strip()[:54] if number == 0 else line[4:58] for number, line in enumerate(block.splitlines())]
    names = [name.strip(" /") for column in columns for name in column.split(",") if name.strip(" /")]
    for row in ROWS[1:]:
        row_names, names = names[: len(row)], names[len(row) :]
        assert set(row_names) == set(row)
    assert names == []


def test_every_module_is_on_the_map() -> None:
    assert {part(path) for path in MODULES} == set(ROW)


def test_modules_import_only_from_rows_below() -> None:
    wrong = []
    for path in MODULES:
        for name in imports(path):
            other = name.split(".")[1] if name.startswith("flora_hpc.") else None
            if other in ROW and other != part(path) and ROW[other] <= ROW[part(path)]:
                wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_the_bedrock_needs_neither_torch_nor_mpi() -> None:
    for path in MODULES:
        if part(path) in NO_TORCH:
            assert not {name.split(".")[0] for name in imports(path)} & {"torch", "mpi4py", "open_clip"}, path


def test_mpi_is_imported_only_when_a_backend_is_built() -> None:
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not any(name.split(".")[0] == "mpi4py" for name in names), path
